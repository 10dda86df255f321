"""What the ranking page is told, without a browser; who may speak for whom; and both languages say the same."""

import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import Formatter

import pytest
from annotators_page import a_run_with_answers, with_guidelines
from dashboard_runs import event, finish, holding
from people import a_ranking

from lowrank_rlhf.commands.terminal.ranking_text import project_summary
from lowrank_rlhf.config.loading import dump_config, load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.dashboard.ranking.markdown import tree
from lowrank_rlhf.dashboard.ranking.screen import item_words
from lowrank_rlhf.dashboard.ranking.session import ranking_handler, run_folder, sign
from lowrank_rlhf.dashboard.ranking.text import LANGUAGES, language_of, nothing_to_rank_text, texts
from lowrank_rlhf.errors import Fault, UserError
from lowrank_rlhf.preferences.overview import GENERAL, overview, ranking_progress
from lowrank_rlhf.preferences.project import NothingToRank, open_project
from lowrank_rlhf.preferences.queue import LEASE_SECONDS
from lowrank_rlhf.preferences.reward_tests import reward_tests
from lowrank_rlhf.preferences.store import AnnotationStore, Item
from lowrank_rlhf.preferences.team.exclusion import exclude
from lowrank_rlhf.preferences.team.guidelines import version_of
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress_file import StageProgress, write_progress
from lowrank_rlhf.run.records import Message, Prompt, Ranking, Sample, Score, write_jsonl

SECRET = b"s" * 32
FOLDER = Path(__file__).parents[2] / "lowrank_rlhf" / "dashboard"


@pytest.fixture
def store(tmp_path: Path):
    return a_run_with_answers(tmp_path, 3)


@pytest.fixture
def ask(tmp_path: Path, store):  # noqa: ARG001 - the run must be there
    """Sends a step of ann's, with what a page would have on the screen, and gives the answer."""
    handler = ranking_handler(tmp_path / "runs", SECRET)

    def call(do: str, badge: dict | None = None, **fields) -> dict:
        return handler({"do": do, "badge": badge or sign(SECRET, "people", "ann"), "language": "en", **fields})

    return call


def test_a_lost_answer_saves_nothing_twice(ask, store) -> None:
    step = {"prompt_id": "p0", "done": 0, "keys": ["1"], "key": "\r", "seconds": 2.04}
    assert ask("key", **step)["item"]["prompt_id"] == "p1"
    again = ask("key", **step)
    assert (again["item"]["prompt_id"], again["notice"]) == (
        "p1",
        "you ranked that prompt in another window; this is the next one",
    )
    (ranking,) = store.rankings()
    assert (ranking.seconds, ranking.partial, len(store.contents().history)) == (2.0, True, 1)


def test_control_characters_of_prompts_and_answers_are_visible() -> None:
    """A direction mark could reverse a text, an escape sequence hide a part of it; line ends stay."""
    nasty = "one\r\ntwo \u202eabc\x1b[2J <b>"
    prompt = Prompt(id="p", messages=(Message(role="user", content=nasty),))
    drawn = item_words(Item(prompt=prompt, answers=(Sample(id="a", prompt_id="p", text=nasty),)))
    for text in (drawn["turns"][0]["text"], drawn["answers"][0]["text"]):
        assert text == "one\ntwo \\u202eabc\\x1b[2J <b>"


def test_a_ranking_saved_elsewhere_in_the_meantime_is_reported(ask, store, monkeypatch) -> None:
    """The other window may save between this request's look at the item and its own save."""
    monkeypatch.setattr(type(store), "save", lambda *_: False)
    assert "in another window" in ask("key", prompt_id="p0", done=0, keys=["1"], key="\r")["notice"]


def test_what_is_half_made_stays_on_the_screen(ask, store) -> None:
    """Whoever comes back late to a prompt that somebody else has been given since goes on with it."""
    written = {"prompt_id": "p0", "done": 0, "written": "a better one"}
    ask("open")
    store.release("ann")
    assert store.next_item("bob").prompt.id == "p0"
    for half in (written, {"prompt_id": "p0", "done": 0, "keys": ["2"]}, {"prompt_id": "p0", "flags": ["unsure"]}):
        back = ask("open", **half)
        assert back["item"]["prompt_id"] == "p0"
        assert (back["keys"], back["written"]) == (half.get("keys", []), half.get("written", ""))
    assert ask("open", prompt_id="p0", done=0)["item"]["prompt_id"] == "p1"  # nothing is lost there
    assert ask("key", **written, key="\r")["notice"] == "saved"
    assert ask("open", **written)["item"]["prompt_id"] == "p1"  # saved meanwhile: the next one


def test_taking_back_does_not_lose_what_was_written(ask, store) -> None:
    ask("key", prompt_id="p0", keys=["1"], key="\r")
    refused = ask("key", prompt_id="p1", written="a better one", key="u")
    assert "empty the box" in refused["refused"]
    assert len(store.rankings()) == 1
    assert ask("key", prompt_id="p1", written="a better one", keys=["1"], key="u")["keys"] == []
    assert ask("key", prompt_id="p1", key="u")["item"]["prompt_id"] == "p0"


def test_a_name_that_is_none_ranks_nothing(ask, store) -> None:
    unsigned = {"run": "people", "annotator": "", "signature": ""}
    assert list(ask("open", unsigned)) == ["error"]
    assert list(ask("key", unsigned, prompt_id="p0", keys=["1"], key="\r")) == ["error"]
    assert store.rankings() == []


def test_comparisons_of_other_rankings_are_made_again(ask, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "people"
    ask("key", prompt_id="p0", keys=["1"], key="\r")
    project = open_project(folder)
    assert not project.rankings_changed
    work = RunDir(folder).work("rank")
    prompts = project.store.contents().prompts
    write_jsonl(work / "prompts.jsonl", prompts[:2])
    write_jsonl(work / "rankings.jsonl", project.store.rankings())
    mark = {"fingerprint": {"settings": {}, "inputs": {}}, "seconds": 0.0, "summary": {"rankings": 1, "comparisons": 1}}
    RunDir(folder).finish("rank", ["prompts.jsonl", "rankings.jsonl"], mark)
    assert not project.rankings_changed
    ask("key", prompt_id="p2", keys=["1"], key="\r")  # one that the run does not sample any more
    assert not project.rankings_changed
    ask("key", prompt_id="p1", keys=["1"], key="\r")
    assert project.rankings_changed
    assert project.next_command.endswith(" --redo rank")


def test_why_there_is_nothing_to_rank_in_the_pages_language(tmp_path: Path) -> None:
    a_run_with_answers(tmp_path, 1, source="judge")
    handler, badge = ranking_handler(tmp_path / "runs", SECRET, owner=True), sign(SECRET, "people", "ann")
    assert handler({"do": "open", "badge": badge, "language": "zh"})["error"].startswith("这个运行的回答不由人来排序")
    assert "rank.source=human" in handler({"do": "open", "badge": badge, "language": "en"})["error"]
    gone = sign(SECRET, "gone", "ann")
    assert handler({"do": "open", "badge": gone, "language": "zh"}) == {"error": "没有这个运行。"}


def test_nothing_is_made_where_there_is_nothing_to_rank(tmp_path: Path) -> None:
    (tmp_path / "started").mkdir()
    with pytest.raises(UserError, match="no answers to rank here"):
        open_project(tmp_path / "started")
    assert list((tmp_path / "started").iterdir()) == []


def test_nobody_speaks_for_another(ask, store) -> None:
    forged = sign(SECRET, "people", "ann") | {"annotator": "bob"}
    for badge in (forged, sign(b"other", "people", "ann"), sign(SECRET, "people", "ann") | {"run": "secret"}):
        assert list(ask("key", badge, prompt_id="p0", keys=["1"], key="\r")) == ["error"]
    assert store.rankings() == []


@pytest.mark.parametrize("run", ["../people", "..", "", "nowhere", "/etc", "people/../people"])
def test_no_run_outside_the_folder(ask, run: str) -> None:
    assert list(ask("open", sign(SECRET, run, "ann"))) == ["error"]


@pytest.mark.parametrize(
    "fields",
    [
        {"keys": ["1", "1"], "key": "2"},
        {"keys": ["\r"]},
        {"keys": ["x" * 300]},
        {"seconds": -1.0},
        {"seconds": float("nan")},
        {"unknown": 1},
        {"written": "x" * 60_000},
    ],
)
def test_what_no_page_sends_is_refused(ask, store, fields: dict) -> None:
    assert list(ask("key", prompt_id="p0", **({"key": "\r"} | fields))) == ["error"]
    assert list(ask("arrange", prompt_id="p0", tiers=[[0], [0]])) == ["error"]
    assert list(ask("arrange", prompt_id="p0", tiers=[[7]])) == ["error"]
    assert store.rankings() == []


def test_a_moved_order_keeps_flags_and_can_be_taken_back(ask) -> None:
    moved = ask("arrange", prompt_id="p0", keys=["1", "f", "1"], tiers=[[2], [], [0, 1]])
    assert (moved["keys"], moved["flags"]) == (["3", "1", "=", "2"], ["unsure"])
    back = ask("key", prompt_id="p0", keys=moved["keys"], flags=moved["flags"], key="u")
    assert (back["keys"], back["draft"]["tiers"], back["draft"]["flags"]) == (["3", "1", "="], [[2], [0]], ["1"])


def test_a_name_never_shows_the_answers_ids(ask) -> None:
    assert not re.search(r"p0-\d", str(ask("open")))


def test_progress_and_overview_by_hand(tmp_path: Path, store) -> None:
    project = open_project(tmp_path / "runs" / "people")
    assert ranking_progress(project, "ann") == (3, 3, False, 0, 0, 0, None, None, None, None)
    for name, prompt, order, seconds in (("ann", 0, "0123", 10.0), ("bob", 0, "1023", 30.0), ("ann", 1, "32", 20.0)):
        tiers = tuple((f"p{prompt}-{k}",) for k in order)
        store.save(
            Ranking(
                prompt_id=f"p{prompt}",
                tiers=tiers,
                annotator=name,
                seconds=seconds,
                written="w" if seconds == 20 else None,
            )
        )
    store.skip("ann", "p2")
    assert ranking_progress(project, "ann") == (3, 3, False, 2, 2, 1, 15.0, 15.0, None, None)  # one more is needed
    found = overview(project)
    assert (found.annotators, found.rankings, found.comparisons, found.written) == (2, 3, 13, 1)
    assert found.agreement == (5 / 6, 6)
    assert found.consistency is None
    figures = ranking_handler(tmp_path / "runs", SECRET, owner=True)(
        {"do": "figures", "badge": sign(SECRET, "people", "ann"), "language": "en"}
    )["figures"]
    assert figures[0]["figure"] == "13 comparisons from 3 rankings"
    assert f"about {GENERAL} comparisons" in figures[0]["means"]
    assert figures[1]["figure"].startswith("83 % of 6 pairs alike; Krippendorff's alpha 0.6")


def test_the_time_left_to_the_goal_is_shared_by_those_who_are_active(tmp_path: Path) -> None:
    """Eight prompts to the goal at 60 s each, with nobody, two others and one who left ten minutes ago."""
    store = a_run_with_answers(tmp_path, 12, minimum_rankings=10)
    project = open_project(tmp_path / "runs" / "people")
    for prompt in range(2):
        tiers = tuple((f"p{prompt}-{k}",) for k in range(4))
        store.save(Ranking(prompt_id=f"p{prompt}", tiers=tiers, annotator="ann", seconds=60.0))
    store.next_item("ann")
    AnnotationStore(store.path, clock=lambda: time.time() - LEASE_SECONDS - 1).next_item("gone")
    assert ranking_progress(project, "ann").seconds_left == 480
    store.next_item("bob")
    store.next_item("cy")
    assert ranking_progress(project, "ann").seconds_left == 180  # the one of three who ranks most: 8 = 3 + 3 + 2
    asked = {"do": "open", "badge": sign(SECRET, "people", "ann"), "language": "en"}
    assert "1:00 each, about 3:00 left" in ranking_handler(tmp_path / "runs", SECRET)(asked)["progress"]["line"]
    for name in ("bob", "cy"):
        store.release(name)
    assert ranking_progress(project, "ann").seconds_left == 480
    for prompt in range(2, 10):
        store.save(Ranking(prompt_id=f"p{prompt}", tiers=((f"p{prompt}-0",), (f"p{prompt}-1",)), annotator="bob"))
    store.next_item("bob")
    assert ranking_progress(project, "ann").seconds_left == 600  # the ten that ann has not ranked, beyond the goal


def test_annotators_see_no_command_no_reward_model_and_nobody_else(tmp_path: Path) -> None:
    """The owner's page has all three."""
    store = a_run_with_answers(tmp_path, 3)
    for prompt in range(3):
        shown = tuple(f"p{prompt}-{k}" for k in range(4))
        tiers = tuple((answer,) for answer in shown)
        store.save(Ranking(prompt_id=f"p{prompt}", tiers=tiers, annotator="ann", shown=shown, seconds=4))
    asked = {"badge": sign(SECRET, "people", "ann"), "language": "en"}
    annotators, owners = (ranking_handler(tmp_path / "runs", SECRET, owner) for owner in (False, True))
    seen, all_seen = (page({"do": "figures", **asked})["figures"] for page in (annotators, owners))
    only_owner = {"Comparisons", "Flags", "Reward model", "Annotators", "ann"}
    assert {row["name"] for row in all_seen} - {row["name"] for row in seen} == only_owner
    said, all_said = (page({"do": "open", **asked})["progress"]["next"] for page in (annotators, owners))
    assert ("lowrank_rlhf" in said, "lowrank_rlhf" in all_said) == (False, True)
    store.path.write_bytes(b"damaged" * 999)
    replies = json.dumps([seen, said, annotators({"do": "open", **asked})])
    assert "cannot be read" in replies
    assert [word for word in ("reward model", "python", str(tmp_path), "sqlite") if word in replies] == []
    assert str(store.path) in owners({"do": "open", **asked})["error"]


def test_a_count_beyond_the_goal(tmp_path: Path) -> None:
    store, page = a_run_with_answers(tmp_path, 5), ranking_handler(tmp_path / "runs", SECRET)
    asked = {"do": "open", "badge": sign(SECRET, "people", "ann"), "language": "en"}
    for prompt, line in enumerate(("1 of 3 prompts ranked", "2 of 3 prompts ranked", "3 of 3 prompts ranked")):
        store.save(Ranking(prompt_id=f"p{prompt}", tiers=((f"p{prompt}-0",), (f"p{prompt}-1",)), annotator="bob"))
        assert page(asked)["progress"]["line"][0] == line
    store.save(Ranking(prompt_id="p3", tiers=(("p3-0",), ("p3-1",)), annotator="bob"))
    assert page(asked)["progress"]["line"][0] == "4 prompts ranked (3 needed)"


def test_enough_is_not_said_of_agreement_by_chance(tmp_path: Path) -> None:
    """Two people with opposite tastes on 20 prompts: 120 pairs, none alike."""
    store = a_run_with_answers(tmp_path, 20)
    orders = {"ann": range(4), "bob": range(3, -1, -1)}
    asked = {"do": "open", "badge": sign(SECRET, "people", "ann"), "language": "en"}
    page, found = ranking_handler(tmp_path / "runs", SECRET, owner=True), []
    for annotator, order in orders.items():
        for prompt in range(20):
            tiers = tuple((f"p{prompt}-{k}",) for k in order)
            store.save(Ranking(prompt_id=f"p{prompt}", tiers=tiers, annotator=annotator))
        found.append(page(asked)["progress"]["next"])
    assert found[0].startswith("Enough to resume the run")
    assert "0 % of 120 pairs alike" in found[1]
    assert "resume" not in found[1]
    assert "0 % of 120 pairs alike" in project_summary(open_project(store.path.parent))


def test_enough_is_not_said_where_agreement_is_not_shown_to_be_above_chance(tmp_path: Path) -> None:
    """To owner and annotators: one person with opposite orders of three prompts, then two people on six."""
    store = a_run_with_answers(tmp_path, 9)
    asked = {"do": "open", "badge": sign(SECRET, "people", "ann"), "language": "en"}
    pages = [ranking_handler(tmp_path / "runs", SECRET, owner) for owner in (True, False)]

    def rank(annotator: str, prompts: range, order: str) -> tuple[dict, dict]:
        for prompt in prompts:
            tiers = tuple((f"p{prompt}-{k}",) for k in order)
            store.save(Ranking(prompt_id=f"p{prompt}", tiers=tiers, annotator=annotator))
        return tuple(page(asked)["progress"] for page in pages)

    assert [found["sound"] for found in rank("ann", range(9), "0123")] == [True, True]
    assert [found["sound"] for found in rank("ann", range(6, 8), "3210")] == [True, True]  # two prompts say nothing
    for found in rank("ann", range(8, 9), "3210"):
        assert found["sound"] is False
        assert "not shown to be above chance: of prompts that one person ranked twice, 0 % of 18 pairs" in found["next"]
        assert "Let another person rank about 7 prompts too" in found["next"]
    assert "rankings of a prompt by the same annotator agree on 0 % of 18 pairs" in project_summary(
        open_project(store.path.parent)
    )
    for found in rank("bob", range(6), "1203"):
        assert found["sound"] is False
        assert "not shown to be above chance: annotators order 67 % of 36 pairs alike" in found["next"]
        assert "let two people rank about 4 more of the same prompts" in found["next"]
    assert "About 4 more prompts ranked by two of them" in project_summary(open_project(store.path.parent))
    assert [found["sound"] for found in rank("bob", range(6), "0123")] == [True, True]


def test_enough_is_not_said_of_rankings_without_judgement(tmp_path: Path) -> None:
    """1 2 3 4 typed twelve times, a second each: 24 orders make that unlikely, and long answers make it too fast."""
    store = a_run_with_answers(tmp_path, 13, tuple(f"{k}" * 200 for k in range(4)))
    asked = {"do": "open", "badge": sign(SECRET, "people", "ann"), "language": "en"}
    owner, annotator = (ranking_handler(tmp_path / "runs", SECRET, owner) for owner in (True, False))

    def rank(name: str, prompts: range, seconds: float) -> dict:
        for prompt in prompts:
            item = store.item(name, f"p{prompt}")
            tiers = tuple((answer,) for answer in item.shown)
            given = {"annotator": name, "shown": item.shown, "seconds": seconds}
            store.save(Ranking(prompt_id=item.prompt.id, tiers=tiers, **given))
        return owner(asked)["progress"]

    careful = rank("cy", range(4), 30.0)
    assert (careful["enough"], careful["sound"], careful["warnings"]) == (True, True, [])
    assert careful["next"].startswith("Enough to resume the run")
    careless = rank("bob <b>", range(12), 1.0)
    (warning,) = careless["warnings"]
    assert warning.startswith("Check the rankings by bob <b>: 100 % have the same places on the screen")
    assert warning.endswith("most took less time than reading the answers takes.")
    assert (careless["enough"], careless["sound"]) == (True, False)
    assert "whether the rankings are enough depends on those named here" in careless["next"]
    assert "First check the rankings by bob <b>" in project_summary(open_project(store.path.parent))
    others = annotator(asked)["progress"]
    assert (others["warnings"], others["sound"], "bob" in json.dumps(others)) == ([], False, False)
    assert "may not be enough. Further careful rankings help." in others["next"]
    assert exclude(store, "bob <b>") == 12
    assert (owner(asked)["progress"]["sound"], annotator(asked)["progress"]["sound"]) == (True, True)
    assert annotator(asked)["progress"]["next"].startswith("Enough prompts are ranked, thank you.")


def test_nothing_is_offered_where_no_prompt_is_left(tmp_path: Path) -> None:
    """To the owner and to annotators: three prompts, one of them without an order at first."""
    store = a_run_with_answers(tmp_path, 3)
    asked = {"badge": sign(SECRET, "people", "ann"), "language": "en"}
    owner, annotator = (ranking_handler(tmp_path / "runs", SECRET, owner) for owner in (True, False))
    curve = {"points": [], "more": 24, "gain": 0.02, "gain_interval": [0.01, 0.03]}
    tested = {"prompts": 2, "held_out": 1, "accuracy": 0.7, "interval": [0.6, 0.8], "weakness": None, "curve": curve}
    event(tmp_path / "runs" / "people", "measured", "reward", **tested)

    def gain() -> str:
        (row,) = [row for row in owner({"do": "figures", **asked})["figures"] if row["name"] == "Reward model"]
        return row["means"]

    def rank(prompt: int, *tiers: tuple[str, ...]) -> tuple[str, str]:
        store.save(Ranking(prompt_id=f"p{prompt}", tiers=tiers, annotator="ann", flags=() if tiers else ("harmful",)))
        return tuple(page({"do": "open", **asked})["progress"]["next"] for page in (owner, annotator))

    assert rank(0, ("p0-0",), ("p0-1",)) == ("2 more before the run can resume",) * 2
    assert "24 more rankings would gain" in gain()
    rank(1, ("p1-0",), ("p1-1",))
    for sentence in rank(2):
        assert sentence.startswith(
            ("1 more before the run can resume, but every prompt has been ranked", "All prompts")
        )
        assert "Further" not in sentence
    assert "more rankings would gain" not in gain()
    assert "All prompts are ranked" in gain()
    resumes, thanks = rank(2, ("p2-0",), ("p2-1",))
    assert annotator({"do": "open", **asked})["progress"]["line"][0] == "all 3 prompts ranked"
    assert resumes.startswith("Enough to resume the run")
    assert thanks == "All prompts are ranked, and that is enough. Thank you."
    assert "would gain" not in project_summary(open_project(store.path.parent))


def test_a_finished_run_is_not_resumed_but_trained_again_with_other_rankings(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 3, minimum_rankings=2)
    run = RunDir(tmp_path / "runs" / "people")
    asked = {"do": "open", "badge": sign(SECRET, "people", "ann"), "language": "en"}

    def progress() -> dict:
        return ranking_handler(tmp_path / "runs", SECRET, owner=True)(asked)["progress"]

    for prompt in range(2):
        store.save(Ranking(prompt_id=f"p{prompt}", tiers=((f"p{prompt}-0",), (f"p{prompt}-1",)), annotator="ann"))
    finish(run.path, "sft", "sample", "rank", "reward", "ppo")
    write_jsonl(run.path / "prompts.jsonl", store.contents().prompts)
    write_jsonl(run.path / "rankings.jsonl", store.rankings())
    assert (progress()["enough"], progress()["finished"]) == (True, False)
    finish(run.path, "evaluate")
    now = progress()
    assert (now["enough"], now["finished"], now["next"]) == (
        False,
        True,
        "The run is finished, and was trained with these rankings.",
    )
    store.save(Ranking(prompt_id="p2", tiers=(("p2-0",), ("p2-1",)), annotator="ann"))
    now = progress()
    assert (now["enough"], now["finished"]) == (True, True)
    assert now["next"].startswith("The run is finished, but rankings have changed since it was trained.")
    assert now["next"].endswith("--redo rank")


def test_the_owner_excludes_and_restores_an_annotator(tmp_path: Path, ask, store) -> None:
    """Who is excluded gets no prompts, can save nothing, and is told so; the owner still sees the row."""
    for name, prompt in (("bob <b>", 0), ("bob <b>", 1), ("ann", 0)):
        store.save(a_ranking(prompt, "01", name))
    bob = sign(SECRET, "people", "bob <b>")
    assert ask("open", bob)["item"]["prompt_id"] == "p2"
    page = ranking_handler(tmp_path / "runs", SECRET, owner=True)
    step = {"badge": sign(SECRET, "people", "ann"), "language": "en"}

    def rows() -> dict[str, tuple]:
        found = page({"do": "figures", **step})["figures"]
        return {
            one["annotator"]: (one["figure"].splitlines()[0], one["excluded"]) for one in found if "annotator" in one
        }

    assert list(ask("exclude", annotator="ann")) == list(ask("restore", annotator="ann")) == ["error"]
    assert rows() == {"ann": ("1 ranked", False), "bob <b>": ("2 ranked", False)}
    assert page({"do": "exclude", "annotator": "bob <b>", **step}) == {}
    assert rows() == {"ann": ("1 ranked", False), "bob <b>": ("excluded; rankings kept and not counted: 2", True)}
    assert [one.annotator for one in store.rankings()] == ["ann"]
    assert [store.next_item(name).prompt.id for name in ("ann", "cy")] == ["p1", "p2"]  # bob does not hold p2 any more
    for asked in ({}, {"do": "renew", "prompt_id": "p1"}, {"do": "key", "key": "\r", "prompt_id": "p1", "keys": ["1"]}):
        told = ask(badge=bob, **{"do": "open", **asked})
        assert told["item"] is None
        assert told["excluded"].startswith("Your rankings are set aside")
    assert [one.annotator for one in store.rankings()] == ["ann"]
    assert page({"do": "restore", "annotator": "bob <b>", **step}) == {}
    assert rows()["bob <b>"] == ("2 ranked", False)
    store.release("cy")
    back = ask("open", bob)
    assert (back["item"]["prompt_id"], back["excluded"]) == ("p2", "")


def test_the_owner_sets_guidelines_quota_and_deadline(tmp_path: Path, ask) -> None:
    """As in the config, which then has them; no annotator's page can."""
    run = tmp_path / "runs" / "people"
    step = {"do": "team", "badge": sign(SECRET, "people", "ann"), "language": "en"}
    owner, before = ranking_handler(tmp_path / "runs", SECRET, owner=True), (run / "config.yaml").stat()
    found = owner(step)["team"]
    assert (found["settings"], found["note"]) == ({"guidelines": None, "quota": None, "deadline": None}, "")
    assert [one["command"].replace(str(run), "RUN") for one in found["commands"]] == [
        "python -m lowrank_rlhf label RUN --web",
        "python -m lowrank_rlhf annotations invite RUN NAME",
        "python -m lowrank_rlhf annotations checks RUN --ranked-by ann --number 10",
    ]
    new = {"guidelines": "# Be *kind* 短 \U0001f600\n\n- x: y\n", "quota": 2, "deadline": "2026-12-10"}
    assert list(ask("team", team=new)) == list(ask("team")) == ["error"]
    assert list(owner(step | {"team": new | {"quota": 0}})) == ["error"]
    assert open_project(run).shown_guidelines() is None
    saved = owner(step | {"team": new})["team"]
    assert (saved["settings"], saved["note"]) == (new, "Saved. Annotators see it with their next prompt.")
    project, after = open_project(run), (run / "config.yaml").stat()
    assert (project.settings.quota, str(project.settings.deadline)) == (2, "2026-12-10")
    assert project.shown_guidelines().version == version_of(new["guidelines"])
    assert project.config.model_copy(update={"rank": None}) == Config(
        name="people", model={"source": "x"}, ppo={"accept_weak_reward": True}
    ).model_copy(update={"rank": None})
    assert ask("open")["guidelines"]["version"] == version_of(new["guidelines"])
    assert after.st_mtime_ns == before.st_mtime_ns  # of the last command: the page still shows its message
    assert owner(step | {"team": dict.fromkeys(new)})["team"]["settings"] == dict.fromkeys(new)
    assert open_project(run).shown_guidelines() is None


def test_reward_tests_from_the_runs_events(tmp_path: Path) -> None:
    """Also of an older version, without the verdict and the number of held-out prompts."""
    assert reward_tests(tmp_path) == ()
    (tmp_path / "events.jsonl").write_text(
        '{"kind": "started", "stage": "reward"}\n'
        '{"kind": "measured", "stage": "reward", "prompts": 19, "accuracy": 0.55, "interval": [0.4, 0.7]}\n'
        '{"kind": "measured", "stage": "reward", "prompts": 48, "accuracy": 0.63, "interval": [0.51, 0.7]}\n'
        '{"kind": "measured", "stage": "reward", "prompts": 60, "held_out": 15, "accuracy": 0.6,'
        ' "interval": [0.52, 0.7], "weakness": "length"}\n'
        '{"kind": "meas'
    )
    found = reward_tests(tmp_path)
    assert [test.accuracy for test in found] == [0.55, 0.63, 0.6]
    assert [test.weakness for test in found] == ["chance", None, "length"]
    assert [test.ranked(0.2) for test in found] == [24, 60, 75]


def test_both_languages_say_the_same() -> None:
    fields = {
        language: {
            key: sorted({name for _, name, _, _ in Formatter().parse(text) if name})
            for key, text in texts(language).items()
        }
        for language in LANGUAGES
    }
    assert fields["en"] == fields["zh"]
    source = "".join(path.read_text(encoding="utf-8") for path in [*FOLDER.rglob("*.py"), *FOLDER.rglob("*.js")])
    # And rows, each of which has a figure.
    put_together = ("help", "flag", "nothing", "refused", "role", "button", "sign")
    rows = {key.removesuffix(".figure") for key in texts("en") if key.endswith(".figure")}
    unused = [key for key in texts("en") if key not in source and f"texts.{key}" not in source]
    assert [key for key in unused if key.partition(".")[0] not in {*put_together, *rows}] == []


def test_the_page_starts_without_torch() -> None:
    look = "import sys, lowrank_rlhf.dashboard.annotators; print([n for n in ('torch', 'peft') if n in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[1])}
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("en-GB,zh;q=0.5", "en"), ("de,zh-TW;q=0.7", "zh"), ("fr", "en"), ("", "en")],
)
def test_the_browsers_language(accepted: str, language: str) -> None:
    assert language_of(accepted) == language


def test_a_name_in_another_case_is_the_same_person(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 2)
    item = store.next_item("Anna")
    store.save(Ranking(prompt_id=item.prompt.id, tiers=((item.shown[0],),), annotator="Anna", shown=item.shown))
    assert [store.spelling(name) for name in ("anna", "ANNA", "Anna", "ann")] == ["Anna", "Anna", "Anna", "ann"]
    store.skip("STRASSE", store.next_item("STRASSE").prompt.id)
    assert store.spelling("straße") == "STRASSE"


def test_no_chosen_run_is_no_invalid_name(tmp_path: Path) -> None:
    with pytest.raises(NothingToRank) as caught:
        run_folder(tmp_path, "")
    assert nothing_to_rank_text(caught.value, "en") == "Run not found."


def test_a_run_that_generates_its_answers_is_not_told_to_generate_them(tmp_path: Path) -> None:
    a_run_with_answers(tmp_path, 2)
    run = tmp_path / "runs" / "people"
    (run / "annotations.sqlite").unlink()
    event(run, "started", "sample")

    def said() -> str:
        with pytest.raises(NothingToRank) as caught:
            open_project(run)
        return nothing_to_rank_text(caught.value, "en")

    assert "with this command" in said()
    with holding(run):
        assert "in stage sample" in said()
        at = datetime.now(UTC) + timedelta(seconds=5)
        write_progress(
            run, StageProgress(stage="sample", unit="answers", done=12, total=256, updated_at=at.isoformat())
        )
        assert "12 of 256" in said()


@pytest.mark.parametrize(("rounds", "says"), [(1, "Tab Watch"), (3, "next round's answers")])
def test_the_owner_of_a_run_at_work_is_not_asked_to_resume_it(tmp_path: Path, rounds: int, says: str) -> None:
    a_run_with_answers(tmp_path, 2, minimum_rankings=2)
    run = tmp_path / "runs" / "people"
    config = load_config(run / "config.yaml").model_copy(update={"rounds": rounds})
    (run / "config.yaml").write_text(dump_config(config))
    event(run, "started", "reward")

    def ask(do: str, **fields) -> dict:
        sent = {"do": do, "badge": sign(SECRET, "people", "ann"), "language": "en", **fields}
        return ranking_handler(tmp_path / "runs", SECRET, owner=True)(sent)["progress"]

    for name in ("p0", "p1"):
        progress = ask("key", prompt_id=name, done=0, keys=["1"], key="\r")
    assert progress["enough"]
    assert any("round 1 of 3" in part for part in progress["line"]) is (rounds == 3)
    with holding(run):
        progress = ask("open")
    assert not progress["enough"]
    assert "stage reward" in progress["next"]
    assert says in progress["next"]


def test_a_ranking_names_the_guidelines_that_its_page_showed(tmp_path: Path, store) -> None:
    """Not those that the owner has set since; and never a version that nobody was shown."""
    handler = ranking_handler(tmp_path / "runs", SECRET)
    step = {"badge": sign(SECRET, "people", "ann"), "language": "en", "done": 0}
    assert handler({"do": "open", **step})["guidelines"] is None
    with_guidelines(tmp_path, "Be *kind*.")
    first = handler({"do": "open", **step})["guidelines"]
    inside = ["Be ", {"tag": "em", "inside": ["kind"]}, "."]
    assert first == {"version": version_of("Be *kind*."), "text": [{"tag": "p", "inside": inside}]}
    assert "guidelines" not in handler({"do": "open", "guidelines": first["version"], **step})
    with_guidelines(tmp_path, "Be brief.")
    saved = {"do": "key", "key": "\r", "keys": ["1"], **step}
    forged = handler({"prompt_id": "p0", "guidelines": "0" * 12, **saved})
    assert forged == {"error": "Page and server disagree about the order; reload the page."}
    after = handler({"prompt_id": "p0", "guidelines": first["version"], **saved})
    assert after["guidelines"]["version"] == version_of("Be brief.")
    handler({"prompt_id": "p1", "guidelines": after["guidelines"]["version"], **saved})
    assert [ranking.guidelines for ranking in store.rankings()] == [version_of("Be *kind*."), version_of("Be brief.")]


def test_a_ranking_names_the_long_answers_that_were_not_read(ask, store, tmp_path: Path) -> None:
    """By their places on the screen; undone, the page knows the others as read. The owner sees the count."""
    step = {"prompt_id": "p0", "done": 0, "keys": ["1"], "key": "\r"}
    assert "disagree" in ask("key", **step, unread=[4])["error"]
    ask("key", **step, unread=[3, 1])
    (ranking,) = store.rankings()
    assert ranking.unread == (ranking.shown[1], ranking.shown[3])
    assert ask("key", key="u")["read"] == [0, 2]
    ask("key", **step, unread=[0])
    ask("key", **(step | {"prompt_id": "p1"}))
    owner = ranking_handler(tmp_path / "runs", SECRET, owner=True)
    figures = owner({"do": "figures", "badge": sign(SECRET, "people", "ann"), "language": "en"})["figures"]
    assert figures[-1]["figure"].startswith("2 ranked  ·  0:00 each  ·  1 with a long answer not scrolled to its end")


def test_the_owner_sees_each_annotator_s_agreements_and_biases(tmp_path: Path) -> None:
    """bob ranks twelve prompts twice, the second time the other way round, and the longest answer first."""
    store = a_run_with_answers(tmp_path, 12, ("a", "bb", "ccc", "dddd"))
    for order in ("0123", "3210"):
        for prompt in range(12):
            shown = tuple(f"p{prompt}-{k}" for k in ("0123" if prompt < 3 else "3210"))
            store.save(a_ranking(prompt, order, "bob <b>", shown=shown))
    scores = [
        Score(sample_id=f"p{i}-{k}", prompt_id=f"p{i}", score=k % 3, held_out=i < 2) for i in range(4) for k in range(4)
    ]
    write_jsonl(tmp_path / "runs" / "people" / "scores.jsonl", scores)
    page = ranking_handler(tmp_path / "runs", SECRET, owner=True)
    asked = {"badge": sign(SECRET, "people", "ann"), "language": "en"}
    row = page({"do": "figures", **asked})["figures"][-1]
    # The answers' scores are 0 1 2 0: of 3>2 3>1 2>1 2>0 1>0 three are alike, and 3 and 0 have equal scores.
    assert row["figure"].splitlines() == [
        "12 ranked",
        "prompts ranked twice: 0 % of 72 pairs as before  ·  60 % of 10 held-out pairs as the reward model",
        "the answer shown first was best in 75 % (chance: 25 %)  ·  the longer answer won 100 % of 72 pairs"
        " (chance: 50 %)",
    ]
    assert row["means"].startswith("Check the rankings by bob <b>: ")
    assert "prompts ranked twice are ordered hardly more alike than by chance" in row["means"]
    assert page({"do": "open", **asked})["progress"]["warnings"] == [row["means"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<b>x</b>\r\n\u202e", ["<b>x</b>", "\n", "\\u202e"]),
        ("[a](javascript:x) [b](http:relative) [c](//x.y)", ["[a](javascript:x) ", "b", " ", "c"]),
        ("[d](https://x.y?a=1&b=2)", [{"tag": "a", "href": "https://x.y?a=1&b=2", "inside": ["d"]}]),
        ("![e](data:image/svg+xml,x) &lt;i&gt;", ["![e](data:image/svg+xml,x) <i>"]),
    ],
)
def test_guidelines_become_a_tree_of_few_elements(text: str, expected: list) -> None:
    assert tree(text) == [{"tag": "p", "inside": expected}]


def test_code_and_html_of_guidelines_stay_text() -> None:
    assert tree("- a\n- b") == [{"tag": "ul", "inside": [{"tag": "li", "inside": [text]} for text in "ab"]}]
    assert tree("```html\n<i>\n```\n<script>x</script>") == [
        {"tag": "pre", "inside": ["<i>\n"]},
        {"tag": "p", "inside": ["<script>x</script>"]},
    ]


def test_the_owner_s_errors_are_in_the_page_s_language(tmp_path: Path, store) -> None:
    page = ranking_handler(tmp_path / "runs", SECRET, owner=True)
    asked = {"badge": sign(SECRET, "people", "ann"), "language": "zh"}
    gone = page({"do": "renew", "prompt_id": "p9", **asked})["error"]
    assert gone == f"{store.path}：找不到提示词 'p9'"
    nobody = page({"do": "decide", "prompt_id": "p0", "key": "1", **asked})["error"]
    assert nobody == "还没有人给提示词 'p0' 的回答排序。请先在“排序”里排序"
    assert page({"do": "open", "badge": sign(SECRET, "../x", "ann"), "language": "zh"})["error"].startswith(
        "运行名称无效"
    )
    store.path.write_bytes(b"damaged" * 999)
    assert page({"do": "open", **asked})["error"].startswith(f"{store.path}：")
    assert page({"do": "decide", "prompt_id": "p0", "key": "1", **asked, "language": "en"})["error"].startswith(
        f"{store.path}: "
    )


def test_the_button_to_resume_words_its_error(tmp_path: Path) -> None:
    gr = pytest.importorskip("gradio")
    from lowrank_rlhf.dashboard.tabs import rank

    def locked(name: str) -> str:
        raise UserError(Fault("run_not_found", "{run}: run not found", run=name))

    with gr.Blocks() as blocks:
        rank.build(tmp_path, gr.State("people"), gr.State("zh"), resume=locked)
    (resume,) = [one.fn for one in blocks.fns.values() if one.fn and one.fn.__name__ == "continue_run"]
    with pytest.raises(gr.Error, match="people：找不到这个运行"):
        resume("people", "zh")
