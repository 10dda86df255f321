import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from platforms import posix
from ranking_items import prompts, samples

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.store import AnnotationCounts, AnnotationStore, Item
from lowrank_rlhf.run.records import Prompt, Ranking


def rank(item: Item | None, annotator: str = "ann", **fields) -> Ranking:
    """Ranks what is shown in the order of its ids."""
    assert item is not None
    tiers = tuple((sample,) for sample in sorted(item.shown))
    return Ranking(prompt_id=item.prompt.id, tiers=tiers, annotator=annotator, shown=item.shown, **fields)


@pytest.fixture
def store(tmp_path: Path) -> AnnotationStore:
    store = AnnotationStore(tmp_path / "annotations.sqlite")
    store.add_items(prompts(3), samples(3))
    return store


def test_items_come_in_order_until_all_are_ranked(store: AnnotationStore) -> None:
    seen = []
    while (item := store.next_item("ann")) is not None:
        seen.append(rank(item, seconds=1.5, flags=("unsure",)))
        store.save(seen[-1])
    assert [ranking.prompt_id for ranking in seen] == ["p0", "p1", "p2"]
    assert store.rankings() == seen
    assert store.ranked_prompts() == 3


def test_the_shuffle_is_blind_and_stable(store: AnnotationStore, tmp_path: Path) -> None:
    item = store.next_item("ann")
    assert item == AnnotationStore(store.path).next_item("ann")
    assert sorted(item.shown) == [f"p0-{k}" for k in range(4)]
    assert all(sample in samples(1) for sample in item.answers)
    large = AnnotationStore(tmp_path / "large.sqlite")
    large.add_items(prompts(1), samples(1))
    orders = {large.item(f"annotator {i}", "p0").shown for i in range(60)}
    assert len(orders) > 12  # of 24
    assert {order[0] for order in orders} == {f"p0-{k}" for k in range(4)}


def test_adding_again_changes_nothing(store: AnnotationStore) -> None:
    store.save(rank(store.next_item("ann")))
    store.add_items(prompts(4), samples(4))
    store.add_items(prompts(4), samples(4))
    assert store.next_item("ann").prompt.id == "p1"
    store.release("ann")
    assert len(list_items(store, "other")) == 4


def list_items(store: AnnotationStore, annotator: str) -> list[str]:
    found = []
    while (item := store.next_item(annotator)) is not None:
        found.append(item.prompt.id)
        store.skip(annotator, item.prompt.id)
    return found


def test_other_texts_or_answers_under_known_ids_are_refused(store: AnnotationStore) -> None:
    changed = [sample.model_copy(update={"text": "new"}) for sample in samples(1)]
    with pytest.raises(UserError, match="'p0' is in the store with another text or other answers"):
        store.add_items(prompts(1), changed)
    with pytest.raises(UserError, match="other answers"):
        store.add_items(prompts(1), samples(1, answers=5))
    with pytest.raises(UserError, match="unknown prompt: 'p2'"):
        store.add_items(prompts(2), samples(3))
    new = Prompt(id="new", messages=prompts(1)[0].messages)
    stolen = [sample.model_copy(update={"prompt_id": "new"}) for sample in samples(1)]
    with pytest.raises(UserError, match="two answers have the id 'p0-0'"):
        store.add_items([new], stolen)
    assert list_items(store, "ann") == ["p0", "p1", "p2"]  # a refused call leaves no trace


def test_prompts_with_one_answer_are_left_out(tmp_path: Path) -> None:
    store = AnnotationStore(tmp_path / "a.sqlite")
    store.add_items(prompts(2), samples(2)[:5])
    assert list_items(store, "ann") == ["p0"]


def test_annotators_and_skips_are_independent(store: AnnotationStore) -> None:
    store.save(rank(store.next_item("ann"), "ann"))
    store.skip("ann", "p1")
    store.skip("ann", "p1")
    assert store.next_item("ann").prompt.id == "p2"
    assert store.next_item("bob").prompt.id == "p1"  # nobody has ranked it, and nobody holds it
    store.save(rank(store.item("bob", "p0"), "bob"))
    assert len(store.rankings()) == 2
    assert store.ranked_prompts() == 1
    with pytest.raises(UserError, match="no prompt 'nowhere'"):
        store.skip("ann", "nowhere")


def test_undo_withdraws_and_keeps(store: AnnotationStore) -> None:
    first = rank(store.next_item("ann"))
    store.save(first)
    second = rank(store.next_item("ann"))
    store.save(second)
    store.save(rank(store.item("bob", "p0"), "bob"))
    assert store.undo("ann") == second
    assert store.next_item("ann").prompt.id == second.prompt_id
    assert [ranking.annotator for ranking in store.rankings()] == ["ann", "bob"]
    assert store.undo("ann") == first
    assert store.undo("ann") is None
    assert store.undo("nobody") is None
    assert store.ranked_prompts() == 1
    assert store.next_item("ann").prompt.id == first.prompt_id
    with sqlite3.connect(store.path) as database:
        assert database.execute("SELECT COUNT(*), SUM(withdrawn) FROM rankings").fetchone() == (3, 2)


def test_a_second_ranking_replaces_the_first_and_undo_brings_it_back(store: AnnotationStore) -> None:
    first = rank(store.next_item("ann"))
    second = first.model_copy(update={"tiers": first.tiers[::-1]})
    store.save(first)
    store.save(second)
    assert store.rankings() == [second]
    store.undo("ann")
    assert store.rankings() == [first]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"prompt_id": "nowhere"}, "no prompt 'nowhere'"),
        ({"tiers": (("p1-0",), ("p0-1",))}, "no answer 'p1-0'"),
        ({"shown": ("p0-0", "ghost")}, "no answer 'ghost'"),
    ],
)
def test_unknown_ids_are_refused(store: AnnotationStore, change: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        store.save(rank(store.next_item("ann")).model_copy(update=change))
    assert store.rankings() == []


def test_a_skip_is_taken_back(store: AnnotationStore) -> None:
    for annotator in ("ann", "bob"):
        for name in ("p0", "p1"):
            store.skip(annotator, name)
    assert store.counts("ann") == AnnotationCounts(prompts=3, ranked=0, skipped=2, ranked_by_anyone=0)
    store.unskip("ann", "p1")
    assert store.next_item("ann").prompt.id == "p1"
    store.unskip("bob")
    assert store.next_item("bob").prompt.id == "p0"
    assert (store.counts("ann").skipped, store.counts("bob").skipped) == (1, 0)


def test_standing_counts_what_counts(store: AnnotationStore) -> None:
    for name, prompt in (("ann", "p0"), ("ann", "p1"), ("bob", "p0")):
        store.save(rank(store.item(name, prompt), name))
    first = store.item("ann", "p0")
    store.save(rank(first).model_copy(update={"seconds": 9.0}))  # replaces one
    assert store.counts("ann") == AnnotationCounts(prompts=3, ranked=2, skipped=0, ranked_by_anyone=2)
    assert store.counts("bob") == AnnotationCounts(prompts=3, ranked=1, skipped=0, ranked_by_anyone=2)
    assert store.counts("nobody") == AnnotationCounts(prompts=3, ranked=0, skipped=0, ranked_by_anyone=2)
    store.undo("bob")
    assert store.counts("bob").ranked == 0
    without = Ranking(prompt_id="p2", tiers=(), annotator="bob", flags=("harmful",))
    store.save(without)  # done with, but nothing was put in order
    assert store.counts("bob") == AnnotationCounts(prompts=3, ranked=1, skipped=0, ranked_by_anyone=2)


def test_an_item_by_its_name_is_shown_as_it_was(store: AnnotationStore) -> None:
    shown = []
    for name in ("ann", "bob", "cyd", "dan"):
        shown.append(store.next_item(name).shown)
        store.skip(name, "p0")
    assert [store.item(name, "p0").shown for name in ("ann", "bob", "cyd", "dan")] == shown
    assert len(set(shown)) > 1
    with pytest.raises(UserError, match="no prompt 'nowhere'"):
        store.item("ann", "nowhere")


def test_files_that_are_no_such_database(tmp_path: Path) -> None:
    text = tmp_path / "text.sqlite"
    text.write_text("this is plain text, not a database at all\n" * 100)
    with pytest.raises(UserError, match=r"text\.sqlite: file is not a database"):
        AnnotationStore(text)
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE notes (text TEXT)")
        database.execute("PRAGMA user_version = 1")
    before = foreign.read_bytes()
    with pytest.raises(UserError, match="not an annotation store"):
        AnnotationStore(foreign)
    assert foreign.read_bytes() == before
    with pytest.raises(UserError, match="unable to open"):
        AnnotationStore(tmp_path / "no folder" / "a.sqlite")


def test_a_newer_schema_is_refused(store: AnnotationStore) -> None:
    with sqlite3.connect(store.path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="newer version"):
        AnnotationStore(store.path)


def test_a_file_that_stays_locked(store: AnnotationStore, monkeypatch) -> None:
    monkeypatch.setattr("lowrank_rlhf.preferences.store.BUSY_SECONDS", 0.05)
    with sqlite3.connect(store.path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        database.execute("BEGIN IMMEDIATE")
        assert store.item("ann", "p0") is not None  # write-ahead logging: readers go on
        with pytest.raises(UserError, match="locked"):
            store.skip("ann", "p0")


# Ranks item after item and, after each, says so on stdout. Started as a process of its own.
WORKER = """
import sys
from pathlib import Path
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.records import Ranking
store, annotator = AnnotationStore(Path(sys.argv[1])), sys.argv[2]
while store.counts(annotator).ranked < store.counts(annotator).prompts:
    item = store.next_item(annotator)
    if item is None:  # the other holds what is left
        continue
    tiers = tuple((sample,) for sample in item.shown)
    store.save(Ranking(prompt_id=item.prompt.id, tiers=tiers, annotator=annotator, shown=item.shown))
    print(item.prompt.id, flush=True)
"""


def start_worker(path: Path, annotator: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WORKER, str(path), annotator]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@posix
def test_kill_9_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    AnnotationStore(path).add_items(prompts(2000), samples(2000, answers=2))
    worker = start_worker(path, "ann")
    said = [worker.stdout.readline().strip() for _ in range(15)]
    os.kill(worker.pid, signal.SIGKILL)
    said += worker.stdout.read().split()
    worker.communicate()
    assert worker.returncode == -signal.SIGKILL
    kept = [ranking.prompt_id for ranking in AnnotationStore(path).rankings()]
    assert 15 <= len(said) < 2000
    assert kept[: len(said)] == said
    assert len(kept) <= len(said) + 1  # killed between the commit and the word of it
    assert AnnotationStore(path).next_item("ann").prompt.id == f"p{len(kept)}"


def test_two_processes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    AnnotationStore(path).add_items(prompts(40), samples(40, answers=2))
    workers = [start_worker(path, annotator) for annotator in ("ann", "bob")]
    for worker in workers:
        out, err = worker.communicate(timeout=60)
        assert (worker.returncode, err) == (0, "")
        assert sorted(out.split()) == sorted(f"p{i}" for i in range(40))
    assert len(AnnotationStore(path).rankings()) == 80
    assert AnnotationStore(path).ranked_prompts() == 40


def test_a_store_is_opened_and_read_while_another_process_writes(store: AnnotationStore, monkeypatch) -> None:
    monkeypatch.setattr("lowrank_rlhf.preferences.store.BUSY_SECONDS", 0.1)
    writer = sqlite3.connect(store.path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert AnnotationStore(store.path).counts("ann").prompts == 3
    writer.close()


def test_many_threads_create_and_fill_one_file(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def work(annotator: str) -> None:
        try:
            store = AnnotationStore(tmp_path / "a.sqlite")
            store.add_items(prompts(5), samples(5))
            while store.counts(annotator).ranked < 5:
                if item := store.next_item(annotator):  # none while others hold what is left
                    store.save(rank(item, annotator))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"annotator {i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(AnnotationStore(tmp_path / "a.sqlite").rankings()) == 30
