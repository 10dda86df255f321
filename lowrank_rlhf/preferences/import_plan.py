"""Plan of an import: checks all rows of a file against a store before anything is written."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lowrank_rlhf.preferences.contents import (
    AttentionCheck,
    Contents,
    Decision,
    Pair,
    SavedRanking,
    Skip,
    answer_field,
    current_rankings,
    prompt_field,
)
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.preferences.import_file import FileRow, rankings_from_pairs
from lowrank_rlhf.preferences.team.guidelines import Guidelines
from lowrank_rlhf.run.records import Prompt, Ranking, Record, Sample

R = TypeVar("R", bound=Record)


@dataclass
class ImportPlan:
    """Rows to add to a store, rankings of the store to withdraw (indices into `Contents.history`), and errors.

    `known`: rankings of the file that the store already has. `replaced`: rankings of the store that stop counting,
    since the file has a later one by the same annotator. `left_out`: checks and decisions of the file that differ from
    the store's. `decided_pairs`: decisions among the file's comparisons.
    """

    prompts: list[Prompt] = field(default_factory=list)
    answers: list[Sample] = field(default_factory=list)
    rankings: list[SavedRanking] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    checks: list[AttentionCheck] = field(default_factory=list)
    decisions: list[Ranking] = field(default_factory=list)
    guidelines: list[Guidelines] = field(default_factory=list)
    withdrawn: list[int] = field(default_factory=list)
    known: int = 0
    replaced: int = 0
    left_out: int = 0
    decided_pairs: int = 0
    errors: list[str] = field(default_factory=list)


def plan_import(store: Contents, rows: Sequence[FileRow], new_items: bool) -> ImportPlan:
    """Plan the import of a file's rows into a store.

    A ranking is kept as often as the file or the store has it; one that was withdrawn in either is withdrawn; new ones
    count as later than the store's. Without `new_items`, prompts and answers must be those of the store. Checks and
    decisions are the owner's, so only a store without rankings and checks takes them. Wrong rows go to `errors`, each
    with its position.
    """
    plan = ImportPlan()
    prompts = _prompts(store, rows, new_items, plan)
    answers = _answers(store, rows, prompts, plan)
    saved = _of(rows, SavedRanking)
    good = set(_checked([(where, one.ranking) for where, one in saved], prompts, answers, plan))
    rankings = [one for _, one in saved if one.ranking in good]
    rankings += _from_pairs(store, rows, prompts, answers, plan)
    _match(store.history, rankings, plan)
    skips = set(store.skips)
    for where, skip in _of(rows, Skip):
        if skip.prompt_id not in prompts:
            plan.errors.append(_unknown_prompt(where, skip.prompt_id))
        elif skip not in skips:
            skips.add(skip)
            plan.skips.append(skip)
    decided = _checked([(where, one.ranking) for where, one in _of(rows, Decision)], prompts, answers, plan)
    decisions = [ranking for ranking in decided if ranking not in store.decisions]
    checks = _checks(store, rows, prompts, answers, plan)
    if store.history or store.checks:
        plan.left_out = len(decisions) + len(checks)
    else:
        plan.decisions, plan.checks = decisions, checks
    plan.guidelines = [text for _, text in _of(rows, Guidelines) if text not in store.guidelines]
    return plan


def _of(rows: Sequence[FileRow], kind: type[R]) -> list[tuple[str, R]]:
    return [(where, record) for where, record in rows if isinstance(record, kind)]


def _unknown_prompt(where: str, prompt_id: str) -> str:
    return f"{where}: unknown prompt {prompt_id!r}"


def _prompts(store: Contents, rows: Sequence[FileRow], new_items: bool, plan: ImportPlan) -> dict[str, Prompt]:
    known = {prompt.id: prompt for prompt in store.prompts}
    for where, prompt in _of(rows, Prompt):
        if prompt.id in known:
            if known[prompt.id] != prompt:
                plan.errors.append(f"{where}: prompt {prompt.id!r} has another text in the store")
        elif new_items:
            known[prompt.id] = prompt
            plan.prompts.append(prompt)
        else:
            plan.errors.append(
                f"{where}: prompt {prompt.id!r} is not one of this run's; to train on another run's rankings, "
                "export them with --comparisons and set rank.dataset to that file"
            )
    return known


def _answers(
    store: Contents, rows: Sequence[FileRow], prompts: dict[str, Prompt], plan: ImportPlan
) -> dict[str, Sample]:
    known = {answer.id: answer for answer in store.answers}
    new = {prompt.id for prompt in plan.prompts}
    count = dict.fromkeys(new, 0)
    for where, answer in _of(rows, Sample):
        if answer.prompt_id not in prompts:
            plan.errors.append(_unknown_prompt(where, answer.prompt_id))
        elif answer.id in known:
            if known[answer.id] != answer:
                plan.errors.append(f"{where}: answer {answer.id!r} differs from the store's")
        elif answer.prompt_id in new:
            known[answer.id] = answer
            plan.answers.append(answer)
            count[answer.prompt_id] += 1
        else:
            plan.errors.append(f"{where}: prompt {answer.prompt_id!r} has no answer {answer.id!r} in the store")
    for where, prompt in _of(rows, Prompt):
        if count.get(prompt.id, 2) < 2:
            plan.errors.append(f"{where}: prompt {prompt.id!r} has fewer than two answers in the file")
    return known


def _checks(
    store: Contents,
    rows: Sequence[FileRow],
    prompts: dict[str, Prompt],
    answers: dict[str, Sample],
    plan: ImportPlan,
) -> list[AttentionCheck]:
    """Return the checks of the file that the store does not have; wrong ones go to the plan's errors."""
    for where, check in _of(rows, AttentionCheck):
        if check.prompt_id not in prompts:
            plan.errors.append(_unknown_prompt(where, check.prompt_id))
            continue
        for name in (name for tier in check.tiers for name in tier):
            if name not in answers or answers[name].prompt_id != check.prompt_id:
                plan.errors.append(f"{where}: prompt {check.prompt_id!r} has no answer {name!r}")
    return [check for _, check in _of(rows, AttentionCheck) if check not in store.checks]


def _checked(
    rankings: Sequence[tuple[str, Ranking]], prompts: dict[str, Prompt], answers: dict[str, Sample], plan: ImportPlan
) -> list[Ranking]:
    """Return the rankings of known prompts and answers; the others go to the plan's errors."""
    good = []
    for where, ranking in rankings:
        named = [*ranking.shown, *(name for tier in ranking.tiers for name in tier)]
        unknown = [name for name in named if name not in answers or answers[name].prompt_id != ranking.prompt_id]
        if ranking.prompt_id not in prompts:
            plan.errors.append(_unknown_prompt(where, ranking.prompt_id))
        elif unknown:
            plan.errors.append(f"{where}: prompt {ranking.prompt_id!r} has no answer {unknown[0]!r}")
        else:
            good.append(ranking)
    return good


def _from_pairs(
    store: Contents, rows: Sequence[FileRow], prompts: dict[str, Prompt], answers: dict[str, Sample], plan: ImportPlan
) -> list[SavedRanking]:
    """Return the rankings behind the file's comparisons, except those equal to rankings that count in the store.

    Decisions are no rankings by annotators and are left out.
    """
    pairs = _of(rows, Pair)
    for where, pair in pairs:
        if mismatch := _mismatch(pair, prompts, answers):
            plan.errors.append(f"{where}: {mismatch}")
    if plan.errors:
        return []
    try:
        decided = [ranking for _, ranking in rankings_from_pairs(row for row in pairs if row[1].decision)]
        rankings = [ranking for _, ranking in rankings_from_pairs(row for row in pairs if not row[1].decision)]
    except ValueError as error:
        plan.errors.append(str(error))
        return []
    current = {(ranking.annotator, ranking.prompt_id): set(compare(ranking)) for ranking in store.current()}
    new = [one for one in rankings if current.get((one.annotator, one.prompt_id)) != set(compare(one))]
    plan.known += len(rankings) - len(new)
    plan.decided_pairs = len(decided)
    return [SavedRanking(ranking=ranking) for ranking in new]


def _mismatch(pair: Pair, prompts: dict[str, Prompt], answers: dict[str, Sample]) -> str | None:
    as_messages = not isinstance(pair.prompt, str)
    if pair.prompt_id not in prompts:
        return f"unknown prompt {pair.prompt_id!r}"
    if prompt_field(prompts[pair.prompt_id], as_messages) != pair.prompt:
        return f"prompt {pair.prompt_id!r} has another text in the store"
    for name, text in ((pair.chosen_id, pair.chosen), (pair.rejected_id, pair.rejected)):
        if name not in answers or answers[name].prompt_id != pair.prompt_id:
            return f"prompt {pair.prompt_id!r} has no answer {name!r}"
        if answer_field(answers[name].text, as_messages) != text:
            return f"answer {name!r} has another text in the store"
    return None


def _match(history: Sequence[SavedRanking], incoming: Sequence[SavedRanking], plan: ImportPlan) -> None:
    """Pair each incoming ranking with an equal one of the store; those left over are new.

    First pairs in the same state; then a withdrawn incoming one with a current one of the store, which is withdrawn
    too, or the reverse.
    """
    indices: defaultdict[SavedRanking, list[int]] = defaultdict(list)
    for index, saved in enumerate(history):
        indices[saved].append(index)
    new = list(incoming)
    for opposite in (False, True):
        rest = []
        for saved in new:
            partners = indices[SavedRanking(ranking=saved.ranking, withdrawn=saved.withdrawn != opposite)]
            if not partners:
                rest.append(saved)
                continue
            index = partners.pop(0)
            plan.known += 1
            if saved.withdrawn and opposite:
                plan.withdrawn.append(index)
        new = rest
    plan.rankings = new
    plan.replaced = _replaced(history, plan)


def _replaced(history: Sequence[SavedRanking], plan: ImportPlan) -> int:
    gone = set(plan.withdrawn)
    kept = [saved for index, saved in enumerate(history) if index not in gone]
    before = {(ranking.annotator, ranking.prompt_id): ranking for ranking in current_rankings(kept)}
    added: list[Ranking] = current_rankings(plan.rankings)
    return sum((ranking.annotator, ranking.prompt_id) in before for ranking in added)
