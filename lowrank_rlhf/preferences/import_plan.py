"""What a file of annotations adds to a store. Nothing is written here, so all of a file is checked first."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lowrank_rlhf.preferences.exchange import (
    Contents,
    Line,
    Pair,
    Skip,
    Verdict,
    answer_field,
    current_rankings,
    prompt_field,
    rankings_from_pairs,
)
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.run.records import Prompt, Ranking, Record, Sample

R = TypeVar("R", bound=Record)


@dataclass
class Merge:
    """What to add to a store, what to withdraw in it (places in `Contents.verdicts`), and what is wrong.

    `known`: rankings of the file that are in the store already. `replaced`: rankings of the store that no longer
    count, since the file has a later one by the same annotator.
    """

    prompts: list[Prompt] = field(default_factory=list)
    answers: list[Sample] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    withdrawn: list[int] = field(default_factory=list)
    known: int = 0
    replaced: int = 0
    errors: list[str] = field(default_factory=list)


def merge(here: Contents, lines: Sequence[Line], new_items: bool) -> Merge:
    """What rows of a file add to a store. Each ranking stays as often as the file or the store has it, and one that
    was withdrawn in either is withdrawn; what is new counts as later than what is there.

    Without `new_items` prompts and answers must be those of the store. Wrong rows go to `errors`, each with its place.
    """
    plan = Merge()
    prompts = _prompts(here, lines, new_items, plan)
    answers = _answers(here, lines, prompts, plan)
    verdicts = _checked_verdicts(lines, prompts, answers, plan)
    _match(here.verdicts, [*verdicts, *_from_pairs(here, lines, prompts, answers, plan)], plan)
    skips = set(here.skips)
    for where, skip in _of(lines, Skip):
        if skip.prompt_id not in prompts:
            plan.errors.append(_unknown_prompt(where, skip.prompt_id))
        elif skip not in skips:
            skips.add(skip)
            plan.skips.append(skip)
    return plan


def _of(lines: Sequence[Line], kind: type[R]) -> list[tuple[str, R]]:
    return [(where, record) for where, record in lines if isinstance(record, kind)]


def _unknown_prompt(where: str, prompt_id: str) -> str:
    return f"{where}: there is no prompt {prompt_id!r}"


def _prompts(here: Contents, lines: Sequence[Line], new_items: bool, plan: Merge) -> dict[str, Prompt]:
    known = {prompt.id: prompt for prompt in here.prompts}
    for where, prompt in _of(lines, Prompt):
        if prompt.id in known:
            if known[prompt.id] != prompt:
                plan.errors.append(f"{where}: prompt {prompt.id!r} has another text here")
        elif new_items:
            known[prompt.id] = prompt
            plan.prompts.append(prompt)
        else:
            plan.errors.append(
                f"{where}: prompt {prompt.id!r} is not one that this run asks people about; "
                "to learn from another run's rankings, export them with --comparisons and give that as rank.dataset"
            )
    return known


def _answers(here: Contents, lines: Sequence[Line], prompts: dict[str, Prompt], plan: Merge) -> dict[str, Sample]:
    known = {answer.id: answer for answer in here.answers}
    new = {prompt.id for prompt in plan.prompts}
    count = dict.fromkeys(new, 0)
    for where, answer in _of(lines, Sample):
        if answer.prompt_id not in prompts:
            plan.errors.append(_unknown_prompt(where, answer.prompt_id))
        elif answer.id in known:
            if known[answer.id] != answer:
                plan.errors.append(f"{where}: answer {answer.id!r} is another one here")
        elif answer.prompt_id in new:
            known[answer.id] = answer
            plan.answers.append(answer)
            count[answer.prompt_id] += 1
        else:
            plan.errors.append(f"{where}: prompt {answer.prompt_id!r} has no answer {answer.id!r} here")
    for where, prompt in _of(lines, Prompt):
        if count.get(prompt.id, 2) < 2:
            plan.errors.append(f"{where}: prompt {prompt.id!r} has fewer than two answers in the file: nothing to rank")
    return known


def _checked_verdicts(
    lines: Sequence[Line], prompts: dict[str, Prompt], answers: dict[str, Sample], plan: Merge
) -> list[Verdict]:
    good = []
    for where, verdict in _of(lines, Verdict):
        ranking = verdict.ranking
        named = [*ranking.shown, *(name for tier in ranking.tiers for name in tier)]
        strange = [name for name in named if name not in answers or answers[name].prompt_id != ranking.prompt_id]
        if ranking.prompt_id not in prompts:
            plan.errors.append(_unknown_prompt(where, ranking.prompt_id))
        elif strange:
            plan.errors.append(f"{where}: prompt {ranking.prompt_id!r} has no answer {strange[0]!r}")
        else:
            good.append(verdict)
    return good


def _from_pairs(
    here: Contents, lines: Sequence[Line], prompts: dict[str, Prompt], answers: dict[str, Sample], plan: Merge
) -> list[Verdict]:
    """The rankings behind the file's comparisons, those left out that say the same as what counts in the store."""
    pairs = _of(lines, Pair)
    for where, pair in pairs:
        if complaint := _wrong_text(pair, prompts, answers):
            plan.errors.append(f"{where}: {complaint}")
    if plan.errors:
        return []
    try:
        rankings = [ranking for _, ranking in rankings_from_pairs(pairs)]
    except ValueError as error:
        plan.errors.append(str(error))
        return []
    said = {(ranking.annotator, ranking.prompt_id): set(compare(ranking)) for ranking in here.current()}
    new = [one for one in rankings if said.get((one.annotator, one.prompt_id)) != set(compare(one))]
    plan.known += len(rankings) - len(new)
    return [Verdict(ranking=ranking) for ranking in new]


def _wrong_text(pair: Pair, prompts: dict[str, Prompt], answers: dict[str, Sample]) -> str | None:
    talks = not isinstance(pair.prompt, str)
    if pair.prompt_id not in prompts:
        return f"there is no prompt {pair.prompt_id!r}"
    if prompt_field(prompts[pair.prompt_id], talks) != pair.prompt:
        return f"prompt {pair.prompt_id!r} has another text here"
    for name, text in ((pair.chosen_id, pair.chosen), (pair.rejected_id, pair.rejected)):
        if name not in answers or answers[name].prompt_id != pair.prompt_id:
            return f"prompt {pair.prompt_id!r} has no answer {name!r}"
        if answer_field(answers[name].text, talks) != text:
            return f"answer {name!r} has another text here"
    return None


def _match(here: Sequence[Verdict], incoming: Sequence[Verdict], plan: Merge) -> None:
    """Pairs each incoming verdict with one of the store's on the same ranking, as long as there are any: equal ones
    first, then a withdrawn one with one that must be withdrawn, then the other way round. The rest is new."""
    places: defaultdict[Verdict, list[int]] = defaultdict(list)
    for place, verdict in enumerate(here):
        places[verdict].append(place)
    new = list(enumerate(incoming))
    for other in (False, True):
        rest = []
        for number, verdict in new:
            partner = places[Verdict(ranking=verdict.ranking, withdrawn=verdict.withdrawn != other)]
            if not partner:
                rest.append((number, verdict))
                continue
            place = partner.pop(0)
            plan.known += 1
            if verdict.withdrawn and other:
                plan.withdrawn.append(place)
        new = rest
    plan.verdicts = [verdict for _, verdict in new]
    plan.replaced = _replaced(here, plan)


def _replaced(here: Sequence[Verdict], plan: Merge) -> int:
    gone = set(plan.withdrawn)
    kept = [verdict for place, verdict in enumerate(here) if place not in gone]
    before = {(ranking.annotator, ranking.prompt_id): ranking for ranking in current_rankings(kept)}
    added: list[Ranking] = current_rankings(plan.verdicts)
    return sum((ranking.annotator, ranking.prompt_id) in before for ranking in added)
