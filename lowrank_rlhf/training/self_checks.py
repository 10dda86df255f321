"""What every run checks about itself, and the report shows: the claims of the README."""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import torch

from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.session import Session


def claim(text: str, figure: float | str, holds: bool) -> dict[str, Any]:
    """One claim as it stands in a stage's done-mark."""
    return {"claim": text, "figure": figure, "holds": holds}


def base_unchanged(session: Session, stage: str, before: str) -> dict[str, Any]:
    """That the base's weights still have the checksum they had before the stage."""
    return claim(f"{stage} left the base's checksum unchanged", before[:12], session.base.checksum() == before)


def checksums(session: Session, trained: Collection[Role]) -> dict[Role, str]:
    """sha256 of the weights, head included, of every role that there is but those that the stage trains."""
    return {role: _checksum(session, role) for role in Role if role in session.roles.present and role not in trained}


def others_unchanged(session: Session, stage: str, before: Mapping[Role, str]) -> dict[str, Any]:
    """That the roles of `checksums` still have them; the figure names the roles."""
    moved = [role.name for role in before if _checksum(session, role) != before[role]]
    names = ", ".join(moved or [role.name for role in before])
    return claim(f"{stage} moved no weight of the roles that it does not train", names, not moved)


def _checksum(session: Session, role: Role) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(session.roles.named_parameters(role).items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
