"""Guidelines: which ranking was made under which text, on this machine and on another; and stores without any."""

import sqlite3
from pathlib import Path

import pytest
from annotators_page import a_run_with_answers, with_guidelines
from people import a_ranking

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline.fingerprint import fingerprint
from lowrank_rlhf.preferences.export_file import to_jsonl
from lowrank_rlhf.preferences.import_file import read_rows
from lowrank_rlhf.preferences.overview import overview
from lowrank_rlhf.preferences.project import open_project
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.preferences.team.checks import checks_from_rankings
from lowrank_rlhf.preferences.team.decisions import decide
from lowrank_rlhf.preferences.team.exclusion import exclude
from lowrank_rlhf.preferences.team.guidelines import version_of
from lowrank_rlhf.stages import STAGES

OLD, NEW = "# Be kind\n\n- short *and* true 短\n", "Be kind.\n\n\tSecond paragraph: \u2028."


def test_each_ranking_names_its_text_on_every_machine(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 3)
    for number, text in enumerate((OLD, NEW, OLD)):
        project = open_project(with_guidelines(tmp_path, text))
        shown = project.shown_guidelines()
        assert (shown.text, shown.version) == (text, version_of(text))
        store.save(a_ranking(number, "01", guidelines=shown.version))
    assert [text.text for text in store.guidelines()] == [OLD, NEW]
    assert overview(project).guidelines == 2
    assert open_project(with_guidelines(tmp_path, None)).shown_guidelines() is None
    assert overview(open_project(tmp_path / "runs" / "people")).guidelines is None

    file, other = tmp_path / "export.jsonl", tmp_path / "other"
    file.write_text(to_jsonl(store.contents()), encoding="utf-8")
    other.mkdir()
    there = open_project(other, new=True)
    assert there.shown_guidelines() is None
    for _ in range(2):
        there.store.merge(read_rows(file), new_items=True)
        assert to_jsonl(there.store.contents()) == file.read_text(encoding="utf-8")
    assert there.shown_guidelines().text == NEW
    assert [ranking.guidelines for ranking in there.store.rankings()] == [version_of(text) for text in (OLD, NEW, OLD)]


def test_a_text_under_another_texts_version_is_refused(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 1)
    file = tmp_path / "forged.jsonl"
    file.write_text(f'{{"kind": "guidelines", "version": "{version_of(OLD)}", "text": "Be cruel."}}\n')
    with pytest.raises(UserError, match=r"forged\.jsonl:1: version .* is not that of the text"):
        store.merge(read_rows(file))
    assert store.guidelines() == ()


def test_a_changed_text_makes_no_result_stale() -> None:
    people = {"source": "human"}
    without = Config(name="x", model={"source": "x"}, rank=people)
    with_text = Config(name="x", model={"source": "x"}, rank=people | {"guidelines": OLD})
    for stage in STAGES:
        assert fingerprint(stage, without, {}) == fingerprint(stage, with_text, {})


def test_guidelines_that_nobody_would_see_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`guidelines` has no effect without `source: human`"):
        Config(name="x", model={"source": "x"}, rank={"guidelines": OLD})


def test_a_store_of_the_version_before_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as database:
        database.executescript((Path(__file__).parent / "schema_3.sql").read_text(encoding="utf-8"))
    for _ in range(2):
        store = AnnotationStore(path)
        assert [(one.annotator, one.prompt_id, one.guidelines) for one in store.rankings()] == [
            ("ann", "p0", None),
            ("bob", "p0", None),
        ]
        assert [saved.withdrawn for saved in store.contents().history] == [False, False, True, True]
        assert (store.counts("ann"), store.counts("bob").ranked) == ((3, 1, 1, 1), 1)
        assert store.guidelines() == ()
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (5,)
    store.save(a_ranking(2, "10", "bob", guidelines=version_of(OLD), unread=("p2-0",)))
    assert store.rankings()[-1].unread == ("p2-0",)
    assert exclude(store, "eve", excluded=False) == 1
    assert [one.annotator for one in store.rankings()] == ["ann", "bob", "eve", "bob"]
    assert store.next_item("ann").prompt.id == "p2"
    decided = decide(store, "p0", "2 > 1", "owner")
    assert checks_from_rankings(store, "eve") == 1
    assert [(one.annotator, one.prompt_id) for one in store.rankings()] == [("bob", "p2"), ("owner", "p0")]
    assert store.rankings()[-1] == decided
