"""Chosen run and tab in the page's address and title: a reload, a second window and the back button show the same."""

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr

from lowrank_rlhf.dashboard.page import OF_RUN, QUIET, DashboardPage
from lowrank_rlhf.dashboard.runs_folder import RunsFolder

# Opens the address's tab, and returns its run. Selections before that leave the address alone.
_RESTORE = """() => {
  const parts = () => new URL(location).searchParams;
  const shown = (tab) => document.getElementById(`tab-${tab}-button`);
  // On a narrow screen the last tabs are in a menu, without ids.
  const button = (tab) => shown(tab) || document.querySelectorAll('.overflow-dropdown button')[
    %s.filter((name) => !shown(name)).indexOf(tab)];
  window.keepAddress = (run, tab) => {
    const address = new URL(location), own = address.searchParams, first = !own.has('run');
    if (run) own.set('run', window.shownRun = run);
    if (tab && tab !== (own.get('tab') || 'runs')) own.set('tab', tab);
    if (address.href !== location.href) history[first ? 'replaceState' : 'pushState'](null, '', address);
    const label = button(own.get('tab') || 'runs');
    document.title = [own.get('run'), label && label.textContent.trim(), 'lowrank_rlhf'].filter(Boolean).join(' · ');
  };
  window.openTab = () => { const found = button(parts().get('tab') || 'runs'); if (found) found.click(); };
  // Else leave the tab that was opened while the page loaded.
  if (parts().get('tab') && !window.openedAtOnce) window.openTab();
  return parts().get('run');
}"""
# Before the server answers anything; on a narrow screen the last tabs have no button yet.
_OPEN_AT_ONCE = """() => {
  const tab = new URL(location).searchParams.get('tab'), button = tab && document.getElementById(`tab-${tab}-button`);
  if (button) { button.click(); window.openedAtOnce = true; }
}"""
_KEEP_RUN = "(run) => { if (window.keepAddress) window.keepAddress(run); }"
# The chosen run is the address's from now on; the tab Rank shows nothing before.
_RUN_KNOWN = """(run) => {
  if (window.keepAddress) window.keepAddress(run);
  window.shownRun = run || '';
  window.dispatchEvent(new Event('run-known'));
}"""
OF_RUN_SHOWN = """(run, ...rest) => [
  window.shownRun ? run : new URL(location).searchParams.get('run') || run, ...rest]"""
"""Script of an event whose first input is the chosen run: until the page has chosen the address's, it is that one."""
_KEEP_TAB = "() => { if (window.keepAddress) window.keepAddress(null, '%s'); }"
# Sends the run of an address that the back or forward button has returned to, if another is shown: the answer to an
# earlier step must not follow that of a later one.
_WATCH = """window.addEventListener('popstate', () => {
  if (!window.openTab) return;
  window.openTab();
  const run = new URL(location).searchParams.get('run') || '';
  if (run !== window.shownRun) trigger('select', {index: 0, value: window.shownRun = run});
});"""


def keep_tab(name: str) -> str:
    """Return the script that writes an opened tab into the address. Of a tab's events it must be the first."""
    return _KEEP_TAB % name


def restore(tabs: Sequence[str]) -> str:
    """Return the script that opens the address's tab and returns its run. `tabs`: their names, in order."""
    return _RESTORE % json.dumps(tabs)


def chosen(runs: RunsFolder, run: str | None) -> dict[str, Any]:
    """Return the update of the runs offered: those listed, and the address's, which is chosen if it exists."""
    names = runs.listed(run)
    if run not in names:
        at_work = runs.training()
        run = at_work if at_work in names else next(iter(names), None)
    update: dict[str, Any] = gr.update(choices=names, value=run)
    return update


def connect(loaded: Any, page: DashboardPage, tabs: Sequence[str]) -> None:
    """Keep the run in the address, and restore run and tab after the event `loaded`. `tabs`: names, in order.

    Without a run in the address the page shows the run at work, else the newest; an archived one only by its address.
    """

    def returned(now: str | None, event: gr.SelectData) -> str | None:
        return event.value if event.value in page.runs.names() else now  # an archived one too

    gr.on(None, None, None, None, js=_OPEN_AT_ONCE, **QUIET)
    restored = loaded.then(lambda run: chosen(page.runs, run), page.run, page.run, js=restore(tabs), **OF_RUN)
    restored.then(None, page.run, None, js=_RUN_KNOWN, **QUIET)
    page.run.change(None, page.run, None, js=_KEEP_RUN, **QUIET)
    watcher = gr.HTML("", js_on_load=_WATCH, elem_id="address")
    # Two steps back in a row: the second event is sent while the first is answered.
    watcher.select(returned, page.run, page.run, trigger_mode="multiple", **OF_RUN)
