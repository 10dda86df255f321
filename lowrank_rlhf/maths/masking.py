"""Means and variances over the response tokens only, without padding."""

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Return the sum over True positions, per row: (B, T), (B, T) bool -> (B,)."""
    return torch.where(mask, values, 0.0).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over all True positions of the batch, a scalar; 0 if there are none."""
    return masked_sum(values, mask).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale values to variance 1 over True positions, and to mean 0 unless `shift_mean` is False; 0 elsewhere.

    The variance is the unbiased one, as in InstructGPT's code ("The N+ implementation details", detail 18).
    """
    mean = masked_mean(values, mask)
    count = mask.sum()
    variance = masked_sum((values - mean) ** 2, mask).sum() / (count - 1).clamp(min=1)
    scaled = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, scaled if shift_mean else scaled + mean, 0.0)


def last_true(mask: Tensor) -> Tensor:
    """Return the position of each row's last True, -1 if it has none: (B, T) bool -> (B,) int64."""
    positions = torch.arange(mask.shape[-1], device=mask.device)
    return torch.where(mask, positions, -1).amax(-1)


def pool(values: Tensor, response: Tensor, pooling: str) -> Tensor:
    """Pool the entries of each row into one: (B, T, ...), (B, T) bool -> (B, ...).

    `last` reads the last response token, the EOS of a finished answer; `mean` averages over the response.
    """
    if pooling == "last":
        return values[torch.arange(len(values), device=values.device), last_true(response)]
    if pooling == "mean":
        weights = response / response.sum(-1, keepdim=True)
        return torch.einsum("bt...,bt->b...", values, weights.to(values.dtype))
    raise ValueError(f"unknown pooling {pooling!r}")


def running_pool(values: Tensor, response: Tensor, pooling: str) -> Tensor:
    """Pool each row's values over the response up to each token: (B, T), (B, T) bool -> (B, T).

    At the last response token this is `pool`. Outside the response, `last` gives the value itself and `mean` 0.
    """
    if pooling == "last":
        return values
    if pooling == "mean":
        return torch.where(
            response, torch.where(response, values, 0.0).cumsum(-1) / response.cumsum(-1).clamp(min=1), 0.0
        )
    raise ValueError(f"unknown pooling {pooling!r}")
