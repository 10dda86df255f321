"""State that the tabs share, the components that show texts, and the settings of events."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import gradio as gr

from lowrank_rlhf.dashboard.chat_worker import ChatWorker
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.text import LANGUAGES, t

EVENT: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "minimal"}
"""Settings of an event triggered by a person; not offered to API clients."""
QUIET: dict[str, Any] = EVENT | {"show_progress": "hidden"}
"""Settings of an automatic event, such as a timer's."""
OF_RUN: dict[str, Any] = QUIET | {"preprocess": False}
"""Settings of an automatic event with the chosen run among its inputs, which take any text. Gradio would answer with an
error message where the run has just been deleted, or was made after the server started."""

SECONDS = 2.0
"""Seconds between two ticks of a timer."""

Block = TypeVar("Block", bound=Any)
_NUMBERS = count()


def updates_of(component: Any) -> gr.State:
    """Return a state that applies each `delayed_update` put into it to a component.

    An event of a timer outputs it in place of a component that events read. Gradio makes each output's component anew,
    skipped or not, and keeps those that are also inputs until the visitor leaves; an unchanged state costs nothing.
    """
    state = gr.State(None)

    def properties(update: dict[str, Any] | None) -> Any:
        if update is None:  # some loads of the page count as a change
            return gr.skip()
        return gr.update(**{name: value for name, value in update.items() if name != "number"})

    state.change(properties, state, component, **QUIET)
    return state


def delayed_update(**properties: Any) -> dict[str, Any]:
    """Return an update for a state of `updates_of`. It differs from every other one, so that it is applied."""
    return {"number": next(_NUMBERS), **properties}


class Texts:
    """Registry of the components that show texts, to switch the language of all of them."""

    def __init__(self) -> None:
        self._shown: list[tuple[Any, dict[str, str]]] = []

    def add(self, component: Block, **keys: str) -> Block:
        """Register properties of a component as texts: `add(gr.Button(), value="runs.stop")`."""
        for name, key in keys.items():
            setattr(component, name, t(key, next(iter(LANGUAGES))))
        self._shown.append((component, keys))
        return component

    @property
    def components(self) -> list[Any]:
        """Registered components, in order."""
        return [component for component, _ in self._shown]

    def updates(self, language: str) -> list[dict[str, Any]]:
        """Return one update per component."""
        found: list[dict[str, Any]] = [
            {name: t(key, language) for name, key in keys.items()} for _, keys in self._shown
        ]
        return [gr.update(**texts) for texts in found]


def as_updates(outputs: Iterable[Any]) -> list[Any]:
    """Return outputs of a timer's event with an update in place of each text.

    Gradio keeps a component, until the visitor leaves, for each text that follows a `gr.skip()`.
    """
    return [gr.update(value=output) if isinstance(output, str) else output for output in outputs]


@dataclass(frozen=True)
class DashboardPage:
    """Shared state of the tabs of one page."""

    runs: RunsFolder
    run: gr.Dropdown
    """Name of the chosen run, or None."""
    language: gr.Radio
    texts: Texts
    chat: ChatWorker
    tab: gr.Tab
    """The tab that is laid out."""
    timer: gr.Timer
    """Ticks while that tab is shown."""

    @property
    def while_shown(self) -> tuple[Any, Any]:
        """Return the events of the tab that is laid out: it is opened, and each tick until it is left."""
        return self.tab.select, self.timer.tick
