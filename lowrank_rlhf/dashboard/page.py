"""State that the tabs share, and the settings of their events."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from lowrank_rlhf.dashboard.chat_worker import ChatWorker
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.text import Texts

EVENT: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "minimal"}
"""Settings of an event triggered by a person; not offered to API clients."""
QUIET: dict[str, Any] = EVENT | {"show_progress": "hidden"}
"""Settings of an automatic event, such as a timer's."""
OF_RUN: dict[str, Any] = QUIET | {"preprocess": False}
"""Settings of an automatic event with the chosen run among its inputs, which take any text. Gradio would answer with an
error message where the run has just been deleted, or was made after the server started."""


@dataclass(frozen=True)
class DashboardPage:
    """Shared state of the tabs of one page."""

    runs: RunsFolder
    run: gr.Dropdown
    """Name of the chosen run, or None."""
    language: gr.Radio
    texts: Texts
    chat: ChatWorker
    tab: gr.Tab | None = None
    """The tab that is laid out."""
