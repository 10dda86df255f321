"""Ranking with many prompts: the same choices as over all of them, from few rows."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_rlhf.preferences import store as store_module
from lowrank_rlhf.preferences.overview import ranking_progress
from lowrank_rlhf.preferences.project import Project
from lowrank_rlhf.preferences.queue import LEASE_SECONDS, REPEAT_AFTER, AssignmentRules, Candidate, choose
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.records import Message, Prompt, Ranking, Sample

RULES = AssignmentRules(shared=0.3, repeated=0.3)


def a_store(path: Path, prompts: int, clock: Callable[[], float] = lambda: 1e9) -> AnnotationStore:
    store = AnnotationStore(path, clock)
    asked = [Prompt(id=f"p{i}", messages=(Message(role="user", content=f"Tell me {i}"),)) for i in range(prompts)]
    store.add_items(asked, [Sample(id=f"p{i}-{k}", prompt_id=f"p{i}", text="x") for i in range(prompts) for k in "ab"])
    return store


def ranking(prompt: str, who: str, seconds: float | None = 1.0, tiers: bool = True) -> Ranking:
    ids = (f"{prompt}-a", f"{prompt}-b")
    order = (ids[:1], ids[1:]) if tiers else ()
    flags = () if tiers else ("all bad",)
    return Ranking(prompt_id=prompt, tiers=order, annotator=who, seconds=seconds, shown=ids, flags=flags)


def expected(store: AnnotationStore, who: str, now: float, rules: AssignmentRules) -> str | None:
    """The next prompt by looking at each of them."""
    contents = store.contents()
    saved = [one.ranking for one in contents.history if not one.withdrawn]
    mine = [one.prompt_id for one in saved if one.annotator == who]
    with sqlite3.connect(store.path) as database:
        leases = database.execute("SELECT annotator, prompt_id, done, until FROM leases").fetchall()
    skipped = {skip.prompt_id for skip in contents.skips if skip.annotator == who}
    for annotator, prompt, done, until in leases:
        if annotator == who and until > now and prompt not in skipped and mine.count(prompt) == done:
            return prompt
    taken = skipped | {prompt for annotator, prompt, _, until in leases if annotator != who and until > now}
    candidates = [
        Candidate(
            prompt.id,
            mine.count(prompt.id),
            len({one.annotator for one in saved if one.prompt_id == prompt.id} - {who}),
            mine[::-1].index(prompt.id) if prompt.id in mine else 0,
        )
        for prompt in contents.prompts
        if prompt.id not in taken
    ]
    found = choose(candidates, rules)
    return found.prompt_id if found else None


steps = st.tuples(st.sampled_from(["next", "save", "save", "save", "skip", "undo", "wait"]), st.sampled_from("abc"))


class TestChoices:
    @settings(max_examples=25, deadline=None)
    @given(
        steps=st.lists(steps, max_size=60),
        rules=st.builds(
            AssignmentRules,
            shared=st.sampled_from([0.0, 0.5, 1.0]),
            repeated=st.sampled_from([0.0, 0.5, 1.0]),
        ),
    )
    def test_they_are_those_over_all_prompts(
        self, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str]], rules: AssignmentRules
    ) -> None:
        now = [1e9]
        store = a_store(tmp_path_factory.mktemp("store") / "a.sqlite", REPEAT_AFTER + 4, lambda: now[0])
        for step, who in steps:
            now[0] += 1
            if step == "wait":
                now[0] += LEASE_SECONDS
            elif step == "undo":
                store.undo(who)
            else:
                foreseen = expected(store, who, now[0], rules)
                item = store.next_item(who, rules)
                assert (item and item.prompt.id) == foreseen
                if item and step == "save":
                    store.save(ranking(item.prompt.id, who), item.done)
                elif item and step == "skip":
                    store.skip(who, item.prompt.id)

    def test_progress_counts_what_counts(self, tmp_path: Path) -> None:
        """Not what was withdrawn, nor flags without an order; of a repeated prompt the pace is the last one's."""
        store = a_store(tmp_path / "annotations.sqlite", 5)
        for prompt, who, seconds, tiers in (
            *(("p0", "ann", 90.0, True), ("p1", "ann", 2.0, True), ("p0", "ann", 4.0, True)),
            *(
                ("p2", "bob", 50.0, True),
                ("p3", "ann", None, True),
                ("p4", "ann", 60.0, False),
                ("p2", "ann", 70, True),
            ),
        ):
            store.save(ranking(prompt, who, seconds, tiers))
        store.undo("ann")
        found = ranking_progress(Project(tmp_path, store, None), "ann")
        assert (found.ranked, found.ranked_by_anyone, found.seconds_each) == (4, 4, 4.0)
        store.undo("bob")
        assert store.counts("ann").ranked_by_anyone == 3
        assert store.latest_seconds("ann", 2) == [60.0, 4.0]


class _Counting(sqlite3.Connection):
    """Connection that counts the instructions of SQLite's virtual machine."""

    instructions = 0

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.set_progress_handler(self._count, 1)

    def _count(self) -> None:
        _Counting.instructions += 1


def _a_turn(store: AnnotationStore, who: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Instructions of saving a ranking, showing the next prompt and the progress."""
    item = store.next_item(who, RULES)
    assert item is not None
    connect = sqlite3.connect
    with monkeypatch.context() as patched:
        patched.setattr(store_module.sqlite3, "connect", lambda *a, **k: connect(*a, factory=_Counting, **k))
        _Counting.instructions = 0
        store.save(ranking(item.prompt.id, who), item.done)
        store.next_item(who, RULES)
        ranking_progress(Project(store.path.parent, store, None), who)
    return _Counting.instructions


@pytest.mark.parametrize("everyone_ranked", [0.0, 0.5])
def test_a_turn_reads_no_more_with_forty_times_the_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everyone_ranked: float
) -> None:
    """Of the rankings only the annotator's own and the counts are read: a few instructions each."""
    found = {}
    for prompts in (500, 20_000):
        folder = tmp_path / str(prompts)
        folder.mkdir()
        store = a_store(folder / "annotations.sqlite", prompts)
        ranked = int(everyone_ranked * prompts)
        with sqlite3.connect(store.path) as database:
            database.executemany(
                "INSERT INTO rankings (prompt_id, annotator, record) VALUES (?, ?, ?)",
                (
                    (f"p{i}", who, ranking(f"p{i}", who).model_dump_json())
                    for i in range(ranked)
                    for who in ([f"a{i % 8}"] if i % 5 else [f"a{i % 8}", f"a{(i + 1) % 8}"])
                ),
            )
        found[prompts] = _a_turn(store, "a0", monkeypatch)
    grown = found[20_000] - found[500]
    assert grown < (0.1 * found[500] if everyone_ranked == 0 else 15 * 19_500)
