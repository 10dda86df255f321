"""Annotations to files and back: nothing is lost, nothing wrong comes in, and nothing comes in twice."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_rlhf.data.loading import load
from lowrank_rlhf.preferences.contents import Contents, Pair, SavedRanking
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.preferences.export_file import comparisons_to_jsonl, demonstrations_to_jsonl, to_jsonl
from lowrank_rlhf.preferences.import_file import FileRow, rankings_from_pairs, read_rows
from lowrank_rlhf.preferences.import_plan import plan_import
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.preferences.team.guidelines import version_of
from lowrank_rlhf.run.records import Message, Prompt, Ranking, Sample

TEXT = st.text(max_size=12) | st.sampled_from(["春天\u2028の", '"quoted"\\', "a\r\nb\t\x1b[2J", "😀"])
ANNOTATORS = ("ann", "安娜", 'b"o\nb')


@st.composite
def items(draw: st.DrawFn) -> tuple[list[Prompt], list[Sample]]:
    prompts, answers = [], []
    for number in range(draw(st.integers(1, 3))):
        roles = draw(st.sampled_from([["user"], ["system", "user"], ["user", "assistant", "user"]]))
        turns = tuple(Message(role=role, content=draw(TEXT)) for role in roles)
        prompts.append(Prompt(id=f"p{number}", messages=turns, held_out=draw(st.booleans())))
        for k in range(draw(st.integers(2, 4))):
            tokens = draw(st.none() | st.lists(st.integers(0, 50_000), max_size=3).map(tuple))
            fields = {"text": draw(TEXT), "finished": draw(st.booleans()), "tokens": tokens}
            answers.append(Sample(id=f"p{number}-{k}", prompt_id=f"p{number}", **fields))
    return prompts, answers


@st.composite
def rankings(draw: st.DrawFn, prompts: list[Prompt], answers: list[Sample]) -> Ranking:
    prompt = draw(st.sampled_from(prompts))
    names = draw(st.permutations([answer.id for answer in answers if answer.prompt_id == prompt.id]))
    placed = names[: draw(st.integers(1, len(names)))]  # other programs may leave answers out
    levels = draw(st.lists(st.integers(0, 2), min_size=len(placed), max_size=len(placed)))
    tiers = [tuple(name for name, level in zip(placed, levels, strict=True) if level == one) for one in range(3)]
    return Ranking(
        prompt_id=prompt.id,
        tiers=tuple(filter(None, tiers)),
        annotator=draw(st.sampled_from(ANNOTATORS)),
        seconds=draw(st.none() | st.floats(0, 1e9)),
        flags=tuple(draw(st.lists(TEXT, max_size=2))),
        shown=draw(st.sampled_from([(), tuple(names)])),
        partial=len(set(levels)) > 1 and draw(st.booleans()),
        written=draw(st.none() | TEXT),
        guidelines=draw(st.sampled_from([None, version_of("Be kind.")])),
        unread=draw(st.sampled_from([(), tuple(names[:1])])),
    )


@st.composite
def histories(draw: st.DrawFn, count: int) -> tuple:
    """Prompts with answers, and `count` times what annotators did with them, one step after the other: save, save the
    same again, take back, skip. The same rankings turn up in all of them."""
    prompts, answers = draw(items())
    pool = draw(st.lists(rankings(prompts, answers), min_size=1, max_size=4))
    who, what = st.sampled_from(ANNOTATORS), st.sampled_from([prompt.id for prompt in prompts])
    save = st.tuples(st.just("save"), st.sampled_from(pool))
    undo, skip = st.tuples(st.just("undo"), who), st.tuples(st.just("skip"), who, what)
    steps = st.lists(st.one_of(save, save, undo, skip), min_size=1, max_size=12)
    return (prompts, answers), *(draw(steps) for _ in range(count))


def fresh(folder: Path, number: list[int] = [0]) -> AnnotationStore:  # noqa: B006 - counts the stores of this process
    number[0] += 1
    return AnnotationStore(folder / f"{number[0]}.sqlite")


def replay(folder: Path, pair: tuple[list[Prompt], list[Sample]], done: list[tuple]) -> AnnotationStore:
    store = fresh(folder)
    store.add_items(*pair)
    for name, *arguments in done:
        getattr(store, name)(*arguments)
    return store


def through_a_file(folder: Path, text: str) -> list[FileRow]:
    path = folder / "annotations.jsonl"
    path.write_text(text, encoding="utf-8", newline="")
    return read_rows(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@settings(max_examples=30, deadline=None)
@given(history=histories(1))
def test_export_import_export_is_the_same_file(folder: Path, history: tuple) -> None:
    store = replay(folder, *history)
    text = to_jsonl(store.contents())
    other = fresh(folder)
    other.merge(through_a_file(folder, text), new_items=True)
    assert to_jsonl(other.contents()) == text
    assert other.contents() == store.contents()
    assert other.rankings() == store.rankings() == other.contents().current()


@settings(max_examples=30, deadline=None)
@given(history=histories(2))
def test_merging_loses_nothing_and_adds_nothing_twice(folder: Path, history: tuple) -> None:
    pair, here, there = history
    store, other = replay(folder, pair, here), replay(folder, pair, there)
    mine, theirs = store.contents(), other.contents()
    lines = through_a_file(folder, to_jsonl(theirs))
    plan = store.merge(lines)
    after = store.contents()
    assert (after.prompts, after.answers) == (mine.prompts, mine.answers)
    assert set(after.skips) == {*mine.skips, *theirs.skips}
    # As often as the one or the other has it, and taken back as often as in the one or the other.
    for count in (of_rankings, of_withdrawn):
        assert count(after) == count(mine) | count(theirs)
    assert [verdict.ranking for verdict in after.history[: len(mine.history)]] == [
        verdict.ranking for verdict in mine.history
    ]
    assert plan.known + len(plan.rankings) == len(theirs.history)
    again = store.merge(lines)
    assert (again.rankings, again.withdrawn, again.skips, again.known) == ([], [], [], len(theirs.history))
    assert store.contents() == after


def of_rankings(contents: Contents) -> Counter:
    return Counter(verdict.ranking for verdict in contents.history)


def of_withdrawn(contents: Contents) -> Counter:
    return Counter(verdict.ranking for verdict in contents.history if verdict.withdrawn)


@settings(max_examples=30, deadline=None)
@given(history=histories(1))
def test_comparisons_there_and_back_again(folder: Path, history: tuple) -> None:
    pair, done = history
    store = replay(folder, pair, done)
    text = comparisons_to_jsonl(store.contents())
    expected = [comparison for ranking in store.rankings() for comparison in compare(ranking)]
    assert text.count("\n") == len(expected)
    if not text:
        return
    other = replay(folder, pair, [])
    other.merge(through_a_file(folder, text))
    assert comparisons_to_jsonl(other.contents()) == text
    found = [comparison for ranking in other.rankings() for comparison in compare(ranking)]
    assert found == expected
    plan = store.merge(through_a_file(folder, text))
    assert (plan.rankings, plan.withdrawn) == ([], [])


PROMPTS = [Prompt(id=f"p{i}", messages=(Message(role="user", content=f"Tell me {i} ☂"),)) for i in range(2)]
ANSWERS = [
    Sample(id=f"p{i}-{k}", prompt_id=f"p{i}", text=f"answer {k} to {i}", tokens=(i, k))
    for i in range(2)
    for k in range(3)
]
HERE = Contents(prompts=tuple(PROMPTS), answers=tuple(ANSWERS))


def a_ranking(*tiers: str, **fields) -> Ranking:
    """`a_ranking("0", "12")`: answer 0 of prompt 0 above 1 and 2, which are tied."""
    return Ranking(
        prompt_id="p0", tiers=tuple(tuple(f"p0-{k}" for k in tier) for tier in tiers), **{"annotator": "ann"} | fields
    )


def test_an_export_by_hand() -> None:
    contents = Contents(
        prompts=tuple(PROMPTS[:1]),
        answers=tuple(ANSWERS[:1]),
        history=(
            SavedRanking(ranking=a_ranking("0", seconds=1.5, flags=("unsure",), shown=("p0-0",)), withdrawn=True),
        ),
    )
    assert to_jsonl(contents).splitlines() == [
        '{"kind": "header", "format": "lowrank_rlhf annotations", "version": 4}',
        '{"kind": "prompt", "id": "p0", "messages": [{"role": "user", "content": "Tell me 0 ☂"}], "held_out": false}',
        '{"kind": "answer", "id": "p0-0", "prompt_id": "p0", "text": "answer 0 to 0", "finished": true, '
        '"tokens": [0, 0]}',
        '{"kind": "ranking", "prompt_id": "p0", "tiers": [["p0-0"]], "annotator": "ann", "seconds": 1.5, '
        '"flags": ["unsure"], "shown": ["p0-0"], "partial": false, "written": null, '
        '"guidelines": null, "unread": [], "withdrawn": true}',
    ]


def test_comparisons_by_hand() -> None:
    rows = [json.loads(line) for line in comparisons_to_jsonl(replace(HERE, a_ranking("0", "2"))).splitlines()]
    assert rows == [
        {
            "prompt": "Tell me 0 ☂",
            "chosen": "answer 0 to 0",
            "rejected": "answer 2 to 0",
            "prompt_id": "p0",
            "chosen_id": "p0-0",
            "rejected_id": "p0-2",
            "annotator": "ann",
            "tier_gap": 1,
        }
    ]
    system = PROMPTS[0].model_copy(
        update={"messages": (Message(role="system", content="Be kind"), *PROMPTS[0].messages)}
    )
    talk = replace(Contents(prompts=(system,), answers=HERE.answers), a_ranking("0", "2"))
    row = json.loads(comparisons_to_jsonl(talk))
    assert row["prompt"] == [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Tell me 0 ☂"}]
    assert row["chosen"] == [{"role": "assistant", "content": "answer 0 to 0"}]


def test_written_answers_are_demonstrations(tmp_path: Path) -> None:
    written = a_ranking("0", written="Ninety ☂")
    replaced = a_ranking("1", "2", written="old")
    contents = replace(HERE, replaced, written, a_ranking("0", annotator="bob"))
    path = tmp_path / "written.jsonl"
    path.write_text(demonstrations_to_jsonl(contents), encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "prompt": "Tell me 0 ☂",
        "completion": "Ninety ☂",
        "prompt_id": "p0",
        "annotator": "ann",
    }
    (example,) = [one.example for one in load(path, "data.format").located]
    assert (example.prompt[-1].content, example.response) == ("Tell me 0 ☂", "Ninety ☂")
    system = PROMPTS[0].model_copy(update={"messages": (Message(role="system", content="Hi"), *PROMPTS[0].messages)})
    talk = Contents(prompts=(system,), answers=HERE.answers, history=(SavedRanking(ranking=written),))
    path.write_text(demonstrations_to_jsonl(talk), encoding="utf-8")
    (example,) = [one.example for one in load(path, "data.format").located]
    assert ([turn.role for turn in example.prompt], example.response) == (["system", "user"], "Ninety ☂")


def test_an_export_of_the_first_version_still_comes_in(tmp_path: Path) -> None:
    path = tmp_path / "old.jsonl"
    path.write_text(
        '{"kind": "header", "format": "lowrank_rlhf annotations", "version": 1}\n'
        '{"kind": "ranking", "prompt_id": "p0", "tiers": [["p0-0"], ["p0-1"]], "annotator": "ann", "seconds": 1.5, '
        '"flags": [], "shown": [], "withdrawn": false}\n',
        encoding="utf-8",
    )
    assert plan_import(HERE, read_rows(path), new_items=False).rankings == [
        SavedRanking(ranking=a_ranking("0", "1", seconds=1.5))
    ]


def test_contents_are_all_there_is(tmp_path: Path) -> None:
    first, second = a_ranking("0", "12"), a_ranking("2", "1", annotator="bob")
    skips = [("skip", "bob", "p1"), ("skip", "bob", "p0"), ("skip", "ann", "p1")]
    store = replay(tmp_path, (PROMPTS, ANSWERS), [("save", first), ("undo", "ann"), ("save", second), *skips])
    contents = store.contents()
    assert (contents.prompts, contents.answers) == (HERE.prompts, HERE.answers)
    assert contents.history == (SavedRanking(ranking=first, withdrawn=True), SavedRanking(ranking=second))
    assert [(skip.annotator, skip.prompt_id) for skip in contents.skips] == [
        ("ann", "p1"),
        ("bob", "p0"),
        ("bob", "p1"),
    ]
    assert contents.current() == store.rankings() == [second]


def replace(contents: Contents, *rankings: Ranking) -> Contents:
    history = tuple(SavedRanking(ranking=ranking) for ranking in rankings)
    return Contents(prompts=contents.prompts, answers=contents.answers, history=history)


def test_tiers_are_found_again_from_their_gaps() -> None:
    for ranking in (a_ranking("0", "1", "2"), a_ranking("02", "1"), a_ranking("1", "02"), a_ranking("2", "0")):
        text = comparisons_to_jsonl(replace(HERE, ranking))
        pairs = [(f"f:{number}", Pair(**json.loads(line))) for number, line in enumerate(text.splitlines(), 1)]
        assert rankings_from_pairs(pairs) == [("f:1", ranking)]
        assert rankings_from_pairs(pairs[::-1])[0][0] == f"f:{len(pairs)}"


def test_bare_rankings_come_in_too(tmp_path: Path) -> None:
    path = tmp_path / "rankings.jsonl"
    path.write_text(f"\ufeff{a_ranking('0', '12').model_dump_json()}\r\n\n", encoding="utf-8")
    plan = plan_import(HERE, read_rows(path), new_items=False)
    assert (plan.errors, plan.rankings) == ([], [SavedRanking(ranking=a_ranking("0", "12"))])


def test_what_is_taken_back_there_is_taken_back_here() -> None:
    first, second = a_ranking("0", "12"), a_ranking("12", "0")
    lines = [FileRow("f:1", SavedRanking(ranking=first, withdrawn=True)), FileRow("f:2", SavedRanking(ranking=second))]
    plan = plan_import(replace(HERE, first), lines, new_items=False)
    assert (plan.withdrawn, plan.rankings, plan.known, plan.replaced) == ([0], [SavedRanking(ranking=second)], 1, 0)
    # And the other way round: an older file does not bring back what was taken back since.
    here = Contents(HERE.prompts, HERE.answers, (SavedRanking(ranking=first, withdrawn=True),))
    plan = plan_import(here, [FileRow("f:1", SavedRanking(ranking=first))], new_items=False)
    assert (plan.withdrawn, plan.rankings, plan.known) == ([], [], 1)


def test_what_is_replaced_is_counted() -> None:
    lines = [
        FileRow("f:1", SavedRanking(ranking=a_ranking("1", "2"))),
        FileRow("f:2", SavedRanking(ranking=a_ranking("2", "1"))),
    ]
    assert plan_import(replace(HERE, a_ranking("0", "12")), lines, new_items=False).replaced == 1
    assert plan_import(replace(HERE, a_ranking("0", "12", annotator="bob")), lines, new_items=False).replaced == 0
    assert plan_import(replace(HERE, a_ranking("1", "2")), lines, new_items=False).replaced == 1
