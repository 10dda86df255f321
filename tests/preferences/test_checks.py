"""Attention checks: mixed in at their share, never learned from, and their result per annotator."""

import io
import json
from pathlib import Path

import pytest
from annotators_page import a_run_with_answers
from people import a_ranking
from rich.console import Console

from lowrank_rlhf.commands.terminal.ranking_keys import LineKeys
from lowrank_rlhf.commands.terminal.ranking_loop import RankingLoop
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.dashboard.ranking.figures import figures_words
from lowrank_rlhf.dashboard.ranking.screen import item_words, progress_words
from lowrank_rlhf.errors import UserError, WaitingForPeople
from lowrank_rlhf.preferences.carelessness import Attention, Sign
from lowrank_rlhf.preferences.export_file import comparisons_to_jsonl, to_jsonl
from lowrank_rlhf.preferences.import_file import read_rows
from lowrank_rlhf.preferences.overview import overview, ranking_progress
from lowrank_rlhf.preferences.project import open_project
from lowrank_rlhf.preferences.queue import LEASE_SECONDS, AssignmentRules
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.preferences.team.checks import (
    add_checks,
    attention,
    checks_from_rankings,
    read_checks_file,
    remove_checks,
)
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.records import Ranking
from lowrank_rlhf.stages import rank


def a_file(folder: Path, number: int, answers: int = 3) -> Path:
    """Checks whose answers are best to worst."""
    rows = [
        {
            "prompt": f"How much is {k}?",
            "answers": [f"{k} {j}" for j in range(answers)],
            "ranks": [*range(1, answers + 1)],
        }
        for k in range(number)
    ]
    (folder / "checks.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "checks.jsonl"


def rank_next(
    store: AnnotationStore, annotator: str, rules: AssignmentRules, backwards: bool = False
) -> Ranking | None:
    """Rank the next item in the order of its answers' ids."""
    item = store.next_item(annotator, rules)
    if item is None:
        return None
    order = sorted(item.shown, reverse=backwards)
    ranking = Ranking(
        prompt_id=item.prompt.id, tiers=tuple((one,) for one in order), annotator=annotator, shown=item.shown
    )
    store.save(ranking, item.done)
    return ranking


def test_they_are_mixed_in_at_their_share_and_each_once(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 24)
    assert add_checks(store, read_checks_file(a_file(tmp_path, 12))) == (12, 0)
    ids = {check.prompt_id for check in store.contents().checks}
    rules = AssignmentRules(repeated=0.2, checks=0.3)
    firsts = {}
    for name in ("ann", "bob"):
        asked = []
        for number in range(20):
            assert number % 5 or store.next_item(name, rules) == AnnotationStore(store.path).next_item(
                name, rules
            )  # leased
            asked.append(rank_next(store, name, rules).prompt_id)
        found = [one for one in asked if one in ids]
        assert 2 <= len(found) <= 10  # binomial: 6, standard deviation 2
        assert len(set(found)) == len(found)
        firsts[name] = [asked.index(one) for one in found], found[:2]
    assert firsts["ann"][0] != firsts["bob"][0]
    assert firsts["ann"][1] != firsts["bob"][1]
    asked = [one.prompt_id for one in iter(lambda: rank_next(store, "eve", rules), None)]
    assert sorted({one for one in asked if one in ids}) == sorted(ids)  # those left come at the end
    counts = store.counts("eve")
    assert (counts.prompts, counts.ranked, counts.ranked_by_anyone) == (36, 36, 36)
    assert store.undo("eve").prompt_id == asked[-1]
    asked = [one.prompt_id for one in iter(lambda: rank_next(store, "carl", AssignmentRules()), None)]
    assert (len(asked), ids.intersection(asked)) == (24, set())  # with a share of 0


def test_two_people_may_have_the_same_check_at_once_and_cannot_tell(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 1)
    add_checks(store, read_checks_file(a_file(tmp_path, 1, answers=4)))
    items = [store.next_item(name, AssignmentRules(checks=1.0)) for name in ("ann", "bob")]
    assert items[0].prompt == items[1].prompt != store.item("ann", "p0").prompt
    check, ordinary = item_words(items[0]), item_words(store.item("ann", "p0"))
    assert check.keys() == ordinary.keys()
    assert "order" not in json.dumps(check)
    store.skip("ann", items[0].prompt.id)
    assert store.next_item("ann", AssignmentRules(checks=1.0)).prompt.id == "p0"


def test_nobody_learns_from_them(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 4, shared=1.0)
    add_checks(store, read_checks_file(a_file(tmp_path, 2)))
    rules = AssignmentRules(shared=1.0, checks=1.0)
    for name in ("ann", "bob"):
        while rank_next(store, name, rules):
            pass
    ids = {check.prompt_id for check in store.contents().checks}
    project = open_project(tmp_path / "runs" / "people")
    assert len(store.contents().history) == 12
    for rankings in (store.rankings(), store.contents().current(), store.shared_rankings(100, 100)):
        assert len(rankings) == 8
        assert not {ranking.prompt_id for ranking in rankings} & ids
    assert not any(one in comparisons_to_jsonl(store.contents()) for one in ids)
    assert (store.ranked_prompts(), store.trainable_prompts(), overview(project).rankings) == (4, 4, 8)
    assert checks_from_rankings(store, "ann", 1) == 1
    assert {ranking.prompt_id for ranking in store.rankings()} == {"p1", "p2", "p3"}
    assert (store.ranked_prompts(), project.needed) == (3, 3)
    assert remove_checks(store) == (2, 1)
    assert (len(store.rankings()), store.trainable_prompts(), store.counts("ann")[:2]) == (8, 4, (4, 4))
    assert rank_next(store, "eve", rules).prompt_id == "p0"


def test_results_and_their_sign(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 5)
    add_checks(store, read_checks_file(a_file(tmp_path, 4)))
    rules = AssignmentRules(checks=1.0)
    for name, backwards in (("ann", False), ("bob", True)):
        for _ in range(4):
            rank_next(store, name, rules, backwards)
    for check in store.contents().checks:  # everything equal is no order
        everything = (tuple(name for tier in check.tiers for name in tier),)
        store.save(Ranking(prompt_id=check.prompt_id, tiers=everything, annotator="eve"))
    store.save(a_ranking(0, "0123", "owner"))
    store.save(a_ranking(0, "1023", "ann"))
    assert checks_from_rankings(store, "owner") == 1
    assert attention(store.contents()) == {
        "ann": Attention(5, 4 * 3 + 5, 4 * 3 + 6),
        "bob": Attention(4, 0, 12),
        "eve": Attention(4, 0, 12),
    }
    project = open_project(tmp_path / "runs" / "people")
    found = {one.check.annotator: one.check for one in overview(project, of_each=True).of_each}
    assert [name for name, one in found.items() if Sign.CHECKS in one.signs] == ["bob", "eve"]
    owner = figures_words(overview(project, of_each=True), project, "en", owner=True)
    assert "attention checks: 94 % of 18 pairs right (5 checks)" in str(owner)
    assert "attention" not in str(figures_words(overview(project), project, "en", owner=False))
    assert Attention(2, 0, 12).failed is False
    assert [Attention(3, right, 10).failed for right in (5, 6)] == [True, False]


def test_they_travel_with_an_export(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 3)
    add_checks(store, read_checks_file(a_file(tmp_path, 2)))
    store.save(a_ranking(0, "01", "owner"))
    checks_from_rankings(store, "owner")
    file, other = tmp_path / "export.jsonl", AnnotationStore(tmp_path / "other.sqlite")
    file.write_text(to_jsonl(store.contents()), encoding="utf-8")
    assert file.read_text(encoding="utf-8").count('"kind": "check"') == 3
    for _ in range(2):
        other.merge(read_rows(file), new_items=True)
        assert to_jsonl(other.contents()) == file.read_text(encoding="utf-8")
    store.merge(read_rows(file))
    file.write_text(json.dumps({"kind": "check", "prompt_id": "p1", "tiers": [["p1-9"], ["p1-0"]]}))
    with pytest.raises(UserError, match="has no answer 'p1-9'"):
        store.merge(read_rows(file))


def test_the_stage_does_not_wait_for_them(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 6, minimum_rankings=6)
    run_dir, made = RunDir(tmp_path / "runs" / "people"), store.contents()
    config = load_config(run_dir.run / "config.yaml")
    store.save(a_ranking(0, "01", "owner"))
    store.save(a_ranking(1, "01", "owner"))
    checks_from_rankings(store, "owner")
    for number in range(4):
        with pytest.raises(WaitingForPeople, match=f"{number} of 4 prompts are ranked"):
            rank._rankings_of_people(run_dir, config, made.prompts, made.answers)
        assert (store.ranked_prompts(), open_project(run_dir.path).needed) == (number, 4)
        store.save(a_ranking(number + 2, "01"))
    assert rank._rankings_of_people(run_dir, config, made.prompts, made.answers) == store.rankings()
    assert open_project(run_dir.path).enough


def test_the_progress_moves_with_every_ranking_alike(tmp_path: Path) -> None:
    """Page and terminal, for three prompts to learn from and two checks."""
    store = a_run_with_answers(tmp_path, 5)
    add_checks(store, read_checks_file(a_file(tmp_path, 2)))
    first, second = (check.prompt_id for check in store.contents().checks)
    project, screen = open_project(tmp_path / "runs" / "people"), io.StringIO()
    loop = RankingLoop(project, "ann", LineKeys(io.StringIO()), Console(file=screen, width=90))
    told = []
    for name in (None, "p0", first, "p1", "p2", second, "p3"):
        if name:
            tiers = ((f"{name}-0",), (f"{name}-1",))
            store.save(Ranking(prompt_id=name, tiers=tiers, annotator="ann"))
        loop._show(store.item("ann", "p4"))
        terminal = screen.getvalue().split(" ranked")[-2].split()[-1], screen.getvalue().count("more needed")
        words = progress_words(project, "ann", "en", owner=False)
        told.append((*words["line"][:2], words["enough"], words["next"][:6], *terminal))
    assert told == [
        ("0 of 5 prompts ranked", "you: 0 ranked, 0 skipped", False, "5 more", "0", 1),
        ("1 of 5 prompts ranked", "you: 1 ranked, 0 skipped", False, "4 more", "1", 2),
        ("2 of 5 prompts ranked", "you: 2 ranked, 0 skipped", False, "3 more", "2", 3),
        ("3 of 5 prompts ranked", "you: 3 ranked, 0 skipped", False, "2 more", "3", 4),
        ("4 of 4 prompts ranked", "you: 4 ranked, 0 skipped", True, "Enough", "4", 4),
        ("5 of 5 prompts ranked", "you: 5 ranked, 0 skipped", True, "Enough", "5", 4),
        ("6 prompts ranked (5 needed)", "you: 6 ranked, 0 skipped", True, "Enough", "6", 4),
    ]


def test_a_share_of_zero_hides_them_from_the_counts_too(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 4, checks=0.0)
    for prompt in range(2):
        store.save(a_ranking(prompt, "01"))
    store.skip("ann", "p2")
    checks_from_rankings(store, "ann", 1)
    add_checks(store, read_checks_file(a_file(tmp_path, 3)))
    store.skip("ann", store.contents().checks[-1].prompt_id)
    now = ranking_progress(open_project(tmp_path / "runs" / "people"), "ann")
    assert (now.prompts, now.ranked, now.skipped, now.ranked_by_anyone, now.needed) == (3, 1, 1, 1, 3)


def test_a_lease_of_one_is_renewed_whoever_else_has_it(tmp_path: Path) -> None:
    add_checks(a_run_with_answers(tmp_path, 1), read_checks_file(a_file(tmp_path, 1)))
    now = [1e9]
    store = AnnotationStore(tmp_path / "runs" / "people" / "annotations.sqlite", clock=lambda: now[0])
    rules = AssignmentRules(checks=1.0)
    check = store.next_item("ann", rules).prompt.id
    now[0] += LEASE_SECONDS - 1
    assert store.next_item("bob", rules).prompt.id == check
    store.renew("ann", check, 0)
    now[0] += 2
    assert store.next_item("ann", AssignmentRules()).prompt.id == check


def test_they_are_no_sign_of_consistency(tmp_path: Path) -> None:
    store, project = a_run_with_answers(tmp_path, 1), open_project(tmp_path / "runs" / "people")
    for order in ("01", "10"):
        store.save(a_ranking(0, order, "owner"))
    assert overview(project).consistency == (0.0, 1)
    checks_from_rankings(store, "owner")
    assert overview(project).consistency is None


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"kind": "check", "prompt_id": "p9", "tiers": [["p9-0"], ["p9-1"]]}, "unknown prompt 'p9'"),
        ({"kind": "check", "prompt_id": "p1", "tiers": []}, "tiers: an attention check needs two tiers"),
        ({"kind": "check", "prompt_id": "p1", "tiers": [["p1-0", "p1-1"]]}, "tiers: an attention check needs two"),
        ({"kind": "check", "prompt_id": "p1", "tiers": [["p1-0"], []]}, "tiers: an attention check needs two"),
        ({"kind": "check", "prompt_id": "p1", "tiers": [["p1-0"], ["p1-0"]]}, "tiers: an answer appears twice"),
        ({"kind": "decision", "prompt_id": "p1", "tiers": [], "annotator": "me"}, "tiers: a decision needs an order"),
        ({"kind": "decision", "prompt_id": "p9", "tiers": [["p9-0"]], "annotator": "me"}, "unknown prompt 'p9'"),
    ],
)
def test_a_wrong_row_of_the_owner_is_refused(tmp_path: Path, row: dict, complaint: str) -> None:
    store, file = a_run_with_answers(tmp_path, 2), tmp_path / "x.jsonl"
    file.write_text(f"{json.dumps(row)}\n")
    with pytest.raises(UserError, match=rf"x\.jsonl:1: {complaint}"):
        store.merge(read_rows(file))
    assert (store.contents().checks, store.contents().decisions) == ((), ())


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ({"prompt": "p", "answers": ["a", "b"], "ranks": [1]}, "2 answers, but 1 ranks"),
        ({"prompt": "p", "answers": ["a", "b"], "ranks": [1, 1]}, "all ranks are equal"),
        ({"prompt": "p", "answers": ["a"], "ranks": [1]}, "answers: "),
        ({"prompt": "p", "answers": ["a", "b"], "ranks": [1, "2"]}, "ranks.1: "),
        ({"prompt": "", "answers": ["a", "b"], "ranks": [1, 2]}, "prompt: "),
        ({"prompt": "p", "answers": ["a", "b"], "ranks": [1, 2], "note": 1}, "note: Extra inputs"),
        ('{"prompt": "\\ud800", "answers": ["a", "b"], "ranks": [1, 2]}', ""),
    ],
)
def test_a_wrong_line_adds_nothing(tmp_path: Path, line: str | dict, complaint: str) -> None:
    file = a_file(tmp_path, 2)
    with file.open("a") as lines:
        lines.write(line if isinstance(line, str) else json.dumps(line))
    with pytest.raises(UserError, match=rf"checks\.jsonl:3: {complaint}"):
        read_checks_file(file)


def test_files_without_checks(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="the file is empty"):
        read_checks_file(tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_checks_file(tmp_path)
