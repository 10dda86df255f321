"""Linear reward head fitted to comparisons: a convex problem with a unique solution."""

import torch
from torch import Tensor
from torch.nn.functional import softplus


def fit_pair_head(chosen: Tensor, rejected: Tensor, weights: Tensor, l2: float) -> Tensor:
    """Fit a Bradley-Terry regression: minimise sum_p w_p softplus(-v.(z_chosen - z_rejected)) + l2/2 |v|^2 over v.

    Args:
        chosen: (P, h), features of the preferred answer of each pair.
        rejected: (P, h), features of the other answer.
        weights: (P,), such as 1 / (pairs of the prompt), so that every prompt counts once.
        l2: ridge penalty in units of prompts, on features z scaled to unit variance.

    Returns the head (h,) for the unscaled features. L-BFGS in float64, deterministic.
    """
    features = torch.cat([chosen, rejected]).double()
    scale = features.std(0).clamp(min=1e-6)
    differences = (chosen.double() - rejected.double()) / scale
    head = torch.zeros(differences.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([head], max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        solver.zero_grad()
        loss = (weights.double() * softplus(-(differences @ head))).sum() + 0.5 * l2 * head.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)
    return (head.detach() / scale).float()
