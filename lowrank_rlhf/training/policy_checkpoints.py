"""State of policy training between steps, its checkpoints (PPO's also inside a step), and the policies that stay."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from lowrank_rlhf.config.ppo import PpoConfig
from lowrank_rlhf.errors import StageFailed
from lowrank_rlhf.maths.policy_choice import Evaluated
from lowrank_rlhf.maths.sequences import cut_minibatches
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.batch_limits import BatchLimits
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import load_optimizer, save_optimizer, save_role
from lowrank_rlhf.run.checkpoints import kept_steps, latest_checkpoint, save_checkpoint, step_name
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import read_record, sync, write_json_atomic
from lowrank_rlhf.run.results import Claim, ClaimId
from lowrank_rlhf.run.step_log import StepLog
from lowrank_rlhf.training.nan_recovery import NanRecovery
from lowrank_rlhf.training.ppo_update import OptimizerSteps
from lowrank_rlhf.training.rollout import Rollout
from lowrank_rlhf.training.rollout_file import load_rollout, save_rollout

Learners = Mapping[Role, Optimizer]
"""Roles that are trained, each with its optimizer."""

_STATE, _STEPS = "state.json", "optimizer_steps.json"
# names of version 0.1
_OLD_STEPS, _OLD_RECOVERY = "turns.json", "breakdowns"
_OLD_BEST = {"sft_eos_rate", "best_step", "best_objective"}


@dataclass
class PolicyState:
    """State carried from step to step besides weights and optimizers; saved with every checkpoint."""

    step: int = 0
    kl_coef: float = 0.0
    """PPO's weight of the KL penalty; an adaptive controller changes it."""
    sft_ended: list[bool] | None = None
    """True for each held-out answer of SFT that ended by itself; None until SFT is evaluated, before the first step."""
    best: Evaluated | None = None
    """Best policy so far (`policy_choice.choose`); its weights are in the folder `best`."""
    kept_step: int = 0
    """Step of the policy to keep: the best one's, or the last evaluated one's; 0 before the first evaluation."""
    claims: list[Claim] = field(default_factory=list)
    recovery: NanRecovery = field(default_factory=NanRecovery)


@dataclass
class StartedStep:
    """Progress inside the step after `PolicyState.step`; with weights and state it determines the rest of the step."""

    rollout: Rollout | None = None
    steps: OptimizerSteps = field(default_factory=OptimizerSteps)

    def cut_again(self, config: PpoConfig, limits: BatchLimits) -> None:
        """Cut the rollout into micro-batches within the limits, which have shrunk.

        Before any weight has moved the rollout is dropped and collected again instead: the first ratio is exactly 1
        only if old and new log-probabilities come from the same micro-batches.
        """
        if self.rollout and self.steps.done:
            lengths = self.rollout.batch.lengths()
            cut = cut_minibatches(lengths, config.minibatches, limits.tokens, limits.group.world_size)
            self.rollout = replace(self.rollout, cut=cut)
        else:
            self.rollout = None


@dataclass(frozen=True)
class PolicyCheckpoints:
    """Checkpoints of policy training in the stage's work folder."""

    folder: Path
    roles: Roles
    learners: Learners
    logs: Sequence[StepLog]
    """Logs whose rows after a checkpoint are written again when training resumes from it."""
    kl_coef: float
    """Weight of the KL penalty before the first step."""

    def save(self, state: PolicyState, started: StartedStep | None = None) -> None:
        """Save weights, optimizers and state, and the progress of a started step."""

        def write(folder: Path) -> None:
            for role, optimizer in self.learners.items():
                save_role(self.roles, role, folder / _name(role))
                save_optimizer(optimizer, folder / f"{_name(role)}-optimizer.safetensors")
            if state.best:
                shutil.copytree(self.folder / "best", folder / "best")
            if started and started.rollout:
                save_rollout(started.rollout, folder)
                write_json_atomic(folder / _STEPS, {"schema": 1, **vars(started.steps)})
            claims = [claim.model_dump() for claim in state.claims]
            write_json_atomic(folder / _STATE, {"schema": 1, **asdict(state), "claims": claims})

        save_checkpoint(self.folder, state.step, write)

    def resume(self) -> tuple[PolicyState, StartedStep]:
        """Load the last checkpoint, or start at step 0; drop log rows that will be written again."""
        state, started = PolicyState(kl_coef=self.kl_coef), StartedStep()
        if found := latest_checkpoint(self.folder):
            folder = found[1]
            for role, optimizer in self.learners.items():
                load_role(self.roles, role, folder / _name(role))
                load_optimizer(optimizer, folder / f"{_name(role)}-optimizer.safetensors")
            state = _read_state(folder / _STATE, with_critic=Role.CRITIC in self.learners)
            if state.best:  # the checkpoint's: the one in the work folder may be later, or incomplete
                shutil.copytree(folder / "best", self.folder / "best", dirs_exist_ok=True)
            steps = read_record(folder / _STEPS) or read_record(folder / _OLD_STEPS) or {}
            steps.pop("schema", None)
            started = StartedStep(load_rollout(self.roles, folder), OptimizerSteps(**steps))
        for log in self.logs:
            log.truncate("ppo", -1 if state.sft_ended is None else state.step)
        return state, started

    def roll_back(self, state: PolicyState) -> tuple[PolicyState, StartedStep]:
        """Load the last checkpoint and halve the learning rate."""
        recovery = state.recovery.after_roll_back()
        state, started = self.resume()
        state.recovery = recovery
        self.save(state, started)
        return state, started


def keep_step(roles: Roles, run_dir: RunDir, step: int, steps: int, every: int) -> None:
    """Save the policy now, at an evaluation, for the comparison of steps in a chat, if it is one of `kept_steps`."""
    if step not in kept_steps(steps, every):
        return
    folder = run_dir.work("ppo") / "adapters" / "policy-last" / step_name(step)
    unfinished = folder.with_name(f".{folder.name}")
    save_role(roles, Role.POLICY, unfinished)
    sync(unfinished)  # before the checkpoint of this step, from which training resumes without saving it again
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was rolled back
    unfinished.rename(folder)


def _name(role: Role) -> str:
    return role.name.lower()


def _read_state(path: Path, with_critic: bool) -> PolicyState:
    """Read a saved state. Raises `StageFailed` with the missing fields, if another version wrote it."""
    saved = _with_new_names(read_record(path) or {})
    names = [entry.name for entry in fields(PolicyState)]
    missing = [name for name in names if name not in saved]
    if saved.get("best") and not (path.parent / "best").is_dir():
        missing.append("best (folder)")
    if missing:
        raise StageFailed(
            f"ppo: {path}: {', '.join(missing)} not found: written by another version of lowrank_rlhf. Resume "
            "with that version, or restart the stage: --redo ppo"
        )
    claims = [Claim.model_validate(claim) for claim in saved["claims"]]
    if any(not claim.id for claim in claims):  # version 0.1 wrote no ids; the checks were always made in this order
        order: list[ClaimId] = ["kl_is_zero", "first_ratio_is_one" if with_critic else "reference_is_sft"]
        claims = [claim.model_copy(update={"id": id}) for id, claim in zip(order, claims, strict=False)]
    best = Evaluated(**saved["best"]) if saved["best"] else None
    values = {name: saved[name] for name in names}
    return PolicyState(**values | {"recovery": NanRecovery(**saved["recovery"]), "best": best, "claims": claims})


def _with_new_names(saved: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state of version 0.1 with the present names; it has means over the prompts only."""
    found = dict(saved)
    if _OLD_RECOVERY in saved:
        found["recovery"] = saved[_OLD_RECOVERY]
    if saved.keys() >= _OLD_BEST:
        step = found["kept_step"] = saved["best_step"]
        found["best"] = {"step": step, "objectives": [saved["best_objective"]], "ended": []} if step else None
        found["sft_ended"] = None if saved["sft_eos_rate"] is None else []
    return found
