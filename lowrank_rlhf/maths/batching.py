"""Sizes of micro-batches as plain numbers. Imports no torch, so that the planner can use it."""


def rows_per_pass(batch_size: int, width: float, max_tokens: int) -> int:
    """Return the rows of one forward and backward pass of SFT: the largest divisor of the batch size that fits, or 1.

    Rows fit if they have at most `max_tokens` tokens when padded to `width`.
    """
    divisors = [rows for rows in range(1, batch_size + 1) if batch_size % rows == 0]
    return max((rows for rows in divisors if rows * width <= max_tokens), default=1)
