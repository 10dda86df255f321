"""Limits on batch sizes, halved when memory runs out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from lowrank_rlhf.errors import CannotFit, Fault
from lowrank_rlhf.models.allocator import release_freed_memory
from lowrank_rlhf.run.distributed import OutOfMemoryElsewhere, ProcessGroup

Result = TypeVar("Result")
_MESSAGES = ("can't allocate memory", "not enough memory", "MPS backend out of memory")
"""Fragments of error messages from PyTorch's allocators for CPUs and Apple GPUs, which raise a plain RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an exception means out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MESSAGES)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, shortened; its type if it has none."""
    return str(error).partition("\n")[0] or type(error).__name__


@contextmanager
def fatal_out_of_memory(activity: str, advice: str) -> Iterator[None]:
    """Raise `CannotFit` if memory runs out inside the block, where smaller batches would not help."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise CannotFit(f"out of memory {activity} ({first_line(error)}). {advice}") from None


@dataclass
class BatchLimits:
    """Limits for cutting batches into micro-batches. They only shrink, and equally in all processes."""

    tokens: int
    """Maximum number of tokens of a micro-batch, padding included."""
    rows: int | None = None
    """Maximum number of responses that a process samples at once; None for the config's batch size."""
    on_halved: Callable[[str], None] = lambda _: None
    """Called with a message after a limit was halved."""
    group: ProcessGroup = field(default_factory=ProcessGroup)

    def retry(self, attempt: Callable[[], Result], widest: int) -> Result:
        """Call `attempt` and return its result; if memory runs out, halve the tokens per micro-batch and call it again.

        `attempt` must be repeatable: an interrupted call must leave no partial results. `widest` is the number of
        tokens of the longest row; raises `CannotFit` if a micro-batch of that row alone does not fit.
        """
        while True:
            try:
                return attempt()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = self.report(error)
            self.halve(widest, reason)  # outside of `except`: the traceback keeps the tensors alive

    def report(self, error: BaseException) -> str:
        """Report the error to the other processes, which halve their limits too; return its first line."""
        if not isinstance(error, OutOfMemoryElsewhere):
            self.group.report_out_of_memory()
        return first_line(error)

    def halve(self, widest: int, reason: str) -> None:
        """Halve the tokens per micro-batch. Raises `CannotFit` if a micro-batch is a single row already."""
        release_freed_memory()
        if self.tokens <= widest:
            text = (
                "out of memory with a single row of {tokens} tokens in a micro-batch ({reason}). Shorten the rows "
                "(model.max_length, sample.max_new_tokens), set model.gradient_checkpointing: true, or choose a "
                "smaller model. The same command resumes from the last checkpoint"
            )
            raise CannotFit(Fault("out_of_memory", text, tokens=widest, reason=reason))
        self.tokens = max(1, self.tokens // 2)
        self.on_halved(f"out of memory ({reason}): micro-batches of {self.tokens} tokens from now on")

    def halve_rows(self, prompts: int, reason: str, answers_per_prompt: int) -> None:
        """Halve the prompts that each process samples at once. Raises `CannotFit` if it is one already."""
        release_freed_memory()
        if prompts == 1:
            text = (
                "out of memory with a single prompt's answers ({reason}). Lower sample.max_new_tokens or "
                "sample.answers_per_prompt, or choose a smaller model. The same command resumes the run"
            )
            raise CannotFit(Fault("out_of_memory_sampling", text, reason=reason))
        self.rows = prompts // 2 * answers_per_prompt
        self.on_halved(f"out of memory ({reason}): {self.rows} answers at once from now on")
