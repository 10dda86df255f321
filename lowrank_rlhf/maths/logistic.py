"""Linear reward head fitted to comparisons: a convex problem with a unique solution."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Ridge penalties that cross-validation chooses from."""
FOLDS = 5
LIGHT = 1.0
"""Ridge penalty of the `light` features: enough to keep the weight finite where such a feature orders every pair."""


def fit_pair_head(chosen: Tensor, rejected: Tensor, weights: Tensor, l2: float, light: int = 0) -> Tensor:
    """Fit a Bradley-Terry regression: minimise sum_p w_p softplus(-v.(z_chosen - z_rejected)) + l2/2 |v|^2 over v.

    Args:
        chosen: (P, h), features of the preferred answer of each pair.
        rejected: (P, h), features of the other answer.
        weights: (P,), such as 1 / (pairs of the prompt), so that every prompt counts once.
        l2: ridge penalty in units of prompts, on features z scaled to unit variance.
        light: number of last features that have the penalty `LIGHT` instead, because each is known to matter.

    Returns the head (h,) for the unscaled features. L-BFGS in float64, deterministic.
    """
    differences, scale = _standardised(chosen, rejected)
    return (_fit(differences, weights.double(), _penalties(differences, l2, light)) / scale).float()


def choose_ridge(
    chosen: Tensor, rejected: Tensor, weights: Tensor, prompts: Sequence[str], seed: int, light: int = 0
) -> float:
    """Return the ridge penalty of `RIDGES` with the lowest cross-validated loss, the larger one of equals.

    `prompts`, (P,), are the prompts of the pairs: folds are of whole prompts, drawn with `seed`, because the pairs of a
    prompt share its answers. With a single prompt nothing can be validated: returns the largest.
    """
    losses = cross_validate(chosen, rejected, weights, prompts, seed, light)
    return min(reversed(RIDGES), key=lambda l2: losses.get(l2, 0.0))


def cross_validate(
    chosen: Tensor, rejected: Tensor, weights: Tensor, prompts: Sequence[str], seed: int, light: int = 0
) -> dict[float, float]:
    """Return the loss of each of `RIDGES`: sum_p w_p softplus(-margin_p), a pair's margin by the head of other folds.

    Empty with fewer than two prompts.
    """
    fold_of = folds(prompts, seed)
    if len(set(fold_of.values())) < 2:
        return {}
    differences, _ = _standardised(chosen, rejected)
    member = torch.tensor([fold_of[prompt] for prompt in prompts])
    losses = dict.fromkeys(RIDGES, 0.0)
    for fold in sorted(set(fold_of.values())):
        validation = member == fold
        training = torch.where(validation, 0.0, weights.double())  # weight 0 leaves a pair out without a copy
        head = None
        for l2 in sorted(RIDGES, reverse=True):  # each fit starts from the one before
            head = _fit(differences, training, _penalties(differences, l2, light), head)
            margins = differences[validation] @ head
            losses[l2] += float((weights[validation].double() * softplus(-margins)).sum())
    return losses


def folds(prompts: Sequence[str], seed: int) -> dict[str, int]:
    """Return the fold of each prompt, at most `FOLDS` of equal size."""
    names = list(dict.fromkeys(prompts))
    random.Random(seed).shuffle(names)
    return {name: place % FOLDS for place, name in enumerate(names)}


def _standardised(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs' differences of features scaled to unit variance, (P, h), and the deviations, (h,)."""
    scale = torch.cat([chosen, rejected]).double().std(0).clamp(min=1e-6)
    return (chosen.double() - rejected.double()) / scale, scale


def _penalties(differences: Tensor, l2: float, light: int) -> Tensor:
    """Return the ridge penalty of each feature, (h,)."""
    penalties = torch.full((differences.shape[1],), l2, dtype=torch.float64)
    penalties[differences.shape[1] - light :] = LIGHT
    return penalties


def _fit(differences: Tensor, weights: Tensor, penalties: Tensor, start: Tensor | None = None) -> Tensor:
    """Return the minimiser v, (h,), of the objective on differences (P, h)."""
    head = torch.zeros(differences.shape[1], dtype=torch.float64) if start is None else start.clone()
    head.requires_grad_(True)
    solver = torch.optim.LBFGS([head], max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        solver.zero_grad()
        loss = (weights * softplus(-(differences @ head))).sum() + 0.5 * (penalties * head.square()).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)
    return head.detach()
