"""The selector of the run that all tabs show."""

from typing import Any

import gradio as gr


class RunChoice(gr.Dropdown):
    """Dropdown whose value may be a run that is no longer, or not yet, among the choices.

    Gradio would answer the timers of a page whose run was deleted with an error message; each tab shows a missing run
    in its own words.
    """

    def get_block_name(self) -> str:
        """Return the name of Gradio's own component, which draws it."""
        return "dropdown"

    def preprocess(self, payload: Any) -> str | None:
        """Return the name as it was sent; None for anything that is no text."""
        return payload if isinstance(payload, str) else None
