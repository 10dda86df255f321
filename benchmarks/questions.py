"""Questions to annotators, and strategies that choose among them, for `choosing.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_rlhf.config.schema import RewardConfig
from lowrank_rlhf.maths.pairs import ordered_pairs
from lowrank_rlhf.training.reward_data import Group, bootstrapped
from lowrank_rlhf.training.rewards.reward_head import fit_head

STRATEGIES = ("random", "uncertain", "disagreement", "far_apart")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Questions:
    """Questions that an annotator may be asked: each a ranking of some of a prompt's answers."""

    groups: list[Group]
    """One for each question, with its pairs; the answers asked about are one tier."""
    features: list[Tensor]
    """(K, h) of each question's answers."""
    units: NDArray[np.int64]
    """The ranking that each question is part of: itself, or with `--pairs` the one that it is a pair of."""

    @classmethod
    def of(cls, groups: Sequence[Group], features: Sequence[Tensor], by_pair: bool) -> "Questions":
        """Return a question for each ranking of the groups, or for each pair of its answers."""
        asked, own, units, unit = [], [], [], 0
        for group, table in zip(groups, features, strict=True):
            for ranking in group.rankings:
                answers = sorted(answer for tier in ranking for answer in tier)
                pairs = list(ordered_pairs(ranking))
                parts = [set(pair) for pair in combinations(answers, 2)] if by_pair else [set(answers)]
                asked += [
                    replace(group, pairs=[pair for pair in pairs if {*pair[:2]} <= part], rankings=[[sorted(part)]])
                    for part in parts
                ]
                own += [table] * len(parts)
                units += [unit] * len(parts)
                unit += 1
        return cls(asked, own, np.array(units))

    def differences(self) -> tuple[Tensor, NDArray[np.int64]]:
        """Return the differences of features of each question's pairs of answers, (P, h), and the questions, (P,)."""
        found = [
            (table[one] - table[other], place)
            for place, (group, table) in enumerate(zip(self.groups, self.features, strict=True))
            for one, other in combinations(group.rankings[0][0], 2)
        ]
        return torch.stack([difference for difference, _ in found]), np.array([place for _, place in found])

    def flipped(self, share: float, generator: np.random.Generator, by_gap: bool = False) -> list[Group]:
        """Return the groups with a share of their comparisons flipped; with `by_gap` share / tiers between."""
        return [
            replace(
                group,
                pairs=[
                    (worse, better, gap)
                    if generator.random() < (share / gap if by_gap else share)
                    else (better, worse, gap)
                    for better, worse, gap in group.pairs
                ],
            )
            for group in self.groups
        ]

    def correct(self, head: Tensor) -> Floats:
        """Return the share of each question's pairs that the head (h,) orders correctly, (Q,)."""
        shares = []
        for group, table in zip(self.groups, self.features, strict=True):
            scores = table @ head
            shares.append(outcome([float(scores[better] - scores[worse]) for better, worse, _ in group.pairs]))
        return np.array(shares)


def outcome(margins: Sequence[float]) -> float:
    """Return the share of positive margins; 0 counts half."""
    return sum(0.5 if margin == 0 else float(margin > 0) for margin in margins) / len(margins)


def values(strategy: str, margins: Tensor, question: NDArray[np.int64], generator: np.random.Generator) -> Floats:
    """Return the value of each question to the strategy, (Q,).

    `margins`, (P, 1 + M), are the score differences of all pairs of answers by the head and by its M members;
    `question`, (P,), the question of each pair.
    """
    if strategy == "random":
        return generator.random(question.max() + 1)
    if strategy == "uncertain":
        p = torch.sigmoid(margins[:, 0])
        of_pairs = 4 * p * (1 - p)
    else:
        of_pairs = margins[:, 1:].std(1) if strategy == "disagreement" else margins[:, 0].abs()
    return np.bincount(question, of_pairs.double().numpy()) / np.bincount(question)


def choose(wanted: Floats, units: NDArray[np.int64], order: NDArray[np.int64], count: int) -> list[int]:
    """Return the questions to ask next, one for each of `count` units that are left.

    `order` are the units that are left: the first ones are asked if each unit has several questions, otherwise those
    with the largest values.
    """
    best: dict[int, int] = {}
    for place in np.argsort(-wanted, kind="stable").tolist():
        best.setdefault(int(units[place]), place)
    left = set(order.tolist())
    by_value = [place for unit, place in best.items() if unit in left]
    by_order = [best[unit] for unit in order.tolist()]
    return (by_value if len(best) == len(units) else by_order)[:count]


def heads(groups: Sequence[Group], features: Sequence[Tensor], ridge: float, members: int, seed: int) -> Tensor:
    """Return the head fitted to all groups and those of the members, (1 + members, h)."""
    asked = [(group, table) for group, table in zip(groups, features, strict=True) if group.pairs]
    own = [replace(group, counts=(1,)) for group, _ in asked]
    if members:
        drawn = bootstrapped(own, members, seed)
        own = [replace(group, counts=(1, *group.counts)) for group in drawn]
    settings = RewardConfig.model_validate({"head_l2": ridge, "fit_head_first": True, "pooling": "mean"})
    return fit_head(own, [table for _, table in asked], settings, seed)[0]
