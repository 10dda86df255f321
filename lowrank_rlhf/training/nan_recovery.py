"""Steps whose numbers are NaN or infinite: skipped, and where they don't end, rolled back once and then given up."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lowrank_rlhf.errors import Diverged
from lowrank_rlhf.maths.sequences import Sequences
from lowrank_rlhf.models.storage import write_tensors
from lowrank_rlhf.run.directory import write_json_atomic
from lowrank_rlhf.run.files import new_folder
from lowrank_rlhf.session import Session

MOST_IN_A_ROW = 3
"""One bad batch says nothing; so many steps in a row say that the weights are bad, or the rate."""
_BATCH = "batch.safetensors"


class RollBack(Exception):
    """Training goes on from its last good checkpoint, at half the rate."""


@dataclass
class Breakdowns:
    """What a stage remembers of its skipped steps; saved with its checkpoints."""

    in_a_row: int = 0
    """Steps up to now that do not count as made, with none between them that does."""
    rate: float = 1.0
    """Share of the configured learning rates that is used; below 1 the stage was rolled back before."""

    def lowered(self) -> "Breakdowns":
        """As it is after a roll-back."""
        return Breakdowns(rate=self.rate / 2)

    def made(self) -> None:
        """A step was made."""
        self.in_a_row = 0

    def skipped(
        self,
        session: Session,
        stage: str,
        step: int,
        problem: str,
        batch: Sequences,
        what: str = "the step is skipped",
        **more: Tensor,
    ) -> None:
        """A step does not count as made, for the problem that it names.

        No weight has moved in it, unless `what` says that only some of PPO's turns were skipped: all those of a role.
        Raises `RollBack` at the third one in a row. The next time it raises `Diverged` instead, and keeps what the step
        was computed from: the batch, and `more` of the tensors.
        """
        self.in_a_row += 1
        tell_skipped(session, stage, step, problem, what)
        if self.in_a_row < MOST_IN_A_ROW:
            return
        if self.rate < 1:
            why = f"step {step}: {problem}. So had the {MOST_IN_A_ROW - 1} steps before it, at half the rate too"
            raise diverged(session, stage, why, batch, more)
        session.progress.say(f"  {stage}: {self.in_a_row} in a row: back to the last good checkpoint, at half the rate")
        session.run_dir.event("rolled back", stage=stage, step=step)
        raise RollBack

    def stopped(self, session: Session, stage: str, save: Callable[[], None], where: str) -> None:
        """Obey a stop: save everything and say where that is, unless the last steps were skipped.

        Those would become what a roll-back goes to. The last checkpoint is kept instead: each step follows from the
        weights and its seed, so that going on from there comes to the same steps. Raises `Stopped`.
        """
        if self.in_a_row:
            session.stop.check(f"{stage} keeps its last checkpoint, from before what was just skipped")
        else:
            save()
            session.stop.check(f"{stage} is saved {where}")


def tell_skipped(session: Session, stage: str, step: int, problem: str, what: str) -> None:
    """Say and note what of a step was skipped, and why."""
    session.progress.say(f"  {stage}: step {step}: {problem}; {what}")
    session.run_dir.event("skipped", stage=stage, step=step, problem=problem, what=what)


def diverged(session: Session, stage: str, why: str, batch: Sequences, more: Mapping[str, Tensor]) -> Diverged:
    """The error that ends the stage, with its last batch kept for inspection."""
    folder = _keep(session, stage, batch, more)
    rate = f"{stage}.learning_rate"
    if stage == "ppo":
        ours = session.config.align.algorithm == "ppo"
        rate = "ppo.learning_rate and ppo.critic_learning_rate" if ours else "align.learning_rate"
    return Diverged(
        f"{stage}: {why}. Training stopped before that could spoil a weight; the batch is in {folder}. Lower {rate}, "
        f"or set model.compute_dtype: float32 where it is not; then make the stage again with --redo {stage}"
    )


def _keep(session: Session, stage: str, batch: Sequences, more: Mapping[str, Tensor]) -> Path:
    """Write the batch's tensors and texts; into the run's folder, so that `--redo` leaves them there."""
    folder = session.run_dir.path / "not-finite" / stage
    tensors = {"ids": batch.ids, "attention": batch.attention, "response": batch.response, **more}
    rows = zip(batch.ids, batch.attention, batch.response, strict=True)
    decode = session.base.tokenizer.decode
    texts = [
        {"prompt": str(decode(ids[kept & ~response])), "response": str(decode(ids[response]))}
        for ids, kept, response in rows
    ]
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder) as new:
        write_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, new / _BATCH)
        write_json_atomic(new / "texts.json", {"schema": 1, "rows": texts})
    return folder
