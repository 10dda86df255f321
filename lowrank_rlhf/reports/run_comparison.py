"""Comparison of several runs: final figures, settings that differ, alarms, curves, answers to the same prompts."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ConfigDict

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.config.section import flat
from lowrank_rlhf.reports.alarms import Alarm, find_alarms
from lowrank_rlhf.reports.answers import first_answers, has_greedy, shown_answers, win_difference
from lowrank_rlhf.reports.charts import ChartFigure
from lowrank_rlhf.reports.format import (
    ENDPOINT_PREFIX,
    MISSING,
    Metrics,
    Table,
    judge_label,
    number,
    number_bounds,
    percent,
    percent_bounds,
    points,
    points_bounds,
)
from lowrank_rlhf.reports.locale import LANGUAGES, Locale, locale
from lowrank_rlhf.reports.overlay import overlaid_figures
from lowrank_rlhf.reports.render import FEATURED, ComparedAnswers, Rows, Side
from lowrank_rlhf.reports.tables import figure_label, figure_value
from lowrank_rlhf.reports.templating import html_environment
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import duration, memory
from lowrank_rlhf.run.records import Record, read_jsonl
from lowrank_rlhf.run.results import (
    DoneMark,
    EvaluateResult,
    PolicyResult,
    Results,
    RewardResult,
    StageResult,
)

SHOWN = 24
"""Prompts whose answers are shown."""
_LONGEST = 100
"""Characters of a setting that are shown."""


class _EvaluatedPrompt(Record):
    """A row of eval.jsonl."""

    model_config = ConfigDict(extra="allow")

    prompt: str
    policy: str


@dataclass(frozen=True)
class ComparedRun:
    """One run, finished or not, as it is in its folder."""

    name: str
    config: Config
    marks: Mapping[str, DoneMark[StageResult]]
    """Done marks by stage."""
    metrics: Metrics = ()
    eval_rows: Rows = ()
    round: int = 1
    """Round of the figures."""

    @cached_property
    def results(self) -> Results:
        """Results of the finished stages."""
        return Results.model_validate({stage: mark.result for stage, mark in self.marks.items()})

    @property
    def unfinished(self) -> list[str]:
        """Stages of the config that are not done."""
        return [stage for stage in self.config.active_stages if stage not in self.marks]


@dataclass(frozen=True)
class RunComparison:
    """Contents of a comparison in one language."""

    texts: Locale
    title: str
    notes: Sequence[str]
    """Missing figures, and reasons why figures are not comparable."""
    final: Table
    settings: Table
    alarms: Sequence[tuple[str, Alarm]]
    """Alarms with the names of their runs."""
    figures: Sequence[ChartFigure]
    samples: Sequence[ComparedAnswers]
    samples_lead: str


def read_run(run_dir: RunDir, name: str) -> ComparedRun:
    """Read a run, of several rounds the newest one with a policy.

    Raises `UserError` for a damaged file, and `StaleRun` for a changed eval.jsonl.
    """
    newest = run_dir.newest
    marks = {stage: mark for stage in Results.model_fields if (mark := newest.mark(stage))}
    if sft := run_dir.mark("sft"):
        marks["sft"] = sft
    rows: Rows = ()
    if "evaluate" in marks:
        newest.check_outputs("eval.jsonl")
        rows = [row.model_dump() for row in read_jsonl(newest.artifact("eval.jsonl"), _EvaluatedPrompt)]
    return ComparedRun(
        name, load_config(run_dir.path / "config.yaml"), marks, list(newest.metrics.read()), rows, newest.number
    )


def compare_runs(runs: Sequence[ComparedRun], texts: Locale) -> RunComparison:
    """Return the comparison of the runs, whose names differ."""
    samples, common = _samples(runs, texts), len(_common_prompts(runs))
    several = sum(bool(run.eval_rows) for run in runs) > 1
    lead = "compare.samples.lead" if samples else "compare.samples.none" if several else "compare.samples.too_few"
    return RunComparison(
        texts=texts,
        title=texts("compare.title", runs=_listed([run.name for run in runs], texts)),
        notes=[*_missing(runs, texts), *_not_comparable(runs, common, texts)],
        final=_final(runs, texts),
        settings=_settings(runs, texts),
        alarms=[
            (run.name, alarm)
            for run in runs
            for alarm in find_alarms(run.metrics, run.results, run.config.align.algorithm)
        ],
        figures=list(overlaid_figures({_of_round(run, texts): run.metrics for run in runs}, texts)),
        samples=samples,
        samples_lead=texts(lead, count=common, shown=len(samples)),
    )


def comparison_page(runs: Sequence[ComparedRun]) -> str:
    """Return the comparison as one self-contained HTML file in English and Chinese."""
    views = [compare_runs(runs, locale(language)) for language in LANGUAGES]
    return html_environment().get_template("compare.html.j2").render(views=views, featured=FEATURED)


def _final(runs: Sequence[ComparedRun], texts: Locale) -> Table:
    """Return the final figures: one per row, a column for each run."""
    differences = _differences(runs, texts)
    measured = [
        _figures(run, texts) | difference | _table_figures(run, texts)
        for run, difference in zip(runs, differences, strict=True)
    ]
    costs = [_cost(run, texts) for run in runs]
    rows = tuple(
        (label, *(figures.get(label, MISSING) for figures in columns))
        for columns in (measured, costs)
        for label in dict.fromkeys(label for figures in columns for label in figures)
    )
    header = (texts("column.figure"), *(run.name for run in runs))
    return Table(texts("compare.figures"), texts("compare.figures.lead"), header, rows)


def _figures(run: ComparedRun, texts: Locale) -> dict[str, str]:
    """Return the figures that every run of all stages has, by label."""
    reward, policy = run.results.reward or RewardResult(), run.results.ppo or PolicyResult()
    found = run.results.evaluate or EvaluateResult(prompts=0)
    length_controlled = percent(found.length_controlled_win_rate) + percent_bounds(found.length_controlled_interval)
    kl_at_1 = number(found.kl_at_temperature_1) + number_bounds(found.kl_at_temperature_1_interval)
    figures = {
        "figure.reward_accuracy": percent(reward.accuracy) + percent_bounds(reward.accuracy_interval),
        "compare.over_length": points(reward.over_length) + points_bounds(reward.over_length_interval),
        "compare.steps": number(policy.steps),
        "training.best_step": number(policy.best_step),
        "compare.judge": judge_label(found.judge, texts) if run.results.evaluate else MISSING,
        "compare.prompts": number(found.prompts or None),
        "figure.preferred": percent(found.win_rate) + percent_bounds(found.win_rate_interval),
        "figure.equal_length": length_controlled,
        "figure.mean_shift": number(found.mean_shift),
        "figure.kl": number(found.kl_per_answer) + number_bounds(found.kl_mean_interval),
        "figure.kl_at_temperature_1": kl_at_1,
    }
    return {texts(key): value for key, value in figures.items()}


def _differences(runs: Sequence[ComparedRun], texts: Locale) -> list[dict[str, str]]:
    """Return the difference of each run's win rate and the first run's; nothing where no run has one."""
    first = runs[0].results.evaluate
    found = [
        win_difference(first, runs[0].eval_rows, run.results.evaluate, run.eval_rows)
        if first and run.results.evaluate and run is not runs[0] and _judge(run, texts) == _judge(runs[0], texts)
        else None
        for run in runs
    ]
    if not any(found):
        return [{} for _ in runs]
    label = texts("compare.win_difference", run=runs[0].name)
    return [{label: points(one[0]) + points_bounds(one[1]) if one else MISSING} for one in found]


def _table_figures(run: ComparedRun, texts: Locale) -> dict[str, str]:
    """Return the rows of the evaluation's own table: SFT's figure and the policy's, of a win rate the latter alone."""
    rows = run.results.evaluate.table if run.results.evaluate else ()
    return {
        figure_label(row, texts): figure_value(row, row.policy) + percent_bounds(row.interval)
        if row.id == "win_rate"
        else f"{figure_value(row, row.sft)} → {figure_value(row, row.policy)}"
        for row in rows
    }


def _cost(run: ComparedRun, texts: Locale) -> dict[str, str]:
    """Return time and peak memory of the run's own stages, without those copied from another run."""
    own = [mark for mark in run.marks.values() if not mark.taken_from]
    return {
        texts("compare.time"): duration(sum(mark.seconds for mark in own)) if own else MISSING,
        texts("compare.memory"): memory(max(mark.peak_memory_bytes for mark in own)) if own else MISSING,
    }


def _missing(runs: Sequence[ComparedRun], texts: Locale) -> Iterator[str]:
    """Yield the unfinished stages of each run, with the figures that it lacks."""
    for run in runs:
        if run.unfinished:
            lacking = _listed([label for label, value in _figures(run, texts).items() if value == MISSING], texts)
            yield texts("compare.unfinished", run=run.name, stages=_listed(run.unfinished, texts), figures=lacking)


def _not_comparable(runs: Sequence[ComparedRun], common: int, texts: Locale) -> Iterator[str]:
    """Yield the reasons why figures of the runs cannot be compared as they are."""
    if len({_judge(run, texts) for run in runs if run.results.evaluate}) > 1:
        yield texts("compare.other_judges")
    prompts = [{row["prompt"] for row in run.eval_rows} for run in runs if run.eval_rows]
    if any(len(found) > common for found in prompts) and len(prompts) > 1:
        yield texts("compare.other_prompts", common=common)


def _judge(run: ComparedRun, texts: Locale) -> tuple[str, ...]:
    """Return the judge's name and, of a language model, its question: another question makes another judge."""
    name = run.results.evaluate.judge if run.results.evaluate else None
    endpoint = run.config.rank.endpoint
    asked = (endpoint.ask, endpoint.template, endpoint.rubric) if endpoint else ()
    return judge_label(name, texts), *(asked if name and name.startswith(ENDPOINT_PREFIX) else ())


def _settings(runs: Sequence[ComparedRun], texts: Locale) -> Table:
    """Return the settings that differ, apart from the name."""
    found = [flat("", run.config.model_dump(mode="json", exclude={"name"})) for run in runs]
    keys = list(dict.fromkeys(key for settings in found for key in settings))
    unequal = [key for key in keys if any(settings.get(key, _UNSET) != found[0].get(key, _UNSET) for settings in found)]
    rows = tuple((key.removeprefix("."), *(_shown(settings, key) for settings in found)) for key in unequal)
    lead = texts("compare.settings.lead" if rows else "compare.settings.same", count=len(keys) - len(unequal))
    return Table(texts("compare.settings"), lead, (texts("compare.setting"), *(run.name for run in runs)), rows)


_UNSET = object()


def _shown(settings: Mapping[str, Any], key: str) -> str:
    """Return a value as in YAML; a long one is cut, with a digest that differs where the rest does."""
    if key not in settings:
        return MISSING
    text = settings[key] if isinstance(settings[key], str) else json.dumps(settings[key], ensure_ascii=False)
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}… (sha256 {hashlib.sha256(text.encode()).hexdigest()[:8]})"


def _common_prompts(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the prompts that all evaluated runs have, in their own order; none for fewer than two runs."""
    prompts = [{str(row["prompt"]) for row in run.eval_rows} for run in runs if run.eval_rows]
    return sorted(set.intersection(*prompts)) if len(prompts) > 1 else []


def _samples(runs: Sequence[ComparedRun], texts: Locale) -> list[ComparedAnswers]:
    """Return the policies' answers to the first common prompts side by side, greedy ones where all runs have them."""
    rows = {run.name: {row["prompt"]: row for row in first_answers(run.eval_rows)} for run in runs if run.eval_rows}
    found = []
    for prompt in _common_prompts(runs)[:SHOWN]:
        greedy = all(has_greedy(of_run[prompt]) for of_run in rows.values())
        sides = (
            Side(name, shown_answers(of_run[prompt], "policy", texts)[0 if greedy else -1 :])
            for name, of_run in rows.items()
        )
        found.append(ComparedAnswers(prompt, tuple(sides), ""))
    return found


def _of_round(run: ComparedRun, texts: Locale) -> str:
    return run.name if run.round == 1 else texts("chart.of_round", title=run.name, round=run.round)


def _listed(names: Sequence[str], texts: Locale) -> str:
    return texts("compare.separator").join(names)
