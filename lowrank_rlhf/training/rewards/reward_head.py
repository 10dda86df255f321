"""Reward head fitted to the comparisons, and its record."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lowrank_rlhf.config.schema import RewardConfig
from lowrank_rlhf.maths.logistic import choose_ridge, fit_pair_head
from lowrank_rlhf.run.files import read_record, write_json_atomic
from lowrank_rlhf.training.reward_data import Group
from lowrank_rlhf.training.rollout import RewardScale

HEAD_FILE = "head.json"
"""Record of the fit in the stage's work folder, for a resumed training."""


@dataclass(frozen=True)
class HeadFit:
    """Ridge penalty of the fitted head, and its weight of the logarithm of an answer's tokens."""

    l2: float | None = None
    """None if no head was fitted."""
    length: float = 0.0

    def training_scale(self, pooling: str) -> RewardScale:
        """Return the scale of raw scores in training: with the length input, so that no other weight learns length."""
        return RewardScale(pooling, 0.0, 1.0, self.length)

    def scale(self, config: RewardConfig) -> RewardScale:
        """Return the scale of raw scores in use: with `length: debias` the length input is a constant, left out."""
        return RewardScale(config.pooling, 0.0, 1.0, self.length if config.length == "use" else 0.0)

    def in_words(self, config: RewardConfig) -> str:
        """Return the ridge penalty, its origin and the length input, for the terminal."""
        how = "" if config.head_l2 else ", chosen by cross-validation over the training prompts"
        length = "" if config.length == "ignore" else f"; weight of the log length {self.length:.3g}"
        use = ", constant when scoring" if config.length == "debias" else ""
        return f"reward head fitted: ridge penalty {self.l2:g}{how}{length}{use}"

    def save(self, work: Path) -> None:
        """Write the record."""
        write_json_atomic(work / HEAD_FILE, {"schema": 1, "l2": self.l2, "length": self.length})

    @classmethod
    def saved(cls, work: Path) -> "HeadFit":
        """Return the record of the work folder, or one without a fit."""
        found = read_record(work / HEAD_FILE)
        return cls(found["l2"], found["length"]) if found else cls()


def fit_head(
    groups: Sequence[Group], features: Sequence[Tensor], config: RewardConfig, seed: int
) -> tuple[Tensor, HeadFit]:
    """Return the head that orders the groups' answers best, one row for each member, (M, h), and the fit's record.

    Args:
        groups: training prompts with their comparisons; each member counts them by its own column of their `counts`.
        features: (K, h) for each group.
        config: `head_l2` and `length`.
        seed: seed of the folds over prompts, if `head_l2` is null. One ridge penalty is chosen for all members.
    """
    light = int(config.length != "ignore")  # a ridge of hundreds would leave the length to the other features
    if light:
        features = [with_length(group, own) for group, own in zip(groups, features, strict=True)]
    pairs = [
        (own[better], own[worse])
        for group, own in zip(groups, features, strict=True)
        for better, worse, _ in group.pairs
    ]
    chosen, rejected = (torch.stack(side) for side in zip(*pairs, strict=True))  # (P, h) each
    weights = torch.tensor([1 / len(group.pairs) for group in groups for _ in group.pairs])  # (P,)
    if any(group.weights for group in groups):
        weights = weights * torch.tensor([weight for group in groups for weight in group.weights])
    counts = torch.tensor([group.counts for group in groups for _ in group.pairs])  # (P, M)
    prompts = [group.prompt_id for group in groups for _ in group.pairs]
    l2 = config.head_l2 or choose_ridge(chosen, rejected, weights, prompts, seed, light)
    fitted = [fit_pair_head(chosen, rejected, weights * own, l2, light) for own in counts.unbind(-1)]
    head = torch.stack(fitted)  # (M, h)
    if not light:
        return head, HeadFit(l2)
    return head[:, :-1], HeadFit(l2, float(head[0, -1]))  # with a length input there is one member


def with_length(group: Group, features: Tensor) -> Tensor:
    """Return the features of a group's answers with the logarithm of their tokens as the last column: (K, h + 1)."""
    lengths = torch.tensor([math.log(len(answer)) for answer in group.answers])
    return torch.cat([features, lengths[:, None].to(features)], 1)
