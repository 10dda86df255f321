"""HTML of the list of runs and of the chosen run's status."""

from collections.abc import Mapping, Sequence

from lowrank_rlhf.dashboard.run_status import RunStatus
from lowrank_rlhf.dashboard.text import explained, html, t
from lowrank_rlhf.dashboard.wording import worded
from lowrank_rlhf.reports.alarms import Alarm
from lowrank_rlhf.reports.format import percent, percent_bounds
from lowrank_rlhf.reports.locale import locale
from lowrank_rlhf.run.progress import duration
from lowrank_rlhf.run.results.rounds import split

_SEPARATOR = " · "
_ENDED_EARLY = ("stopped", "failed", "killed")


def run_list(
    runs: Sequence[RunStatus],
    chosen: str | None,
    language: str,
    found: int = 0,
    unread: int = 0,
    exist: bool = False,
    alarms: Mapping[str, Sequence[Alarm]] | None = None,
) -> str:
    """Return a button for each run: name, state, stages, remaining time and latest figure.

    `found` is the number of runs that the filter leaves, `unread` of those whose state is not known yet; `exist` tells
    an empty folder from a filter that leaves nothing. `alarms` are those known, by run.
    """
    missing = t("runs.unread", language, count=unread) if unread else ""
    if not unread and found > len(runs):
        missing = t("runs.some", language, shown=len(runs), found=found)
    below = f'<p class="soft">{html(missing)}</p>' if missing else ""
    if not runs:
        return f'<p class="empty">{html(t("runs.none_found" if exist else "runs.none", language))}</p>{below}'
    known = alarms or {}
    buttons = (_button(run, run.name == chosen, language, known.get(run.name, ())) for run in runs)
    return f'<div class="runs">{"".join(buttons)}</div>{below}'


def state_line(run: RunStatus, language: str) -> str:
    """Return a line such as `running · ppo 3/14 · about 2:01 left`."""
    return _SEPARATOR.join([t(f"state.{run.state}", language), *_position(run, language)])


def last_figure(run: RunStatus, language: str) -> str:
    """Return the run's headline figure with its name; empty if it has none."""
    if run.figure is None:
        return ""
    value = f"{run.figure.value:.3g}"
    if run.figure.is_share:
        value = percent(run.figure.value) + percent_bounds(run.figure.interval)
    return t(f"figure.{run.figure.key}", language, value=value)


def interval_note(run: RunStatus, language: str) -> str:
    """Return what the brackets of `last_figure` are, as the title of its element; empty if it has none."""
    bracketed = run.figure is not None and percent_bounds(run.figure.interval)
    return f' title="{html(t("figure.interval", language))}"' if bracketed else ""


def details(run: RunStatus | None, language: str) -> str:
    """Return what the chosen run does, why, and what comes next, with the end of its log if it ended early."""
    if run is None:
        return ""  # there are no runs
    if run.state == "waiting":  # its log and exit code are for the terminal
        return f"{_sentences(run, language)}{damage_note(run, language)}"
    log = f"<pre>{html(run.log_end)}</pre>" if run.log_end else ""
    if run.exit_code:
        stopped = run.state == "stopped"
        ended = t("runs.log_end" if stopped else "runs.exit_code", language, code=run.exit_code)
        folded = run.error or stopped
        log = f"<details{'' if folded else ' open'}><summary>{html(ended)}</summary>{log}</details>"
    error = note(worded(run.error, language), "bad")
    return f"{_sentences(run, language)}{error}{damage_note(run, language)}{log}"


def _sentences(run: RunStatus, language: str) -> str:
    """Return what is happening, why the current stage exists, and the next thing to do."""
    stage = split(run.stage)[1] if run.stage else None
    if stage == "ppo" and run.algorithm != "ppo":
        stage = "align"
    now = f"now.{stage}" if run.state == "running" and stage else f"state.{run.state}.long"
    lead = explained(now, language, algorithm=run.algorithm.upper())
    if stage and run.state in _ENDED_EARLY:
        lead += " " + html(t("runs.in_stage", language, stage=run.stage))
    if stage and run.state in ("running", "waiting", *_ENDED_EARLY):
        lead += " " + explained(f"why.{stage}", language)
    following = explained("next.refused" if run.error and run.state == "failed" else f"next.{run.state}", language)
    next_word = html(t("runs.next", language))
    return f'<p class="lead">{_badge(run, language)} {lead}</p><p class="lead"><b>{next_word}</b> {following}</p>'


def damage_note(run: RunStatus, language: str) -> str:
    """Return a message box with the damaged files of the run's finished stages; empty if there are none."""
    found = run.damage()
    return note("\n".join([t("runs.damaged", language), *found]), "bad") if found else ""


def command_line(command: str, language: str) -> str:
    """Return the exact command, ready to copy."""
    return f'<p class="soft">{html(t("runs.command", language))}</p><pre class="command">{html(command)}</pre>'


def report_frame(source: str, title: str) -> str:
    """Return a frame with a report, which may save files and run the one script that its policy names."""
    allowed = "allow-downloads allow-scripts"
    return f'<iframe class="report" sandbox="{allowed}" src="{html(source)}" title="{html(title)}"></iframe>'


def note(text: str, kind: str = "info") -> str:
    """Return a message box of kind `info`, `good` or `bad`; empty for an empty text."""
    return f'<div class="note {kind}"><pre>{html(text)}</pre></div>' if text else ""


def _button(run: RunStatus, chosen: bool, language: str, alarms: Sequence[Alarm]) -> str:
    marks = "".join(f'<i class="{_mark(run, stage)}" title="{html(stage)}"></i>' for stage in run.stages)
    position = _SEPARATOR.join(_position(run, language))
    return (
        f'<button type="button" class="run{" chosen" if chosen else ""}" data-run="{html(run.name)}"'
        f' aria-pressed="{str(chosen).lower()}"><span class="name">{html(run.name)}</span>{_badge(run, language)}'
        f'<span class="stages">{marks}</span><span class="soft">{_alarm_mark(alarms, language)}{html(position)}</span>'
        f'<span class="figure"{interval_note(run, language)}>{html(last_figure(run, language))}</span></button>'
    )


def _alarm_mark(alarms: Sequence[Alarm], language: str) -> str:
    """Return the number of a run's alarms, with their titles on hover; empty for a run without."""
    if not alarms:
        return ""
    titles = "\n".join(alarm.title(locale(language)) for alarm in alarms)
    words = t("runs.alarms", language, count=len(alarms))
    return f'<b class="alarmed" title="{html(titles)}">⚠ {html(words)}</b> '


def _position(run: RunStatus, language: str) -> list[str]:
    """Return the current stage with its count, and the remaining time, as far as known."""
    parts = []
    if run.stage:
        count = f" {run.progress.done}/{run.progress.total}" if run.progress else ""
        parts.append(f"{run.stage}{count}")
    if run.seconds_left is not None:
        whole = run.progress is not None and run.progress.run_seconds_left is not None
        key = "runs.time_left_people" if whole and run.people_rank else "runs.time_left"
        parts.append(t(key, language, time=duration(run.seconds_left)))
    return parts


def _mark(run: RunStatus, stage: str) -> str:
    if stage in run.done:
        return "done"
    return "now" if stage == run.stage and run.busy else "todo"


def _badge(run: RunStatus, language: str) -> str:
    return f'<span class="badge {run.state}">{html(t(f"state.{run.state}", language))}</span>'
