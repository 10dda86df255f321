"""The list of runs, and what is said about one, as HTML."""

from collections.abc import Sequence

from lowrank_rlhf.dashboard.run_status import TAILS, Run
from lowrank_rlhf.dashboard.text import html, t
from lowrank_rlhf.run.progress import duration

# A stage's figure that says most, by its name in metrics.jsonl and among the texts.
_FIGURES = {"sft": ("loss", "loss"), "reward": ("accuracy", "accuracy"), "ppo": ("objective/scores", "score")}


def run_list(found: Sequence[Run], chosen: str | None, language: str) -> str:
    """A button for each run: its name, state, stages, time to go and last figure."""
    if not found:
        return f'<p class="empty">{html(t("runs.none", language))}</p>'
    return f'<div class="runs">{"".join(_run(run, run.name == chosen, language) for run in found)}</div>'


def state_line(run: Run, language: str) -> str:
    """`running · ppo 3/14 steps · about 2:01 to go`."""
    parts = [t(f"state.{run.kind}", language)]
    if run.stage and run.kind != "finished":
        at = f" {run.bar.at}/{run.bar.total}" if run.bar else ""
        parts.append(f"{run.stage}{at}")
    if run.seconds_left is not None:
        parts.append(t("runs.to_go", language, time=duration(run.seconds_left)))
    return " · ".join(parts)


def last_figure(run: Run, language: str) -> str:
    """The win rate of a finished run, or the last figure that training wrote."""
    evaluated = run.summaries.get("evaluate", {})
    if run.kind == "finished" and evaluated.get("win_rate") is not None:
        return t("figure.win_rate", language, value=f"{100 * evaluated['win_rate']:.0f}")
    rows, _ = TAILS.look(run.path / "metrics.jsonl")
    for row in reversed(rows):
        metric, name = _FIGURES.get(str(row.get("stage")), ("", ""))
        if isinstance(value := row.get(metric), int | float):
            return t(f"figure.{name}", language, value=f"{value:.3g}")
    return ""


def details(run: Run | None, language: str) -> str:
    """What the chosen run waits for or says."""
    if run is None:
        return f'<p class="empty">{html(t("runs.choose", language))}</p>'
    lead = t(f"state.{run.kind}.long", language)
    if run.kind == "waiting":
        lead += " " + t("runs.waiting", language)
    message = f"<pre>{html(run.message)}</pre>" if run.message else ""
    return f'<p class="lead">{_badge(run, language)} {html(lead)}</p>{message}'


def _run(run: Run, chosen: bool, language: str) -> str:
    marks = "".join(f'<i class="{_mark(run, stage)}" title="{html(stage)}"></i>' for stage in run.stages)
    return (
        f'<button type="button" class="run{" chosen" if chosen else ""}" data-run="{html(run.name)}"'
        f' aria-pressed="{str(chosen).lower()}"><span class="name">{html(run.name)}</span>{_badge(run, language)}'
        f'<span class="stages">{marks}</span><span class="soft">{html(_where(run, language))}</span>'
        f'<span class="figure">{html(last_figure(run, language))}</span></button>'
    )


def _where(run: Run, language: str) -> str:
    return state_line(run, language).partition(" · ")[2]


def _mark(run: Run, stage: str) -> str:
    if stage in run.done:
        return "done"
    return "now" if stage == run.stage and run.busy else "todo"


def _badge(run: Run, language: str) -> str:
    return f'<span class="badge {run.kind}">{html(t(f"state.{run.kind}", language))}</span>'


def command_line(command: str, language: str) -> str:
    """The exact command, to be copied."""
    return f'<p class="soft">{html(t("runs.command", language))}</p><pre class="command">{html(command)}</pre>'


def note(text: str, kind: str = "info") -> str:
    """A message: `info`, `good` or `bad`; nothing for an empty text."""
    return f'<div class="note {kind}"><pre>{html(text)}</pre></div>' if text else ""
