"""Audit of a reward model: its accuracy on held-out pairs whose prompts are emptied or exchanged.

A score that orders answers as well without their prompt describes the answers alone, not how well they answer.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from lowrank_rlhf.evaluation.reward_metrics import correct_pairs, score_groups
from lowrank_rlhf.maths.statistics import clustered_bootstrap, paired_difference
from lowrank_rlhf.models.base import Base
from lowrank_rlhf.models.roles import Roles
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Message, Prompt
from lowrank_rlhf.run.results.parts import PromptAudit, WithoutPrompt
from lowrank_rlhf.training.reward_data import Group, cut_answers
from lowrank_rlhf.training.rollout import RewardScale

AUDIT_PROMPTS = 100
"""Held-out prompts in the audit, at most: two more forward passes of their answers."""


def audit_prompts(
    roles: Roles,
    groups: Sequence[Group],
    scores: Sequence[Tensor],
    scale: RewardScale,
    samples: int,
    seed: int,
    progress: Progress,
) -> PromptAudit:
    """Return the accuracy of the first groups with their own, an empty and another prompt.

    `scores` are those with their own prompts, (K,) each; `samples` and `seed` are the bootstrap's.
    """
    groups, scores = groups[:AUDIT_PROMPTS], scores[:AUDIT_PROMPTS]
    own, prompts = correct_pairs(groups, scores)

    def measure(changed: Sequence[Group]) -> WithoutPrompt:
        found, _ = correct_pairs(changed, score_groups(roles, changed, scale, progress))
        lost, interval = paired_difference(own, found, prompts, samples, seed)
        accuracy_interval = clustered_bootstrap(found, prompts, samples, seed)
        return WithoutPrompt(
            accuracy=sum(found) / len(found), interval=accuracy_interval, lost=lost, lost_interval=interval
        )

    return PromptAudit(
        prompts=len(groups),
        pairs=len(own),
        accuracy=sum(own) / len(own),
        emptied=measure(emptied(roles.base, groups)),
        shuffled=measure(exchanged(groups)) if len(groups) > 1 else None,
    )


def audit_in_words(audit: PromptAudit) -> str:
    """Return the three accuracies, for the terminal."""
    other = f", with another prompt {100 * audit.shuffled.accuracy:.1f} %" if audit.shuffled else ""
    return (
        f"audit on {audit.pairs} held-out pairs of {audit.prompts} prompts: {100 * audit.accuracy:.1f} % right with "
        f"their own prompt, with an empty one {100 * audit.emptied.accuracy:.1f} %{other}"
    )


def emptied(base: Base, groups: Sequence[Group]) -> list[Group]:
    """Return the groups with an empty user message as their prompt."""
    prompt = base.encode_prompt(Prompt(id="empty", messages=(Message(role="user", content=""),)))
    return [replace(group, prompt=prompt) for group in groups]


def exchanged(groups: Sequence[Group]) -> list[Group]:
    """Return at least two groups with the prompt of another, nearest in length, so that the rows stay as long.

    An answer is cut where its row would be longer than the group's longest was.
    """
    order = sorted(range(len(groups)), key=lambda index: len(groups[index].prompt))
    other = [0] * len(groups)
    for place in range(0, len(order) - 1, 2):
        other[order[place]], other[order[place + 1]] = order[place + 1], order[place]
    if len(order) % 2:  # the last three in a ring
        first, second, last = order[-3:]
        other[first], other[second], other[last] = second, last, first
    changed = [replace(group, prompt=groups[index].prompt) for group, index in zip(groups, other, strict=True)]
    longest = max(group.width for group in groups)
    return [cut_answers(group, max(2, longest - len(group.prompt))) for group in changed]
