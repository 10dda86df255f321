"""Data in axolotl's shapes, by the names of its documentation: each has the right value, or names the column map."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lowrank_rlhf.config.data import Columns
from lowrank_rlhf.config.schema import DataConfig
from lowrank_rlhf.data.comparisons import load_comparisons
from lowrank_rlhf.data.loading import Loaded, load
from lowrank_rlhf.data.prompts import load_prompt_data
from lowrank_rlhf.errors import UserError

ASKED, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hello!"), ("assistant", "What?"))
)
PIRATE = {"system": "You are a pirate."}
PAIR = {"chosen": "Hello!", "rejected": "What?"}
SYSTEM_AND_USER, USER = ["system You are a pirate.", "user Hi"], ["user Hi"]

PREFERENCES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "chat_template.default": (
        {"messages": [{"role": "system", "content": "You are a pirate."}, ASKED], "chosen": GOOD, "rejected": BAD},
        "messages-preference",
        SYSTEM_AND_USER,
    ),
    "chatml.argilla": (
        {"instruction": "Hi", "chosen_response": "Hello!", "rejected_response": "What?"} | PIRATE,
        "argilla",
        SYSTEM_AND_USER,
    ),
    "chatml.argilla_chat": ({"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, "implicit-preference", USER),
    "chatml.intel": ({"question": "Hi"} | PAIR | PIRATE, "question-preference", SYSTEM_AND_USER),
    "chatml.prompt_pairs": ({"prompt": "Hi"} | PAIR | PIRATE, "preference", SYSTEM_AND_USER),
    "chatml.ultra": (
        {"prompt": "Hi", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]} | PIRATE,
        "preference",
        SYSTEM_AND_USER,
    ),
}
DEMONSTRATIONS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "chat_template": ({"messages": [ASKED, GOOD]}, "messages", USER),
    "chat_template with weights": (
        {"messages": [ASKED, BAD | {"weight": 0}, ASKED | {"weight": 0}, GOOD | {"weight": 1}]},
        "messages",
        ["user Hi", "assistant What?", "user Hi"],
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
        "sharegpt",
        USER,
    ),
    "alpaca": ({"instruction": "Hi", "input": "", "output": "Hello!"}, "alpaca", USER),
    "orcamini": ({"instruction": "Hi", "output": "Hello!"} | PIRATE, "alpaca", SYSTEM_AND_USER),
    "alpaca_chat.load_qa": ({"question": "Hi", "answer": "Hello!"}, "question", USER),
}
MAPPED: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "chatml.icr": ({"input": "Hi"} | PAIR, {"prompt": "input"}),
    "conversation": ({"conversation": [ASKED]} | PAIR, {"prompt": "conversation"}),
    "summarizetldr": ({"article": "Hi", "summary": "Hello!"}, {"prompt": "article", "response": "summary"}),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    **{name: (row, "data.columns.prompt=COLUMN") for name, (row, _) in MAPPED.items()},
    "completion": ({"text": "Once upon a time"}, "data.columns.prompt=COLUMN"),
    "input_output": ({"segments": [{"label": True, "text": "Hello!"}]}, "data.columns.prompt=COLUMN"),
    "stepwise_supervised": ({"prompt": "Hi", "completions": ["a"], "labels": [True]}, "data.columns.completion"),
    "kto": ({"prompt": "Hi", "completion": "What?", "label": False}, "unpaired preferences"),
    "chat_template, not to be trained": (
        {"messages": [ASKED, BAD | {"weight": 0}]},
        "messages[1] has weight 0, but only responses of weight 1 are supported. Delete the row, or its weight",
    ),
    "chat_template with thoughts": (
        {"messages": [ASKED, GOOD | {"reasoning_content": "A greeting."}]},
        "has role, content, reasoning_content. Write thoughts into the text as the model does",
    ),
}


def read(folder: Path, row: dict[str, Any], columns: dict[str, str] | None = None) -> Loaded:
    path = folder / "my.jsonl"
    path.write_text(f"{json.dumps(row)}\n" * 2)
    loaded = load(path, "data.format", columns=Columns(**columns) if columns else None)
    loaded.refuse_bad(0)
    return loaded


def asked(loaded: Loaded) -> list[str]:
    return [f"{turn.role} {turn.content}" for turn in loaded.located[0].example.prompt]


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_of_axolotl(tmp_path: Path, name: str) -> None:
    row, form, turns = PREFERENCES[name]
    loaded = read(tmp_path, row)
    assert (loaded.format.name, asked(loaded), loaded.ignored) == (form, turns, [])
    assert loaded.located[0].example.pairs == [("Hello!", "What?")]


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_demonstrations_of_axolotl(tmp_path: Path, name: str) -> None:
    row, form, turns = DEMONSTRATIONS[name]
    loaded = read(tmp_path, row)
    assert (loaded.format.name, asked(loaded), loaded.ignored) == (form, turns, [])
    assert loaded.located[0].example.response == "Hello!"


@pytest.mark.parametrize("name", REFUSED)
def test_other_shapes_of_axolotl_are_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    row, message = REFUSED[name]
    with pytest.raises(UserError) as caught:
        read(tmp_path, row)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"messages": [ASKED, BAD | {"weight": 0}]}, "messages[1]"),
        ({"chosen": [ASKED, GOOD | {"weight": 0}], "rejected": [ASKED, BAD]}, "chosen[1]"),
        ({"prompt": "Hi", "chosen": GOOD | {"weight": 0}, "rejected": BAD}, "chosen"),
    ],
)
def test_weight_0_is_refused_only_where_the_answer_is_imitated(tmp_path: Path, row: dict[str, Any], key: str) -> None:
    data = DataConfig(prompts=str(tmp_path / "my.jsonl"), held_out=0)
    (tmp_path / "my.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=re.escape(f"{key} has weight 0, but only")):
        load_prompt_data(data, seed=0)
    assert load_prompt_data(data, seed=0, imitated=False).training[0].text == "Hi"
    if "chosen" in row:
        assert load_comparisons(tmp_path / "my.jsonl").rankings


def test_weight_0_of_the_rejected_answer_and_of_the_history_is_no_matter(tmp_path: Path) -> None:
    before = [ASKED, BAD | {"weight": 0}]
    row = {"history": before, "prompt": "Hi", "chosen": [GOOD], "rejected": [BAD | {"weight": 0}]}
    assert read(tmp_path, row).located[0].example.imitated == "Hello!"


@pytest.mark.parametrize("name", MAPPED)
def test_the_column_map_reads_them(tmp_path: Path, name: str) -> None:
    row, columns = MAPPED[name]
    loaded = read(tmp_path, row, columns)
    assert asked(loaded) == USER
    example = loaded.located[0].example
    assert example.pairs == [("Hello!", "What?")] if "chosen" in row else example.response == "Hello!"
