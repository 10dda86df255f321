"""Models of a run that can answer in a chat: the base, the SFT model, and every policy that the run has kept.

No torch.
"""

import re
from pathlib import Path
from typing import Literal, NamedTuple

from lowrank_rlhf.run.checkpoints import check_checkpoint, checkpoints
from lowrank_rlhf.run.directory import RunDir, check_adapter
from lowrank_rlhf.run.results.rounds import prefix, split

MAIN = ("base", "sft", "policy")
"""Models that `all` stands for, in the order of their training."""
_LAST = "adapters/policy-last"
_STEP, _ROUND = re.compile(r"step-(\d+)"), re.compile(r"round-(\d+)")


class SpeakerName(NamedTuple):
    """Meaning of a name in `speakers`."""

    kind: Literal["base", "sft", "policy", "policy_last", "round", "step"]
    round: int = 1
    step: int = 0


_PLAIN = {
    "base": SpeakerName("base"),
    "sft": SpeakerName("sft"),
    "policy": SpeakerName("policy"),
    "policy-last": SpeakerName("policy_last"),
}


def speaker_name(name: str) -> SpeakerName:
    """Return what a name in `speakers` means. Raises KeyError for another text."""
    number, plain = split(name)
    if found := _STEP.fullmatch(plain):
        return SpeakerName("step", number, int(found[1]))
    if found := _ROUND.fullmatch(name):
        return SpeakerName("round", int(found[1]))
    return _PLAIN[name]


def speakers(run: Path) -> dict[str, Path | None]:
    """Return the adapter folder of each model by its name; None for the base.

    `policy` is the newest round's, `policy-last` the same round's at its last step, `round-1` the policy of an earlier
    round. `step-40` is a policy during training, `round-2/step-40` one of a later round's: of a finished stage those of
    `kept_steps`, of an unfinished one also the last two checkpoints.
    """
    run_dir = RunDir(run)
    newest, latest = run_dir.newest, run_dir.rounds[-1]
    found = {"sft": newest.artifact("adapters/sft")}
    for earlier in run_dir.rounds[: newest.number - 1]:
        found[f"round-{earlier.number}"] = earlier.artifact("adapters/policy")
    found |= {name: newest.artifact(f"adapters/{name}") for name in ("policy", "policy-last")}
    for each, last in ((newest, newest.artifact(_LAST)), (latest, latest.work_path("ppo") / _LAST)):
        found |= {f"{prefix(each.number)}step-{step}": folder for step, folder in checkpoints(last)}
    for step, folder in checkpoints(latest.work_path("ppo")):
        found[f"{prefix(latest.number)}step-{step}"] = folder / "policy"
    return {"base": None, **{name: folder for name, folder in found.items() if folder.is_dir()}}


def check_speaker(adapter: Path) -> None:
    """Raise `UserError` if an adapter was damaged after it was written."""
    check_adapter(adapter)
    if _STEP.fullmatch(adapter.parent.name):
        check_checkpoint(adapter.parent)
