"""Scores of several reward members on one scale, combined into one, and their spread."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ensemble:
    """Combination of the raw scores of M members, whose standard deviations on the reference answers are equal."""

    means: tuple[float, ...]
    """Mean raw score of each member on the reference answers, (M,)."""
    combine: str
    """`mean`, `min` or `mean_minus_std`."""
    spread_weight: float
    penalty: float = 0.0
    """Mean over the reference answers of the members' mean less the combined score; 0 with `mean`."""

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "Ensemble":
        """Return the combination in the notes on a reward adapter."""
        return cls(**{**saved, "means": tuple(saved["means"])})

    @classmethod
    def on(cls, scores: Tensor, combine: str, spread_weight: float) -> "Ensemble":
        """Return the combination of members with these raw scores of N reference answers, (N, M)."""
        means = cls(tuple(scores.mean(0).tolist()), combine, spread_weight)
        penalty = float((means._aligned(scores).mean(-1) - means.combined(scores)).mean())
        return cls(means.means, combine, spread_weight, penalty)

    def combined(self, scores: Tensor) -> Tensor:
        """Return the combined raw score: (..., M) -> (...).

        `min` and `mean_minus_std` are the worst-case and a variant of the uncertainty-weighted optimisation of Coste et
        al. 2023 (arXiv 2310.02743), which subtracts the variance.
        """
        aligned = self._aligned(scores)
        if self.combine == "min":
            return aligned.amin(-1)
        mean = aligned.mean(-1)
        return mean - self.spread_weight * aligned.std(-1) if self.combine == "mean_minus_std" else mean

    def spread(self, scores: Tensor) -> Tensor:
        """Return the standard deviation of the members (over M - 1) on each answer: (..., M) -> (...)."""
        return self._aligned(scores).std(-1)

    def _aligned(self, scores: Tensor) -> Tensor:
        """Shift the members to equal means on the reference answers, which leaves the mean of the members."""
        means = torch.tensor(self.means, device=scores.device, dtype=scores.dtype)  # (M,)
        return scores - (means - means.mean())


def common_scale(scores: Tensor) -> Tensor:
    """Return factors, (M,), that give raw scores (N, M) of all members the same standard deviation, the mean of all."""
    deviations = scores.std(0).clamp(min=1e-6)
    return deviations.mean() / deviations
