"""What keys make of an order: by hand, and for every sequence of keys against a second way to read it."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_rlhf.commands.terminal.ranking_text import HELP, REFUSALS, describe, refusal_text
from lowrank_rlhf.dashboard.ranking.text import LANGUAGES, texts
from lowrank_rlhf.errors import visible
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.preferences.labelling import (
    FLAGS,
    KEYS,
    LABELS,
    SHORT_FLAGS,
    Action,
    Command,
    Draft,
    Refusal,
    RefusalKind,
    draft_of,
    keys_of,
    press,
    ranking_of,
    type_all,
)
from lowrank_rlhf.preferences.project import NothingToRankReason
from lowrank_rlhf.preferences.store import Item
from lowrank_rlhf.run.records import Message, Prompt, Ranking, Sample


def an_item(answers: int) -> Item:
    """Answers with ids a, b, c, ... in the order in which they are shown."""
    prompt = Prompt(id="p", messages=(Message(role="user", content="Hi"),))
    return Item(
        prompt=prompt, answers=tuple(Sample(id=chr(97 + k), prompt_id="p", text=str(k)) for k in range(answers))
    )


def type_keys(keys: str, answers: int = 4) -> Draft:
    """A draft after these keys, none of which may be refused."""
    draft = Draft(answers)
    for key in keys:
        result = press(draft, key)
        assert isinstance(result, Draft), (key, result)
        draft = result
    return draft


@pytest.mark.parametrize(
    ("keys", "tiers"),
    [
        ("2143", (("b",), ("a",), ("d",), ("c",))),
        ("2=143", (("b", "a"), ("d",), ("c",))),
        ("1=2=3=4", (("a", "b", "c", "d"),)),
        ("12=3=4", (("a",), ("b", "c", "d"))),
        ("1u2143", (("b",), ("a",), ("d",), ("c",))),
        ("２＝１43", (("b", "a"), ("d",), ("c",))),  # as a Chinese keyboard types them
        ("24\x7f1=\b43", (("b",), ("a",), ("d",), ("c",))),
    ],
)
def test_orders_by_hand(keys: str, tiers: tuple) -> None:
    draft = type_keys(keys)
    assert press(draft, "\r") is press(draft, "\n") is Command.SAVE
    item = an_item(4)
    expected = Ranking(prompt_id="p", tiers=tiers, annotator="ann", seconds=2.5, shown=("a", "b", "c", "d"))
    assert ranking_of(draft, item, "ann", 2.5) == expected


@pytest.mark.parametrize(
    ("keys", "key", "refusal"),
    [
        ("", "\r", Refusal(RefusalKind.NOT_PLACED, "1, 2, 3, 4")),
        ("13", "\r", Refusal(RefusalKind.NOT_PLACED, "2, 4")),
        ("1=", "\r", Refusal(RefusalKind.TIE_OPEN)),
        ("", "=", Refusal(RefusalKind.TIE_FIRST)),
        ("1=", "=", Refusal(RefusalKind.TIE_TWICE)),
        ("1234", "=", Refusal(RefusalKind.ALL_PLACED)),
        ("12", "1", Refusal(RefusalKind.PLACED, "1")),
        ("", "5", Refusal(RefusalKind.NO_ANSWER, "5", 4)),
        ("", "0", Refusal(RefusalKind.NO_ANSWER, "0", 4)),
        ("", "x", Refusal(RefusalKind.UNKNOWN_KEY, "x")),
        ("", "\x1b[a", Refusal(RefusalKind.UNKNOWN_KEY, "\x1b[a")),
        ("", "", Refusal(RefusalKind.UNKNOWN_KEY, "")),
        ("f", "9", Refusal(RefusalKind.NO_FLAG)),
    ],
)
def test_refusals(keys: str, key: str, refusal: Refusal) -> None:
    assert press(type_keys(keys), key) == refusal


def test_every_refusal_has_a_text_in_the_terminal_and_on_the_page() -> None:
    assert set(REFUSALS) == set(RefusalKind)
    for language in LANGUAGES:
        assert {f"refused.{kind}" for kind in RefusalKind} <= set(texts(language))
        assert {f"nothing.{reason}" for reason in NothingToRankReason} <= set(texts(language))


@pytest.mark.parametrize(("key", "name"), [("x", "x"), ("\x1b[A", "that key"), ("", "that key"), (" ", "that key")])
def test_control_characters_are_not_repeated(key: str, name: str) -> None:
    assert refusal_text(Refusal(RefusalKind.UNKNOWN_KEY, key)).startswith(f"{name} has no effect")


def test_commands() -> None:
    for draft in (Draft(4), type_keys("2="), type_keys("f")):
        assert [press(draft, key) for key in "shq?"] == [Command.SKIP, Command.HELP, Command.QUIT, Command.HELP]
        assert [press(draft, key) for key in "SHQ"] == [Command.SKIP, Command.HELP, Command.QUIT]  # caps lock
    assert press(Draft(4), "u") is press(Draft(4), "\x7f") is press(Draft(4), "\b") is Command.UNDO_SAVED


def test_flags_come_and_go() -> None:
    assert type_keys("f1").flags == ("unsure",)
    assert type_keys("f1f4").flags == ("unsure", "harmful")
    assert type_keys("f1f4f1").flags == ("harmful",)
    assert type_keys("f1fu").flags == ("unsure",)
    assert ranking_of(type_keys("12f334"), an_item(4), "ann").flags == ("all answers bad",)


def test_two_flags_have_keys_of_their_own_and_need_no_order() -> None:
    assert type_keys("b!").flags == ("all answers bad", "harmful")
    assert type_keys("b！b").flags == ("harmful",)  # ! as a Chinese keyboard types it
    assert press(type_keys("b"), "\r") is press(type_keys("f4"), "\r") is Command.SAVE
    assert press(type_keys("f1"), "\r") == Refusal(RefusalKind.NOT_PLACED, "1, 2, 3, 4")
    assert press(type_keys("12!"), "\r") == Refusal(RefusalKind.NOT_PLACED, "3, 4")  # half an order is a slip
    assert ranking_of(type_keys("b"), an_item(4), "ann").tiers == ()


def test_where_one_may_stop_the_rest_is_worse() -> None:
    stopped = type_all(Draft(4, may_stop=True), "3")
    best = ranking_of(stopped, an_item(4), "ann")
    assert (best.tiers, best.partial) == ((("c",), ("a", "b", "d")), True)
    assert draft_of(best, an_item(4)).tiers == ((2,),)
    assert {(pair.chosen, pair.rejected) for pair in compare(best)} == {("c", "a"), ("c", "b"), ("c", "d")}
    last = ranking_of(type_all(Draft(4, may_stop=True), "3=12"), an_item(4), "ann")
    assert (last.tiers, last.partial) == ((("c", "a"), ("b",), ("d",)), False)
    assert press(Draft(4, may_stop=True), "\r") == Refusal(RefusalKind.NOT_PLACED, "1, 2, 3, 4")


def test_a_written_answer_needs_no_order() -> None:
    draft = Draft(4, written=" Better. \n")
    assert press(draft, "\r") is Command.SAVE
    ranking = ranking_of(draft, an_item(4), "ann")
    assert (ranking.tiers, ranking.written) == ((), "Better.")
    assert draft_of(ranking, an_item(4)).written == "Better."
    assert ranking_of(type_keys("1234"), an_item(4), "ann").written is None
    assert isinstance(press(Draft(4, written=" \n"), "\r"), Refusal)


def test_tiers_as_keys() -> None:
    assert "".join(keys_of([[1, 0], [3], [2]])) == "2=143"
    with pytest.raises(ValueError, match="key '5' does not"):
        type_all(Draft(4), "15")


def test_more_than_nine_answers_have_letters() -> None:
    draft = type_keys("987654321ABC", 12)
    assert ranking_of(draft, an_item(12), "ann").tiers[-1] == ("l",)
    assert press(Draft(12), "S") is Command.SKIP  # no answer has that name
    placed = press(Draft(len(LABELS)), "S")
    assert isinstance(placed, Draft)
    assert placed.tiers == ((LABELS.index("S"),),)
    assert press(Draft(len(LABELS)), "s") is Command.SKIP


def test_the_line_about_a_draft() -> None:
    assert describe(Draft(4)) == "_   left: 1, 2, 3, 4"
    assert describe(type_keys("2=1")) == "2 = 1 > _   left: 3, 4"
    assert describe(type_keys("2=13=f14f2")) == "2 = 1 > 3 = 4   flags: unsure, prompt unclear"
    flags = "flag: 1 unsure, 2 prompt unclear, 3 all answers bad, 4 harmful"
    assert describe(type_keys("3=f")) == f"3 = _   left: 1, 2, 4   {flags}"


# Mostly keys that do something, and some that do not.
TYPED = st.lists(
    st.one_of(st.sampled_from("123456=fb!\r"), st.sampled_from("u\x7f?hsq0xA\t１＝"), st.characters()), max_size=40
)


@given(answers=st.integers(2, 6), keys=TYPED)
def test_every_key_gives_a_valid_draft_a_command_or_a_reason(answers: int, keys: list[str]) -> None:
    draft = Draft(answers)
    for key in keys:
        result = press(draft, key)
        if isinstance(result, Draft):
            draft = result
            continue
        if isinstance(result, Refusal):
            assert refusal_text(result).isprintable()
        placed = [answer for tier in draft.tiers for answer in tier]
        assert sorted(placed + draft.left) == list(range(answers))
        if result is Command.SAVE:
            ranking = ranking_of(draft, an_item(answers), "ann")  # a Ranking checks itself
            names = sorted(name for tier in ranking.tiers for name in tier)
            assert names == list(an_item(answers).shown) or (not names and {*ranking.flags} & {*SHORT_FLAGS.values()})
        elif key == "\r":
            with pytest.raises(ValueError, match="not a finished order"):
                ranking_of(draft, an_item(answers), "ann")


@given(answers=st.integers(2, 6), keys=TYPED)
def test_undo_is_exact(answers: int, keys: list[str]) -> None:
    history = [Draft(answers)]
    for key in keys:
        result = press(history[-1], key)
        if key in ("u", "U", "\x7f", "\b"):
            if len(history) > 1:
                history.pop()
                assert result == history[-1]
            else:
                assert result is Command.UNDO_SAVED
        elif isinstance(result, Draft):
            history.append(result)
    while len(history) > 1:
        undone = press(history.pop(), "u")
        assert undone == history[-1]


@given(keys=st.lists(st.sampled_from("1234=f"), max_size=25))
def test_against_another_reading_of_the_keys(keys: list[str]) -> None:
    """What was accepted, as text without flags, says the order: `2=13` is ["2=1", "3"]."""
    draft, accepted = Draft(4), ""
    for key in keys:
        result = press(draft, key)
        if isinstance(result, Draft):
            accepted += key
            draft = result
    flags = re.findall(r"f(\d)", accepted)
    order = re.sub(r"f\d?", "", accepted)
    expected = [re.findall(r"\d", tier) for tier in re.findall(r"\d(?:=\d)*", order)]
    assert [[LABELS[answer] for answer in tier] for tier in draft.tiers] == expected
    assert set(draft.flags) == {FLAGS[flag] for flag in flags if flags.count(flag) % 2}


@st.composite
def rankings(draw: st.DrawFn, item: Item) -> Ranking:
    names = draw(st.permutations(item.shown))
    cuts = draw(st.lists(st.booleans(), min_size=len(names) - 1, max_size=len(names) - 1))
    tiers = [[names[0]]]
    for name, new_tier in zip(names[1:], cuts, strict=True):
        if new_tier:
            tiers.append([])
        tiers[-1].append(name)
    flags = draw(st.lists(st.sampled_from(sorted(FLAGS.values())), unique=True))
    return Ranking(prompt_id="p", tiers=tuple(map(tuple, tiers)), annotator="ann", flags=tuple(flags), shown=item.shown)


@given(st.integers(2, 12).flatmap(lambda answers: rankings(an_item(answers))))
def test_a_saved_ranking_comes_back_as_the_draft_that_made_it(ranking: Ranking) -> None:
    item = an_item(len(ranking.shown))
    draft = draft_of(ranking, item)
    assert ranking_of(draft, item, "ann") == ranking
    keys = 0
    while draft.before:
        draft, keys = draft.before, keys + 1
    assert draft.tiers == ()
    assert keys == sum(2 * len(tier) - 1 for tier in ranking.tiers)  # one for each answer, and = within a tier


def test_a_ranking_that_left_answers_out_comes_back_unfinished() -> None:
    ranking = Ranking(prompt_id="p", tiers=(("c", "a"),), annotator="ann", flags=("my own",))
    assert describe(draft_of(ranking, an_item(3))) == "3 = 1 > _   left: 2   flags: my own"


def test_an_unfinished_order_is_no_ranking() -> None:
    with pytest.raises(ValueError, match="not a finished order of 4 answers"):
        ranking_of(type_keys("21"), an_item(4), "ann")
    with pytest.raises(ValueError, match="not a finished order of 5"):
        ranking_of(type_keys("2143"), an_item(5), "ann")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\tand 中文, café, 👩‍👩‍👧", "two\nlines\tand 中文, café, 👩‍👩‍👧"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("over\rwritten\b\x7f\x00", "over\\rwritten\\x08\\x7f\\x00"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202eesrever \u2066x\u2069", "\\u202eesrever \\u2066x\\u2069"),
        ("line\u2028end", "line\\u2028end"),
    ],
)
def test_nothing_that_steers_a_terminal_is_printed(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters()))
def test_no_control_character_is_ever_printed(text: str) -> None:
    steering = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
    assert not re.search(steering, visible(text))
    visible(text).encode()  # half a character would raise


@pytest.mark.parametrize("source", ["terminal", *LANGUAGES, "docs/annotations.md"])
def test_every_help_names_every_key(source: str) -> None:
    if source == "terminal":
        text = HELP
    elif source in LANGUAGES:
        text = " ".join(value for key, value in texts(source).items() if key.startswith("help."))
    else:
        text = " ".join(re.findall(r"`([^`\n]+)`", (Path(__file__).parents[2] / source).read_text(encoding="utf-8")))
    named = set(re.findall(r"(?<![A-Za-z])[a-z=!](?![A-Za-z])", text))
    in_words = {Action.SAVE} if source not in LANGUAGES else {Action.SAVE, Action.QUIT}  # Enter; a page is closed
    assert {KEYS[action][0] for action in set(Action) - in_words} | set(SHORT_FLAGS) <= named
