"""Disagreements and the owner's decisions: what is learned from, on this machine and on another, and the way back."""

import json
from pathlib import Path

import pytest
from annotators_page import a_run_with_answers
from people import a_ranking

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.dashboard.ranking.disputes import ROWS
from lowrank_rlhf.dashboard.ranking.session import ranking_handler, sign
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.agreement import krippendorff_alpha
from lowrank_rlhf.preferences.export_file import comparisons_to_jsonl, to_jsonl
from lowrank_rlhf.preferences.import_file import read_rows
from lowrank_rlhf.preferences.overview import overview
from lowrank_rlhf.preferences.project import open_project
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.preferences.team.checks import checks_from_rankings, remove_checks
from lowrank_rlhf.preferences.team.decisions import decide, disagreements, order_of, undo_decision
from lowrank_rlhf.preferences.team.exclusion import exclude
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.stages import rank

SECRET = b"s" * 32


@pytest.fixture
def store(tmp_path: Path) -> AnnotationStore:
    """Of four prompts two are in dispute: p1 wholly, p2 by one pair of three."""
    store = a_run_with_answers(tmp_path, 4)
    for ranking in (
        a_ranking(0, "0123", "ann"),
        a_ranking(0, "0123", "bob"),
        a_ranking(1, "01", "ann", flags=("unsure", "own\x1b")),
        a_ranking(1, "10", "bob", written="A <b>better</b> one"),
        a_ranking(2, "012", "ann"),
        a_ranking(2, "021", "bob"),
        a_ranking(3, "01", "ann"),
    ):
        store.save(ranking)
    return store


def test_the_least_alike_come_first_and_the_decided_last(store) -> None:
    def listed() -> list[tuple]:
        return [
            (one.item.prompt.id, one.same, one.pairs, one.decision and order_of(one.decision, one.item))
            for one in disagreements(store.contents())
        ]

    assert listed() == [("p1", 0, 1, None), ("p2", 2, 3, None)]
    decide(store, "p1", "4>1 = 2", "owner")
    assert listed() == [("p2", 2, 3, None), ("p1", 0, 1, "4 > 1 = 2 > 3")]
    decide(store, "p0", "2", "owner")  # all agree, and the owner does not
    assert listed()[1:] == [("p1", 0, 1, "4 > 1 = 2 > 3"), ("p0", 6, 6, "2")]


def test_training_has_the_decision_alone_until_it_is_undone(store, tmp_path: Path) -> None:
    before, project = store.rankings(), open_project(tmp_path / "runs" / "people")
    alpha, pairs = krippendorff_alpha(before), overview(project).comparisons
    decided = decide(store, "p1", "3 > 1 > 2 > 4", "owner")
    assert [tier[0] for tier in decided.tiers] == ["p1-2", "p1-0", "p1-1", "p1-3"]
    assert decided.shown == ()  # it was not ranked in a shuffled order
    after = store.rankings()
    assert after == [one for one in before if one.prompt_id != "p1"] + [decided] == store.contents().learned()
    assert comparisons_to_jsonl(store.contents()).count('"prompt_id": "p1"') == 6
    found = overview(project)
    assert (found.alpha, found.rankings, found.comparisons) == (alpha, 7, pairs - 2 + 6)  # people's own agreement
    again = decide(store, "p1", "1 > 2", "owner")
    assert [one for one in store.rankings() if one.prompt_id == "p1"] == [again]
    assert checks_from_rankings(store, "ann", 2) == 2  # p0 and p2: p1 is the owner's
    assert {one.prompt_id for one in store.rankings()} == {"p1", "p3"}
    assert undo_decision(store, "p1")
    assert not undo_decision(store, "p1")
    assert [one for one in store.rankings() if one.prompt_id == "p1"] == [
        one for one in before if one.prompt_id == "p1"
    ]


def test_the_stage_measures_peoples_own_agreement(store, tmp_path: Path) -> None:
    before = store.rankings()
    decide(store, "p1", "1 > 2", "owner")
    decide(store, "p2", "1 > 2", "owner")
    run_dir = RunDir(tmp_path / "runs" / "people")
    config = load_config(run_dir.run / "config.yaml").rank
    own, decided = rank._before_decisions(run_dir, config, store.rankings())
    assert (own, decided) == (before, {"p1", "p2"})
    assert krippendorff_alpha(before) < krippendorff_alpha(store.rankings())
    found = [
        (one.prompt_id, one.annotator) for one in rank._comparisons(store.rankings(), own, decided) if one.replaced
    ]
    assert found == [("p1", "ann"), ("p1", "bob"), *[("p2", "ann")] * 3, *[("p2", "bob")] * 3]
    kept = [one for one in rank._comparisons(store.rankings(), own, decided) if not one.replaced]
    assert {one.annotator for one in kept if one.decision} == {"owner"}
    assert {one.prompt_id for one in kept if one.decision} == {"p1", "p2"}


def test_a_decided_prompt_that_becomes_a_check_trains_nothing(store) -> None:
    decide(store, "p1", "1 > 2", "owner")
    assert checks_from_rankings(store, "owner") == 1
    assert "p1" not in {one.prompt_id for one in store.rankings()}
    assert store.rankings() == store.contents().learned()


def test_python_and_sql_learn_from_the_same(store) -> None:
    for name in ("ann", "eve"):
        store.save(a_ranking(3, "10", name))
    store.save(a_ranking(0, "10", "eve"))
    store.save(a_ranking(2, "10", "dan"))
    store.undo("dan")
    decide(store, "p2", "2 > 1", "owner")
    decide(store, "p1", "2 > 1", "owner")
    decide(store, "p0", "2 > 1", "owner")
    exclude(store, "bob")
    assert store.rankings() == store.contents().learned()
    checks_from_rankings(store, "owner", 1)
    checks_from_rankings(store, "eve", 1)
    exclude(store, "eve")
    learned = store.rankings()
    assert [(one.annotator, one.prompt_id) for one in learned] == [("owner", "p1"), ("owner", "p2")]
    assert learned == store.contents().learned()
    assert store.ranked_prompts() == len({one.prompt_id for one in learned}) == 2
    remove_checks(store)
    for name in ("ann", "bob"):
        exclude(store, name)
    learned = store.rankings()
    assert {one.annotator for one in learned} == {"owner"}  # of prompts that nobody else has ranked any more
    assert learned == store.contents().learned()
    assert store.ranked_prompts() == len(learned) == 3


@pytest.mark.parametrize("order", ["2＞1", "2，1", "２ > １", "2 , 1", "21", "2>1", "2　1"])
def test_full_width_signs_are_the_plain_ones(store, order: str) -> None:
    assert decide(store, "p1", order, "owner").named_tiers == (("p1-1",), ("p1-0",))


def test_only_what_people_have_ranked_is_decided(store) -> None:
    store.save(a_ranking(3, "01", "eve"))
    checks_from_rankings(store, "eve")
    with pytest.raises(UserError, match="prompt 'p3' is an attention check"):
        decide(store, "p3", "1 > 2", "owner")
    exclude(store, "ann")
    exclude(store, "bob")
    with pytest.raises(UserError, match="nobody has ranked prompt 'p1'"):
        decide(store, "p1", "1 > 2", "owner")
    assert (store.contents().decisions, store.ranked_prompts()) == ((), 0)


NO_ORDERS = [
    "",
    " ",
    ">",
    "5",
    "1 1",
    "2 =",
    "= 2",
    "x",
    "1\r",
    "u",
    "2 > q",
    "b",
    "!",
    "12u",
    "1f1",
    "2 >= 1",
    "1,",
    "1?",
]


@pytest.mark.parametrize("order", NO_ORDERS)
def test_what_is_no_order_decides_nothing(store, order: str) -> None:
    with pytest.raises(UserError, match=r"not an order of answers 1 to 4: .*\. Write the best first"):
        decide(store, "p1", order, "owner")
    with pytest.raises(UserError, match="no prompt 'p9'"):
        decide(store, "p9", "1", "owner")
    assert store.contents().decisions == ()


def test_they_travel_with_an_export(store, tmp_path: Path) -> None:
    decide(store, "p1", "2 > 1", "owner")
    file, other = tmp_path / "export.jsonl", AnnotationStore(tmp_path / "other.sqlite")
    file.write_text(to_jsonl(store.contents()), encoding="utf-8")
    assert file.read_text(encoding="utf-8").count('"kind": "decision"') == 1
    for _ in range(2):
        other.merge(read_rows(file), new_items=True)
        assert to_jsonl(other.contents()) == file.read_text(encoding="utf-8")
    row = {"kind": "decision", **a_ranking(1, "09", "owner").model_dump()}
    file.write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"export\.jsonl:1: prompt 'p1' has no answer 'p1-9'"):
        other.merge(read_rows(file))


def test_the_page_shows_them_to_the_owner_alone(store, tmp_path: Path) -> None:
    step = {"badge": sign(SECRET, "people", "me"), "language": "en"}
    annotator, owner = (
        ranking_handler(tmp_path / "runs", SECRET),
        ranking_handler(tmp_path / "runs", SECRET, owner=True),
    )
    for do in ("disputes", "decide", "undecide"):
        answer = annotator({"do": do, "prompt_id": "p1", "key": "1 > 2", **step})
        assert answer == {"error": "Page and server disagree about the order; reload the page."}
    assert store.contents().decisions == ()
    first, second = owner({"do": "disputes", **step})["disputes"]
    assert [one["text"] for one in first["answers"]] == [f"answer {k} to 1" for k in range(4)]
    assert first["orders"] == [
        {"name": "ann", "order": "1 > 2", "remarks": ["unsure", "own\\x1b"]},
        {"name": "bob", "order": "2 > 1", "remarks": ["wrote: A <b>better</b> one"]},
    ]
    assert (first["alike"], first["decided"], second["alike"]) == ("0 of 1 pairs alike", "", "2 of 3 pairs alike")
    refused = owner({"do": "decide", "prompt_id": "p1", "key": "7", **step})
    assert "Not an order of these answers: 7." in refused["disputes_note"]
    after = owner({"do": "decide", "prompt_id": "p1", "key": first["orders"][1]["order"], **step})["disputes"]
    assert after[1]["decided"].startswith("Decided by me: 2 > 1.")
    assert store.contents().decisions[0].tiers[0] == ("p1-1",)
    owner({"do": "undecide", "prompt_id": "p1", **step})
    assert store.contents().decisions == ()


def test_the_decided_are_in_reach_however_many_are_not(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, ROWS + 3)
    for prompt in range(ROWS + 3):
        store.save(a_ranking(prompt, "01", "ann"))
        store.save(a_ranking(prompt, "10", "bob"))
    owner = ranking_handler(tmp_path / "runs", SECRET, owner=True)
    step = {"badge": sign(SECRET, "people", "me"), "language": "en"}
    after = owner({"do": "decide", "prompt_id": "p0", "key": "2 > 1", **step})
    assert [row["prompt_id"] for row in after["disputes"]] == [*(f"p{k}" for k in range(1, ROWS + 1)), "p0"]
    assert (after["disputes"][-1]["decided"] != "", after["disputes_note"]) == (True, "2 more follow these.")
