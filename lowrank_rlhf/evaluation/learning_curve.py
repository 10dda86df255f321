"""Accuracy of the reward head by number of ranked prompts, and the gain to expect from further ones."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lowrank_rlhf.config.schema import RewardConfig
from lowrank_rlhf.evaluation.reward_metrics import correct_pairs
from lowrank_rlhf.maths.reward_gate import LEAST_PROMPTS, LEAST_TRAINING_PROMPTS
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.maths.statistics import Floats, percentile_interval
from lowrank_rlhf.preferences.reward_tests import CurvePoint, LearningCurve
from lowrank_rlhf.run.files import read_record, write_json_atomic
from lowrank_rlhf.run.progress import StopRequest
from lowrank_rlhf.training.reward_data import Group
from lowrank_rlhf.training.rewards.reward_head import HeadFit, fit_head, with_length

MORE = 24
"""Further ranked prompts whose gain is estimated."""
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the training prompts that heads are fitted to."""
DRAWS = 3
"""Random parts of each share below 1; their accuracies are averaged."""
CURVE_FILE = "curve.json"
"""Curve in the stage's work folder, for a resumed training."""


def enough_for_curve(train: Sequence[Group], held_out: Sequence[Group]) -> bool:
    """Return True if there are enough training and held-out prompts for a learning curve."""
    return len(train) >= LEAST_TRAINING_PROMPTS and len(held_out) >= LEAST_PROMPTS


def learning_curve(
    train: Sequence[Group],
    held_out: Sequence[Group],
    features: Sequence[Tensor],
    config: RewardConfig,
    seed: int,
    samples: int,
    whole: tuple[Tensor, HeadFit] | None = None,
    stop: StopRequest | None = None,
) -> LearningCurve | None:
    """Fit heads to random parts of the training prompts and test each on the held-out ones.

    Args:
        train: training prompts with their comparisons.
        held_out: held-out prompts.
        features: (K, h) of each group's answers, training prompts first.
        config: settings of the fit; `head_l2` must be set, so that all heads have the same penalty.
        seed: seed of the parts and of the bootstrap.
        samples: bootstrap resamples.
        whole: head of one member fitted to all training prompts, if it is known.
        stop: request to stop, obeyed between two fits.

    Returns None without `enough_for_curve`.
    """
    if not enough_for_curve(train, held_out):
        return None
    alone = [replace(group, counts=(1,)) for group in train]
    sizes = [round(share * len(train)) for share in SHARES]
    correct: list[Floats] = []
    prompts: list[str] = []
    for size in sizes:
        draws = []
        for draw in range(DRAWS if size < len(train) else 1):
            if stop:
                stop.check("the head is fitted again on resume")
            part = random.Random(derive_seed(seed, size, draw)).sample(range(len(train)), size)
            own = [features[index] for index in part]
            known = whole if size == len(train) else None
            head, fit = known or fit_head([alone[index] for index in part], own, config, seed)
            column = torch.cat([head[0], torch.tensor([fit.scale(config).length])])  # (h + 1,)
            read = zip(held_out, features[len(train) :], strict=True)
            values, prompts = correct_pairs(held_out, [with_length(group, each) @ column for group, each in read])
            draws.append(values)
        correct.append(np.mean(draws, axis=0))
    return curve_of(sizes, np.array(correct), prompts, MORE * (1 - config.held_out), samples, seed)


def save_curve(work: Path, curve: LearningCurve | None) -> None:
    """Write the curve, or that there is none, into the work folder."""
    write_json_atomic(work / CURVE_FILE, {"schema": 1, "curve": curve and curve.model_dump()})


def saved_curve(work: Path) -> LearningCurve | None:
    """Return the curve of the work folder, or None."""
    found = read_record(work / CURVE_FILE)
    return LearningCurve.model_validate(found["curve"]) if found and found["curve"] else None


def curve_of(
    sizes: Sequence[int], correct: ArrayLike, prompts: Sequence[str], more: float, samples: int, seed: int
) -> LearningCurve:
    """Return the curve and the gain from `more` training prompts, with 95 % intervals over held-out prompts.

    `correct`, (sizes, pairs), is 1 for a held-out pair in the right order, and `prompts` has the prompt of each pair.
    The gain is that of the curve a - b / sqrt(n), fitted by least squares: it flattens as estimation error does, so a
    straight line through the last sizes would promise more.
    """
    right = np.asarray(correct, dtype=np.float64)
    _, member = np.unique(np.asarray(prompts), return_inverse=True)
    sums = np.array([np.bincount(member, weights=row) for row in right])  # (sizes, prompts)
    counts = np.bincount(member)
    x = 1 / np.sqrt(np.asarray(sizes, dtype=np.float64))
    spread = x - x.mean()
    weights = spread / (spread**2).sum() * (1 / np.sqrt(sizes[-1] + more) - x[-1])  # gain = weights . accuracies

    def accuracies(index: np.ndarray) -> Floats:  # (S, prompts) -> (sizes, S)
        return np.asarray(sums[:, index].sum(axis=2) / counts[index].sum(axis=1))

    def interval(figure: Floats) -> tuple[float, float]:
        return percentile_interval(counts.size, samples, seed, lambda index: figure @ accuracies(index), len(sizes))

    found = right.mean(axis=1)
    points = [
        CurvePoint(prompts=size, accuracy=float(accuracy), interval=interval(np.eye(len(sizes))[place]))
        for place, (size, accuracy) in enumerate(zip(sizes, found, strict=True))
    ]
    return LearningCurve(points=tuple(points), more=MORE, gain=float(weights @ found), gain_interval=interval(weights))
