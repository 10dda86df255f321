"""Request of the ranking page: one step of an annotator or of the run's owner, with the state of the screen."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lowrank_rlhf.preferences.labelling import LABELS
from lowrank_rlhf.preferences.team.settings import TeamSettings

OF_OWNER = frozenset(("exclude", "restore", "disputes", "decide", "undecide", "team"))
"""Steps that only the run's owner may take."""
Short = Annotated[str, Field(max_length=200)]


class Badge(BaseModel):
    """Annotator and run, signed when the page was opened, so that no request can name another annotator."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    run: Short
    annotator: Short
    signature: Short


class RankingRequest(BaseModel):
    """Step of an annotator, with the state of the screen."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    do: Literal[
        "open", "key", "arrange", "renew", "figures", "exclude", "restore", "disputes", "decide", "undecide", "team"
    ]
    badge: Badge
    language: Literal["en", "zh"]
    prompt_id: str | None = None
    done: int = 0
    keys: Annotated[list[Short], Field(max_length=1000)] = []
    flags: Annotated[list[str], Field(max_length=50)] = []
    """Flags of the ranking that was undone."""
    written: Annotated[str, Field(max_length=50_000)] = ""
    guidelines: Short = ""
    """Version of the guidelines on the screen."""
    key: Short = ""
    tiers: list[list[int]] = []
    unread: Annotated[list[int], Field(max_length=len(LABELS))] = []
    """Places of the answers whose end has not been on the screen."""
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    annotator: Short = ""
    """Annotator to exclude or restore."""
    team: TeamSettings | None = None
    """Settings to save."""
