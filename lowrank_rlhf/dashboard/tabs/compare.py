"""Tab Compare: final figures, settings that differ, curves and answers of several runs side by side."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import gradio as gr

from lowrank_rlhf.dashboard.page import QUIET, DashboardPage, as_updates, delayed_update, updates_of
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.served import comparison
from lowrank_rlhf.dashboard.tabs.runs_html import command_line, note, report_frame
from lowrank_rlhf.dashboard.text import html, t
from lowrank_rlhf.dashboard.wording import error_text
from lowrank_rlhf.errors import UserError

# The address keeps the runs, also where the back button returns to an earlier run or tab.
_RESTORE = """() => {
  const given = new URL(location).searchParams.get('compare');
  window.keepCompared = (names) => {
    const address = new URL(location);
    if (names.length) address.searchParams.set('compare', (window.compared = names).join(','));
    else { window.compared = []; address.searchParams.delete('compare'); }
    if (address.href !== location.href) history.replaceState(null, '', address);
  };
  window.addEventListener('popstate', () => window.keepCompared(window.compared));
  return [window.compared = given ? given.split(',') : []];
}"""
_KEEP = "(names) => { if (window.keepCompared) window.keepCompared(names || []); }"


def build(page: DashboardPage) -> None:
    """Lay out the tab. The comparison is drawn again when the choice changes or a stage of a chosen run ends."""
    names = page.runs.listed()
    # A run in the address may have been deleted: its name is shown, with a note.
    chosen = page.texts.add(
        gr.Dropdown(names, value=[], multiselect=True, allow_custom_value=True, elem_id="compared"),
        label="compare.runs",
        info="compare.info",
    )
    shown, seen = gr.HTML("", elem_id="comparison"), gr.State({})

    def refresh(given: Sequence[str] | None, language: str, before: dict[str, Any]) -> list[Any]:
        return as_updates(_refresh(page.runs, given or [], language, before))

    inputs, outputs = [chosen, page.language, seen], [updates_of(chosen), shown, seen]
    gr.on(None, None, None, chosen, js=_RESTORE, **QUIET)
    chosen.change(None, chosen, None, js=_KEEP, **QUIET)
    gr.on([*page.while_shown, chosen.change, page.language.change], refresh, inputs, outputs, **QUIET)


def _refresh(runs: RunsFolder, given: Sequence[str], language: str, before: dict[str, Any]) -> list[Any]:
    """Return the choices, the comparison as HTML, and what both were made from; each only if it has changed."""
    names, version = runs.listed(*given), _version(runs, given)
    now = {"names": names, "shown": (list(given), language, version)}
    if now == before:
        return [gr.skip()] * 3
    choices = gr.skip() if names == before.get("names") else delayed_update(choices=names)
    made = gr.skip() if now["shown"] == before.get("shown") else _comparison(runs, given, language, version)
    return [choices, made, now]


def _version(runs: RunsFolder, given: Sequence[str]) -> int:
    try:
        return comparison.version(runs, given)
    except UserError:
        return 0


def _comparison(runs: RunsFolder, given: Sequence[str], language: str, version: int) -> str:
    if len(given) < 2:
        return f'<p class="empty">{html(t("compare.choose", language))}</p>'
    try:
        comparison.read_runs(runs, given)
    except UserError as error:
        return note(error_text(error, language), "bad")
    source = f"/compare?runs={quote(comparison.SEPARATOR.join(given))}"
    opens, saves = (html(t(f"compare.{key}", language)) for key in ("open", "save"))
    return (
        f'<p><a href="{source}#{language}" target="_blank" rel="noopener">{opens}</a> · '
        f'<a href="{source}&amp;saved" download="comparison.html">{saves}</a></p>'
        + report_frame(f"{source}&v={version}#{language}", t("compare.title", language))
        + command_line(comparison.command(runs, given), language)
    )
