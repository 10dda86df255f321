"""`annotations export` and `import` as commands: what they say, what they refuse, and what they leave behind."""

import json
import re
from pathlib import Path

import pytest
from people import a_ranking, a_run

from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.comparisons import load_comparisons
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.records import Ranking, write_jsonl

FILE = Path("x.jsonl")
MARK = {"fingerprint": {"settings": {}, "inputs": {}}, "seconds": 1.0, "summary": {"rankings": 1, "comparisons": 1}}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_annotator_s_rankings_are_excluded_and_restored(command) -> None:
    """What bob undid himself stays undone; the counts of the queue follow."""
    store = a_run(minimum=2)
    for prompt, annotator in ((0, "bob"), (1, "bob"), (0, "ann"), (2, "bob")):
        store.save(a_ranking(prompt, "012", annotator))
    store.undo("bob")
    code, out, err = command("annotations", "exclude", "people", "bob")
    assert (code, err) == (0, "")
    assert out.startswith("2 rankings by bob excluded\n1 of 2 prompts ranked")
    assert [(one.annotator, one.prompt_id) for one in store.rankings()] == [("ann", "p0")]
    assert sum(saved.withdrawn for saved in store.contents().history) == 3
    code, _, err = command("annotations", "exclude", "people", "bob")
    assert (code, err) == (2, "people: no rankings by 'bob'. Annotators: ann, bob\n")
    assert command("annotations", "exclude", "people", "bob", "--undo")[1].startswith("2 rankings by bob restored\n")
    assert [(one.annotator, one.prompt_id) for one in store.rankings()] == [("bob", "p0"), ("bob", "p1"), ("ann", "p0")]
    assert command("annotations", "exclude", "people", "bob", "--undo")[0] == 2


def test_to_another_machine_and_back(command) -> None:
    store = a_run()
    store.save(a_ranking(0, "012", seconds=2.0))
    assert command("annotations", "export", "people", "for_bob.jsonl") == (
        0,
        "wrote for_bob.jsonl: 3 prompts, 9 answers, 1 ranking by 1 annotator, 0 skips\n",
        "",
    )
    assert command("annotations", "import", "bob", "for_bob.jsonl", "--new", "--runs", "elsewhere") == (
        0,
        "1 ranking added, 0 already present\n3 prompts with 9 answers added\n"
        "1 prompt ranked. To export them:\n"
        "  python -m lowrank_rlhf annotations export elsewhere/bob FILE\n",
        "",
    )
    other = AnnotationStore(Path("elsewhere/bob/annotations.sqlite"))
    other.save(a_ranking(0, "210", "bob", flags=("unsure",), shown=("p0-0", "p0-1", "p0-2")))
    other.save(a_ranking(1, "210", "bob"))
    other.skip("bob", "p2")
    code, out, err = command("annotations", "export", "elsewhere/bob", "back.jsonl")
    assert (code, err) == (0, "")
    assert "3 rankings by 2 annotators, 1 skip\n" in out
    assert command("annotations", "import", "people", "back.jsonl") == (
        0,
        "2 rankings added, 1 already present\n1 skip added\n2 prompts ranked (2 needed), but annotators order 0 % of 3 "
        "pairs alike, not shown to be above chance. About 16 more prompts ranked by two of them would show whether "
        "it is. See label RUN --stats. To resume the run anyway:\n"
        "  python -m lowrank_rlhf run runs/people/config.yaml\n",
        "",
    )
    assert store.contents() == other.contents()
    assert command("annotations", "import", "people", "back.jsonl")[1].startswith(
        "0 rankings added, 3 already present\n2 "
    )


def test_what_no_longer_counts_is_kept_and_said(command) -> None:
    store = a_run()
    store.save(a_ranking(0, "012"))
    store.save(a_ranking(0, "021"))
    store.save(a_ranking(1, "021"))
    store.undo("ann")
    _, out, _ = command("annotations", "export", "people", "x.jsonl")
    assert out.splitlines()[1:] == [
        "also 1 ranking replaced by a later one of the same annotator",
        "also 1 ranking withdrawn",
    ]
    other = a_run("other")
    other.save(a_ranking(0, "210"))
    assert command("annotations", "import", "other", "x.jsonl")[1].splitlines()[:3] == [
        "2 rankings added, 0 already present",
        "1 existing ranking replaced by a later one of the same annotator",
        "1 ranking withdrawn; kept in the history",
    ]
    assert other.rankings() == [a_ranking(0, "021")]


def test_comparisons_are_a_dataset(command) -> None:
    store = a_run()
    store.save(a_ranking(0, "201"))
    store.save(a_ranking(1, "01"))
    assert command("annotations", "export", "people", "x.jsonl", "--comparisons") == (
        0,
        "wrote x.jsonl: 4 comparisons from 2 rankings\n",
        "",
    )
    data = load_comparisons(FILE)
    text = {answer.id: answer.text for answer in data.answers}
    found = [(text[pair.chosen], text[pair.rejected]) for ranking in data.rankings for pair in compare(ranking)]
    texts = [f"answer {k}" * (k + 1) for k in range(3)]
    assert found == [(texts[a], texts[b]) for a, b in ((2, 0), (2, 1), (0, 1), (0, 1))]
    assert command("annotations", "import", "people", "x.jsonl")[1].startswith("0 rankings added, 2 already present\n")
    other = a_run("other")
    assert command("annotations", "import", "other", "x.jsonl")[1].startswith("2 rankings added, 0 already present\n")
    assert other.rankings() == store.rankings()


def test_no_comparisons_no_file(command) -> None:
    a_run().save(Ranking(prompt_id="p0", tiers=(("p0-0", "p0-1"),), annotator="ann"))
    code, out, err = command("annotations", "export", "people", "x.jsonl", "--comparisons")
    assert (code, out) == (2, "")
    assert "no comparisons to export" in err
    assert not FILE.exists()


def test_a_file_that_exists_is_replaced_with_force_only(command) -> None:
    a_run()
    FILE.write_text("mine")
    assert command("annotations", "export", "people", "x.jsonl") == (
        2,
        "",
        "x.jsonl already exists; choose another name or replace it with --force\n",
    )
    assert FILE.read_text() == "mine"
    assert command("annotations", "export", "people", "x.jsonl", "--force")[0] == 0
    assert FILE.read_text().startswith('{"kind": "header"')
    Path("folder").mkdir()
    code, _, err = command("annotations", "export", "people", "folder", "--force")
    assert (code, err.split(":")[:2]) == (2, ["folder", " cannot be written"])
    assert [path.name for path in Path().iterdir()] != []
    assert not list(Path().glob(".*"))  # nothing half-written


GOOD = a_ranking(0, "012").model_dump_json()
PAIR = {
    "prompt": "Tell me 0",
    "chosen": "answer 0",
    "rejected": "answer 1" * 2,
    "prompt_id": "p0",
    "chosen_id": "p0-0",
    "rejected_id": "p0-1",
    "annotator": "ann",
    "tier_gap": 1,
}
PROMPT = {"kind": "prompt", "id": "p0", "messages": [{"role": "user", "content": "Tell me 0"}]}
ANSWER = {"kind": "answer", "id": "p0-0", "prompt_id": "p0", "text": "answer 0", "tokens": [0]}
RANKING = {"kind": "ranking", **json.loads(GOOD)}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "invalid JSON"),
        ("[" * 100_000, "invalid JSON (nested too deeply)"),
        ("[1]", "not a JSON object"),
        ('{"a": 1}', "the row has no kind; see docs/annotations.md"),
        ({"kind": "wish"}, "unknown kind of row: 'wish'"),
        ({"kind": ["ranking"]}, "unknown kind of row"),
        ({"kind": "header", "format": "lowrank_rlhf annotations", "version": 99}, "newer version (format 99); update"),
        ({"kind": "header", "format": "other", "version": 1}, "format: "),
        (b'{"kind": "skip", "annotator": "\xff"}', "not UTF-8 text"),
        (RANKING | {"note": 1}, "note: Extra inputs are not permitted"),
        (RANKING | {"seconds": "3"}, "seconds: "),
        (json.dumps(RANKING | {"seconds": float("nan")}), "NaN is not a JSON number"),
        (RANKING | {"tiers": [["p0-0"], ["p0-0"]]}, "an answer appears twice"),
        (RANKING | {"tiers": [["p0-0"], []]}, "a tier is empty"),
        (RANKING | {"withdrawn": "no"}, "withdrawn: "),
        (RANKING | {"prompt_id": "p9"}, "unknown prompt 'p9'"),
        (RANKING | {"prompt_id": "p1"}, "prompt 'p1' has no answer 'p0-0'"),
        (RANKING | {"shown": ["p0-9"]}, "prompt 'p0' has no answer 'p0-9'"),
        (RANKING | {"annotator": "\ud800"}, "half a character"),
        ({"kind": "skip", "annotator": "ann", "prompt_id": "p9"}, "unknown prompt 'p9'"),
        (PROMPT | {"messages": []}, "messages: must not be empty"),
        (PROMPT | {"messages": [{"role": "user", "content": "Other"}]}, "prompt 'p0' has another text in the store"),
        (PROMPT | {"id": "p9"}, "prompt 'p9' is not one of this run's"),
        (ANSWER | {"text": "other"}, "answer 'p0-0' differs from the store's"),
        (ANSWER | {"id": "p0-9"}, "prompt 'p0' has no answer 'p0-9' in the store"),
        (ANSWER | {"prompt_id": "p9"}, "unknown prompt 'p9'"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "without prompt_id, chosen_id, rejected_id, annotator"),
        (PAIR | {"prompt": "Tell him"}, "prompt 'p0' has another text in the store"),
        (PAIR | {"prompt_id": "p9"}, "unknown prompt 'p9'"),
        (PAIR | {"chosen": "answer"}, "answer 'p0-0' has another text in the store"),
        (PAIR | {"rejected_id": "p1-1"}, "prompt 'p0' has no answer 'p1-1'"),
        (PAIR | {"tier_gap": 2}, "are not all those of one ranking"),
        (PAIR | {"tier_gap": 0}, "are not all those of one ranking"),
    ],
)
def test_one_wrong_line_and_nothing_comes_in(command, line: str | bytes | dict, complaint: str) -> None:
    store = a_run()
    text = json.dumps(line) if isinstance(line, dict) else line
    content = text if isinstance(text, bytes) else text.encode()
    FILE.write_bytes(GOOD.encode() + b"\n\n" + content + b"\n")
    code, out, err = command("annotations", "import", "people", "x.jsonl")
    assert (code, out) == (2, "")
    assert err.startswith("x.jsonl:3: ")
    assert complaint in err
    assert err.endswith("\nNothing was imported.\n")
    assert "Traceback" not in err
    assert store.rankings() == []


def test_all_wrong_lines_are_named_up_to_ten(command) -> None:
    a_run()
    FILE.write_text("{}\n" * 13)
    _, _, err = command("annotations", "import", "people", "x.jsonl")
    lines = err.splitlines()
    assert [line.split(": ")[0] for line in lines[:10]] == [f"x.jsonl:{number}" for number in range(1, 11)]
    assert lines[10:] == ["... and 3 more", "Nothing was imported."]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([PROMPT, ANSWER], "x.jsonl:1: prompt 'p0' has fewer than two answers in the file"),
        ([ANSWER], "x.jsonl:1: unknown prompt 'p0'"),
        ([RANKING], "x.jsonl:1: unknown prompt 'p0'"),
        ([], "x.jsonl: the file is empty"),
    ],
)
def test_a_failed_new_folder_is_gone(command, rows: list[dict], complaint: str) -> None:
    FILE.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    code, _, err = command("annotations", "import", "new", "x.jsonl", "--new")
    assert (code, err.splitlines()[0]) == (2, complaint)
    assert not Path("runs/new").exists()


def test_places_that_are_none(command) -> None:
    a_run("abc")
    FILE.write_text(GOOD)
    assert command("annotations", "import", "nowhere.jsonl", "missing.jsonl")[2].startswith(
        "missing.jsonl: cannot be read"
    )
    assert command("annotations", "import", "abd", "x.jsonl")[2] == (
        'run "abd" not found in runs. Existing runs: abc. Did you mean "abc"?\n'
    )
    assert command("annotations", "import", "abc", "x.jsonl", "--new")[2].startswith("runs/abc already exists; ")
    Path("runs/abc/annotations.sqlite").unlink()
    assert command("annotations", "export", "abc", "y.jsonl") == (
        2,
        "",
        "runs/abc: no answers to rank yet. Sample them; the run stops with exit code 5 when they are ready:\n"
        "  python -m lowrank_rlhf run runs/abc/config.yaml\n",
    )
    RunDir(Path("runs/judged")).open(dump_config(Config(name="judged", model={"source": "x"})))
    assert command("annotations", "import", "judged", "x.jsonl")[2] == (
        "runs/judged: people rank runs with rank.source=human; this one has rank.source=judge\n"
    )
    assert command("annotations", "export", "judged", "y.jsonl") == (
        2,
        "",
        "runs/judged: answers are not ranked yet. Rank them:\n"
        "  python -m lowrank_rlhf run runs/judged/config.yaml --until rank\n",
    )


def a_ranked_run(name: str, rankings: list[Ranking], **rank: object) -> None:
    """A run whose stage rank was done by a program."""
    made = a_run("items").contents()
    run_dir = RunDir(Path("runs") / name)
    run_dir.open(dump_config(Config(name=name, model={"source": "x"}, rank=rank)))
    write_jsonl(run_dir.work("rank") / "prompts.jsonl", made.prompts)
    write_jsonl(run_dir.work("rank") / "answers.jsonl", made.answers)
    write_jsonl(run_dir.work("rank") / "rankings.jsonl", rankings)
    run_dir.finish("rank", ["prompts.jsonl", "answers.jsonl", "rankings.jsonl"], MARK)


def pairs_of(path: Path) -> list[tuple[str, str]]:
    """Chosen and rejected texts that `rank.dataset` would learn from."""
    data = load_comparisons(path)
    text = {answer.id: answer.text for answer in data.answers}
    return [(text[pair.chosen], text[pair.rejected]) for ranking in data.rankings for pair in compare(ranking)]


def test_a_run_that_a_judge_ranked_is_exported(command) -> None:
    rankings = [a_ranking(0, "201", "simulated-annotator"), a_ranking(1, "01", "simulated-annotator")]
    a_ranked_run("judged", rankings)
    assert command("annotations", "export", "judged", "x.jsonl") == (
        0,
        "wrote x.jsonl: 3 prompts, 9 answers, 2 rankings by 1 annotator, 0 skips\n",
        "",
    )
    people = a_run()
    assert command("annotations", "import", "people", "x.jsonl")[1].startswith("2 rankings added, 0 already present\n")
    assert people.rankings() == rankings
    assert command("annotations", "export", "judged", "y.jsonl", "--comparisons") == (
        0,
        "wrote y.jsonl: 4 comparisons from 2 rankings\n",
        "",
    )
    texts = [f"answer {k}" * (k + 1) for k in range(3)]
    assert pairs_of(Path("y.jsonl")) == [(texts[a], texts[b]) for a, b in ((2, 0), (2, 1), (0, 1), (0, 1))]


def test_no_ranking_of_a_data_set_is_lost(command) -> None:
    """Its rows may speak of one prompt several times, all by the same annotator."""
    rankings = [a_ranking(0, order, "dataset") for order in ("20", "01", "12")]
    a_ranked_run("learnt", rankings, source="dataset", dataset="gone.jsonl")
    code, out, _ = command("annotations", "export", "learnt", "x.jsonl")
    assert (code, out.splitlines()) == (
        0,
        [
            "wrote x.jsonl: 3 prompts, 9 answers, 3 rankings by 1 annotator, 0 skips",
            "2 rankings followed by a later one of the same prompt and annotator: `import` counts only the last one; "
            "--comparisons exports all of them",
        ],
    )
    written = [json.loads(line) for line in FILE.read_text().splitlines()]
    assert [row["tiers"] for row in written if row["kind"] == "ranking"] == [
        [["p0-2"], ["p0-0"]],
        [["p0-0"], ["p0-1"]],
        [["p0-1"], ["p0-2"]],
    ]
    assert command("annotations", "export", "learnt", "y.jsonl", "--comparisons")[1] == (
        "wrote y.jsonl: 3 comparisons from 3 rankings\n"
    )
    texts = [f"answer {k}" * (k + 1) for k in range(3)]
    assert pairs_of(Path("y.jsonl")) == [(texts[a], texts[b]) for a, b in ((2, 0), (0, 1), (1, 2))]


def test_a_run_elsewhere_and_one_that_has_gone_on(command) -> None:
    a_run().save(a_ranking(0, "012"))
    Path("more runs").mkdir()
    Path("runs/people").rename("more runs/people")
    FILE.write_text(a_ranking(1, "012").model_dump_json())
    run_dir = RunDir(Path("more runs/people"))
    _, out, _ = command("annotations", "import", "people", "x.jsonl", "--runs", "more runs")
    go_on = "  python -m lowrank_rlhf run 'more runs/people/config.yaml' --runs 'more runs'"
    assert out.splitlines()[-1] == go_on
    (run_dir.work("rank") / "rankings.jsonl").write_text("")
    run_dir.finish("rank", ["rankings.jsonl"], MARK)
    _, out, _ = command("annotations", "import", "more runs/people", "x.jsonl")
    assert out.splitlines()[-1] == f"{go_on} --redo rank"


def test_written_answers_as_a_file_to_learn_from(command) -> None:
    store = a_run()
    assert command("annotations", "export", "people", "w.jsonl", "--demonstrations")[::2] == (
        2,
        "people: no demonstrations to export: no annotator has written an answer\n",
    )
    store.save(a_ranking(0, "012", written="Better"))
    code, out, _ = command("annotations", "export", "people", "w.jsonl", "--demonstrations")
    assert (code, out) == (
        0,
        "wrote w.jsonl: 1 demonstration; to use them in sft:\n"
        "  python -m lowrank_rlhf run CONFIG data.prompts=w.jsonl\n",
    )
    assert json.loads(Path("w.jsonl").read_text())["completion"] == "Better"
    assert command("annotations", "export", "people", "x", "--comparisons", "--demonstrations")[0] == 2


def test_links_are_made_listed_and_revoked(command) -> None:
    a_run().save(a_ranking(0, "01", "Anna"))
    assert command("annotations", "invite", "people") == (0, "", "")
    code, out, _ = command("annotations", "invite", "people", "anna")
    assert (code, out.splitlines()[0]) == (
        0,
        "link for Anna, printed only once; whoever has it ranks under this name:",
    )
    assert re.fullmatch(r"  http://127\.0\.0\.1:7861/login#invite=[\w-]{43}", out.splitlines()[1])
    command("annotations", "invite", "people", "bob\u4e00")
    assert command("annotations", "invite", "people", "ANNA", "--revoke")[:2] == (0, "the link of Anna is revoked\n")
    assert command("annotations", "invite", "people")[1] == "Anna: revoked\nbob\u4e00: invited\n"
    for words, complaint in (
        (("ANNA", "--revoke"), "people: 'Anna' has no link\n"),
        (("carl", "--revoke"), "people: 'carl' has no link\n"),
        (("--revoke",), "--revoke requires NAME\n"),
        ((" ",), "not a valid name: ' '. Use 1 to 100 printable characters\n"),
    ):
        assert command("annotations", "invite", "people", *words) == (2, "", complaint)
    Path("runs/people/invitations.json").write_text("{")
    assert command("annotations", "invite", "people", "bob")[2] == (
        "runs/people/invitations.json: damaged. Delete it and invite everybody again\n"
    )


def test_checks_are_added_shown_and_removed(command) -> None:
    store = a_run(minimum=1)
    Path("checks.jsonl").write_text('{"prompt": "2 + 2?", "answers": ["4", "5", "4 = 5"], "ranks": [1, 2, 2]}\n')
    assert command("annotations", "checks", "people", "checks.jsonl") == (0, "1 attention check added\n", "")
    assert command("annotations", "checks", "people", "checks.jsonl")[1] == "0 attention checks added\n"
    (check,) = store.contents().checks
    right, wrong = (tuple((f"{check.prompt_id}-{k}",) for k in order) for order in ("012", "120"))
    store.save(Ranking(prompt_id=check.prompt_id, tiers=right, annotator="ann"))
    store.save(Ranking(prompt_id=check.prompt_id, tiers=wrong, annotator="bob"))
    out = command("label", "people", "--stats")[1]
    assert "ann ordered 2 of 2 pairs of 1 attention check as expected\n" in out
    assert "bob ordered 0 of 2 pairs of 1 attention check as expected\n" in out
    rows = json.loads(command("label", "people", "--stats", "--json")[1])["annotators"]
    assert [(row["annotator"], row["rankings"], row["check_pairs_right"]) for row in rows] == [
        ("ann", 0, 2),
        ("bob", 0, 0),
    ]
    store.save(a_ranking(0, "01", "me"))
    assert command("annotations", "checks", "people", "--ranked-by", "ME", "--number", "3")[1] == (
        "1 prompt made attention checks; no ranking of them is learned from any more\n"
    )
    assert "also" not in command("annotations", "export", "people", "y.jsonl")[1]  # nothing was replaced
    still = "1 ranking by me excluded\nattention checks that still expect the order by me: 1; remove all checks with "
    assert command("annotations", "exclude", "people", "me")[1].startswith(still)
    assert "expect" not in command("annotations", "exclude", "people", "me", "--undo")[1]
    assert command("annotations", "checks", "people", "--remove")[1] == (
        "1 attention check shown no more; 1 prompt restored\n"
    )
    assert command("annotations", "checks", "people", "checks.jsonl")[1] == "1 attention check added\n"
    Path("other.jsonl").write_text('{"prompt": "2 + 2?", "answers": ["4", "5", "4 = 5"], "ranks": [2, 1, 2]}\n')
    assert command("annotations", "checks", "people", "other.jsonl")[1] == (
        "0 attention checks added\n1 attention check with another order than before: earlier results change, too\n"
    )
    for words, complaint in (
        ((), "give one of FILE, --ranked-by NAME and --remove\n"),
        (("checks.jsonl", "--remove"), "give one of FILE, --ranked-by NAME and --remove\n"),
        (("checks.jsonl", "--number", "2"), "--number requires --ranked-by\n"),
        (("--ranked-by", "nobody"), "people: no prompts with an order by 'nobody'\n"),
    ):
        assert command("annotations", "checks", "people", *words) == (2, "", complaint)


def test_disagreements_are_listed_decided_and_undone(command) -> None:
    store = a_run()
    nothing = "no two annotators order a pair of answers differently\n"
    assert command("annotations", "disputes", "people") == (0, nothing, "")
    store.save(a_ranking(0, "012", "ann", flags=("unsure",)))
    store.save(a_ranking(0, "210", "b\x1bob", written="four"))
    listed = [
        "p0: 0 of 3 pairs alike",
        "Tell me 0",
        "  1: answer 0",
        "  2: answer 1answer 1",
        "  3: answer 2answer 2answer 2",
        "  ann: 1 > 2 > 3; unsure",
        "  b\\x1bob: 3 > 2 > 1; wrote: four",
    ]
    assert command("annotations", "disputes", "people")[1].splitlines() == [*listed, ""]
    code, out, err = command("annotations", "decide", "people", "p0", "2 > 1 = 3", "--annotator", "me")
    assert (code, out, err) == (0, "decided: p0; `annotations decide people p0 --undo` restores the rankings\n", "")
    assert [(one.annotator, one.tiers) for one in store.rankings()] == [("me", (("p0-1",), ("p0-0", "p0-2")))]
    assert command("annotations", "disputes", "people")[1].splitlines()[7] == "  decided by me: 2 > 1 = 3"
    command("annotations", "export", "people", "pairs.jsonl", "--comparisons")
    assert pairs_of(Path("pairs.jsonl")) == [("answer 1answer 1", "answer 0"), ("answer 1answer 1", "answer 2" * 3)]
    assert command("annotations", "decide", "people", "p0", "--undo")[:2] == (0, "decision on p0 undone\n")
    assert len(store.rankings()) == 2
    for words, complaint in (
        (("p0",), "give either ORDER or --undo\n"),
        (("p0", "1", "--undo"), "give either ORDER or --undo\n"),
        (("p0", "--undo"), "people: no decision on 'p0'\n"),
        (("p0", "9"), "not an order of answers 1 to 3: '9'. Write the best first, such as 2 > 1 = 3\n"),
    ):
        assert command("annotations", "decide", "people", *words) == (2, "", complaint)


def test_only_a_project_without_rankings_takes_checks_and_decisions(command) -> None:
    store = a_run()
    for annotator, order in (("ann", "012"), ("bob", "210")):
        for prompt in range(3):
            store.save(a_ranking(prompt, order, annotator))
    command("annotations", "decide", "people", "p0", "2 > 1")
    command("annotations", "checks", "people", "--ranked-by", "ann", "--number", "1")
    command("annotations", "export", "people", "old.jsonl")
    command("annotations", "checks", "people", "--remove")
    command("annotations", "decide", "people", "p0", "--undo")
    assert len(store.rankings()) == 6
    lines = command("annotations", "import", "people", "old.jsonl")[1].splitlines()
    assert lines[0] == "0 rankings added, 6 already present"
    assert lines[1].startswith("attention checks and decisions of the file left out: 2; only a project without rank")
    assert (len(store.rankings()), store.contents().checks, store.contents().decisions) == (6, (), ())
    lines = command("annotations", "import", "new", "old.jsonl", "--new")[1].splitlines()
    assert lines[2:4] == ["1 attention check added", "1 decision added"]


def test_a_decision_is_no_annotators_comparison(command) -> None:
    store = a_run()
    for annotator, order in (("ann", "012"), ("bob", "210")):
        for prompt in range(2):
            store.save(a_ranking(prompt, order, annotator))
    command("annotations", "decide", "people", "p0", "2 > 1")
    command("annotations", "export", "people", "x.jsonl", "--comparisons")
    assert len(pairs_of(FILE)) == 3 + 3 + 3
    for name, new in (("people", 0), ("other", 2)):
        there = store if name == "people" else a_run(name)
        before = there.contents().history
        out = command("annotations", "import", name, "x.jsonl")[1]
        assert out.startswith(f"{new} rankings added, {2 - new} already present\n")
        assert "decisions among the comparisons left out: 1; " in out
        assert "owner" not in {saved.ranking.annotator for saved in there.contents().history}
        assert len(there.contents().history) == len(before) + new
