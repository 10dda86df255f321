"""Disagreements for the run's owner, as plain data: the orders side by side, and the decisions."""

from lowrank_rlhf.dashboard.ranking.screen import Reply, item_words, shown
from lowrank_rlhf.dashboard.ranking.text import say
from lowrank_rlhf.preferences.labelling import FLAGS
from lowrank_rlhf.preferences.project import Project
from lowrank_rlhf.preferences.team.decisions import (
    Disagreement,
    InvalidOrder,
    decide,
    disagreements,
    order_of,
    undo_decision,
)
from lowrank_rlhf.run.records import Ranking

ROWS = 20
"""Undecided prompts of one reply."""


def disputes_words(project: Project, language: str) -> Reply:
    """Return the first undecided disagreements, the number of the others, and all decided ones."""
    found = disagreements(project.store.contents())
    undecided = [one for one in found if one.decision is None]
    listed = [*undecided[:ROWS], *(one for one in found if one.decision)]
    more = say("disputes.more", language, more=len(found) - len(listed)) if len(found) > len(listed) else ""
    none = "" if found else say("disputes.none", language)
    return {"disputes": [_row(one, language) for one in listed], "disputes_note": more or none}


def decided_words(project: Project, prompt_id: str, order: str, annotator: str, language: str) -> Reply:
    """Save a decision and return the disagreements; with a sentence for an order that is none."""
    refused = {}
    try:
        decide(project.store, prompt_id, order, annotator)
    except InvalidOrder:
        refused = {"disputes_note": say("disputes.invalid", language, order=shown(order))}
    return disputes_words(project, language) | refused


def undecided_words(project: Project, prompt_id: str, language: str) -> Reply:
    """Undo a decision and return the disagreements."""
    undo_decision(project.store, prompt_id)
    return disputes_words(project, language)


def _row(found: Disagreement, language: str) -> Reply:
    names = (
        {"name": shown(found.decision.annotator), "order": order_of(found.decision, found.item)}
        if found.decision
        else {}
    )
    return item_words(found.item) | {
        "alike": say("disputes.alike", language, same=found.same, pairs=found.pairs),
        "orders": [_order(ranking, found, language) for ranking in found.rankings],
        "decided": say("disputes.decided", language, **names) if names else "",
    }


def _order(ranking: Ranking, found: Disagreement, language: str) -> Reply:
    keys = {flag: key for key, flag in FLAGS.items()}
    remarks = [say(f"flag.{keys[flag]}", language) if flag in keys else shown(flag) for flag in ranking.flags]
    if ranking.written:
        remarks.append(say("disputes.wrote", language, text=shown(ranking.written)))
    return {"name": shown(ranking.annotator), "order": order_of(ranking, found.item), "remarks": remarks}
