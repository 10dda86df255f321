"""How much goes through the model at once: as configured, or halved where memory ran out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from lowrank_rlhf.errors import CannotFit
from lowrank_rlhf.models.allocator import release_freed_memory
from lowrank_rlhf.run.distributed import OutOfMemoryElsewhere, ProcessGroup

Result = TypeVar("Result")
_SAID_BY_CPU = ("can't allocate memory", "not enough memory")
"""What PyTorch's CPU allocator says in its RuntimeError."""


def ran_out(error: BaseException) -> bool:
    """True where an exception says that there was no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID_BY_CPU)


def first_line(error: BaseException) -> str:
    """An error's own words, short enough to stand inside of a sentence; its kind where it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__


@contextmanager
def nothing_to_halve(doing: str, what_helps: str) -> Iterator[None]:
    """Around what needs the same memory however little goes through the model. Raises `CannotFit` where it runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise CannotFit(f"out of memory {doing} ({first_line(error)}). {what_helps}") from None


@dataclass
class BatchLimits:
    """Limits that every cut into micro-batches obeys; they only ever shrink, in all processes that share the work."""

    tokens: int
    """Padded tokens of one micro-batch."""
    rows: int | None = None
    """The most answers that a process samples at once; None where nothing limits them but the config."""
    on_halved: Callable[[str], None] = lambda _: None
    """Called with a message when a limit was halved."""
    group: ProcessGroup = field(default_factory=ProcessGroup)

    def retry(self, attempt: Callable[[], Result], widest: int) -> Result:
        """What `attempt` returns; after a lack of memory it is called again, with half the tokens at once.

        It must leave nothing behind that a second call would add to. `widest` is the longest row (of what cannot be
        cut) in tokens: raises `CannotFit` where that alone is too much.
        """
        while True:
            try:
                return attempt()
            except (MemoryError, RuntimeError) as error:
                if not ran_out(error):
                    raise
                why = self.report(error)
            self.halve(widest, why)  # outside of `except`, whose traceback holds the tensors

    def report(self, error: BaseException) -> str:
        """Report a lack of memory to the other processes, which halve as well; return the error's first line."""
        if not isinstance(error, OutOfMemoryElsewhere):
            self.group.report_out_of_memory()
        return first_line(error)

    def halve(self, widest: int, why: str) -> None:
        """Half the tokens from now on. Raises `CannotFit` where a micro-batch is a single row already."""
        release_freed_memory()
        if self.tokens <= widest:
            raise CannotFit(
                f"out of memory with a single row of {widest} tokens in a micro-batch ({why}). Shorten the rows "
                "(model.max_length, sample.max_new_tokens), set model.gradient_checkpointing: true, or take a smaller "
                "model; the same command goes on from the last checkpoint"
            )
        self.tokens = max(1, self.tokens // 2)
        self.on_halved(f"out of memory ({why}): micro-batches of {self.tokens} tokens from here on")

    def halve_rows(self, prompts: int, why: str, answers_per_prompt: int) -> None:
        """Each process takes half as many prompts at once from now on. Raises `CannotFit` where it is one already."""
        release_freed_memory()
        if prompts == 1:
            raise CannotFit(
                f"out of memory with a single prompt's answers ({why}). Lower sample.max_new_tokens or "
                "sample.answers_per_prompt, or take a smaller model; the same command goes on from there"
            )
        self.rows = prompts // 2 * answers_per_prompt
        self.on_halved(f"out of memory ({why}): {self.rows} answers at once from here on")
