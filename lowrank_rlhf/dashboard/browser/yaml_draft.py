"""Edited settings of a new run: kept in the browser over a reload, and never overwritten without a question."""

import json
from typing import Any

import gradio as gr

from lowrank_rlhf.dashboard.browser.storage import with_storage
from lowrank_rlhf.dashboard.page import QUIET
from lowrank_rlhf.dashboard.text import LANGUAGES, t

_KEEP = with_storage("""(text, name) => {
  const draft = {text, name, loaded: window.loadedYaml};
  if (window.draftRestored) stored((storage) => storage.setItem('lowrank-new-run', JSON.stringify(draft)));
}""")
_RESTORE = with_storage("""() => {
  const kept = stored((storage) => JSON.parse(storage.getItem('lowrank-new-run')));
  window.loadedYaml = (kept && kept.loaded) || '';
  window.draftRestored = true;
  return [(kept && kept.text) || '', (kept && kept.name) || ''];
}""")
# The draft may have been kept already, with the text that was loaded before.
_LOADED = with_storage("""(text) => {
  if (!text) return;
  window.loadedYaml = text;
  const draft = stored((storage) => JSON.parse(storage.getItem('lowrank-new-run')));
  const changed = JSON.stringify({...draft, loaded: text});
  if (draft) stored((storage) => storage.setItem('lowrank-new-run', changed));
}""")
_ASK = """(choice, text, ...rest) => {
  const questions = %s;
  const edited = (text || '').trim() && text.trim() !== (window.loadedYaml || '').trim();
  const kept = edited && !confirm(questions[document.documentElement.lang]);
  return [choice, kept ? text : '', ...rest];
}"""


def keep(yaml: gr.Code, name: gr.Textbox) -> None:
    """Keep text and name in the browser, and restore them when the page is loaded."""
    gr.on(None, None, None, [yaml, name], js=_RESTORE, **QUIET)
    for field in (yaml, name):
        field.change(None, [yaml, name], None, js=_KEEP, **QUIET)


def asks_first(choice: str | None = None) -> str:
    """Return the script of an event with the inputs choice, text and others: it asks before an edited text goes.

    The event receives the text only if the person keeps it, else an empty one; `choice` replaces the first input.
    """
    script = _ASK % json.dumps({language: t("new.overwrite", language) for language in LANGUAGES}, ensure_ascii=False)
    return script if choice is None else f"(_, ...rest) => ({script})({json.dumps(choice)}, ...rest)"


def lay_out() -> gr.Textbox:
    """Add the text that the last event loaded, empty if it loaded none. It is hidden by style: scripts read it."""
    return gr.Textbox(elem_id="loaded-yaml", elem_classes="folded")


def loaded(event: Any, text: gr.Textbox) -> None:
    """Remember in the browser the text that an event has loaded: it may be replaced without a question."""
    event.then(None, text, None, js=_LOADED, **QUIET)
