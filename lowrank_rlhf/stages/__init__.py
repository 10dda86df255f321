"""The six stages as data: what each reads, writes and depends on. Importing this package imports no torch.

sft -> sample -> rank -> reward -> ppo -> evaluate; each further round is the same stages without sft
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING

from lowrank_rlhf.config.rewards import weighted_sum
from lowrank_rlhf.config.schema import OF_REWARD_MODEL, Config
from lowrank_rlhf.run.results import StageResult
from lowrank_rlhf.run.results.rounds import SFT, SFT_ADAPTER, prefix, split

if TYPE_CHECKING:
    from lowrank_rlhf.session import Session


@dataclass(frozen=True)
class Stage:
    """Step of the pipeline: `run` in `lowrank_rlhf.stages.<module>`, by default `<kind>`.

    It writes its outputs into the stage's work folder and returns its result. Names of stages and files in later rounds
    begin with `round-2/`.
    """

    name: str
    does: str = field(compare=False)
    settings: tuple[str, ...]
    """Dotted config keys (sections or fields) that determine its result."""
    reads: tuple[str, ...] = field(compare=False)
    """Files and folders of the run that it reads, if they exist."""
    writes: tuple[str, ...] = field(compare=False)
    """Files and folders of the run that it writes."""
    shared: bool = field(default=True, compare=False)
    """True if several processes share its work; False if the main process runs it alone, as for stages that ask people
    or judges, who must answer (and be paid) once."""
    module: str = field(default="", compare=False)

    @property
    def round(self) -> int:
        """Round that the stage belongs to, from 1."""
        return split(self.name)[0]

    @property
    def kind(self) -> str:
        """Name of the stage without its round."""
        return split(self.name)[1]

    @property
    def outputs(self) -> list[str]:
        """Files and folders that it writes, as named in its work folder."""
        return [split(name)[1] for name in self.writes]

    @property
    def run(self) -> "Callable[[Session], StageResult]":
        """Function of the stage; its module, and with it torch, is imported here."""
        module = import_module(f"lowrank_rlhf.stages.{self.module or self.kind}")
        function: Callable[[Session], StageResult] = module.run
        return function


_SAMPLING = ("sample.max_new_tokens", "sample.temperature")
_JUDGE = ("rank.source", "rank.judge")
_MODEL = ("seed", "model", "lora", "data")
PACE = frozenset(
    f"rank.{name}"
    for name in (
        *("endpoint.requests_per_minute", "endpoint.timeout_seconds", "endpoint.max_attempts"),
        *("endpoint.api_key_variable", "shared", "repeated"),
        *("minimum_rankings", "checks", "guidelines", "quota", "deadline"),
    )
)
_PACE_OF_REWARD = ("timeout_seconds", "max_requests")


def is_pace(key: str) -> bool:
    """Return True for a setting that changes how results are fetched, not the results.

    It may change in the middle of a stage.
    """
    return key in PACE or (key.startswith("ppo.rewards.") and key.endswith(_PACE_OF_REWARD))


SCALE_PROMPTS = 64
"""Prompts that SFT answers in stage reward for the scores' mean and deviation, if the ranked answers are not SFT's."""

STAGES = (
    Stage("sft", "fine-tune on demonstrations", (*_MODEL, "sft"), (), ("adapters/sft",)),
    Stage("sample", "sample answers to rank", (*_MODEL, "sample"), ("adapters/sft",), ("samples.jsonl",)),
    Stage(
        "rank",
        "rank the answers, best to worst",
        ("seed", "data", "rank"),
        ("samples.jsonl",),
        ("prompts.jsonl", "answers.jsonl", "rankings.jsonl", "comparisons.jsonl"),
        shared=False,
    ),
    Stage(
        "reward",
        "train the reward model on the comparisons",
        (*_MODEL, *_SAMPLING, "reward", "evaluate.bootstrap_samples"),
        ("adapters/sft", "prompts.jsonl", "answers.jsonl", "rankings.jsonl", "comparisons.jsonl"),
        ("adapters/reward", "scores.jsonl"),
    ),
    Stage(
        "ppo",
        "train the policy with PPO",
        (*_MODEL, *_SAMPLING, *_JUDGE, "ppo", "align"),
        ("adapters/sft", "adapters/reward", "answers.jsonl", "scores.jsonl"),
        ("adapters/policy", "adapters/policy-last", "adapters/critic"),
    ),
    Stage(
        "evaluate",
        "compare SFT and policy on held-out prompts",
        (*_MODEL, *_SAMPLING, *_JUDGE, "rank.endpoint", "ppo", "evaluate"),
        ("adapters/sft", "adapters/reward", "adapters/policy"),
        ("eval.jsonl", "report.html", "report.md"),
        shared=False,
    ),
)


_OF_REWARD_MODEL = frozenset(name for entry in STAGES if entry.name in OF_REWARD_MODEL for name in entry.writes)
"""Files of the stages that serve the reward model alone."""


def made_by(entry: Stage, config: Config) -> Stage:
    """Return the stage of any round as the config makes it: with its algorithm (the name stays) and its rewards."""
    return in_round(_made_by(stage(entry.kind), config), entry.round)


def _made_by(entry: Stage, config: Config) -> Stage:
    """Return a stage of the first round as the config makes it.

    Without PPO there is no critic. TRL's trainers run in the main process alone: they would divide the work
    differently.
    """
    algorithm, rewards = config.align.algorithm, config.ppo.rewards
    if entry.name in ("ppo", "evaluate") and not config.ppo.uses_reward_model:
        entry = replace(entry, reads=tuple(name for name in entry.reads if name not in _OF_REWARD_MODEL))
    if entry.name != "ppo":
        return entry
    on_rewards = f" on {weighted_sum(rewards)}" if rewards else ""
    if algorithm == "ppo":
        return replace(entry, does=f"{entry.does}{on_rewards}")
    compared = ("prompts.jsonl", "rankings.jsonl", "comparisons.jsonl") if algorithm == "dpo" else ()
    return replace(
        entry,
        does=f"train the policy with {algorithm.upper()}{on_rewards}",
        reads=(*entry.reads, *compared),
        writes=("adapters/policy", "adapters/policy-last"),
        shared=False,
        module="align",
    )


_RANKED = frozenset(("prompts.jsonl", "answers.jsonl", "rankings.jsonl", "comparisons.jsonl"))
"""Files of which a later round reads those of all rounds so far."""
_OF_LAST_ROUND = {"sample": "adapters/policy", "reward": "adapters/reward", "ppo": "adapters/policy"}
"""Adapter of the last round that a stage of a later one reads."""


def in_round(entry: Stage, number: int) -> Stage:
    """Return a stage of the first round as it is in another one."""
    if number == 1:
        return entry

    def named(name: str) -> tuple[str, ...]:
        first = 1 if name in _RANKED else number
        return (name,) if name == SFT_ADAPTER else tuple(f"{prefix(each)}{name}" for each in range(first, number + 1))

    before = (f"{prefix(number - 1)}{_OF_LAST_ROUND[entry.name]}",) if entry.name in _OF_LAST_ROUND else ()
    return replace(
        entry,
        name=f"{prefix(number)}{entry.name}",
        reads=(*(read for name in entry.reads for read in named(name)), *before),
        writes=tuple(f"{prefix(number)}{name}" for name in entry.writes),
    )


def of_rounds(count: int) -> Iterator[Stage]:
    """Yield all stages of the first `count` rounds in order."""
    for number in range(1, count + 1):
        yield from (in_round(entry, number) for entry in STAGES if number == 1 or entry.name != SFT)


def stage(name: str) -> Stage:
    """Return the stage of that name."""
    return next(entry for entry in STAGES if entry.name == name)
