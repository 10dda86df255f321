"""Disagreements of annotators, and the owner's decisions, which replace their rankings for training."""

import re
import unicodedata
from collections import defaultdict
from typing import NamedTuple

from lowrank_rlhf.errors import Fault, UserError, visible
from lowrank_rlhf.preferences.agreement import alike, in_all
from lowrank_rlhf.preferences.contents import Contents
from lowrank_rlhf.preferences.labelling import LABELS, Draft, ranking_of, type_all
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.preferences.store_rows import (
    Item,
    delete_decision,
    insert_decision,
    ranked_by_anyone,
    read_checks,
    read_item,
)
from lowrank_rlhf.run.records import Ranking

_ORDER = re.compile(rf"[{LABELS}]( *[>,=]? *[{LABELS}])*")


class Disagreement(NamedTuple):
    """A prompt whose annotators order a pair of answers differently, with its answers in the store's order.

    `same` of the `pairs` that two of them order are ordered alike. `decision` is the owner's, if there is one.
    """

    item: Item
    rankings: tuple[Ranking, ...]
    same: int
    pairs: int
    decision: Ranking | None


def disagreements(contents: Contents) -> list[Disagreement]:
    """Return the prompts to decide, the least alike first, then those decided."""
    prompts = {prompt.id: prompt for prompt in contents.prompts}
    answers, rankings, compared = defaultdict(list), defaultdict(list), defaultdict(list)
    current = contents.current()
    for ranking in current:
        rankings[ranking.prompt_id].append(ranking)
    for two in alike(current):
        compared[two.prompt_id].append(two)
    for answer in contents.answers:
        answers[answer.prompt_id].append(answer)
    decided = {ranking.prompt_id: ranking for ranking in contents.decisions}
    found = []
    for name, prompt in prompts.items():
        agreed = in_all(compared[name])
        pairs = agreed.pairs if agreed else 0
        same = round(agreed.share * pairs) if agreed else 0
        if same < pairs or name in decided:
            item = Item(prompt=prompt, answers=tuple(answers[name]))
            found.append(Disagreement(item, tuple(rankings[name]), same, pairs, decided.get(name)))
    return sorted(found, key=lambda one: (one.decision is not None, one.same / max(1, one.pairs)))


def decide(store: AnnotationStore, prompt_id: str, order: str, annotator: str) -> Ranking:
    """Save the owner's order of a prompt's answers in place of any earlier one, and return it.

    `order` numbers the answers as the store does, best first: `2 > 1 = 3` or `2,1=3`, in full-width signs too. Raises
    `UserError` for any other, for an attention check, and for a prompt that nobody has ranked.
    """
    with store.transaction(write=True) as database:
        item = read_item(database, prompt_id)
        if prompt_id in {check.prompt_id for check in read_checks(database)}:
            text = "prompt {prompt!r} is an attention check and trains nothing; decide other prompts"
            raise UserError(Fault("check_decided", text, prompt=prompt_id))
        if not ranked_by_anyone(database, prompt_id):
            text = "nobody has ranked prompt {prompt!r}. Rank it with `label` instead"
            raise UserError(Fault("nobody_ranked", text, prompt=prompt_id))
        try:
            typed = unicodedata.normalize("NFKC", order)
            keys = [key for key in typed if key not in " ,>"] if _ORDER.fullmatch(typed) else []
            ranking = ranking_of(type_all(Draft(len(item.answers), may_stop=True), keys), item, annotator)
        except ValueError:
            raise InvalidOrder(
                f"not an order of answers 1 to {LABELS[len(item.answers) - 1]}: {visible(order)!r}. Write the best "
                "first, such as 2 > 1 = 3"
            ) from None
        ranking = ranking.model_copy(update={"shown": ()})
        insert_decision(database, ranking)
    return ranking


class InvalidOrder(UserError):
    """A typed order that does not order the prompt's answers."""


def undo_decision(store: AnnotationStore, prompt_id: str) -> bool:
    """Delete the decision on a prompt, so that its annotators' rankings count again; return False if there is none."""
    with store.transaction(write=True) as database:
        return delete_decision(database, prompt_id)


def order_of(ranking: Ranking, item: Item) -> str:
    """Return an order by the answers' numbers, `2 > 1 = 3`; `decide` reads it. Unplaced answers are left out."""
    return " > ".join(" = ".join(LABELS[item.shown.index(name)] for name in tier) for tier in ranking.named_tiers)
