"""Content of the ranking page, as plain data in the annotator's language. The page puts it into text nodes only."""

from typing import Any

from lowrank_rlhf.config.reward import RewardConfig
from lowrank_rlhf.dashboard.ranking.text import at_work_text, say
from lowrank_rlhf.errors import visible
from lowrank_rlhf.maths.reward_gate import prompts_for_curve
from lowrank_rlhf.preferences.carelessness import AnnotatorCheck
from lowrank_rlhf.preferences.labelling import FLAGS, Command, Draft, Refusal, press
from lowrank_rlhf.preferences.overview import (
    GENERAL,
    Overview,
    RankingProgress,
    careless_annotators,
    ranking_progress,
)
from lowrank_rlhf.preferences.project import Project
from lowrank_rlhf.preferences.reward_tests import CurvePoint, RewardTest
from lowrank_rlhf.preferences.store import Item
from lowrank_rlhf.run.progress import duration

Reply = dict[str, Any]
_MORE = {"setting": "next.more", "power": "next.more_power", "weak": "next.more_weak"}


def item_words(item: Item) -> Reply:
    """Return a prompt and its answers in the order to show them, without ids of answers and names of models."""
    return {
        "prompt_id": item.prompt.id,
        "done": item.done,
        "turns": [{"role": turn.role, "text": shown(turn.content)} for turn in item.prompt.messages],
        "answers": [{"text": shown(answer.text), "finished": answer.finished} for answer in item.answers],
    }


def shown(text: str) -> str:
    """Return a text as the page shows it: Windows line ends made plain, other control characters escaped."""
    return visible(text.replace("\r\n", "\n"))


def draft_words(draft: Draft, language: str) -> Reply:
    """Return a draft: tiers and unplaced answers by position on the screen, flags by number, effect of Enter."""
    numbers = {flag: number for number, flag in FLAGS.items()}
    enter = press(draft, "\r") if draft.answers else None
    return {
        "tiers": [list(tier) for tier in draft.tiers],
        "left": draft.left,
        "tied": draft.tied,
        "flagging": draft.flagging,
        "flags": [numbers[flag] for flag in draft.flags if flag in numbers],
        "own_flags": [visible(flag) for flag in draft.flags if flag not in numbers],
        "ready": enter is Command.SAVE,
        "enter": _enter(draft, enter, language),
    }


def _enter(draft: Draft, enter: Command | Draft | Refusal | None, language: str) -> str:
    if enter is None:
        return ""
    if isinstance(enter, Refusal):
        return say(f"refused.{enter.kind}", language, names=enter.names, answers=enter.answers)
    if not draft.tiers:
        return say("enter.no_order", language)
    if len(draft.left) > 1:
        return say("enter.best_only" if len(draft.left) == draft.answers - 1 else "enter.partial", language)
    return say("enter.whole", language)


def progress_words(project: Project, annotator: str, language: str, owner: bool) -> Reply:
    """Return the progress line, the share of the bar, and a sentence on what is missing or comes next.

    `sound`: enough prompts are ranked, and nothing speaks against the rankings. The run's owner also gets the command
    that resumes it, and warnings of rankings without judgement.
    """
    now = ranking_progress(project, annotator)
    careless = careless_annotators(project) if owner else []
    next_step, sound = _next_step(project, now, language, careless) if owner else _thanks(project, now, language)
    at_work = at_work_text(project, language) if owner and now.enough else ""
    goal = now.needed or now.prompts
    rounds = max(project.round, project.config.rounds if project.config else 1)
    parts = [say("progress.round", language, round=project.round, rounds=rounds)] if rounds > 1 else []
    beyond = 0 < now.needed < now.ranked_by_anyone
    parts.append(say("progress.beyond" if beyond else "progress.all", language, count=now.ranked_by_anyone, goal=goal))
    parts.append(say("progress.own", language, ranked=now.ranked, skipped=now.skipped))
    if now.seconds_each is not None and now.seconds_left is not None:
        each, left = duration(now.seconds_each), duration(now.seconds_left)
        parts.append(say("progress.pace", language, each=each, left=left))
    quota = project.settings.quota if project.settings else None
    if quota:
        parts.append(say("progress.quota", language, ranked=min(now.ranked, quota), quota=quota))
    if now.pace:
        key = "progress.deadline" if now.pace.days else "progress.late"
        parts.append(say(key, language, each=now.pace.each_day, date=now.pace.deadline))
    return {
        "line": parts,
        "share": min(1.0, now.ranked_by_anyone / goal) if goal else 0.0,
        "enough": now.enough and not project.refused and not at_work,
        "sound": sound,
        "warnings": [_warning(one, language) for one in careless],
        "quota": say("end.quota", language, quota=quota) if now.own_left == 0 else "",
        "skipped": now.skipped,
        "next": at_work or next_step,
    }


def _thanks(project: Project, now: RankingProgress, language: str) -> tuple[str, bool]:
    """Return the sentence for annotators, and True if the rankings are enough."""
    if project.settings is None:
        return "", False
    if not now.enough:
        return say("next.more", language, more=now.needed - now.ranked_by_anyone), False
    if doubt := project.doubtful:
        key = "next.doubtful" if not doubt.more else "next.unclear_alone" if doubt.alone else "next.unclear"
        return say(key, language, share=_percent(doubt.share), pairs=doubt.pairs, more=doubt.more), False
    return say("next.thanks", language), True


def _next_step(
    project: Project, now: RankingProgress, language: str, careless: list[AnnotatorCheck]
) -> tuple[str, bool]:
    """Return the sentence for the owner, and True if the rankings are enough.

    Its figure is that of the guided path: how often a reward model of a certain accuracy passes its test.
    """
    need = project.need
    if project.settings is None or (now.enough and project.doubtful):
        return _thanks(project, now, language)
    tests = project.reward_tests
    values = {
        "more": now.needed - now.ranked_by_anyone,
        "needed": need.prompts,
        "passes": _percent(need.passes or 0.0),
        "accuracy": _percent(need.accuracy or 0.0),
        "measured": _percent(tests[-1].accuracy) if tests else "-",
        "command": project.next_command,
    }
    sound = False
    if not now.enough:
        key = _MORE[need.reason]
    elif project.refused:
        key = "next.refused"
    elif careless:
        key = "next.check_first"
    elif need.few:
        key = "next.enough_few" if now.ranked_by_anyone < now.prompts else "next.enough_all"
    else:
        key, sound = "next.enough" if need.passes is None else "next.enough_passes", True
    return say(key, language, **values), sound


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
        *(_annotator(one, project, language) for one in found.annotator_checks),
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
    share = _percent(found.agreement.share)
    return _row(
        "agreement", language, say("agreement.figure", language, share=share, pairs=found.agreement.pairs, alpha=alpha)
    )


def _own_agreement(found: Overview, language: str) -> list[Reply]:
    if found.consistency is None:
        return []
    share = _percent(found.consistency.share)
    figure = say("consistency.figure", language, share=share, pairs=found.consistency.pairs)
    return [_row("consistency", language, figure)]


def _position(found: Overview, language: str) -> Reply:
    if found.position is None:
        return _row("position", language, "-", chance="-")
    figure = say(
        "position.figure", language, share=_percent(found.position.shown_first), rankings=found.position.rankings
    )
    return _row("position", language, figure, chance=_percent(found.position.expected))


def _length(found: Overview, language: str) -> Reply:
    if found.longer_preferred is None:
        return _row("length", language, "-")
    share = _percent(found.longer_preferred)
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
    rows = [_tested("accuracy.figure", one, language) for one in found.reward_tests]
    if not found.reward_tests:
        return _row("accuracy", language, "-", gain="")
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
    low, high = map(_percent, found.interval)
    return say(key, language, prompts=found.prompts, share=_percent(found.accuracy), low=low, high=high)


def _annotator(found: AnnotatorCheck, project: Project, language: str) -> Reply:
    parts = [say("annotator.ranked", language, rankings=found.rankings)]
    left = project.own_left(found.annotator)
    if left is not None:
        parts.append(say("annotator.quota" if left else "annotator.done", language, left=left))
    if found.median_seconds is not None:
        parts.append(say("annotator.pace", language, each=duration(found.median_seconds)))
    if found.agreement:
        share, pairs = _percent(found.agreement.share), found.agreement.pairs
        parts.append(say("annotator.agreement", language, share=share, pairs=pairs))
    if found.attention:
        share, pairs = _percent(found.attention.right / found.attention.pairs), found.attention.pairs
        parts.append(say("annotator.checks", language, share=share, pairs=pairs, checks=found.attention.checks))
    if found.unread:
        parts.append(say("annotator.unread", language, rankings=found.unread))
    return {"name": visible(found.annotator), "figure": "  ·  ".join(parts), "means": _warning(found, language)}


def _warning(found: AnnotatorCheck, language: str) -> str:
    if not found.signs:
        return ""
    shares = {"pattern": _percent(found.pattern or 0.0), "place": _percent(found.place or 0.0)}
    why = say("sign.and", language).join(say(f"sign.{sign}", language, **shares) for sign in found.signs)
    return say("sign.check", language, name=visible(found.annotator), why=why)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
