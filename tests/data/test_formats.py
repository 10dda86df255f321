"""Every format: detection, conversion of rows, and positions of mistakes."""

import gzip
import json
from pathlib import Path
from typing import get_args

import pytest
from marks import done
from tiny_run import STAGES, make_config

from lowrank_rlhf.config.schema import Config, DataConfig, FormatName, ModelConfig, RankConfig
from lowrank_rlhf.data.comparisons import load_comparisons, without_prompts
from lowrank_rlhf.data.formats import BY_NAME, FORMATS
from lowrank_rlhf.data.loading import load
from lowrank_rlhf.data.prompts import load_prompt_data
from lowrank_rlhf.data.run_data import RunData
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline.pipeline import run
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Message, Prompt

HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello!"}
GO = {"role": "assistant", "content": "Go."}
LONG = [{"role": "system", "content": "Be kind."}, HI, HELLO, {"role": "user", "content": "And?"}]
CHAT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}, {"from": "human", "value": "And?"}]
HH = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: And?\n\nAssistant:"
# Row, format, the prompt's turns as "role content", the response, pairs (better, worse).
ONE_TURN = ["user Hi"]
TURNS = ["user Hi", "assistant Hello!", "user And?"]
CASES = [
    ({"prompt": "Hi"}, "prompt-completion", ONE_TURN, None, []),
    ({"prompt": "Hi", "completion": "Go."}, "prompt-completion", ONE_TURN, "Go.", []),
    ({"prompt": [HI], "completion": [GO]}, "prompt-completion", ONE_TURN, "Go.", []),
    ({"prompt": HH, "response": "Go."}, "prompt-completion", TURNS, "Go.", []),
    ({"messages": LONG}, "messages", ["system Be kind.", *TURNS], None, []),
    ({"messages": [*LONG, GO]}, "messages", ["system Be kind.", *TURNS], "Go.", []),
    ({"instruction": "Hi", "input": "", "output": "Go."}, "alpaca", ONE_TURN, "Go.", []),
    ({"instruction": "Hi", "input": "you", "output": "Go."}, "alpaca", ["user Hi\n\nyou"], "Go.", []),
    ({"conversations": CHAT}, "sharegpt", TURNS, None, []),
    ({"conversations": [*CHAT, {"from": "gpt", "value": "Go."}]}, "sharegpt", TURNS, "Go.", []),
    ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, "preference", ONE_TURN, None, ["a>b"]),
    ({"prompt": LONG[1:], "chosen": [HELLO], "rejected": [GO]}, "preference", TURNS, None, ["Hello!>Go."]),
    ({"prompt": "Hi", "chosen": [HI, HELLO], "rejected": [HI, GO]}, "preference", ONE_TURN, None, ["Hello!>Go."]),
    (
        {"chosen": [*LONG[1:], HELLO], "rejected": [*LONG[1:], GO]},
        "implicit-preference",
        TURNS,
        None,
        ["Hello!>Go."],
    ),
    (
        {"chosen": f"{HH} He wrote\nHuman: x", "rejected": f"{HH} No."},
        "hh-rlhf",
        TURNS,
        None,
        ["He wrote\nHuman: x>No."],
    ),
    # The two answers begin alike: the prompt ends with the turn, not with the first character that differs.
    ({"chosen": f"{HH} blue.", "rejected": f"{HH} black."}, "hh-rlhf", TURNS, None, ["blue.>black."]),
    (
        {"prompt": "Hi", "responses": ["a", "b", "c"], "ranking": [2, [0, 1]]},
        "ranked",
        ONE_TURN,
        None,
        ["c>a", "c>b"],
    ),
    ({"prompt": "Hi", "responses": ["a", "b", "c"], "ranking": [1, 0]}, "ranked", ONE_TURN, None, ["b>a"]),
    ({"prompt": "Hi", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]}, "ranked", ONE_TURN, None, ["b>a", "b>c"]),
    ({"prompt": "Hi", "responses": ["a", "b"], "scores": [-1, 0.5]}, "ranked", ONE_TURN, None, ["b>a"]),
    ({"prompt": "Hi", "responses": ["a", "a", "b"], "scores": [1, 1, 0]}, "ranked", ONE_TURN, None, ["a>b"]),
    (
        {"instruction": "Hi", "input": "", "response1": "a", "response2": "b"}
        | {f"annotator{n}": vote for n, vote in enumerate((2, 0, 2), 1)},
        "pandalm",
        ONE_TURN,
        None,
        ["b>a"],
    ),
]


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def failure(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path, "data.format").refuse_bad(0)
    return str(caught.value).replace(f"{path}", "FILE")


@pytest.mark.parametrize(("row", "name", "turns", "response", "pairs"), CASES)
def test_every_format(tmp_path: Path, row: dict, name: str, turns: list, response: str | None, pairs: list) -> None:
    loaded = load(jsonl(tmp_path / "my.jsonl", row), "data.format")
    assert (loaded.format.name, loaded.problems) == (name, [])
    [(_, example)] = loaded.located
    assert [f"{message.role} {message.content}" for message in example.prompt] == turns
    assert example.response == response
    assert [f"{better}>{worse}" for better, worse in example.pairs] == pairs
    assert load(tmp_path / "my.jsonl", "data.format", name).located == loaded.located


def test_formats_are_those_of_the_config_and_of_the_documentation(tmp_path: Path) -> None:
    assert tuple(BY_NAME) == get_args(FormatName)
    page = (Path(__file__).parents[2] / "docs/data-formats.md").read_text("utf-8")
    for entry in FORMATS:
        assert f"| `{entry.name}` | `{entry.example}` |" in page
        found = load(jsonl(tmp_path / "my.jsonl", json.loads(entry.example)), "data.format")
        assert (found.format.name, found.problems) == (entry.name, [])


BAD_ROWS = [
    ({"prompt": "Hi", "chosen": "", "rejected": "b"}, ':1: "chosen" is empty. Fill it in or delete the row'),
    ({"prompt": "Hi", "chosen": None, "rejected": "b"}, ':1: "chosen" is empty. Fill it in or delete the row'),
    (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Ho\n\nAssistant: b"},
        ':1: "chosen" and "rejected" differ from turn 1 on. All turns up to the assistant\'s last one must be the same',
    ),
    (
        {"chosen": "\n\nHuman: Hi\n\nHuman: \n\nAssistant: a", "rejected": f"{HH} b"},
        ':1: turn 2 of "chosen" (user) is empty. Correct or delete the row',
    ),
    ({"chosen": HH, "rejected": f"{HH} b"}, ':1: "chosen" is empty. Fill it in or delete the row'),
    (
        {"chosen": "\n\nHuman: Hi", "rejected": f"{HH} b"},
        ':1: "chosen" must end with the assistant\'s answer, but ends with the user',
    ),
    (
        {"prompt": "Hi", "chosen": [HI, HI, HELLO], "rejected": [GO]},
        ':1: "chosen" must be one turn of the assistant, or the prompt\'s turns followed by it; '
        "it has 3: user, user, assistant",
    ),
    ({"conversations": [{"from": "robot", "value": "x"}]}, None),
    ({"messages": [{"role": "user", "content": "Hi", "tool_calls": [1]}]}, None),
    (
        {"prompt": "Hi", "responses": ["a", "b"], "ranking": [1, 2]},
        ':1: "ranking" contains 2. Expected positions in "responses", from 0 to 1',
    ),
    ({"prompt": "Hi", "responses": ["a", "b"], "ranking": [1, 1]}, ':1: "ranking" contains a response twice'),
    ({"prompt": "Hi", "responses": ["a", "b"], "scores": [1]}, ':1: 1 "scores" for 2 responses'),
    (
        {"prompt": "Hi", "responses": ["a", "b"], "scores": [1, float("inf")]},
        ":1: scores[1] must be a finite number, not a number",
    ),
    (
        {"prompt": "Hi", "responses": ["a", "b"], "scores": [1, 2], "ranks": [1, 2]},
        ':1: expected one of "ranking", "ranks", "scores", got "ranks", "scores"',
    ),
    (
        {"prompt": "Hi", "responses": ["a", "a"], "scores": [1, 2]},
        ":1: the same response has two ranks. Give equal responses the same rank",
    ),
    ({"prompt": "Hi", "response": "a", "completion": "b"}, ':1: "response", "completion" are both present. Keep one'),
    ({"prompt": "Hi", "completion": "x", "label": False}, None),
    ({"chosen": "a", "rejected": "b"}, None),
]
IN_PART = {
    7: "conversations[0].from is 'robot'",
    8: "tool_calls",
    16: "unpaired preferences",
    17: "Name its column: data.columns.prompt=COLUMN",
}


@pytest.mark.parametrize("number", range(len(BAD_ROWS)))
def test_bad_rows(tmp_path: Path, number: int) -> None:
    row, expected = BAD_ROWS[number]
    message = failure(jsonl(tmp_path / "my.jsonl", row))
    if expected is None:
        assert message.startswith("FILE:1: ")
        assert IN_PART[number] in message
    else:
        assert message == f"FILE{expected}"


# Detection


def test_two_formats_that_fit_are_an_error(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "chosen": [HI, HELLO], "rejected": [HI, GO], "messages": [HI, HELLO]}
    path = jsonl(tmp_path / "ultra.jsonl", row, row)
    assert failure(path) == (
        'FILE: the rows fit 2 formats (messages reads "messages"; preference reads "prompt", "chosen", '
        '"rejected"). Choose one: data.format=messages or preference'
    )
    assert load(path, "data.format", "messages").located[0].example.response == "Hello!"
    assert len(load_comparisons(path).rankings) == 2, "only one of the two contains comparisons"


def test_rows_from_all_over_the_file_count(tmp_path: Path) -> None:
    good = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    path = jsonl(tmp_path / "my.jsonl", {"prompt": "Hi"}, *[good] * 98, {"text": "Hi"})
    loaded = load(path, "data.format")
    assert (loaded.format.name, loaded.why) == ("preference", '98 of 100 rows have "prompt", "chosen", "rejected"')
    assert [problem.replace(str(path), "") for problem in loaded.problems] == [
        ":1: no chosen, rejected, which preference needs. Keys found: prompt",
        ":100: no prompt, chosen, rejected, which preference needs. Keys found: text",
    ]
    mixed = jsonl(tmp_path / "mixed.jsonl", *[good] * 6, *[{"messages": [HI, HELLO]}] * 4)
    assert failure(mixed) == (
        "FILE: the rows have different formats: 6 rows as preference (first: FILE:1), "
        "4 rows as messages (first: FILE:7). Split the file, or set data.format"
    )


def test_a_row_of_neither_mixed_format_is_named(tmp_path: Path) -> None:
    rows = {"messages": [HI, HELLO]}, {"a": "c"}, {"prompt": "hi"}
    loaded = load(jsonl(tmp_path / "my.jsonl", *rows), "data.format")
    assert [problem.rpartition("my.jsonl")[2] for problem in loaded.problems] == [
        ":2: no prompt, which prompt-completion needs. Keys found: a"
    ]


def test_ignored_keys_and_typos(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "my.jsonl", {"prompt": "Hi", "prompt_id": 3, "source": "x"})
    assert load(path, "data.format").notes[1] == "Ignored the keys prompt_id, source."
    path = jsonl(tmp_path / "my.jsonl", {"prompt": "Hi"}, {"prompt": "Ho", "compltion": "x"})
    assert failure(path) == (
        'FILE:2: unknown key "compltion". Did you mean "completion"? '
        "Set data.columns.completion=compltion, or data.columns.completion=null to ignore it"
    )
    path = jsonl(tmp_path / "my.jsonl", {"promt": "Hi"})
    assert failure(path).startswith('FILE:1: unknown format. Keys found: promt. "promt": Did you mean "prompt"?')


def test_comparisons_need_an_order(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "my.jsonl", {"prompt": "Hi", "completion": "x"})
    with pytest.raises(UserError, match="this looks like prompt-completion, which contains no ranked answers"):
        load_comparisons(path)
    with pytest.raises(UserError, match=r"rank\.format: prompt-completion contains no ranked answers"):
        load_comparisons(path, "prompt-completion")


# Bad rows and what is left out


def test_bad_rows_are_skipped_only_up_to_the_set_share(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}", "chosen": "a", "rejected": "b"} for n in range(200)]
    rows[136]["chosen"] = ""
    path = jsonl(tmp_path / "prefs.jsonl", *rows)
    empty = f'{path}:137: "chosen" is empty. Fill it in or delete the row'
    with pytest.raises(UserError) as caught:
        load_comparisons(path)
    assert str(caught.value) == f"{empty}\nCorrect these rows, or leave them out: data.skip_bad_rows=0.01"
    data = load_comparisons(path, skip_bad_rows=0.005)
    assert len(data.rankings) == 199
    assert data.notes[1] == f"Left out 1 bad row; the first: {empty}"
    with pytest.raises(UserError) as caught:
        load_comparisons(path, skip_bad_rows=0.004)
    assert str(caught.value) == f"{empty}\n1 of 200 rows are bad, more than data.skip_bad_rows=0.004 allows"
    path.write_text(path.read_text() + "{broken\n" * 9)
    with pytest.raises(UserError, match=r"(?s):204: invalid JSON.*and 5 more bad rows, of 209 rows in all"):
        load_comparisons(path)


def test_prompts_of_preferences(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n // 2}", "chosen": f"good {n}", "rejected": "bad"} for n in range(20)]
    path = jsonl(tmp_path / "prefs.jsonl", *rows)
    data = load_prompt_data(DataConfig(prompts=str(path), held_out=4), seed=1)
    assert (len(data.training), len(data.held_out)) == (6, 4)
    assert all(d.response == f"good {2 * int(d.prompt.text.split()[1])}" for d in data.demonstrations)
    assert data.notes[1:] == ["Left out 10 rows whose prompt another row has too."]
    assert data.training_notes == [
        "The demonstrations are the preferred answers.",
        "6 training prompts, 6 of them with a response.",
    ]
    kept = without_prompts(load_comparisons(path), data.held_out)
    texts = {prompt.text for prompt in kept.prompts}
    assert texts == {prompt.text for prompt in data.training}
    assert len(kept.rankings) == 12
    assert {answer.prompt_id for answer in kept.answers} == {prompt.id for prompt in kept.prompts}
    assert kept.notes[-1] == "Left out 8 rankings of 4 prompts that data.held_out keeps from all training."
    rank = RankConfig(source="dataset", dataset=str(path))
    data = DataConfig(prompts=str(path), held_out=4)
    config = Config(name="a", model=ModelConfig(source="none"), data=data, rank=rank, seed=1)
    assert {prompt.text for prompt in RunData(config).comparisons.prompts} == texts
    assert without_prompts(kept, [Prompt(id="x", messages=(Message(role="user", content="Else"),))]) is kept


# All stages


@pytest.mark.parametrize("source", ["dataset", "judge"])
def test_conversations_of_several_turns_in_every_stage(tiny_folder, tmp_path: Path, source: str) -> None:
    rows = []
    for n in range(20):
        before = f"\n\nHuman: question {n}\n\nAssistant: answer\n\nHuman: and the point?\n\nAssistant:"
        rows.append({"chosen": f"{before} kind answer", "rejected": f"{before} that is"})
    path = tmp_path / "hh.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    of_rank = {"rank__source": source} | ({"rank__dataset": str(path)} if source == "dataset" else {})
    config = make_config(tiny_folder(), path, model__max_length=110, **of_rank)
    run_dir = run(config, tmp_path, progress=Progress.silent())
    assert [name for name in STAGES if done(run_dir, name)] == [
        name for name in STAGES if name != "sample" or source == "judge"
    ]
    prompts = [json.loads(line) for line in run_dir.artifact("prompts.jsonl").read_text().splitlines()]
    assert len(prompts) == (15 if source == "dataset" else 8), "held-out prompts are not ranked"
    assert {len(prompt["messages"]) for prompt in prompts} == {3}
