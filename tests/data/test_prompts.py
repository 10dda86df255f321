"""The built-in data set keeps its promises; the split leaks nothing; bad files are named with their line."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from pydantic import ValidationError

from lowrank_rlhf.config.schema import DataConfig
from lowrank_rlhf.data.prompts import load_prompt_data, load_prompts
from lowrank_rlhf.data.readers.sources import BUILTIN
from lowrank_rlhf.errors import UserError

ROWS = [json.loads(line) for line in (BUILTIN / "everyday.jsonl").read_text("utf-8").splitlines()]
PROMPTS = [row["prompt"] for row in ROWS]
ANSWERED = [row for row in ROWS if "response" in row]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


FUNCTION_WORDS = frozenset(
    words(
        "a about after again all also am an and any are as at be been before but by can cannot could did do does "
        "done for from get give had has have her him his how i if in into is it its just let like make me more "
        "most my no not of off on once one only or our out over put she should so some such than that the their "
        "them then there these they this those to too up us very was way we were what when where which while who "
        "why will with without would you your tell something"
    )
)


def content_words(text: str) -> set[str]:
    return {word.removesuffix("'s") for word in words(text)} - FUNCTION_WORDS


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# The built-in set


def test_counts_and_keys() -> None:
    assert len(ROWS) == 620
    assert len(ANSWERED) == 240
    assert {tuple(row) for row in ROWS} == {("prompt",), ("prompt", "response")}


def test_prompts_are_short_and_have_something_to_take_up() -> None:
    assert [text for text in PROMPTS if not 4 <= len(text.split()) <= 11] == []
    assert [text for text in PROMPTS if len(content_words(text)) < 2] == []


def test_no_two_prompts_resemble_each_other() -> None:
    pairs = combinations([(text, content_words(text)) for text in PROMPTS], 2)
    alike = [(a, b) for (a, first), (b, second) in pairs if len(first & second) >= 0.6 * len(first | second)]
    assert alike == []


def test_responses_are_short_complete_and_take_up_the_prompt() -> None:
    responses = [row["response"] for row in ANSWERED]
    assert [text for text in responses if not 5 <= len(text.split()) <= 22 or len(text) > 125] == []
    assert [text for text in responses if text[-1] not in ".!?" or not text[0].isupper()] == []
    assert [row for row in ANSWERED if not content_words(row["prompt"]) & content_words(row["response"])] == []
    assert len(set(responses)) == 240


def test_responses_open_in_many_ways() -> None:
    openers = Counter(" ".join(words(row["response"])[:2]) for row in ANSWERED)
    assert max(openers.values()) <= 0.03 * len(ANSWERED)


def test_plain_ascii_without_markup_or_years() -> None:
    for row in ROWS:
        for text in row.values():
            assert re.fullmatch(r"[A-Za-z' ,.!?:-]+", text), text


def test_every_slice_is_representative() -> None:
    shares = [sum("response" in row for row in ROWS[start : start + 62]) for start in range(0, 620, 62)]
    assert all(20 <= share <= 28 for share in shares), shares


# The split


def test_split_covers_everything_once_and_spares_demonstrations() -> None:
    training, held_out = load_prompts(DataConfig(), seed=1)
    assert (len(training), len(held_out)) == (556, 64)
    assert {prompt.text for prompt in training} | {prompt.text for prompt in held_out} == set(PROMPTS)
    assert {prompt.id for prompt in training}.isdisjoint(prompt.id for prompt in held_out)
    assert all(prompt.held_out for prompt in held_out)
    assert not any(prompt.held_out for prompt in training)
    demonstrations = load_prompt_data(DataConfig(), seed=1).demonstrations
    assert len(demonstrations) == 240
    with_answer = {row["prompt"]: row["response"] for row in ANSWERED}
    assert [(d.prompt, d.response) for d in demonstrations] == [
        (prompt, with_answer[prompt.text]) for prompt in training if prompt.text in with_answer
    ]


def test_split_follows_from_the_seed_alone() -> None:
    assert load_prompts(DataConfig(), seed=7) == load_prompts(DataConfig(), seed=7)
    (first_training, first_held), (second_training, second_held) = (load_prompts(DataConfig(), s) for s in (1, 2))
    assert {p.id for p in first_held} != {p.id for p in second_held}
    assert [p.id for p in first_training][:20] != [p.id for p in second_training][:20]


def test_validation_comes_first_and_test_prompts_are_the_rest() -> None:
    whole = load_prompt_data(DataConfig(), seed=1)
    training, validation, test = whole.splits()
    assert (len(training), len(validation), len(test)) == (556, 32, 32)
    assert validation + test == whole.held_out == whole.splits().held_out
    assert training == whole.training
    for count, expected in ((0, 0), (1, 1), (63, 63), (None, 32)):
        data = load_prompt_data(DataConfig(validation=count), seed=1)
        assert data.training == whole.training, "the training prompts do not depend on the division"
        assert data.demonstrations == whole.demonstrations
        assert data.held_out == whole.held_out
        divided = data.splits()
        if expected:
            assert (divided.validation, divided.test) == (whole.held_out[:expected], whole.held_out[expected:])
        assert divided.divided is bool(expected)
        undivided = data.splits(divided=False)
        assert undivided.validation == undivided.test == undivided.held_out == whole.held_out
    odd = load_prompt_data(DataConfig(held_out=5), seed=1).splits()
    assert (len(odd.validation), len(odd.test)) == (2, 3)
    alone = load_prompt_data(DataConfig(held_out=1), seed=1).splits()
    assert alone.validation == alone.test
    assert not alone.divided


@pytest.mark.parametrize(("held_out", "validation"), [(4, 4), (4, 5), (0, 1)])
def test_validation_leaves_test_prompts(held_out: int, validation: int) -> None:
    with pytest.raises(ValidationError, match=rf"validation \({validation}\) must be below held_out \({held_out}\)"):
        DataConfig(held_out=held_out, validation=validation)


def test_demonstrations_are_held_out_only_when_nothing_else_is_left(tmp_path: Path) -> None:
    rows = [{"prompt": f"Bare {n}"} for n in range(3)]
    rows += [{"prompt": f"Answered {n}", "response": "Yes."} for n in range(4)]
    config = DataConfig(prompts=jsonl(tmp_path / "my.jsonl", rows), held_out=5)
    training, held_out = load_prompts(config, seed=3)
    assert sorted(prompt.text[:4] for prompt in held_out) == ["Answ", "Answ", "Bare", "Bare", "Bare"]
    assert [d.prompt for d in load_prompt_data(config, seed=3).demonstrations] == training


@pytest.mark.parametrize("seed", range(8))
def test_equal_prompts_are_never_on_both_sides(tmp_path: Path, seed: int) -> None:
    rows = [{"prompt": text} for number in range(6) for text in (f"Say {number}", f"  sAY {number} \n")]
    rows.append({"messages": [{"role": "user", "content": "SAY 0"}], "response": "Zero."})
    config = DataConfig(prompts=jsonl(tmp_path / "my.jsonl", rows), held_out=3)
    training, held_out = load_prompts(config, seed)
    assert sorted(p.text.strip().casefold() for p in training + held_out) == [f"say {n}" for n in range(6)]
    assert [(d.prompt.id, d.response) for d in load_prompt_data(config, seed).demonstrations] == [("p00013", "Zero.")]


def test_conversations_ids_blank_lines_and_byte_order_mark(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi\u2028there"}]
    first = json.dumps({"messages": turns, "id": "greeting"}, ensure_ascii=False)
    second = json.dumps({"messages": [*turns[1:], {"role": "assistant", "content": "Hello!"}], "response": None})
    path = tmp_path / "my.jsonl"
    path.write_bytes(f"\ufeff{first}\r\n\r\n{second}\r\n".encode())
    config = DataConfig(prompts=str(path), held_out=0)
    training, held_out = load_prompts(config, seed=0)
    assert held_out == []
    by_id = {prompt.id: prompt for prompt in training}
    assert [message.role for message in by_id["greeting"].messages] == ["system", "user"]
    assert by_id["p00003"].text == "Hi\u2028there"
    assert [(d.prompt.id, d.response) for d in load_prompt_data(config, seed=0).demonstrations] == [
        ("p00003", "Hello!")
    ]


# Errors

USER = '{"role": "user", "content": "Hi"}'
ASSISTANT = '{"role": "assistant", "content": "Hello"}'
BAD_FILES = {
    '{"prompt": "Hi"}\n{"prompt": " "}': ':2: "prompt" is empty. Fill it in or delete the row',
    '{"prompt": 3}': ':1: "prompt" must be a string, not a number',
    '{"prompt": null}': ':1: "prompt" is empty. Fill it in or delete the row',
    '{"prompt": "Hi", "respones": "Hello"}': (
        ':1: unknown key "respones". Did you mean "response"? Set data.columns.response=respones, or '
        "data.columns.response=null to ignore it"
    ),
    '{"response": "Hello"}': (
        ":1: unknown format. Keys found: response. Name the columns, such as data.columns.prompt=COLUMN. "
        "Formats (docs/data-formats.md): dolly (instruction, response)"
    ),
    f'{{"prompt": "Hi", "messages": [{USER}]}}': (
        ': the rows fit 2 formats (prompt-completion reads "prompt"; messages reads "messages"). '
        "Choose one: data.format=prompt-completion or messages"
    ),
    '{"prompt": "Hi", "response": ""}': ':1: "response" is empty. Fill it in or delete the row',
    '{"prompt": "Hi", "id": 4.5}': ':1: "id" must be a string, not a number',
    '{"messages": "Hi"}': ':1: "messages" must be a list, not a string',
    '{"messages": []}': ':1: "messages" is empty. Fill it in or delete the row',
    '{"messages": ["Hi"]}': ":1: messages[0] must be an object with role and content, not a string",
    '{"messages": [{"role": "user", "text": "Hi"}]}': (
        ":1: messages[0] must have role and content only, but has role, text"
    ),
    f'{{"messages": [{USER}, {{"role": "bot", "content": "Hi"}}]}}': (
        ":1: messages[1].role is 'bot'. It must be one of system, developer, user, assistant, tool, tool_response"
    ),
    f'{{"messages": [{ASSISTANT}]}}': (
        ':1: "messages" must end with the user, or with the user and the assistant\'s answer'
    ),
    f'{{"messages": [{USER}, {ASSISTANT}], "response": "Hey"}}': (
        ':1: "messages" ends with the assistant and "response" is present too. Keep one'
    ),
    '{"prompt": "Hi"}\n\n{"prompt" "Hi"}': (
        ':3: invalid JSON (Expecting \':\' delimiter). Expected a line like {"prompt": "..."}'
    ),
    '"Hi"': ':1: expected an object like {"prompt": "..."}, got a string',
    '{"prompt": "Hi \\ud83d"}': ':1: "prompt" contains half a character (a lone surrogate); delete it',
    '{"prompt": "Hi", "id": "a"}\n{"prompt": "Ho", "id": "a"}': (
        ":2: the id 'a' is already used in {file}:1. Change one"
    ),
    "\n": ': no rows. Expected one object like {"prompt": "..."} per line',
    '{"prompt": "Hi"}\n{"prompt": "hi "}': (
        ": only 1 different prompt(s), but data.held_out is 2. Add prompts or lower data.held_out"
    ),
    '{"prompt": "Hi"}\n{"prompt": "Ho"}': (
        ": all 2 prompts are held out and none is left to train on. Add prompts or lower data.held_out"
    ),
}


@pytest.mark.parametrize("content", BAD_FILES)
def test_bad_files_are_named_with_their_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_prompts(DataConfig(prompts=str(path), held_out=2), seed=0)
    assert str(caught.value) == f"{path}{BAD_FILES[content]}".replace("{file}", str(path))


def test_text_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_bytes(b'{"prompt": "Hi"}\n{"prompt": "Gr\xfc\xdfe"}\n')
    with pytest.raises(UserError, match=re.escape(f"{path}:2: not UTF-8 text. Save the file as UTF-8")):
        load_prompts(DataConfig(prompts=str(path)), seed=0)


def test_deep_nesting_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(f"{path}: invalid JSON")):
        load_prompts(DataConfig(prompts=str(path)), seed=0)


def test_missing_file_folder_and_unknown_set(tmp_path: Path) -> None:
    expected = {
        "nowhere.jsonl": f"nowhere.jsonl: file not found. Relative paths start at {Path.cwd()}",
        str(tmp_path): f"{tmp_path}: expected a file, got a folder",
        "builtin:evryday": "built-in set not found: 'evryday'. Available: everyday, replies, replies_zh",
        "builtin:../everyday": "built-in set not found: '../everyday'. Available: everyday, replies, replies_zh",
    }
    for source, message in expected.items():
        with pytest.raises(UserError) as caught:
            load_prompts(DataConfig(prompts=source), seed=0)
        assert str(caught.value) == message
