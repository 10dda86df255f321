"""Self-checks of every run, shown in its report."""

import hashlib
from collections.abc import Collection, Mapping, Sequence

import torch

from lowrank_rlhf.errors import StageFailed
from lowrank_rlhf.models.base import Base
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.run.results import Claim, ClaimId

MAX_TOKEN_DIFFERENCE = 1e-4
"""Tolerated difference of policy and reference at a token, in nats, while they are equal: kernels round differently."""

SENTENCES: dict[ClaimId, str] = {
    "kl_is_zero": "KL(policy || SFT) is 0 at step 0",
    "starts_as_last_round": "KL(policy || last round's policy) is 0 at step 0",
    "first_ratio_is_one": "the first minibatch's probability ratio is 1",
}
"""Texts of the checks that are the same in every run."""


def base_unchanged(base: Base, stage: str, before: str) -> Claim:
    """Compare the base's checksum with its checksum before the stage."""
    holds = base.checksum() == before
    return Claim(
        id="base_unchanged", claim=f"{stage} left the base's checksum unchanged", figure=before[:12], holds=holds
    )


def checksums(roles: Roles, untrained: Collection[Role]) -> dict[Role, str]:
    """Return the sha256 of the weights, head included, of the roles that the stage loads but does not train.

    Not of every role in memory: that depends on where the run was resumed.
    """
    return {role: _checksum(roles, role) for role in untrained}


def others_unchanged(roles: Roles, stage: str, before: Mapping[Role, str]) -> Claim:
    """Compare the roles' checksums with those from `checksums`; the figure names the roles."""
    changed = [role.name for role in before if _checksum(roles, role) != before[role]]
    names = ", ".join(changed or [role.name for role in before])
    text = f"{stage} moved no weight of the roles that it does not train"
    return Claim(id="other_roles_unchanged", claim=text, figure=names, holds=not changed)


def weights_unchanged(roles: Roles, stage: str, base: str, others: Mapping[Role, str]) -> tuple[Claim, Claim]:
    """Compare the base and the roles that the stage does not train with their checksums before the stage."""
    return base_unchanged(roles.base, stage, base), others_unchanged(roles, stage, others)


def is_due(claims: Sequence[Claim], check: ClaimId) -> bool:
    """Return True if the check has not been made yet."""
    return all(claim.id != check for claim in claims)


def require(claims: list[Claim], check: ClaimId, text: str, error: float, tolerance: float) -> None:
    """Add a check to the claims. Raises `StageFailed` if the error exceeds the tolerance or is NaN."""
    claims.append(Claim(id=check, claim=text, figure=error, holds=error <= tolerance))
    if not error <= tolerance:  # NaN compares False
        raise StageFailed(
            f"ppo: self-check failed: {text}; it is off by {error:.3g}. Sampling, reference and training do not use "
            "the same model. This is a bug here or in a library: please report it with the run's env.json"
        )


def check_start(claims: list[Claim], difference: float | None) -> None:
    """Check that a later round starts as the last one's policy.

    `difference` is the largest of their log-probabilities at a token, nats, before the first step; None in the first
    round. Raises as `require` does.
    """
    if difference is not None and is_due(claims, "starts_as_last_round"):
        text = SENTENCES["starts_as_last_round"]
        require(claims, "starts_as_last_round", text, difference, MAX_TOKEN_DIFFERENCE)


def _checksum(roles: Roles, role: Role) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(roles.named_parameters(role).items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
