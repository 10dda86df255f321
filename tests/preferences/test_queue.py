"""Which prompt comes next: order, leases, shared and repeated prompts, and steps taken back."""

import math
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_rlhf.preferences import queue
from lowrank_rlhf.preferences.contents import Skip
from lowrank_rlhf.preferences.queue import LEASE_SECONDS, REPEAT_AFTER, AssignmentRules, Candidate, choose
from lowrank_rlhf.preferences.store import AnnotationStore, Item
from lowrank_rlhf.run.records import Message, Prompt, Ranking, Sample


class Clock:
    """Seconds that pass when a test says so."""

    now = 1e9

    def __call__(self) -> float:
        return self.now


def a_store(path: Path, prompts: int, clock: Clock | None = None) -> AnnotationStore:
    store = AnnotationStore(path, clock or Clock())
    asked = [Prompt(id=f"p{i}", messages=(Message(role="user", content=f"Tell me {i}"),)) for i in range(prompts)]
    answers = [Sample(id=f"p{i}-{k}", prompt_id=f"p{i}", text=str(k)) for i in range(prompts) for k in range(4)]
    store.add_items(asked, answers)
    return store


def rank(item: Item | None, annotator: str) -> Ranking:
    assert item is not None
    tiers = tuple((name,) for name in sorted(item.shown))
    return Ranking(prompt_id=item.prompt.id, tiers=tiers, annotator=annotator, shown=item.shown)


def name(item: Item | None) -> str | None:
    return item.prompt.id if item else None


class TestLeases:
    def test_what_one_holds_nobody_else_is_given(self, tmp_path: Path) -> None:
        store = a_store(tmp_path / "a.sqlite", 2)
        assert [name(store.next_item(who)) for who in ("ann", "bob", "cyd", "ann")] == ["p0", "p1", None, "p0"]

    def test_saved_skipped_or_released_it_goes_on(self, tmp_path: Path) -> None:
        store = a_store(tmp_path / "a.sqlite", 1)
        for let_go in (
            lambda: store.save(rank(store.item("ann", "p0"), "ann")),
            lambda: store.skip("bob", "p0"),
            lambda: store.release("cyd"),
            lambda: None,
        ):
            assert name(store.next_item("dan")) is not None
            store.release("dan")
            who = next(one for one in ("ann", "bob", "cyd", "eve") if name(store.next_item(one)))
            assert store.next_item("dan") is None
            let_go()
        assert who == "cyd"  # ann has ranked it and bob has skipped it

    def test_it_ends_after_some_minutes_without_a_sign(self, tmp_path: Path) -> None:
        clock = Clock()
        store = a_store(tmp_path / "a.sqlite", 1, clock)
        store.next_item("ann")
        clock.now += LEASE_SECONDS - 1
        assert store.next_item("bob") is None
        assert name(store.next_item("ann")) == "p0"  # a sign
        clock.now += LEASE_SECONDS - 1
        assert store.next_item("bob") is None
        clock.now += 2
        assert name(store.next_item("bob")) == "p0"
        store.save(rank(store.item("ann", "p0"), "ann"))  # late is not lost
        assert store.ranked_prompts() == 1

    def test_who_is_still_at_it_keeps_it(self, tmp_path: Path) -> None:
        clock = Clock()
        store = a_store(tmp_path / "a.sqlite", 1, clock)
        store.next_item("ann")
        for _ in range(3):
            clock.now += LEASE_SECONDS - 1
            store.renew("ann", "p0", 0)
        assert store.next_item("bob") is None
        clock.now += LEASE_SECONDS + 1
        assert name(store.next_item("bob")) == "p0"
        store.renew("ann", "p0", 0)  # too late
        assert store.next_item("ann") is None

    def test_a_second_window_does_not_bring_back_what_was_ranked_or_skipped(self, tmp_path: Path) -> None:
        store = a_store(tmp_path / "a.sqlite", 3)
        store.save(rank(store.next_item("ann"), "ann"))
        assert name(store.next_item("ann")) == "p1"
        store.renew("ann", "p0", 0)  # from a window that still shows it
        assert (name(store.next_item("ann")), name(store.next_item("bob"))) == ("p1", "p2")
        store.skip("ann", "p1")
        store.renew("ann", "p1", 0)
        assert name(store.next_item("bob")) == "p2"
        assert store.next_item("ann") is None or name(store.next_item("ann")) != "p1"

    def test_what_is_taken_back_is_held_again(self, tmp_path: Path) -> None:
        store = a_store(tmp_path / "a.sqlite", 3)
        store.save(rank(store.next_item("ann"), "ann"))
        assert name(store.next_item("ann")) == "p1"
        store.undo("ann")
        assert (name(store.next_item("ann")), name(store.next_item("bob"))) == ("p0", "p1")

    @settings(max_examples=30, deadline=None)
    @given(
        steps=st.lists(
            st.tuples(
                st.sampled_from(["next", "save", "skip", "undo", "release", "wait"]), st.sampled_from(["a", "b", "c"])
            ),
            max_size=40,
        )
    )
    def test_no_two_hold_the_same_prompt(self, tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:
        """Against a model that keeps who looks at what, until when."""
        clock = Clock()
        store = a_store(tmp_path_factory.mktemp("store") / "a.sqlite", 4, clock)
        looks: dict[str, tuple[str, float]] = {}
        saved: list[Ranking] = []
        for step, who in steps:
            clock.now += 1
            if step == "next":
                item = store.next_item(who, AssignmentRules(shared=0.5, repeated=0.5))
                looks.pop(who, None)
                others = [prompt for prompt, until in looks.values() if until > clock.now]
                if item is not None:
                    assert item.prompt.id not in others
                    looks[who] = (item.prompt.id, clock.now + LEASE_SECONDS)
            elif step in ("save", "skip") and who in looks:
                prompt, _ = looks.pop(who)
                if step == "save":
                    saved.append(rank(store.item(who, prompt), who))
                    store.save(saved[-1])
                else:
                    store.skip(who, prompt)
            elif step == "undo":
                looks.pop(who, None)
                taken = store.undo(who)
                if isinstance(taken, Ranking):
                    mine = [ranking for ranking in saved if ranking.annotator == who]
                    assert taken == mine[-1]
                    saved.remove(mine[-1])
                if taken:  # one may hold what another is just looking at: it is one's own work
                    looks = {one: held for one, held in looks.items() if held[0] != taken.prompt_id}
            elif step == "release":
                looks.pop(who, None)
                store.release(who)
            elif step == "wait":
                clock.now += LEASE_SECONDS
        assert [verdict.ranking for verdict in store.contents().history if not verdict.withdrawn] == saved


class TestOrder:
    def test_fewest_rankings_then_place(self) -> None:
        candidates = [Candidate(f"p{i}", own, others, 0) for i, (own, others) in enumerate([(1, 0), (0, 1), (0, 1)])]
        assert choose(candidates, AssignmentRules()).prompt_id == "p1"
        fresh = Candidate("p3", 0, 0, 0)
        assert choose([*candidates, fresh], AssignmentRules()) is fresh
        assert choose(candidates[:1], AssignmentRules()) is None

    def test_shares_are_as_large_as_asked_and_the_same_for_all(self) -> None:
        shared = [
            choose([Candidate("fresh", 0, 0, 0), Candidate(f"p{i}", 0, 1, 0)], AssignmentRules(shared=0.2)).prompt_id
            != "fresh"
            for i in range(2000)
        ]
        assert sum(shared) / 2000 == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 2000))
        again = [
            choose([Candidate(f"p{i}", 1, 0, REPEAT_AFTER)], AssignmentRules(repeated=0.05)) is not None
            for i in range(2000)
        ]
        assert sum(again) / 2000 == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 2000))
        both = sum(one and other for one, other in zip(shared, again, strict=True)) / 2000
        assert both == pytest.approx(0.01, abs=0.01)  # drawn independently
        assert not any(choose([Candidate(f"p{i}", 1, 0, 99)], AssignmentRules()) for i in range(100))

    def test_two_people_meet_on_shared_prompts_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        chance = {"p1": 0.0, "p4": 0.0}
        monkeypatch.setattr(queue, "chance", lambda _, prompt: chance.get(prompt, 1.0))
        store, rules = a_store(tmp_path / "a.sqlite", 6), AssignmentRules(shared=0.5)
        given = []
        for who in ("ann", "ann", "bob", "ann", "bob", "bob", "bob", "ann", "bob", "ann"):
            item = store.next_item(who, rules)
            given.append((who, name(item)))
            store.save(rank(item, who))
        assert given == [
            ("ann", "p0"),
            ("ann", "p1"),
            ("bob", "p1"),
            ("ann", "p2"),
            ("bob", "p3"),
            ("bob", "p4"),
            ("bob", "p5"),
            ("ann", "p4"),
            ("bob", "p0"),  # all are ranked: a second opinion on the others
            ("ann", "p3"),
        ]

    def test_the_same_person_again_after_a_while_in_another_order(self, tmp_path: Path) -> None:
        store, rules = a_store(tmp_path / "a.sqlite", 30), AssignmentRules(repeated=1.0)
        given, shown = [], {}
        for _ in range(REPEAT_AFTER + 3):
            item = store.next_item("ann", rules)
            given.append((name(item), item.done))
            shown[given[-1]] = item.shown
            assert store.save(rank(item, "ann"), item.done)
        assert given == [(f"p{i}", 0) for i in range(REPEAT_AFTER + 1)] + [("p0", 1), ("p1", 1)]
        assert any(shown[f"p{i}", 0] != shown[f"p{i}", 1] for i in (0, 1))
        assert store.counts("ann").ranked == REPEAT_AFTER + 1
        assert store.undo("ann").prompt_id == "p1"
        back = store.next_item("ann", rules)
        assert (back.prompt.id, back.done, back.shown) == ("p1", 1, shown["p1", 1])
        assert not store.save(rank(back, "ann"), done=0)  # said in a window that is behind
        assert store.counts("ann").ranked == REPEAT_AFTER + 1


def test_undo_goes_back_through_rankings_and_skips(tmp_path: Path) -> None:
    store = a_store(tmp_path / "a.sqlite", 5)
    steps = []
    for step in ("rank", "skip", "skip", "rank", "skip"):
        item = store.next_item("ann")
        if step == "rank":
            steps.append(rank(item, "ann"))
            store.save(steps[-1])
            store.save(rank(store.item("bob", item.prompt.id), "bob"))  # somebody else's work does not matter
        else:
            steps.append(Skip(annotator="ann", prompt_id=item.prompt.id))
            store.skip("ann", item.prompt.id)
    store = AnnotationStore(store.path)  # another session
    assert [store.undo("ann") for _ in range(6)] == [*steps[::-1], None]


# As the first version made its files.
FIRST_VERSION = """
CREATE TABLE prompts (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, record TEXT NOT NULL);
CREATE TABLE samples (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
 prompt_id TEXT NOT NULL REFERENCES prompts(id), record TEXT NOT NULL);
CREATE TABLE rankings (position INTEGER PRIMARY KEY AUTOINCREMENT, prompt_id TEXT NOT NULL REFERENCES prompts(id),
 annotator TEXT NOT NULL, record TEXT NOT NULL, withdrawn INTEGER NOT NULL DEFAULT 0);
CREATE TABLE skips (annotator TEXT NOT NULL, prompt_id TEXT NOT NULL REFERENCES prompts(id),
 PRIMARY KEY (annotator, prompt_id));
PRAGMA application_id = 1280461894;
PRAGMA user_version = 1;
INSERT INTO prompts VALUES (1, 'p', '{"id":"p","messages":[{"role":"user","content":"Hi"}],"held_out":false}');
INSERT INTO prompts VALUES (2, 'q', '{"id":"q","messages":[{"role":"user","content":"Ho"}],"held_out":false}');
INSERT INTO samples VALUES (1, 'a', 'p', '{"id":"a","prompt_id":"p","text":"A","finished":true,"tokens":null}');
INSERT INTO samples VALUES (2, 'b', 'p', '{"id":"b","prompt_id":"p","text":"B","finished":true,"tokens":null}');
INSERT INTO samples VALUES (3, 'c', 'q', '{"id":"c","prompt_id":"q","text":"C","finished":true,"tokens":null}');
INSERT INTO samples VALUES (4, 'd', 'q', '{"id":"d","prompt_id":"q","text":"D","finished":true,"tokens":null}');
INSERT INTO rankings VALUES (1, 'p', 'ann', '{"prompt_id":"p","tiers":[["a"],["b"]],"annotator":"ann","seconds":2.0,
"flags":[],"shown":["b","a"]}', 0);
INSERT INTO skips VALUES ('ann', 'q');
"""


def test_a_file_of_the_first_version_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as database:
        database.executescript(FIRST_VERSION)
    ranking = Ranking(
        prompt_id="p", tiers=(("a",), ("b",)), annotator="ann", seconds=2.0, shown=("b", "a"), partial=False
    )
    for _ in range(2):
        store = AnnotationStore(path)
        assert store.rankings() == [ranking]
        assert store.contents().skips == (Skip(annotator="ann", prompt_id="q"),)
        assert store.counts("ann") == (2, 1, 1, 1)
    assert store.next_item("ann") is None
    assert name(store.next_item("bob")) == "q"
    assert store.undo("ann") == ranking
    assert store.undo("ann") == Skip(annotator="ann", prompt_id="q")
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (5,)
