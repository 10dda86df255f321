"""Tasks for Argilla and Label Studio, and their annotations back: in the published shapes, nothing lost or made up."""

import json
from pathlib import Path
from typing import Any

import pytest
from people import a_ranking, a_run

from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.records import Ranking

ANNA, BOB = "0b6b3f54-8d3c-4f0a-9d3c-6a2f0c1d2e3f", "bob@example.org"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def exported(command, tool: str) -> list[dict[str, Any]]:
    assert command("annotations", "export", "people", "tasks.json", "--format", tool, "--force")[0] == 0
    return json.loads(Path("tasks.json").read_text(encoding="utf-8"))


def imported(command, tool: str, found: Any) -> tuple[int, str, str]:
    Path("done.json").write_text(json.dumps(found), encoding="utf-8")
    return command("annotations", "import", "people", "done.json", "--format", tool)


def option_of(record: dict[str, Any], text: str) -> str:
    return next(name for name, found in record["fields"].items() if found == text)


def answer(k: int) -> str:
    return f"answer {k}" * (k + 1)


def test_argilla_and_back(command) -> None:
    """Records as `to_json` of its client writes them (2.8): the order of a question's options, best first."""
    store = a_run()
    store.save(a_ranking(0, "012"))
    records = exported(command, "argilla")
    assert [record["id"] for record in records] == ["p1", "p2"]
    assert records[0]["fields"]["prompt"] == "Tell me 1"
    assert {answer(k) for k in range(3)} == set(records[0]["fields"].values()) - {"Tell me 1"}
    order = [option_of(records[0], answer(k)) for k in (2, 0, 1)]
    records[0]["responses"] = {"ranking": [{"value": [*order, "answer_4"], "user_id": ANNA}]}
    records[0] |= {"status": "completed", "_server_id": None}
    code, out, err = imported(command, "argilla", records)
    assert (code, err, out.splitlines()[0]) == (0, "", "1 ranking added, 0 already present")
    (ranking,) = [one for one in store.rankings() if one.prompt_id == "p1"]
    assert (ranking.annotator, ranking.tiers) == (ANNA, (("p1-2",), ("p1-0",), ("p1-1",)))
    assert [records[0]["fields"][f"answer_{n}"] for n in (1, 2, 3)] == [answer(int(one[-1])) for one in ranking.shown]
    assert imported(command, "argilla", records)[1].startswith("0 rankings added, 1 already present")


def test_the_argilla_server_s_records_keep_ties_and_states(command) -> None:
    """As its API gives them: ranks, of which equal ones are ties; drafts do not count, discarded ones are skips."""
    store = a_run()
    record = exported(command, "argilla")[0]
    ranks = [{"value": option_of(record, answer(k)), "rank": rank} for k, rank in ((0, 2), (1, 1), (2, 1))]
    values = {"values": {"ranking": {"value": ranks}}, "user_id": ANNA, "status": "submitted"}
    responses = [
        values,
        values | {"user_id": "draft", "status": "draft"},
        {"values": {"ranking": {"value": [3]}}, "user_id": "unfinished", "status": "draft"},
        {"values": None, "user_id": " gone ", "status": "discarded"},
    ]
    found = {"items": [record | {"id": "a-server-id", "external_id": "p0", "responses": responses}], "total": 1}
    assert imported(command, "argilla", found)[0] == 0
    (ranking,) = store.rankings()
    assert (ranking.annotator, [set(tier) for tier in ranking.tiers]) == (ANNA, [{"p0-1", "p0-2"}, {"p0-0"}])
    assert [(skip.annotator, skip.prompt_id) for skip in store.contents().skips] == [("gone", "p0")]


def test_other_questions_of_argilla_and_records_without_responses_are_fine(command) -> None:
    store = a_run()
    records = exported(command, "argilla")
    order = [option_of(records[0], answer(k)) for k in (0, 1, 2)]
    other = [{"value": {"free": "text"}, "user_id": ANNA}]
    records[0]["responses"] = {"comment": other, "ranking": [{"value": order, "user_id": f" {ANNA} "}]}
    records[1]["responses"] = None
    assert imported(command, "argilla", records)[0] == 0
    assert [(one.annotator, len(one.tiers)) for one in store.rankings()] == [(ANNA, 3)]


def test_label_studio_without_e_mail_and_with_empty_values(command) -> None:
    """A person without e-mail is the id; a negative time is none; a skip is by the same name as a ranking."""
    store = a_run()
    tasks = exported(command, "label-studio")
    by = {"completed_by": {"id": 10, "email": ""}, "was_cancelled": None, "lead_time": -3.5}
    tasks[0]["annotations"] = [{"result": ranker({"rank": ["p0-1", "p0-2", "p0-0"]})} | by]
    tasks[1]["annotations"] = [{"result": [], "was_cancelled": True, "completed_by": {"email": f" {BOB}"}}]
    assert imported(command, "label-studio", tasks)[0] == 0
    (ranking,) = store.rankings()
    assert (ranking.annotator, ranking.seconds) == ("10", None)
    assert [skip.annotator for skip in store.contents().skips] == [BOB]


def test_label_studio_and_back(command) -> None:
    """Tasks as its JSON export gives them: List and Ranker, `completed_by` as a person or a number."""
    store = a_run()
    tasks = exported(command, "label-studio")
    assert (tasks[0]["data"]["prompt_id"], tasks[0]["data"]["prompt"]) == ("p0", "Tell me 0")
    items = tasks[0]["data"]["items"]
    assert {(item["id"], item["body"]) for item in items} == {(f"p0-{k}", answer(k)) for k in range(3)}
    result = {"from_name": "rank", "to_name": "answers", "type": "ranker", "id": "PpwBv_NMxd"}
    ranked = {"result": [result | {"value": {"ranker": {"rank": ["p0-1", "p0-2", "p0-0"]}}}], "lead_time": 4.288}
    older = {"result": [result | {"value": {"ranker": ["p0-0", "p0-1", "p0-2"]}}], "completed_by": 7}
    skipped = {"result": [], "was_cancelled": True, "completed_by": 8}
    by = {"completed_by": {"id": 10, "email": BOB, "first_name": "", "last_name": ""}, "was_cancelled": False}
    tasks[0] |= {"id": 1, "annotations": [ranked | by, older, skipped], "drafts": [], "predictions": []}
    code, out, _ = imported(command, "label-studio", tasks)
    assert (code, out.splitlines()[:2]) == (0, ["2 rankings added, 0 already present", "1 skip added"])
    one, other = store.rankings()
    assert (one.annotator, one.tiers, one.seconds) == (BOB, (("p0-1",), ("p0-2",), ("p0-0",)), 4.288)
    assert list(one.shown) == [item["id"] for item in items]
    assert (other.annotator, other.tiers) == ("7", (("p0-0",), ("p0-1",), ("p0-2",)))
    assert [task["data"]["prompt_id"] for task in exported(command, "label-studio")] == ["p1", "p2"]


def rankings_of_many_kinds(store: AnnotationStore) -> None:
    """By a name of each tool and one of neither: strict, tied, partial, with an answer left out, without an order."""
    store.save(a_ranking(0, "012", ANNA, seconds=4.5, flags=("unsure",), shown=("p0-2", "p0-1", "p0-0")))
    store.save(a_ranking(0, "20", BOB))
    store.save(Ranking(prompt_id="p1", tiers=(("p1-1",), ("p1-0", "p1-2")), annotator="ann \u738b"))
    store.save(Ranking(prompt_id="p1", tiers=(("p1-1",), ("p1-0", "p1-2")), annotator=BOB, partial=True))
    store.save(a_ranking(2, "210", "ann \u738b", seconds=3.0))
    store.save(Ranking(prompt_id="p2", tiers=(), annotator=ANNA, flags=("harmful",)))
    store.save(a_ranking(3, "012"))
    store.undo("ann")


@pytest.mark.parametrize(
    ("tool", "kept", "printed"),
    [
        (
            "argilla",
            {("p0", ANNA), ("p1", "ann \u738b"), ("p1", BOB), ("p2", "ann \u738b")},
            [
                "4 rankings; docs/annotations.md names what argilla does not keep",
                "2 rankings left out: Argilla requires a place for each answer",
                "Argilla identifies its users by UUID; to load the file into it, replace these names: "
                f"ann \u738b, {BOB}",
            ],
        ),
        (
            "label-studio",
            {("p0", ANNA), ("p0", BOB), ("p2", "ann \u738b")},
            [
                "3 rankings; docs/annotations.md names what label-studio does not keep",
                "3 rankings left out: Label Studio requires an order without ties",
                "Label Studio identifies its users by e-mail; to load the file into it, replace these names: "
                f"{ANNA}, ann \u738b",
            ],
        ),
    ],
)
def test_rankings_come_back_into_a_copy_as_they_were(command, tool: str, kept: set, printed: list[str]) -> None:
    """All comparisons of each ranking that the format has, and no others; in the project itself nothing changes."""
    store, copy = a_run(prompts=4), a_run("copy", prompts=4)
    rankings_of_many_kinds(store)
    code, out, _ = command("annotations", "export", "people", "ranked.json", "--format", tool, "--rankings")
    assert (code, out.splitlines()) == (0, [f"wrote ranked.json: {printed[0]}", *printed[1:]])
    assert command("annotations", "import", "copy", "ranked.json", "--format", tool)[0] == 0
    ours = {(one.prompt_id, one.annotator): one for one in store.rankings()}
    theirs = {(one.prompt_id, one.annotator): one for one in copy.rankings()}
    assert theirs.keys() == kept
    for key, found in theirs.items():
        assert sorted(map(repr, compare(found))) == sorted(map(repr, compare(ours[key])))
        assert list(map(set, found.tiers)) == list(map(set, ours[key].tiers))
    if tool == "label-studio":
        assert {key: one.seconds for key, one in theirs.items()} == {key: ours[key].seconds for key in kept}
    before = store.contents()
    again = command("annotations", "import", "people", "ranked.json", "--format", tool)[1]
    assert again.startswith(f"0 rankings added, {len(kept)} already present")
    assert store.contents() == before


def test_exported_rankings_have_the_shapes_of_the_tools(command) -> None:
    """As Argilla's server takes them (ranks from 1 for all answers) and as Label Studio's export has them."""
    store = a_run()
    store.save(Ranking(prompt_id="p0", tiers=(("p0-1",), ("p0-0", "p0-2")), annotator=ANNA))
    store.save(a_ranking(1, "201", BOB, seconds=4.5))
    export = ("annotations", "export", "people", "ranked.json", "--force", "--rankings", "--format")
    assert command(*export, "argilla")[0] == 0
    record = json.loads(Path("ranked.json").read_text())["items"][0]
    (response,) = record["responses"]
    assert (record["external_id"], response["user_id"], response["status"]) == ("p0", ANNA, "submitted")
    ranks = {record["fields"][one["value"]]: one["rank"] for one in response["values"]["ranking"]["value"]}
    assert ranks == {answer(1): 1, answer(0): 2, answer(2): 2}
    assert command(*export, "label-studio")[0] == 0
    (task,) = json.loads(Path("ranked.json").read_text())
    (annotation,) = task["annotations"]
    (result,) = annotation["result"]
    assert (annotation["completed_by"], annotation["lead_time"]) == ({"email": BOB}, 4.5)
    assert (result["from_name"], result["to_name"], result["type"]) == ("rank", "answers", "ranker")
    assert result["value"] == {"ranker": {"rank": ["p1-2", "p1-0", "p1-1"]}}
    assert command(*export[:-1])[0] == 2


def argilla(**changes: Any) -> dict[str, Any]:
    return {"responses": {"ranking": [{"value": ["answer_1"], "user_id": ANNA} | changes]}}


def annotated(result: Any) -> dict[str, Any]:
    return {"annotations": [{"result": result, "completed_by": 1}]}


def ranker(value: Any) -> list[dict[str, Any]]:
    return [{"type": "ranker", "value": {"ranker": value}}]


@pytest.mark.parametrize(
    ("tool", "changes", "words"),
    [
        ("argilla", {"id": "p9"}, "id: unknown prompt 'p9'"),
        ("argilla", {"fields": {"answer_1": "other"}}, "fields.answer_1: not the answer of prompt 'p1' in the store"),
        (
            "argilla",
            argilla(value=["first"]),
            "responses.ranking.0.value: unknown option 'first'. Options are answer_1",
        ),
        ("argilla", argilla(value=[]), "responses.ranking.0: no answer is ranked"),
        (
            "argilla",
            argilla(value=["answer_1", "answer_1"]),
            "responses.ranking.0: Value error, an answer appears twice",
        ),
        ("argilla", argilla(value=[3]), "responses.ranking.0.value.0"),
        ("argilla", argilla(user_id=None), "responses.ranking.0.user_id: Input should be a valid string"),
        ("argilla", argilla(user_id=" "), "responses.ranking.0: not a valid name"),
        ("argilla", {"responses": {"order": []}}, "responses: Value error, no question `ranking`"),
        (
            "argilla",
            {"responses": [{"values": {"order": {"value": []}}, "user_id": ANNA, "status": "submitted"}]},
            "responses.ranking.0: Value error, no question `ranking`",
        ),
        ("argilla", {"responses": [{"values": 3, "user_id": ANNA}]}, "no question `ranking`"),
        ("argilla", {"responses": [3]}, "item 2: responses.ranking.0: not an object\n"),
        (
            "label-studio",
            {"annotations": [{"result": [], "was_cancelled": True, "completed_by": " "}]},
            "annotations.0: not a valid name",
        ),
        ("label-studio", {"annotations": [{"result": [], "completed_by": {}}]}, "annotations.0.completed_by"),
        ("label-studio", {"data": {"prompt_id": "p1"}}, "data.items: Field required"),
        ("label-studio", {"data": {"prompt_id": "p9", "items": []}}, "data.prompt_id: unknown prompt 'p9'"),
        (
            "label-studio",
            {"data": {"prompt_id": "p1", "items": [{"id": "p1-0", "body": "other"}]}},
            "data.items.0: not an answer of prompt 'p1' in the store",
        ),
        ("label-studio", annotated([]), "annotations.0.result: 0 results of type 'ranker', 1 is required"),
        ("label-studio", annotated(ranker({"good": ["p1-0"], "_": []})), "annotations.0.result: buckets have no order"),
        ("label-studio", annotated(ranker({"rank": ["p0-0"]})), "prompt 'p1' has no answer 'p0-0'"),
        ("label-studio", annotated(ranker({"rank": []})), "annotations.0: no answer is ranked"),
        ("label-studio", annotated(ranker("p1-0")), "annotations.0.result.0.value.ranker"),
    ],
)
def test_a_wrong_item_is_named_and_nothing_is_imported(command, tool: str, changes: Any, words: str) -> None:
    store = a_run()
    tasks = exported(command, tool)
    tasks[1] |= changes
    code, _, err = imported(command, tool, tasks)
    assert code == 2
    assert "done.json: item 2: " in err
    assert words in err
    assert not store.contents().history


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[3]", "done.json: item 1: not an object\n"),
        ("{", "not JSON"),
        ("3", "not a list of tasks"),
        ("[]", "no finished annotations"),
        ("\udcff", "not JSON"),
    ],
)
def test_a_wrong_file_is_refused(command, content: str, words: str) -> None:
    a_run()
    Path("done.json").write_bytes(content.encode(errors="surrogateescape"))
    code, _, err = command("annotations", "import", "people", "done.json", "--format", "argilla")
    assert (code, words in err) == (2, True)


def test_only_prompts_to_rank_are_exported(command) -> None:
    """Neither attention checks nor decided prompts; a withdrawn ranking is none."""
    store = a_run(prompts=4)
    for prompt in (0, 1, 2):
        store.save(a_ranking(prompt, "012"))
    store.undo("ann")
    assert [task["data"]["prompt_id"] for task in exported(command, "label-studio")] == ["p2", "p3"]
    store.save(a_ranking(2, "012"))
    store.save(a_ranking(3, "012"))
    code, _, err = command("annotations", "export", "people", "x.json", "--format", "argilla")
    assert (code, err) == (2, "people: no prompts to export: all are ranked\n")
    both = ("annotations", "export", "people", "x.json", "--format", "argilla", "--comparisons")
    assert command(*both)[0] == command("annotations", "import", "new", "x", "--new", "--format", "argilla")[0] == 2
