"""What the tabs share: the folder of runs, the run chosen, the language, and how their events are declared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from lowrank_rlhf.dashboard.text import Texts

EVENT: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "minimal"}
"""Settings of every event that a person sets off: for the page alone, not for programs."""
QUIET: dict[str, Any] = EVENT | {"show_progress": "hidden"}
"""Of every event that comes by itself."""


@dataclass(frozen=True)
class Page:
    """What every tab builds on."""

    runs: Path
    run: gr.Dropdown
    """The name of the run that was chosen, or nothing."""
    language: gr.Radio
    texts: Texts
