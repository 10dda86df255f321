"""Open the rewards of `ppo.rewards` that need no model."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lowrank_rlhf.config.endpoint import EndpointConfig
from lowrank_rlhf.config.rewards import ENDPOINT, MODEL, RewardTerm
from lowrank_rlhf.preferences.judges.loading import import_function
from lowrank_rlhf.preferences.rewards.functions import OwnFunction
from lowrank_rlhf.preferences.rewards.rules import Rule, make_rule
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.records import Prompt, Sample

GRADES = "grades.jsonl"
"""Grades of an endpoint by the question's hash. In the run folder itself, so that `--redo` asks nothing twice."""
_SAVED = "everything before this stage is saved"


class Reward(Protocol):
    """Reward that scores answers by their texts."""

    def score(self, prompts: Sequence[Prompt], samples: Sequence[Sample]) -> list[float]:
        """Return a finite score of each answer; `prompts` has one prompt per answer. Raises `UserError`."""


class RuleReward:
    """Built-in rule as a reward."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule

    def score(self, prompts: Sequence[Prompt], samples: Sequence[Sample]) -> list[float]:
        """Return the rule's score of each answer."""
        return [self._rule(prompt, sample) for prompt, sample in zip(prompts, samples, strict=True)]


def reward_key(name: str) -> str:
    """Return the config key of a reward."""
    return f"ppo.rewards.{name}"


def load_function(name: str, term: RewardTerm, poll: Callable[[], None] = lambda: None) -> OwnFunction:
    """Import a term's `module:function`. Raises `UserError` as a judge's import does."""
    function = import_function(term.source, f"reward {term.source!r}")
    return OwnFunction(reward_key(name), term.source, function, term.timeout_seconds, poll)


def open_rewards(
    terms: Mapping[str, RewardTerm],
    right_answers: Mapping[str, Mapping[str, str]],
    endpoint: EndpointConfig | None,
    run_folder: Path,
    progress: Progress,
    stop: StopRequest,
) -> dict[str, Reward]:
    """Open every reward but the reward model, by name.

    Args:
        terms: `ppo.rewards`.
        right_answers: for each `exact` term by its name, the right answers by prompt id.
        endpoint: `rank.endpoint`.
        run_folder: folder of the run, where grades are kept.
        progress: shows pauses of the endpoint.
        stop: checked while a function runs or an endpoint is asked.
    """
    found: dict[str, Reward] = {}
    for name, term in terms.items():
        if term.is_function:
            found[name] = load_function(name, term, lambda: stop.check(_SAVED))
        elif term.source == ENDPOINT and endpoint is not None:
            from lowrank_rlhf.preferences.judges.llm_client import ChatClient  # only these runs need its HTTP library
            from lowrank_rlhf.preferences.rewards.endpoint import EndpointReward

            client = ChatClient(endpoint, stop, progress.say)
            found[name] = EndpointReward(reward_key(name), term, client, run_folder / GRADES)
        elif term.source != MODEL:
            found[name] = RuleReward(make_rule(term, right_answers.get(name, {})))
    return found
