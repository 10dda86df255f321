"""Content of the ranking page, as plain data in the annotator's language. The page puts it into text nodes only."""

from typing import Any

from lowrank_rlhf.dashboard.ranking.next_step import next_step
from lowrank_rlhf.dashboard.ranking.text import percent, say
from lowrank_rlhf.errors import visible
from lowrank_rlhf.preferences.carelessness import AnnotatorCheck
from lowrank_rlhf.preferences.labelling import FLAGS, Command, Draft, Refusal, press
from lowrank_rlhf.preferences.overview import RankingProgress, careless_annotators, ranking_progress
from lowrank_rlhf.preferences.project import Project
from lowrank_rlhf.preferences.store import Item
from lowrank_rlhf.run.progress import duration

Reply = dict[str, Any]


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

    `sound` and `finished` are those of the sentence; with `enough` the owner may start the run. The run's owner also
    gets the command for it, and warnings of rankings without judgement.
    """
    now = ranking_progress(project, annotator)
    careless = careless_annotators(project) if owner or now.enough else []
    step = next_step(project, now, careless, language, owner)
    goal = now.needed or now.prompts
    rounds = max(project.round, project.config.rounds if project.config else 1)
    parts = [say("progress.round", language, round=project.round, rounds=rounds)] if rounds > 1 else []
    parts.append(say(_counted(now), language, count=now.ranked_by_anyone, goal=goal))
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
        "enough": step.may_start,
        "sound": step.sound,
        "finished": step.finished,
        "warnings": [warning_words(one, language) for one in careless] if owner else [],
        "quota": say("end.quota", language, quota=quota) if now.own_left == 0 else "",
        "skipped": now.skipped,
        "next": step.text,
    }


def _counted(now: RankingProgress) -> str:
    """Return the key of the sentence on the number of ranked prompts."""
    if 0 < now.prompts == now.ranked_by_anyone:
        return "progress.whole"
    return "progress.beyond" if 0 < now.needed < now.ranked_by_anyone else "progress.all"


def warning_words(found: AnnotatorCheck, language: str) -> str:
    """Return the sentence on the signs that an annotator's rankings carry no judgement; empty without any."""
    if not found.signs:
        return ""
    shares = {"pattern": percent(found.pattern or 0.0), "place": percent(found.place or 0.0)}
    why = say("sign.and", language).join(say(f"sign.{sign}", language, **shares) for sign in found.signs)
    return say("sign.check", language, name=visible(found.annotator), why=why)
