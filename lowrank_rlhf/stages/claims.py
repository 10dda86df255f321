"""What every run checks about itself, and the report shows: the four claims of the README."""

from typing import Any

from lowrank_rlhf.stages.context import Context


def claim(text: str, figure: float | str, holds: bool) -> dict[str, Any]:
    """One claim as it stands in a stage's done-mark."""
    return {"claim": text, "figure": figure, "holds": holds}


def base_unchanged(context: Context, stage: str, before: str) -> dict[str, Any]:
    """That the base's weights still have the checksum they had before the stage."""
    return claim(f"{stage} left the base's checksum unchanged", before[:12], context.base.checksum() == before)
