"""Training data of the reward model: one prompt with its ranked answers and every ordered pair."""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrank_rlhf.data.length_filter import SHORTEST_ANSWER, equal_after_cut
from lowrank_rlhf.errors import Fault, UserError
from lowrank_rlhf.maths.losses import pairwise_loss, plackett_luce_loss
from lowrank_rlhf.maths.reward_gate import held_out_count
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.maths.sequences import Sequences, pack
from lowrank_rlhf.models.base import Base
from lowrank_rlhf.preferences.team.reliability import weight_of
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import read_record
from lowrank_rlhf.run.records import Comparison, Prompt, R, Ranking, Sample, read_jsonl


@dataclass(frozen=True)
class Group:
    """One prompt with K ranked answers; pairs and tiers are indices into `answers`."""

    prompt_id: str
    prompt: list[int]
    samples: list[str]
    """Ids of the answers."""
    answers: list[list[int]]
    lengths: list[int]
    """Characters of each answer's text, up to the cut."""
    pairs: list[tuple[int, int, int]]
    """(better, worse, tiers between them), from every annotator."""
    rankings: list[list[list[int]]]
    """Each annotator's tiers, best first."""
    weights: tuple[float, ...] = ()
    """Weight of each pair in the loss; empty if all are 1."""
    counts: tuple[int, ...] = (1,)
    """Times that the prompt is in each reward member's training data: see `bootstrapped`."""

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return len(self.prompt) + max(map(len, self.answers))

    @property
    def tokens(self) -> int:
        """Tokens in the forward pass over all answers, each after the prompt, without padding."""
        return sum(len(self.prompt) + len(answer) for answer in self.answers)


def about_reward(adapter: Path) -> dict[str, Any]:
    """Return the reward stage's notes on its adapter: pooling, layers, mean and deviation of the scores, weakness.

    With `reward.length: use` they contain the weight of the length. Raises `UserError` if the file is missing or
    incomplete.
    """
    about = read_record(adapter / "reward.json")
    if about is None:
        text = "{path}: not found or incomplete. Rerun the stage: --redo {stage}"
        raise UserError(Fault("redo_stage", text, path=adapter / "reward.json", stage="reward"))
    return about


def every_round(run_dir: RunDir, name: str, record: type[R]) -> Iterator[R]:
    """Yield the records of a file of all rounds up to this folder's."""
    for each in run_dir.up_to_this:
        yield from read_jsonl(each.artifact(name), record)


def read_groups(
    base: Base, run_dir: RunDir, max_length: int, weights: Mapping[str, float] | None = None
) -> tuple[list[Group], str | None]:
    """Return the comparisons of all rounds up to this folder's as `make_groups` does.

    A prompt that several rounds ranked is one group, so that it is never in training and test.
    """
    prompts = {prompt.id: prompt for prompt in every_round(run_dir, "prompts.jsonl", Prompt)}
    answers, pairs = (
        every_round(run_dir, "answers.jsonl", Sample),
        every_round(run_dir, "comparisons.jsonl", Comparison),
    )
    orders = every_round(run_dir, "rankings.jsonl", Ranking)
    return make_groups(base, max_length, prompts.values(), answers, pairs, orders, weights)


def make_groups(
    base: Base,
    max_length: int,
    prompts: Iterable[Prompt],
    samples: Iterable[Sample],
    pairs: Iterable[Comparison],
    orders: Iterable[Ranking],
    weights: Mapping[str, float] | None = None,
) -> tuple[list[Group], str | None]:
    """Return the comparisons by prompt, cut to `model.max_length`, and a note if anything was cut or skipped.

    Comparisons of answers that differ only after the cut are left out, and those that a decision replaces. `weights`
    are the annotators'; 1 by default.
    """
    answers = {sample.id: sample for sample in samples}
    comparisons, rankings = defaultdict(list), defaultdict(list)
    for comparison in pairs:
        if not comparison.replaced:
            comparisons[comparison.prompt_id].append(comparison)
    for ranking in orders:
        rankings[ranking.prompt_id].append(ranking)
    groups, dropped, cut, same = [], 0, 0, 0
    for prompt in prompts:
        if not comparisons[prompt.id]:
            continue
        tokens = base.encode_prompt(prompt)
        longest = max_length - len(tokens)  # of an answer after this prompt
        if longest < SHORTEST_ANSWER:
            dropped += 1
            continue
        group = _group(base, prompt.id, tokens, answers, comparisons[prompt.id], rankings[prompt.id], weights)
        cut += sum(len(answer) > longest for answer in group.answers)
        group, equal = without_equal_answers(_cut_with_lengths(base, group, longest), longest)
        same += equal
        groups += [group] if group.pairs else []
    note = f"model.max_length {max_length}: {dropped} prompts skipped as too long, {cut} answers cut"
    note += f", {same} comparisons left out whose answers are then equal" if same else ""
    return groups, note if dropped or cut or same else None


def _group(
    base: Base,
    prompt_id: str,
    prompt: list[int],
    answers: dict[str, Sample],
    comparisons: Sequence[Comparison],
    rankings: Sequence[Ranking],
    weights: Mapping[str, float] | None,
) -> Group:
    ranked = sorted({sample for ranking in rankings for tier in ranking.tiers for sample in tier})
    index = {sample: i for i, sample in enumerate(ranked)}
    samples = [answers[sample] for sample in ranked]
    return Group(
        prompt_id=prompt_id,
        prompt=prompt,
        samples=ranked,
        answers=[list(sample.tokens or base.encode_response(sample.text)) for sample in samples],
        lengths=[len(sample.text) for sample in samples],
        pairs=[(index[pair.chosen], index[pair.rejected], pair.tier_gap) for pair in comparisons],
        rankings=[[[index[sample] for sample in tier] for tier in ranking.tiers] for ranking in rankings],
        weights=tuple(weight_of(pair, weights) for pair in comparisons) if weights else (),
    )


def cut_answers(group: Group, longest: int) -> Group:
    """Return the group with answers of at most `longest` tokens."""
    return replace(group, answers=[answer[:longest] for answer in group.answers])


def _cut_with_lengths(base: Base, group: Group, longest: int) -> Group:
    """Return the group with answers of at most `longest` tokens, and the characters that are left of each."""
    cut = cut_answers(group, longest)
    lengths = [
        length if read == answer else len(base.tokenizer.decode(read))
        for read, answer, length in zip(cut.answers, group.answers, group.lengths, strict=True)
    ]
    return replace(cut, lengths=lengths)


def without_equal_answers(group: Group, longest: int) -> tuple[Group, int]:
    """Return the group without pairs of equal answers, and their number. A ranking keeps the better of the two."""
    answers = group.answers
    kept = [not equal_after_cut(answers[better], answers[worse], longest) for better, worse, _ in group.pairs]
    pairs, weights = list(compress(group.pairs, kept)), tuple(compress(group.weights, kept))
    if len(pairs) == len(group.pairs):
        return group, 0
    rankings = []
    for ranking in group.rankings:
        above: list[list[int]] = []
        tiers = []
        for tier in ranking:
            tiers.append([index for index in tier if group.answers[index] not in above])
            above += [group.answers[index] for index in tier]
        rankings.append([tier for tier in tiers if tier])
    rankings = [ranking for ranking in rankings if len(ranking) > 1]
    return replace(group, pairs=pairs, rankings=rankings, weights=weights), len(group.pairs) - len(pairs)


def split_groups(groups: Sequence[Group], held_out: float, seed: int) -> tuple[list[Group], list[Group]]:
    """Split the groups into training and held-out ones, so that no prompt is in both."""
    if len(groups) < 2:
        text = (
            "rank: {count} prompts have comparisons that fit model.max_length, 2 are required. "
            "Rank more prompts, or raise model.max_length"
        )
        raise UserError(Fault("few_comparisons_fit", text, count=len(groups)))
    shuffled = random.Random(seed).sample(groups, len(groups))
    count = held_out_count(held_out, len(groups))
    return shuffled[count:], shuffled[:count]


def bootstrapped(groups: Sequence[Group], members: int, seed: int) -> list[Group]:
    """Return the groups with their counts in a bootstrap sample of the prompts for each member; one member has all."""
    if members == 1:
        return list(groups)
    counts = []  # (M, G) in the end
    for member in range(members):
        generator = torch.Generator().manual_seed(derive_seed(seed, member))
        drawn = torch.randint(len(groups), (len(groups),), generator=generator)
        counts.append(drawn.bincount(minlength=len(groups)).tolist())
    return [replace(group, counts=own) for group, own in zip(groups, zip(*counts, strict=True), strict=True)]


def rows_of(groups: Sequence[Group], base: Base) -> Sequences:
    """Pack all answers of the groups, one row each: one forward per answer, however many pairs it is in."""
    return pack(
        [group.prompt for group in groups for _ in group.answers],
        [answer for group in groups for answer in group.answers],
        base.pad,
        base.device,
    )


def split_scores(scores: Tensor, groups: Sequence[Group]) -> list[Tensor]:
    """Split scores (N, ...) in the order of `rows_of` into one (K, ...) per group."""
    return list(scores.split([len(group.answers) for group in groups]))


def group_batches(groups: Sequence[Group], max_tokens: int, at_least: int = 1) -> list[list[Group]]:
    """Put whole groups together while their padded rows fit; a group is never cut, as its loss needs all its scores.

    Returns at least `at_least` parts if there are as many groups.
    """
    parts: list[list[Group]] = []
    most = max(1, len(groups) // at_least)
    for group in sorted(groups, key=lambda group: -group.width):
        fits = (
            parts
            and len(parts[-1]) < most
            and parts[-1][0].width * (sum(len(g.answers) for g in parts[-1]) + len(group.answers)) <= max_tokens
        )
        if fits:
            parts[-1].append(group)
        else:
            parts.append([group])
    return parts


def group_loss(scores: Tensor, group: Group, loss: str, margin: float) -> Tensor:
    """Return the ranking loss of one prompt, a scalar, from its answers' scores (K,)."""
    if loss == "plackett_luce":
        return torch.stack([plackett_luce_loss(scores, tiers) for tiers in group.rankings]).mean()
    better, worse, gaps = (torch.tensor(column, device=scores.device) for column in zip(*group.pairs, strict=True))
    weights = torch.tensor(group.weights, device=scores.device) if group.weights else None
    return pairwise_loss(scores[better], scores[worse], margin * gaps, weights)


def members_loss(scores: Tensor, group: Group, loss: str, margin: float) -> Tensor:
    """Return the mean over the members of their losses times the group's counts, a scalar, from scores (K,) or (K, M).

    Of one member it is `group_loss`.
    """
    if scores.dim() == 1:
        return group_loss(scores, group, loss, margin)
    losses = torch.stack([group_loss(own, group, loss, margin) for own in scores.unbind(-1)])  # (M,)
    return (torch.tensor(group.counts, device=losses.device) * losses).mean()
