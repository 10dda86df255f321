"""Table of statistics below the ranking page, as plain data."""

from lowrank_rlhf.config.reward import RewardConfig
from lowrank_rlhf.dashboard.ranking.screen import Reply, warning_words
from lowrank_rlhf.dashboard.ranking.text import percent, say
from lowrank_rlhf.errors import visible
from lowrank_rlhf.maths.reward_gate import prompts_for_curve
from lowrank_rlhf.preferences.agreement import SameOrder
from lowrank_rlhf.preferences.overview import GENERAL, Overview
from lowrank_rlhf.preferences.project import Project
from lowrank_rlhf.preferences.reward_tests import CurvePoint, RewardTest
from lowrank_rlhf.preferences.team.annotators import AnnotatorFigures
from lowrank_rlhf.run.progress import duration


def figures_words(found: Overview, project: Project, language: str, owner: bool) -> list[Reply]:
    """Return the table of statistics: name, figure and meaning of each.

    The run's owner also sees its reward models and each annotator.
    """
    rows = [
        _agreement(found, language),
        *_own_agreement(found, language),
        _position(found, language),
        _length(found, language),
    ]
    if not owner:
        return rows
    flags = _row("flags", language, say("flags.figure", language, flagged=found.flagged, written=found.written))
    rows = [_amount(found, language), *rows]
    return [
        *rows,
        flags,
        *_deadline(project, language),
        *_guidelines(found, language),
        _accuracy(found, project, language),
        *_learning(found, language),
        *_annotators(found, project, language),
    ]


def _row(key: str, language: str, figure: str, **values: object) -> Reply:
    return {"name": say(f"{key}.name", language), "figure": figure, "means": say(f"{key}.means", language, **values)}


def _amount(found: Overview, language: str) -> Reply:
    figure = say("amount.figure", language, comparisons=found.comparisons, rankings=found.rankings)
    return _row("amount", language, figure, general=GENERAL)


def _agreement(found: Overview, language: str) -> Reply:
    if found.agreement is None:
        return _row("agreement", language, "-")
    alpha = "-" if found.alpha is None else f"{found.alpha:.2f}"
    share = percent(found.agreement.share)
    return _row(
        "agreement", language, say("agreement.figure", language, share=share, pairs=found.agreement.pairs, alpha=alpha)
    )


def _own_agreement(found: Overview, language: str) -> list[Reply]:
    if found.consistency is None:
        return []
    share = percent(found.consistency.share)
    figure = say("consistency.figure", language, share=share, pairs=found.consistency.pairs)
    return [_row("consistency", language, figure)]


def _position(found: Overview, language: str) -> Reply:
    if found.position is None:
        return _row("position", language, "-", chance="-")
    figure = say(
        "position.figure", language, share=percent(found.position.shown_first), rankings=found.position.rankings
    )
    return _row("position", language, figure, chance=percent(found.position.expected))


def _length(found: Overview, language: str) -> Reply:
    if found.longer_preferred is None:
        return _row("length", language, "-")
    share = percent(found.longer_preferred)
    return _row("length", language, say("length.figure", language, share=share, pairs=found.uneven_comparisons))


def _deadline(project: Project, language: str) -> list[Reply]:
    pace = project.pace
    if pace is None:
        return []
    key = "deadline.figure" if pace.days else "deadline.late"
    figure = say(key, language, left=pace.left, days=pace.days, each=pace.each_day)
    return [_row("deadline", language, figure, date=pace.deadline)]


def _guidelines(found: Overview, language: str) -> list[Reply]:
    if found.guidelines is None:
        return []
    others = found.rankings - found.guidelines
    return [_row("guidelines", language, say("guidelines.figure", language, current=found.guidelines, others=others))]


def _accuracy(found: Overview, project: Project, language: str) -> Reply:
    keys = ["accuracy.figure_rounds" if one.earlier else "accuracy.figure" for one in found.reward_tests]
    rows = [_tested(key, one, language) for key, one in zip(keys, found.reward_tests, strict=True)]
    if not found.reward_tests:
        return _row("accuracy", language, "-", gain="")
    if not project.has_unranked:
        return _row("accuracy", language, "\n".join(rows), gain=say("accuracy.gain_none", language))
    curve = found.reward_tests[-1].curve
    if curve is None:
        prompts = prompts_for_curve((project.config.reward if project.config else RewardConfig()).held_out)
        unknown = say("accuracy.gain_unknown", language, prompts=prompts)
        return _row("accuracy", language, "\n".join(rows), gain=unknown)
    key = "accuracy.gain" if curve.shown else "accuracy.gain_unclear"
    return _row("accuracy", language, "\n".join(rows), gain=say(key, language, **curve.values))


def _learning(found: Overview, language: str) -> list[Reply]:
    """Return the accuracy of the last reward model's head by number of rankings."""
    curve = found.reward_tests[-1].curve if found.reward_tests else None
    if curve is None:
        return []
    figure = "\n".join(_tested("curve.figure", one, language) for one in curve.points)
    return [_row("curve", language, figure)]


def _tested(key: str, found: RewardTest | CurvePoint, language: str) -> str:
    low, high = map(percent, found.interval)
    return say(key, language, prompts=found.prompts, share=percent(found.accuracy), low=low, high=high)


def _annotators(found: Overview, project: Project, language: str) -> list[Reply]:
    """Return a row on all annotators, and one for each, with the name that excludes or restores their rankings."""
    rows = {one.check.annotator: _annotator(one, project, language) for one in found.of_each}
    for name, rankings in found.excluded.items():
        row = rows.setdefault(name, {"name": visible(name), "figure": "", "means": ""})
        marked = say("annotator.excluded", language, rankings=rankings)
        row["figure"] = "\n".join(part for part in (marked, row["figure"]) if part)
    named = [rows[name] | {"annotator": name, "excluded": name in found.excluded} for name in sorted(rows)]
    return [_row("annotators", language, say("annotators.figure", language, count=len(named))), *named] if named else []


def _annotator(found: AnnotatorFigures, project: Project, language: str) -> Reply:
    """Return an annotator's row: amount and pace, agreement, biases, each on a line of its own."""
    check = found.check
    parts = [say("annotator.ranked", language, rankings=check.rankings)]
    left = project.own_left(check.annotator)
    if left is not None:
        parts.append(say("annotator.quota" if left else "annotator.done", language, left=left))
    if check.median_seconds is not None:
        parts.append(say("annotator.pace", language, each=duration(check.median_seconds)))
    if check.unread:
        parts.append(say("annotator.unread", language, rankings=check.unread))
    lines = [parts, _agreements(found, language), _biases(found, language)]
    return {
        "name": visible(check.annotator),
        "figure": "\n".join("  ·  ".join(line) for line in lines if line),
        "means": warning_words(check, language),
    }


def _agreements(found: AnnotatorFigures, language: str) -> list[str]:
    parts, attention = [], found.check.attention
    agreements: dict[str, SameOrder | None] = {
        "annotator.agreement": found.check.agreement,
        "annotator.own_agreement": found.check.own_agreement,
        "annotator.reward_model": found.with_reward_model,
    }
    for key, agreement in agreements.items():
        if agreement:
            parts.append(say(key, language, share=percent(agreement.share), pairs=agreement.pairs))
    if attention:
        share = percent(attention.right / attention.pairs)
        parts.append(say("annotator.checks", language, share=share, pairs=attention.pairs, checks=attention.checks))
    return parts


def _biases(found: AnnotatorFigures, language: str) -> list[str]:
    parts, own = [], found.statistics
    if own.position:
        first, chance = percent(own.position.shown_first), percent(own.position.expected)
        parts.append(say("annotator.position", language, share=first, chance=chance))
    if own.longer_preferred is not None:
        share = percent(own.longer_preferred)
        parts.append(say("annotator.length", language, share=share, pairs=own.uneven_comparisons))
    return parts
