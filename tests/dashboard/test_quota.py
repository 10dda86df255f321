"""A number of prompts for each person and a last day: as annotators, owner and terminal see them."""

import io
import sys
from datetime import date
from pathlib import Path

import pytest
from annotators_page import a_run_with_answers
from people import a_ranking, tiers_as_shown

from lowrank_rlhf import cli
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.dashboard.ranking.session import ranking_handler, sign
from lowrank_rlhf.pipeline.fingerprint import fingerprint
from lowrank_rlhf.preferences.project import Project, open_project
from lowrank_rlhf.preferences.team import pace
from lowrank_rlhf.preferences.team.pace import pace_until
from lowrank_rlhf.stages import STAGES

SECRET = b"s" * 32
LAST = date(2026, 12, 10)


class Today(date):
    """The first of December: ten days are left."""

    @classmethod
    def today(cls) -> date:
        return date(2026, 12, 1)


@pytest.fixture(autouse=True)
def _today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "date", Today)


@pytest.fixture
def step(tmp_path: Path):
    """Sends a step of a person's page and gives the answer."""

    def call(do: str, person: str = "ann", owner: bool = False, **fields) -> dict:
        badge = sign(SECRET, "people", person)
        return ranking_handler(tmp_path / "runs", SECRET, owner)({"do": do, "badge": badge, "language": "en", **fields})

    return call


@pytest.mark.parametrize(
    ("left", "today", "each"), [(21, date(2026, 12, 1), 3), (21, LAST, 21), (21, date(2026, 12, 11), 0)]
)
def test_the_pace_by_hand(left: int, today: date, each: int) -> None:
    """21 prompts in ten days are three a day, the last day included; after it there is no pace."""
    found = pace_until(LAST, left, today)
    assert found is not None
    assert found.each_day == each
    assert pace_until(LAST, 0, today) is pace_until(None, left, today) is None


def test_who_has_ranked_the_share_sees_so_and_no_more_prompts(tmp_path: Path, step) -> None:
    store = a_run_with_answers(tmp_path, 60, quota=2, deadline=LAST, minimum_rankings=45)
    assert load_config(tmp_path / "runs" / "people" / "config.yaml").rank.deadline == LAST
    opened = step("open")
    assert opened["progress"]["line"][2:] == ["your share: 0 of 2", "1 a day until 2026-12-10"]
    assert opened["progress"]["quota"] == ""
    second = step("key", prompt_id="p0", keys=["1"], key="\r")
    assert second["item"]["prompt_id"] == "p1"
    last = step("key", prompt_id="p1", keys=["1"], key="\r")
    assert (last["item"], last["progress"]["quota"]) == (
        None,
        "You have ranked your share of this round (2). Thank you.",
    )
    assert last["progress"]["line"][-1] == "your share: 2 of 2"
    back = step("key", key="u")
    assert (back["item"]["prompt_id"], back["progress"]["quota"]) == ("p1", "")
    assert step("open", person="bob")["item"]["prompt_id"] == "p2"
    rows = {row["name"]: row["figure"] for row in step("figures", owner=True)["figures"]}
    assert rows["Deadline"] == "44 more prompts in 10 days: 5 a day"
    assert rows["ann"].startswith("1 ranked  ·  1 of the share left")
    assert store.ranked_prompts() == 1


def test_without_a_share_the_pace_is_of_all_together(tmp_path: Path, step, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run_with_answers(tmp_path, 60, deadline=LAST, minimum_rankings=45)
    assert step("open")["progress"]["line"][-1] == "5 a day until 2026-12-10"
    monkeypatch.setattr(Today, "today", classmethod(lambda _: date(2026, 12, 11)))
    assert step("open")["progress"]["line"][-1] == "the deadline, 2026-12-10, has passed"


def test_the_pace_of_a_share_is_of_the_prompts_that_are_left(tmp_path: Path, step) -> None:
    a_run_with_answers(tmp_path, 21, quota=50, deadline=LAST)
    assert step("open")["progress"]["line"][-1] == "3 a day until 2026-12-10"


def test_without_a_deadline_no_pace_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run_with_answers(tmp_path, 4, quota=2)
    project = open_project(tmp_path / "runs" / "people")
    monkeypatch.setattr(Project, "need", property(lambda _: pytest.fail("was simulated")))
    assert project.pace is None


def test_share_and_pace_in_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    store = a_run_with_answers(tmp_path, 60, quota=2, deadline=LAST, minimum_rankings=45)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", "label", "people", "--annotator", "ann"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("1234\n1234\n"))
    with pytest.raises(SystemExit):
        cli.main()
    out, err = capsys.readouterr()
    assert len(tiers_as_shown(store)) == 2
    assert (
        "0 ranked, 45 more needed, 2 of your share left; h shows the keys. Until the deadline, 2026-12-10: 1 a day"
        in out
    )
    assert "You have ranked your share of this round, 2 prompts. Thank you." in out
    assert "43 more needed. Until the deadline, 2026-12-10: 5 a day." in err


def test_neither_makes_a_result_stale_and_both_need_people() -> None:
    people = {"source": "human"}
    without = Config(name="x", model={"source": "x"}, rank=people)
    given = Config(name="x", model={"source": "x"}, rank=people | {"quota": 2, "deadline": LAST})
    assert all(fingerprint(stage, without, {}) == fingerprint(stage, given, {}) for stage in STAGES)
    for name, value in (("quota", 2), ("deadline", LAST)):
        with pytest.raises(ValueError, match=f"`{name}` has no effect without `source: human`"):
            Config(name="x", model={"source": "x"}, rank={name: value})


def test_a_share_counts_what_the_annotator_sees(tmp_path: Path) -> None:
    """Attention checks and prompts without an order count, skipped and withdrawn ones do not."""
    store = a_run_with_answers(tmp_path, 4, quota=2)
    project = open_project(tmp_path / "runs" / "people")
    store.save(a_ranking(0, "01"))
    store.skip("ann", "p1")
    assert project.own_left("ann") == 1
    store.undo("ann")
    store.undo("ann")
    assert project.own_left("ann") == 2
