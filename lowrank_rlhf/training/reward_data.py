"""Ranked answers as the reward model's elements: one prompt with its answers and every pair that was ordered."""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.maths.losses import pairwise_loss, plackett_luce_loss
from lowrank_rlhf.maths.sequences import Sequences, pack
from lowrank_rlhf.models.base import Base
from lowrank_rlhf.run.directory import read_record
from lowrank_rlhf.run.records import Comparison, Prompt, Ranking, Sample, read_jsonl
from lowrank_rlhf.session import Session


@dataclass(frozen=True)
class Group:
    """One prompt's K ranked answers; pairs and tiers hold indices into `answers`."""

    prompt_id: str
    prompt: list[int]
    samples: list[str]
    """Ids of the answers."""
    answers: list[list[int]]
    lengths: list[int]
    """Characters of each answer's text."""
    pairs: list[tuple[int, int, int]]
    """(better, worse, tiers between them), from every annotator."""
    rankings: list[list[list[int]]]
    """Each annotator's tiers, best first."""

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return len(self.prompt) + max(map(len, self.answers))

    @property
    def tokens(self) -> int:
        """Tokens that are read to score every answer, each with the prompt before it, without padding."""
        return sum(len(self.prompt) + len(answer) for answer in self.answers)


def about_reward(adapter: Path) -> dict[str, Any]:
    """What the reward stage noted beside its adapter: pooling, layers, mean and deviation of the scores, weakness.

    Raises `UserError` where it is missing or cut short.
    """
    about = read_record(adapter / "reward.json")
    if about is None:
        raise UserError(f"{adapter / 'reward.json'}: missing or cut short; make the stage again: --redo reward")
    return about


def read_groups(session: Session) -> list[Group]:
    """The run's comparisons, prompt by prompt. Says how many answers were too long and were cut."""
    path = session.run_dir.artifact
    groups, note = make_groups(
        session,
        read_jsonl(path("prompts.jsonl"), Prompt),
        read_jsonl(path("answers.jsonl"), Sample),
        read_jsonl(path("comparisons.jsonl"), Comparison),
        read_jsonl(path("rankings.jsonl"), Ranking),
    )
    if note:
        session.progress.say(f"  {note}")
    return groups


def make_groups(
    session: Session,
    prompts: Iterable[Prompt],
    samples: Iterable[Sample],
    pairs: Iterable[Comparison],
    orders: Iterable[Ranking],
) -> tuple[list[Group], str | None]:
    """Comparisons prompt by prompt, as many as `model.max_length` has room for, and a note if some were too long."""
    answers = {sample.id: sample for sample in samples}
    comparisons, rankings = defaultdict(list), defaultdict(list)
    for comparison in pairs:
        comparisons[comparison.prompt_id].append(comparison)
    for ranking in orders:
        rankings[ranking.prompt_id].append(ranking)
    groups, dropped, cut = [], 0, 0
    for prompt in prompts:
        if not comparisons[prompt.id]:
            continue
        tokens = session.base.encode_prompt(prompt)
        room = session.config.model.max_length - len(tokens)
        if room < 2:
            dropped += 1
            continue
        group = _group(session, prompt.id, tokens, answers, comparisons[prompt.id], rankings[prompt.id])
        cut += sum(len(answer) > room for answer in group.answers)
        groups.append(_cut(group, room))
    limit = f"model.max_length {session.config.model.max_length}"
    note = f"{limit}: {dropped} prompts too long and left out, {cut} answers cut"
    return groups, note if dropped or cut else None


def _group(
    session: Session,
    prompt_id: str,
    prompt: list[int],
    answers: dict[str, Sample],
    comparisons: Sequence[Comparison],
    rankings: Sequence[Ranking],
) -> Group:
    ranked = sorted({sample for ranking in rankings for tier in ranking.tiers for sample in tier})
    place = {sample: i for i, sample in enumerate(ranked)}
    samples = [answers[sample] for sample in ranked]
    return Group(
        prompt_id=prompt_id,
        prompt=prompt,
        samples=ranked,
        answers=[list(sample.tokens or session.base.encode_response(sample.text)) for sample in samples],
        lengths=[len(sample.text) for sample in samples],
        pairs=[(place[pair.chosen], place[pair.rejected], pair.tier_gap) for pair in comparisons],
        rankings=[[[place[sample] for sample in tier] for tier in ranking.tiers] for ranking in rankings],
    )


def _cut(group: Group, room: int) -> Group:
    return replace(group, answers=[answer[:room] for answer in group.answers])


def split_groups(groups: Sequence[Group], held_out: float, seed: int) -> tuple[list[Group], list[Group]]:
    """Training and held-out groups, by prompt: comparisons of one prompt never stand on both sides."""
    if len(groups) < 2:
        raise UserError(f"{len(groups)} prompts have comparisons; the reward model needs 2 at least")
    shuffled = random.Random(seed).sample(groups, len(groups))
    count = min(max(1, round(held_out * len(groups))), len(groups) - 1)
    return shuffled[count:], shuffled[:count]


def rows_of(groups: Sequence[Group], base: Base) -> Sequences:
    """All answers of the groups, one row each: an answer is read once, however many pairs it is in."""
    return pack(
        [group.prompt for group in groups for _ in group.answers],
        [answer for group in groups for answer in group.answers],
        base.pad,
        base.device,
    )


def split_scores(scores: Tensor, groups: Sequence[Group]) -> list[Tensor]:
    """(N, ...) in the order of `rows_of` -> one (K, ...) for each group."""
    return list(scores.split([len(group.answers) for group in groups]))


def group_loss(scores: Tensor, group: Group, loss: str, margin: float) -> Tensor:
    """The ranking loss of one prompt from its answers' scores (K,): a scalar."""
    if loss == "plackett_luce":
        return torch.stack([plackett_luce_loss(scores, tiers) for tiers in group.rankings]).mean()
    better, worse, gaps = (torch.tensor(column, device=scores.device) for column in zip(*group.pairs, strict=True))
    return pairwise_loss(scores[better], scores[worse], margin * gaps)
