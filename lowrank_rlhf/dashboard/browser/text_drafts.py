"""Texts that are typed and not sent yet: kept in the browser over a reload."""

import json

import gradio as gr

from lowrank_rlhf.dashboard.browser.storage import with_storage
from lowrank_rlhf.dashboard.page import QUIET

_MAX_CHARACTERS = 200_000
"""Of a kept text; a longer one is not kept."""
_KEEP = f"""(text) => {{
  if (!window.draftsRestored?.['%s']) return;
  stored((storage) => text.length > {_MAX_CHARACTERS} ? storage.removeItem('%s') : storage.setItem('%s', text));
}}"""
_RESTORE = with_storage("""() => %s.map((name) => {
  (window.draftsRestored ||= {})[name] = true;
  return stored((storage) => storage.getItem(name)) || '';
})""")


def keep(boxes: dict[str, gr.Textbox]) -> None:
    """Keep the texts of these boxes in the browser under their names, and restore them when the page is loaded."""
    restored = _RESTORE % json.dumps(list(boxes))
    gr.on(None, None, None, list(boxes.values()), js=restored, **QUIET)
    for name, box in boxes.items():
        box.change(None, box, None, js=with_storage(_KEEP % (name, name, name)), **QUIET)
