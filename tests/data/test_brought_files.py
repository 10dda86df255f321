"""Files that people bring: shapes of other tools, columns that must not be ignored, and files that are no data."""

import json
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lowrank_rlhf.config.schema import DataConfig
from lowrank_rlhf.data.comparisons import load_comparisons
from lowrank_rlhf.data.loading import Loaded, load
from lowrank_rlhf.data.prompts import load_prompt_data
from lowrank_rlhf.errors import UserError

ASKED, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hello!"), ("assistant", "What?"))
)
PIRATE = {"system": "You are a pirate."}


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(loaded: Loaded, place: int = 0) -> list[str]:
    return [f"{turn.role} {turn.content}" for turn in loaded.located[place].example.prompt]


def pairs(loaded: Loaded) -> list[str]:
    return [f"{better}>{worse}" for _, example in loaded.located for better, worse in example.pairs]


def failure(path: Path | str, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        load(path, "data.format", **settings).refuse_bad(0)
    return str(caught.value).replace(f"{path}", "FILE")


# Formats: a row, its format, the prompt's turns, its pairs

COMPARED = [
    (
        {"conversations": [{"from": "human", "value": "Hi"}]}
        | {"chosen": {"from": "gpt", "value": "Hello!"}, "rejected": {"from": "gpt", "value": "What?"}},
        "sharegpt-preference",
        ["user Hi"],
    ),
    (
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": "Hello!", "rejected": "What?"} | PIRATE,
        "sharegpt-preference",
        ["system You are a pirate.", "user Hi"],
    ),
    (
        {"instruction": "Hi", "input": "you", "chosen": "Hello!", "rejected": "What?"} | PIRATE,
        "alpaca-preference",
        ["system You are a pirate.", "user Hi\n\nyou"],
    ),
    ({"messages": [ASKED], "chosen": GOOD, "rejected": BAD}, "messages-preference", ["user Hi"]),
    ({"messages": [ASKED], "chosen": [GOOD], "rejected": [BAD]}, "messages-preference", ["user Hi"]),
    (
        {"question": "Hi", "chosen": "Hello!", "rejected": "What?"} | PIRATE,
        "question-preference",
        ["system You are a pirate.", "user Hi"],
    ),
    ({"instruction": "Hi", "chosen_response": "Hello!", "rejected_response": "What?"}, "argilla", ["user Hi"]),
    ({"messages": [ASKED, GOOD], "rejected_response": "What?"}, "ms-swift", ["user Hi"]),
    ({"messages": [ASKED, GOOD], "rejected_messages": [ASKED, BAD]}, "ms-swift-messages", ["user Hi"]),
    (
        {"messages": [ASKED, GOOD], "rejected_messages": [BAD]} | PIRATE,
        "ms-swift-messages",
        ["system You are a pirate.", "user Hi"],
    ),
    (
        {"messages": [ASKED, BAD, ASKED, GOOD], "rejected_messages": [ASKED, BAD, ASKED, BAD]},
        "ms-swift-messages",
        ["user Hi", "assistant What?", "user Hi"],
    ),
    (
        {"input": {"messages": [ASKED], "tools": []}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        "openai",
        ["user Hi"],
    ),
    ({"instruction": "Hi", "input": "", "output": ["Hello!", "What?"]}, "alpaca-ranked", ["user Hi"]),
    (
        {"instruction": "Hi", "models": ["a", "b"]}
        | {"completions": [{"response": "What?", "overall_score": 10, "fine-grained_score": 1.25}]}
        | {
            "completions": [
                {"response": "What?", "overall_score": 10, "fine-grained_score": 1.25},
                {"response": "Hello!", "overall_score": 8, "fine-grained_score": 4.5},
            ]
        },
        "ultrafeedback",
        ["user Hi"],
    ),
    ({"prompt": "Hi", "response_a": "Hello!", "response_b": "What?", "winner": "model_a"}, "winner", ["user Hi"]),
    ({"prompt": "Hi", "response_a": "What?", "response_b": "Hello!", "winner": "B"}, "winner", ["user Hi"]),
    ({"conversation_a": [ASKED, BAD], "conversation_b": [ASKED, GOOD], "winner": "model_b"}, "arena", ["user Hi"]),
    (
        {"prompt": '["Hi"]', "response_a": '["Hello!"]', "response_b": '["What?"]'}
        | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
        "arena-lists",
        ["user Hi"],
    ),
    ({"prompt": "Hi", "response 1": "Hello!", "response 2": "What?", "label": 0}, "auto-j", ["user Hi"]),
    ({"prompt": "Hi", "response 1": "What?", "response 2": "Hello!", "label": "1"}, "auto-j", ["user Hi"]),
    (
        {"prompt": "Hi", "response_0": "What?", "response_1": "Hello!", "better_response_id": 1}
        | {"safer_response_id": 0, "is_response_0_safe": True},
        "pku-saferlhf",
        ["user Hi"],
    ),
    ({"history": "Hi", "human_ref_A": "Hello!", "human_ref_B": "What?", "labels": 1}, "shp", ["user Hi"]),
    ({"history": "Hi", "human_ref_A": "What?", "human_ref_B": "Hello!", "labels": 0}, "shp", ["user Hi"]),
    (
        {"info": {"title": "Hi", "post": "Ho", "subreddit": "cats"}, "choice": 1}
        | {"summaries": [{"text": " What?"}, {"text": " Hello!"}]},
        "tldr",
        ["user SUBREDDIT: cats\nTITLE: Hi\nPOST: Ho\nTL;DR:"],
    ),
    (
        {"context": [ASKED], "response1": "Hello!", "response2": "What?", "overall_preference": -1}
        | {"domain": "general", "language": "english", "individual_preference": [{"score": 1, "reasoning": "x"}]},
        "helpsteer3",
        ["user Hi"],
    ),
    (
        {"context": [ASKED, BAD, ASKED], "response1": "What?", "response2": "Hello!", "overall_preference": 3.0},
        "helpsteer3",
        ["user Hi", "assistant What?", "user Hi"],
    ),
    ({"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "history": [["A", "B"]]} | PIRATE, "preference", None),
]


@pytest.mark.parametrize(("row", "name", "asked"), COMPARED)
def test_comparisons_of_other_tools(tmp_path: Path, row: dict, name: str, asked: list[str] | None) -> None:
    path = jsonl(tmp_path / "my.jsonl", row)
    loaded = load(path, "data.format")
    assert (loaded.format.name, loaded.problems) == (name, [])
    assert turns(loaded) == (asked or ["system You are a pirate.", "user A", "assistant B", "user Hi"])
    assert pairs(loaded) == ["Hello!>What?"]
    assert len(load_comparisons(path).rankings) == 1


DEMONSTRATIONS = [
    ({"question": "Hi", "response": "Go."} | {"system_prompt": "Be kind."}, ["system Be kind.", "user Hi"]),
    ({"question": "Hi", "answer": "Go."}, ["user Hi"]),
    ({"instruction": "Hi", "context": "you", "response": "Go.", "category": "x"}, ["user Hi\n\nyou"]),
    (
        {"instruction": "Hi", "input": "", "output": "Go.", "history": [["A", "B"], ["C", "D"]]} | PIRATE,
        ["system You are a pirate.", "user A", "assistant B", "user C", "assistant D", "user Hi"],
    ),
    ({"prompt": "Hi", "completion": "Go."} | PIRATE, ["system You are a pirate.", "user Hi"]),
    (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Go."}]} | PIRATE,
        ["system You are a pirate.", "user Hi"],
    ),
    (
        {"messages": [{"role": "developer", "content": "Be short."}, ASKED, {"role": "assistant", "content": "Go."}]},
        ["system Be short.", "user Hi"],
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                {"role": "assistant", "content": "Go.", "tool_calls": [], "name": None},
            ]
        },
        ["user Hi"],
    ),
    (
        {"prompt": "\r\n\r\nHuman: Hi\r\n\r\nAssistant: Ho\r\n\r\nHuman: And?\r\n\r\nAssistant:", "response": "Go."},
        ["user Hi", "assistant Ho", "user And?"],
    ),
    ({"prompt": "\n\nHuman: Hi\n\nAssistant:", "response": "\n\nHuman: Hi\n\nAssistant: Go."}, ["user Hi"]),
]


RESULT = "It is 20 degrees."
TOOLS = [
    (
        {"messages": [ASKED, BAD, {"role": "tool", "content": RESULT, "tool_call_id": "c1", "name": "weather"}, GOOD]},
        ["user Hi", "assistant What?", f"tool {RESULT}"],
    ),
    ({"messages": [ASKED, BAD, {"role": "tool_response", "content": RESULT}]}, None),
    (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "What?"},
                           {"from": "observation", "value": RESULT}, {"from": "gpt", "value": "Hello!"}]},
        None,
    ),
    ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "tool", "value": RESULT}]}, None),
]  # fmt: skip


@pytest.mark.parametrize(("row", "asked"), TOOLS)
def test_results_of_tools_are_turns_of_text(tmp_path: Path, row: dict, asked: list[str] | None) -> None:
    loaded = load(jsonl(tmp_path / "my.jsonl", row), "data.format")
    assert loaded.problems == []
    assert turns(loaded)[-1] == f"tool {RESULT}"
    assert asked is None or turns(loaded) == asked


@pytest.mark.parametrize(
    ("turn", "call"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]}, "tool_calls"),
        ({"role": "assistant", "content": "Wait.", "function_call": {"name": "f"}}, "function_call"),
        ({"role": "tool_call", "content": "{}"}, "tool_call"),
        ({"from": "function_call", "value": "{}"}, "function_call"),
    ],
)
def test_calls_of_tools_are_refused_by_name(tmp_path: Path, turn: dict, call: str) -> None:
    key = "conversations" if "from" in turn else "messages"
    asked = {"from": "human", "value": "Hi"} if "from" in turn else ASKED
    message = failure(jsonl(tmp_path / "my.jsonl", {key: [asked, turn]}))
    assert message == f"FILE:1: {key}[1] calls a tool ({call}). Only text is supported. Delete the row"


def test_a_prompt_ends_with_the_user_and_a_score_is_no_truth_value(tmp_path: Path) -> None:
    row = {"prompt": [ASKED, GOOD], "chosen": "x", "rejected": "y"}
    assert failure(jsonl(tmp_path / "my.jsonl", row)).startswith('FILE:1: "prompt" must end with the user')
    row = {"prompt": "Hi", "responses": ["a", "b"], "scores": [True, 2]}
    assert failure(jsonl(tmp_path / "my.jsonl", row)) == "FILE:1: scores[0] must be a finite number, not true"


def test_tools_inside_openai_s_input_are_refused(tmp_path: Path) -> None:
    row = {"input": {"messages": [ASKED], "tools": [{"type": "function"}]}}
    row |= {"preferred_output": [GOOD], "non_preferred_output": [BAD]}
    assert failure(jsonl(tmp_path / "my.jsonl", row)) == "FILE:1: input.tools is not supported. Delete the row"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "Hi", "response_a": "a", "response_b": "b", "winner": "tie"}, "winner"),
        ({"conversation_a": [ASKED, BAD], "conversation_b": [ASKED, GOOD], "winner": "tie (bothbad)"}, "arena"),
        (
            {"prompt": '["Hi"]', "response_a": '["a"]', "response_b": '["b"]'}
            | {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1},
            "arena-lists",
        ),
        ({"prompt": "Hi", "response 1": "a", "response 2": "b", "label": 2}, "auto-j"),
        ({"context": [ASKED], "response1": "a", "response2": "b", "overall_preference": 0}, "helpsteer3"),
    ],
)
def test_ties_of_other_tools(tmp_path: Path, row: dict, name: str) -> None:
    loaded = load(jsonl(tmp_path / "my.jsonl", row), "data.format")
    assert (loaded.format.name, loaded.problems, pairs(loaded)) == (name, [], [])
    assert loaded.located[0].example.undecided == "tie"


def test_helpsteer3_has_seven_verdicts(tmp_path: Path) -> None:
    row = {"context": [ASKED], "response1": "a", "response2": "b"}
    rows = [row | {"overall_preference": number} for number in range(-3, 4)]
    data = load_comparisons(jsonl(tmp_path / "my.jsonl", *rows))
    texts = {answer.id: answer.text for answer in data.answers}
    assert "".join(texts[ranking.tiers[0][0]] for ranking in data.rankings) == "aaabbb"
    assert data.ties == 1
    for value, said in ((4, "4"), (0.5, "0.5")):
        message = failure(jsonl(tmp_path / "bad.jsonl", row | {"overall_preference": value}))
        assert message == f'FILE:1: "overall_preference" is {said}. Expected a whole number from -3 to 3'


def test_ms_swift_s_conversations_must_agree(tmp_path: Path) -> None:
    rejected = [{"role": "user", "content": "Bye"}, BAD]
    message = failure(jsonl(tmp_path / "my.jsonl", {"messages": [ASKED, GOOD], "rejected_messages": rejected}))
    assert '"rejected_messages" must be one turn of the assistant, or the prompt\'s turns followed by it' in message


@pytest.mark.parametrize(("row", "asked"), DEMONSTRATIONS)
def test_demonstrations_of_other_tools(tmp_path: Path, row: dict, asked: list[str]) -> None:
    loaded = load(jsonl(tmp_path / "my.jsonl", row), "data.format")
    assert loaded.problems == []
    assert turns(loaded) == asked
    assert loaded.located[0].example.response == "Go."


def test_ties_and_other_prompts_give_no_comparison(tmp_path: Path) -> None:
    tie = {"prompt": "Hi", "response_a": "a", "response_b": "b", "winner": "tie (bothbad)"}
    better = {"prompt": "Ho", "response_a": "a", "response_b": "b", "winner": "model_b"}
    data = load_comparisons(jsonl(tmp_path / "winner.jsonl", tie, better))
    assert (len(data.rankings), data.ties) == (1, 1)
    other = [ASKED, GOOD, {"role": "user", "content": "And?"}, BAD]
    rows = [
        {"conversation_a": other, "conversation_b": [ASKED, BAD, *other[2:]], "winner": "model_a"},
        {"conversation_a": other, "conversation_b": [*other[:3], GOOD], "winner": "model_a"},
    ]
    data = load_comparisons(jsonl(tmp_path / "arena.jsonl", *rows))
    assert data.notes[1] == "Dropped 1 row in which the two conversations differ before the last answer."
    assert len(data.rankings) == 1
    bad = jsonl(tmp_path / "bad.jsonl", {**better, "winner": "model_c"})
    assert failure(bad) == (
        "FILE:1: \"winner\" is 'model_c'. Expected a or model_a or response_a for the first answer, "
        "b or model_b or response_b for the second, tie or tie (bothbad) or both_bad for a tie"
    )


def test_rated_answers_of_one_prompt_become_one_ranking(tmp_path: Path) -> None:
    """HelpSteer's rows, also with ratings as text; a prompt with one answer has nothing to compare."""
    rows = [
        {"prompt": "Hi", "response": "no", "helpfulness": 1, "verbosity": 4},
        {"prompt": "Ho", "response": "alone", "helpfulness": 4},
        {"prompt": "Hi", "response": "best", "helpfulness": "4.0"},
        {"prompt": "Hi", "response": "also", "helpfulness": 1},
    ]
    path = jsonl(tmp_path / "my.jsonl", *rows)
    loaded = load(path, "data.format")
    assert (loaded.format.name, pairs(loaded)) == ("rated", ["best>no", "best>also"])
    data = load_prompt_data(DataConfig(prompts=str(path), held_out=0), seed=0)
    assert {(d.prompt.text, d.response) for d in data.demonstrations} == {("Hi", "best")}, "4 of 4 proves nothing alone"
    assert "Dropped 1 row with the only rated answer to its prompt." in load_comparisons(path).notes


# Columns that change the meaning of a row


@pytest.mark.parametrize("label", [True, "False", 0, "desirable", "undesirable"])
def test_unpaired_answers_are_never_demonstrations(tmp_path: Path, label: object) -> None:
    path = jsonl(tmp_path / "my.jsonl", {"prompt": "Hi", "completion": "BAD", "label": label})
    assert failure(path) == (
        'FILE:1: "label" is not read: unpaired preferences (one answer with a label) are not supported: bad answers '
        "would be imitated. Set data.columns.label=null to ignore it"
    )
    assert load(path, "data.format", columns={"label": None}).located[0].example.response == "BAD"
    csv = tmp_path / "my.csv"
    csv.write_text(f"prompt,completion,label\nHi,BAD,{label}\n")
    table = tmp_path / "my.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["Hi"], "completion": ["BAD"], "label": [label]}), table)
    for file in (csv, table):
        with pytest.raises(UserError, match="unpaired preferences"):
            load_prompt_data(DataConfig(prompts=str(file), held_out=0), seed=0)


UNREAD = {
    "images": ({"messages": [ASKED, GOOD], "images": ["cat.png"]}, "images, videos and sound are not supported"),
    "tools": ({"messages": [ASKED, GOOD], "tools": "[{}]"}, "definitions of tools are not supported"),
    "rating": ({"instruction": "Hi", "output": "x", "rating": 1}, "bad answers would be imitated"),
    "rejected": ({"prompt": "Hi", "response": "x", "rejected": "y"}, "the comparison would be lost"),
    "history": ({"messages": [ASKED, GOOD], "history": [["a", "b"]]}, "the prompt would lack it"),
    "input": ({"prompt": "Hi", "input": "text", "response": "x"}, "the prompt would lack it"),
}


@pytest.mark.parametrize("key", UNREAD)
def test_no_column_with_a_meaning_is_ignored(tmp_path: Path, key: str) -> None:
    row, why = UNREAD[key]
    message = failure(jsonl(tmp_path / "my.jsonl", row))
    assert message.startswith(f'FILE:1: "{key}" is not read: ')
    assert message.endswith(f"{why}. Set data.columns.{key}=null to ignore it")
    empty = load(jsonl(tmp_path / "my.jsonl", row | {key: [] if isinstance(row[key], list) else ""}), "data.format")
    assert empty.ignored == [key]


def test_two_system_messages_and_bad_histories(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be kind."}
    for row, expected in (
        ({"messages": [system, ASKED]} | PIRATE, '"system" differs from the system turn of the conversation. Keep one'),
        ({"prompt": "Hi", "system_prompt": "x"} | PIRATE, '"system", "system_prompt" are both present. Keep one'),
        ({"prompt": "Hi", "history": [["a"]]}, "history[0] must be a list of question and answer, not a list"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
    ):
        message = failure(jsonl(tmp_path / "my.jsonl", row))
        assert message == f"FILE:1: {expected or 'messages[0].content[0] is '}" + (
            "" if expected else "'image_url'. Only text parts are supported"
        )
    assert turns(load(jsonl(tmp_path / "my.jsonl", {"messages": [system, ASKED], "system": "Be kind."}), "f"))[0] == (
        "system Be kind."
    )


def test_prompts_that_differ_in_the_system_message_are_different(tmp_path: Path) -> None:
    rows = [{"system": f"You are a {who}.", "instruction": "Hi", "output": who} for who in ("pirate", "poet")]
    data = load_prompt_data(DataConfig(prompts=str(jsonl(tmp_path / "my.jsonl", *rows)), held_out=0), seed=0)
    assert sorted(demonstration.response for demonstration in data.demonstrations) == ["pirate", "poet"]


# The column map


def test_columns_under_other_names(tmp_path: Path) -> None:
    row = {"frage": "Hi", "antwort": "Hello!", "label": 1, "prompt": "unused"}
    path = jsonl(tmp_path / "my.jsonl", row, row)
    columns = {"prompt": "frage", "response": "antwort", "label": None}
    loaded = load(path, "data.format", columns=columns)
    assert (turns(loaded), loaded.located[0].example.response) == (["user Hi"], "Hello!")
    config = DataConfig(prompts=str(path), held_out=0, columns=columns)
    assert load_prompt_data(config, seed=0).training[0].text == "Hi"
    assert failure(path, columns={"promt": "frage"}) == (
        'data.columns.promt: no format reads this key. Did you mean "prompt"?'
    )
    assert failure(path, columns={"prompt": "Frage"}) == (
        'data.columns.prompt: column "Frage" not found. Columns: antwort, frage, label, prompt'
    )
    path = jsonl(tmp_path / "my.jsonl", {"question": "Hi", "response": "Hello!"})  # fits two formats with both names
    loaded = load(path, "data.format", columns={"prompt": "question"})
    assert (loaded.format.name, loaded.ignored, turns(loaded)) == ("prompt-completion", [], ["user Hi"])


# Prompts inside answers


def test_the_prompt_inside_both_answers_is_split_off(tmp_path: Path) -> None:
    before = "\n\nHuman: Q 0?\n\nAssistant:"
    for prompt in (before, "Q 0?"):
        row = {"prompt": prompt, "chosen": f"{before} good", "rejected": f"{before} bad"}
        assert pairs(load(jsonl(tmp_path / "my.jsonl", row), "f")) == ["good>bad"]
    other = {"prompt": before, "chosen": "\n\nHuman: Q 1?\n\nAssistant: good", "rejected": "bad"}
    assert '"chosen" must be one turn of the assistant, or the prompt' in failure(jsonl(tmp_path / "my.jsonl", other))
    rows = [{"prompt": f"Q {n}?", "chosen": f"Q {n}?\nHuman: x {n}", "rejected": f"Q {n}? bad {n}"} for n in range(3)]
    loaded = load(jsonl(tmp_path / "my.jsonl", *rows), "f")
    assert pairs(loaded) == [f"Human: x {n}>bad {n}" for n in range(3)]
    assert "Every answer began with its prompt, which was split off." in loaded.notes
    rows[2]["rejected"] = "not so"
    assert pairs(load(jsonl(tmp_path / "my.jsonl", *rows), "f"))[0] == "Q 0?\nHuman: x 0>Q 0? bad 0", "not in all"
    assert pairs(load(jsonl(tmp_path / "my.jsonl", rows[0]), "f"))[0] == "Q 0?\nHuman: x 0>Q 0? bad 0", "only one row"


# Files


def test_numbers_as_decimals_and_as_text(tmp_path: Path) -> None:
    path = tmp_path / "my.parquet"
    scores = pyarrow.array([[Decimal("1.50"), Decimal("2.50")]], pyarrow.list_(pyarrow.decimal128(5, 2)))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["Hi"], "responses": [["a", "b"]], "scores": scores}), path)
    assert pairs(load(path, "data.format")) == ["b>a"]
    for order in ({"scores": ["9", "10"]}, {"ranking": ["1", 0.0]}, {"ranks": ["2", "1"]}):
        row = {"prompt": "Hi", "responses": ["a", "b"], **order}
        assert pairs(load(jsonl(tmp_path / "my.jsonl", row), "data.format")) == ["b>a"], order
    row = {"prompt": "Hi", "responses": ["a", "b"], "scores": ["good", "bad"]}
    assert failure(jsonl(tmp_path / "my.jsonl", row)) == "FILE:1: scores[0] must be a finite number, not a string"


def test_a_parquet_column_that_stands_twice(tmp_path: Path) -> None:
    path = tmp_path / "my.parquet"
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
    pyarrow.parquet.write_table(table, path)
    assert failure(path) == 'FILE: duplicate column "prompt". Rename one'


ROWS = [{"prompt": f"Q {n}?", "response": "A"} for n in range(3)]
ONE_OBJECT = [
    json.dumps({"version": 1, "data": ROWS}, indent=1),
    json.dumps({"rows": ROWS}),
    json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}),
    json.dumps({key: {str(n): row[key] for n, row in enumerate(ROWS)} for key in ROWS[0]}, indent=2),  # pandas
]


@pytest.mark.parametrize("content", ONE_OBJECT)
def test_rows_in_one_object(tmp_path: Path, content: str) -> None:
    path = tmp_path / "my.json"
    path.write_text(content)
    assert [row.fields for row, _ in load(path, "data.format").located] == ROWS


def test_one_object_may_be_one_row(tmp_path: Path) -> None:
    path = tmp_path / "my.json"
    for row in ({"prompt": [ASKED], "completion": [GOOD]}, {"messages": [ASKED, GOOD]}):
        path.write_text(json.dumps(row, indent=2))
        assert load(path, "data.format").located[0].example.response == "Hello!"
    path.write_text(json.dumps({"data": [{"prompt": "Hi"}, 7]}))
    assert failure(path) == 'FILE: data: row 2: expected an object like {"prompt": "..."}, got a number'


def test_sources_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pointer = tmp_path / "a.parquet"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert failure(pointer) == "FILE: a Git LFS pointer, not the data. Run `git lfs pull` in its repository"
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.chdir(tmp_path)
    expected = {
        "https://example.org/a.jsonl": "URLs are not read. Download the file and set its path",
        "https://huggingface.co/datasets/Anthropic/hh-rlhf/tree/main": "URLs are not read. Set hub:Anthropic/hh-rlhf",
        "~/a.jsonl": "~ is not expanded. Set /home/anna/a.jsonl",
        "data/*.jsonl": "file not found, and patterns are not expanded. Join the files, and set the path of the result",
        "Anthropic/hh-rlhf": (
            f"file not found. Relative paths start at {tmp_path}. "
            "For a data set of the Hugging Face hub set hub:Anthropic/hh-rlhf"
        ),
        "a.jsonl": f"file not found. Relative paths start at {tmp_path}",
    }
    for source, sentence in expected.items():
        assert failure(source) == f"FILE: {sentence}".replace(source, "FILE")
