"""Estimators of KL(policy || reference) from samples of the policy, its penalty, and the controller of its weight."""

from torch import Tensor


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return log p - log q per token: unbiased, may be negative (Schulman, "Approximating KL divergence", 2020)."""
    return logprobs - ref_logprobs


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return r - 1 - log r with r = q/p, per token: unbiased, never negative (same source)."""
    log_ratio = ref_logprobs - logprobs
    return log_ratio.exp() - 1 - log_ratio


def kl_penalty(kl: Tensor, kl_coef: float) -> Tensor:
    """Return the penalty beta KL (InstructGPT, eq. 2), given the KL of each token, or of each response as their sum.

    It is linear, so a response's penalty is the sum of its tokens' ones.
    """
    return kl_coef * kl


def adapt_kl_coef(kl_coef: float, kl: float, target: float, horizon: int, responses: int) -> float:
    """Return the next KL coefficient: proportional control clipped to 20 % (Ziegler et al. 2019, section 2.2).

    `kl` and `target` in nats per response; `responses` is the number in the rollout.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * responses / horizon)
