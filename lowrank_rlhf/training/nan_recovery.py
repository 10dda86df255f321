"""Recovery from NaN and infinity: skip the optimizer step, roll back once after three in a row, then give up."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lowrank_rlhf.errors import Diverged, Fault
from lowrank_rlhf.maths.sequences import Sequences
from lowrank_rlhf.models.base import Base
from lowrank_rlhf.models.storage import write_tensors
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import new_folder, write_json_atomic
from lowrank_rlhf.run.progress import Progress, StopRequest

MAX_IN_A_ROW = 3
"""One skipped step may be a bad batch; this many in a row mean bad weights or too high a learning rate."""
_BATCH = "batch.safetensors"


class RollBack(Exception):
    """Training must resume from its last checkpoint, at half the learning rate."""


@dataclass(frozen=True)
class SkipReport:
    """Reports of a stage's skipped steps and warnings: on the terminal, in events.jsonl, and the last one's batch."""

    stage: str
    learning_rates: str
    """Config keys of the learning rates, for the advice in an error."""
    run_dir: RunDir
    progress: Progress
    base: Base

    def skipped(self, step: int, problem: str, consequence: str) -> None:
        """Report the skipped part of a step and the reason."""
        self.progress.say(f"  {self.stage}: step {step}: {problem}; {consequence}")
        self.run_dir.event("skipped", stage=self.stage, step=step, problem=problem, what=consequence)

    def rolled_back(self, step: int, reason: str) -> None:
        """Report a return to the last checkpoint."""
        self.progress.say(
            f"  {self.stage}: {reason}: resuming from the last good checkpoint, at half the learning rate"
        )
        self.run_dir.event("rolled back", stage=self.stage, step=step)

    def warned(self, problem: str) -> None:
        """Report a setting that training works badly with."""
        self.progress.say(f"  {self.stage}: {problem}")
        self.run_dir.event("warning", stage=self.stage, problem=problem)

    def diverged(self, reason: str, batch: Sequences, tensors: Mapping[str, Tensor]) -> Diverged:
        """Save the batch and the tensors computed from it for inspection; return the error to raise."""
        folder = self._save(batch, tensors)
        text = (
            "{stage}: {reason}. Training stopped with all weights finite; the batch is in {folder}. Lower {rates}, or "
            "set model.compute_dtype: float32; then rerun with --redo {stage}"
        )
        values = {"stage": self.stage, "reason": reason, "folder": str(folder), "rates": self.learning_rates}
        return Diverged(Fault("diverged", text, **values))

    def _save(self, batch: Sequences, tensors: Mapping[str, Tensor]) -> Path:
        """Write the batch's tensors and texts to the run folder, where `--redo` does not delete them."""
        folder = self.run_dir.path / "not-finite" / self.stage
        tensors = {"ids": batch.ids, "attention": batch.attention, "response": batch.response, **tensors}
        rows = zip(batch.ids, batch.attention, batch.response, strict=True)
        decode = self.base.tokenizer.decode
        texts = [
            {"prompt": str(decode(ids[kept & ~response])), "response": str(decode(ids[response]))}
            for ids, kept, response in rows
        ]
        shutil.rmtree(folder, ignore_errors=True)
        with new_folder(folder) as new:
            write_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, new / _BATCH)
            write_json_atomic(new / "texts.json", {"schema": 1, "rows": texts})
        return folder


@dataclass
class NanRecovery:
    """Skipped steps of a stage so far; saved with its checkpoints."""

    in_a_row: int = 0
    """Skipped steps since the last completed one."""
    rate: float = 1.0
    """Share of the configured learning rates in use; below 1 after a roll-back."""

    def after_roll_back(self) -> "NanRecovery":
        """Return the state after a roll-back: half the rate, no skipped step."""
        return NanRecovery(rate=self.rate / 2)

    def complete(self) -> None:
        """Count a completed step."""
        self.in_a_row = 0

    def skip(
        self,
        report: SkipReport,
        step: int,
        problem: str,
        batch: Sequences,
        consequence: str = "the step is skipped",
        **tensors: Tensor,
    ) -> None:
        """Count and report a skipped step; `consequence` names the part that was skipped.

        Raises `RollBack` at the third one in a row. After a roll-back it raises `Diverged` instead, and saves the
        batch and the `tensors` that the step was computed from.
        """
        self.in_a_row += 1
        report.skipped(step, problem, consequence)
        if self.in_a_row < MAX_IN_A_ROW:
            return
        if self.rate < 1:
            before = MAX_IN_A_ROW - 1
            reason = f"step {step}: {problem}, as in the {before} steps before it, also at half the learning rate"
            raise report.diverged(reason, batch, tensors)
        report.rolled_back(step, f"{MAX_IN_A_ROW} skipped steps in a row")
        raise RollBack

    def save_if_stopped(self, stop: StopRequest, stage: str, save: Callable[[], None], position: str) -> None:
        """Save before a requested stop, unless the last steps were skipped. Raises `Stopped`.

        A roll-back would return to a checkpoint saved after skipped steps, so the previous one is kept instead:
        every step follows from weights and seed, so resuming from it repeats the same steps.
        """
        if self.in_a_row:
            stop.check(f"{stage} keeps its last checkpoint, from before the skipped steps")
        else:
            save()
            stop.check(f"{stage} is saved {position}")
