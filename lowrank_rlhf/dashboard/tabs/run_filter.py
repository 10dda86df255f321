"""Search, filter and order of the list of runs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import gradio as gr

from lowrank_rlhf.dashboard.page import QUIET, DashboardPage
from lowrank_rlhf.dashboard.run_state import State
from lowrank_rlhf.dashboard.run_status import ARCHIVED, RunStatus
from lowrank_rlhf.dashboard.text import LANGUAGES, t

ORDERS = ("newest", "name", "win_rate")
FEW = 8
"""Runs that are found without a search."""


class RunFilter(NamedTuple):
    """What a visitor wants to see of the list."""

    search: str = ""
    state: str = ""
    """A `State`, `ARCHIVED`, or empty for all that are not archived."""
    order: str = ORDERS[0]


ALL = RunFilter()


def lay_out(page: DashboardPage) -> tuple[gr.Row, list[Any]]:
    """Add the fields of a `RunFilter`, in order, and return their row and them."""
    first = next(iter(LANGUAGES))
    with gr.Row(elem_id="run-filter", visible=False) as row:
        search = page.texts.add(gr.Textbox(max_lines=1, max_length=64, elem_id="run-search"), label="filter.search")
        state = page.texts.add(gr.Dropdown(_states(first), value="", elem_id="run-state"), label="filter.state")
        order = page.texts.add(gr.Dropdown(_orders(first), value=ORDERS[0], elem_id="run-order"), label="filter.order")
    page.language.change(_in_language, page.language, [state, order], **QUIET)
    return row, [search, state, order]


def matching(names: Sequence[str], statuses: Mapping[str, RunStatus], wanted: RunFilter) -> list[str]:
    """Return the names that a filter leaves, in its order. A run that was not read yet has no state."""
    words = wanted.search.casefold().split()
    found = [name for name in names if all(word in name.casefold() for word in words)]
    chosen = wanted.state == ARCHIVED
    found = [name for name in found if (name in statuses and statuses[name].archived) == chosen]
    if wanted.state and not chosen:
        found = [name for name in found if name in statuses and statuses[name].state == wanted.state]
    if wanted.order == "name":
        return sorted(found, key=str.casefold)
    if wanted.order == "win_rate":
        return sorted(found, key=lambda name: -_win_rate(statuses.get(name)))  # stable: the newest of equal ones first
    return found


def _win_rate(run: RunStatus | None) -> float:
    return run.figure.value if run and run.figure and run.figure.key == "win_rate" else -1.0


def _states(language: str) -> list[tuple[str, str]]:
    states = [(t(f"state.{state}", language), state) for state in get_args(State)]
    return [(t("filter.all", language), ""), *states, (t("filter.archived", language), ARCHIVED)]


def _orders(language: str) -> list[tuple[str, str]]:
    return [(t(f"filter.{order}", language), order) for order in ORDERS]


def _in_language(language: str) -> list[Any]:
    return [gr.update(choices=_states(language)), gr.update(choices=_orders(language))]
