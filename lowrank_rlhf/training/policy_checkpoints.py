"""What making the policy carries from step to step, and its checkpoints: PPO's anywhere inside a step, too."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from torch.optim import Optimizer

from lowrank_rlhf.config.ppo import PpoConfig
from lowrank_rlhf.errors import StageFailed
from lowrank_rlhf.maths.sequences import cut_minibatches
from lowrank_rlhf.models.batch_limits import BatchLimits
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.storage import load_optimizer, load_role, save_optimizer, save_role
from lowrank_rlhf.run.checkpoints import latest_checkpoint, save_checkpoint
from lowrank_rlhf.run.directory import read_record, write_json_atomic
from lowrank_rlhf.run.results import Claim, ClaimId
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.nan_recovery import Breakdowns
from lowrank_rlhf.training.ppo_update import Turns
from lowrank_rlhf.training.rollout import Rollout
from lowrank_rlhf.training.rollout_file import load_rollout, save_rollout

Learners = Mapping[Role, Optimizer]
"""The roles that are trained, each with its optimiser."""


@dataclass
class State:
    """What is carried from step to step besides weights and optimisers; saved with every checkpoint."""

    step: int = 0
    kl_coef: float = 0.0
    """PPO's weight of the KL penalty, which may move."""
    sft_eos_rate: float | None = None
    """None until SFT was evaluated, before the first step."""
    best_step: int = 0
    best_objective: float | None = None
    """With what endless answers took from it."""
    claims: list[Claim] = field(default_factory=list)
    breakdowns: Breakdowns = field(default_factory=Breakdowns)


@dataclass
class Begun:
    """How far the step after `State.step` has come; what follows depends on this, the weights and the state alone."""

    rollout: Rollout | None = None
    turns: Turns = field(default_factory=Turns)

    def cut_again(self, config: PpoConfig, limits: BatchLimits) -> None:
        """Micro-batches of as many tokens as the limits now allow, from here on.

        As long as no weight has moved the rollout is made anew: the first ratio is 1 only on the same micro-batches.
        """
        if self.rollout and self.turns.done:
            lengths = self.rollout.batch.lengths()
            cut = cut_minibatches(lengths, config.minibatches, limits.tokens, limits.group.world_size)
            self.rollout = replace(self.rollout, cut=cut)
        else:
            self.rollout = None


def save(session: Session, learners: Learners, state: State, begun: Begun | None = None) -> None:
    """Keep weights, optimisers and state, and of a step that was begun how far it came."""

    def write(folder: Path) -> None:
        for role, optimizer in learners.items():
            save_role(session.roles, role, folder / _name(role))
            save_optimizer(optimizer, folder / f"{_name(role)}-optimizer.safetensors")
        if state.best_step:
            shutil.copytree(session.work("ppo") / "best", folder / "best")
        if begun and begun.rollout:
            save_rollout(begun.rollout, folder)
            write_json_atomic(folder / "turns.json", {"schema": 1, **vars(begun.turns)})
        claims = [claim.model_dump() for claim in state.claims]
        write_json_atomic(folder / "state.json", {"schema": 1, **asdict(state), "claims": claims})

    save_checkpoint(session.work("ppo"), state.step, write)


def resume(session: Session, learners: Learners) -> tuple[State, Begun]:
    """From the last checkpoint, or from the beginning; rows of the logs that will be written again are dropped."""
    state, begun = State(kl_coef=session.config.ppo.kl_coef), Begun()
    if found := latest_checkpoint(session.work("ppo")):
        folder = found[1]
        for role, optimizer in learners.items():
            load_role(session.roles, role, folder / _name(role))
            load_optimizer(optimizer, folder / f"{_name(role)}-optimizer.safetensors")
        state = _read_state(folder / "state.json", with_critic=Role.CRITIC in learners)
        if state.best_step:  # as it was then: what stands in the work folder may be later, or cut short
            shutil.copytree(folder / "best", session.work("ppo") / "best", dirs_exist_ok=True)
        turns = read_record(folder / "turns.json") or {}
        turns.pop("schema", None)
        begun = Begun(load_rollout(session.roles, folder), Turns(**turns))
    for log in (session.run_dir.metrics, session.run_dir.watched):
        log.truncate("ppo", -1 if state.sft_eos_rate is None else state.step)
    return state, begun


def roll_back(session: Session, learners: Learners, state: State) -> tuple[State, Begun]:
    """From the last checkpoint, at half the rate."""
    lowered = state.breakdowns.lowered()
    state, begun = resume(session, learners)
    state.breakdowns = lowered
    save(session, learners, state, begun)
    return state, begun


def _name(role: Role) -> str:
    return role.name.lower()


def _read_state(path: Path, with_critic: bool) -> State:
    """What `save` wrote. Raises `StageFailed` with what is missing: another version of this package wrote it."""
    saved = read_record(path) or {}
    names = [entry.name for entry in fields(State)]
    missing = [name for name in names if name not in saved]
    if saved.get("best_step") and not (path.parent / "best").is_dir():
        missing.append("best policy beside it")
    if missing:
        raise StageFailed(
            f"ppo: {path} has no {', '.join(missing)}: another version of this package wrote it, and it cannot go on "
            "from there. Go on with that version, or make the stage again: --redo ppo"
        )
    found = {name: saved[name] for name in names}
    claims = [Claim.model_validate(claim) for claim in found["claims"]]
    if any(not claim.id for claim in claims):  # version 0.1 wrote no ids; the checks were always made in this order
        order: list[ClaimId] = ["kl_is_zero", "first_ratio_is_one" if with_critic else "reference_is_sft"]
        claims = [claim.model_copy(update={"id": id}) for id, claim in zip(order, claims, strict=False)]
    return State(**found | {"breakdowns": Breakdowns(**found["breakdowns"]), "claims": claims})
