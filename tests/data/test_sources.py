"""Rows from every kind of file and from the hub: their fields, and the line of each mistake."""

import csv
import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_rlhf.data.comparisons import load_comparisons
from lowrank_rlhf.data.loading import load
from lowrank_rlhf.data.readers import sources, tables
from lowrank_rlhf.data.readers.hub import HubSource, at_commit, hub_commit, parse_source
from lowrank_rlhf.data.readers.rows import Row
from lowrank_rlhf.data.readers.sources import read_rows
from lowrank_rlhf.data.turns import transcript
from lowrank_rlhf.errors import UserError


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def failure(path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        load(path, "data.format").refuse_bad(0)
    return str(caught.value).replace(f"{path}", "FILE")


# Files


def test_one_table_in_every_kind_of_file(tmp_path: Path) -> None:
    rows = [
        {"prompt": 'Say "yes",\nplease', "chosen": "Yes.", "rejected": "No\u2028way."},
        {"prompt": "Hi", "chosen": "你好，嗨", "rejected": "b"},
    ]
    jsonl(tmp_path / "a.jsonl", *rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.csv"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    places = {
        "a.jsonl": ":2",
        "a.json": ": row 2",
        "a.csv": ":4",
        "a.parquet": ": row 2",
        "a.jsonl.gz": ":2",
        "a.json.gz": ": row 2",
        "a.csv.gz": ":4",
    }
    for name, place in places.items():
        read = read_rows(tmp_path / name)
        assert [row.fields for row in read] == rows, name
        assert read[1].where == f"{tmp_path / name}{place}"


def test_lines_of_a_csv_file_with_breaks_in_quotes_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    text = '\ufeffprompt,response,\r\n"a\r\nb",,x\r\n\r\nHi,"Say ""yes""",\r\nHi\r\n'
    path.write_bytes(text.encode())
    first, second, bad = read_rows(path)
    assert (first.number, first.fields) == (2, {"prompt": "a\nb", "response": None})
    assert (second.where, second.fields) == (f"{path}:5", {"prompt": "Hi", "response": 'Say "yes"'})
    assert bad.problem == f"{path}:6: 1 cells, expected 3. Quote cells that contain commas"


def test_a_text_file_is_a_prompt_per_line(tmp_path) -> None:
    (tmp_path / "my.txt").write_bytes("\ufeff[a tutor] How are you?\r\n\u3000\n  {x} 你好 \n".encode())
    found = read_rows(tmp_path / "my.txt")
    assert [(row.number, row.fields) for row in found] == [
        (1, {"prompt": "[a tutor] How are you?"}),
        (3, {"prompt": "{x} 你好"}),
    ]
    (tmp_path / "rows.txt").write_text('{"prompt": "a"}\n', encoding="utf-8")
    assert [row.fields for row in read_rows(tmp_path / "rows.txt")] == [{"prompt": "a"}]  # JSON lines all the same


BAD_FILES = {
    "a.csv": [
        (b"prompt;response\na;b\n", ":1: only one column. Cells must be separated by commas"),
        (b"prompt,prompt\na,b\n", ':1: duplicate column "prompt". Rename one'),
        (
            b'prompt\na\n"b\nc\n',
            ":3: invalid CSV (unexpected end of data). From this line on a quote is not closed or not doubled",
        ),
        (b"prompt\nHi\nGr\xfc\xdfe\n", ":3: not UTF-8 text. Save the file as UTF-8"),
        (b"prompt\n", ': no rows. Expected one object like {"prompt": "..."} per line'),
        (b'messages\n"[{}]"\n', None),
    ],
    "a.json": [(b'[{"prompt": "a"},\n{"prompt": "\xff"}]', ":2: not UTF-8 text. Save the file as UTF-8")],
    "a.jsonl": [
        (b'{"prompt": "a", "prompt": "b"}', ':1: invalid JSON (duplicate key "prompt")'),
        (b'{"prompt": NaN}', ':1: "prompt" is empty. Fill it in or delete the row'),
    ],
    "a.jsonl.gz": [(gzip.compress(b'{"prompt": "Hi"}')[:-9], None)],
    "a.parquet": [(b"PAR1 nonsense", None)],
    "a.text": [
        (
            b"Hi",
            ": unknown file type. Expected .jsonl, .ndjson, .json, .csv, .parquet, .txt, or one of these with .gz",
        )
    ],
}


@pytest.mark.parametrize(("name", "number"), [(name, n) for name, bad in BAD_FILES.items() for n in range(len(bad))])
def test_bad_files(tmp_path: Path, name: str, number: int) -> None:
    content, expected = BAD_FILES[name][number]
    path = tmp_path / name
    path.write_bytes(content)
    message = failure(path)
    if expected is None:
        parts = {"a.csv": "lists in JSONL or Parquet", "a.jsonl.gz": "the gzip file is damaged", "a.parquet": "Parquet"}
        assert message.startswith("FILE")
        assert parts[name] in message
    else:
        assert message == f"FILE{expected}"


def test_a_gzip_file_is_not_unpacked_beyond_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST_UNPACKED", 2 * 2**20)
    path = tmp_path / "bomb.jsonl.gz"
    row = b'{"prompt": "Hi"}\n'
    path.write_bytes(gzip.compress(row + b" " * (2 * 2**20 - len(row))))
    assert len(read_rows(path)) == 1
    path.write_bytes(gzip.compress(b" " * (2 * 2**20 + 1)))
    assert failure(path) == "FILE: unpacks to more than 2 MiB. Unpack it yourself, or split it"


@pytest.mark.parametrize(
    "column",
    [["x" * 2**20] * 3, list(map(str, range(200_000))), [None] * 50_000],
    ids=["a repeated value", "many values", "many rows"],
)
def test_nor_is_a_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: list[str | None]) -> None:
    path = tmp_path / "bomb.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["Hi"], "n": [1]}), path, compression="zstd")
    monkeypatch.setattr(tables, "MOST_UNPACKED", 2 * 2**20)
    assert len(read_rows(path)) == 1
    pyarrow.parquet.write_table(pyarrow.table({"prompt": column}), path, compression="zstd")
    assert failure(path) == "FILE: unpacks to more than 2 MiB. Split it"


def test_a_cell_that_is_not_text_spoils_a_parquet_file_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"prompt": ["Why do cats purr?"]})
    pyarrow.parquet.write_table(table, path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"Why do", b"Wh\xff do"))
    assert failure(path).startswith("FILE: cannot be read as Parquet (")


def test_columns_of_parquet_that_are_empty_say_nothing(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["Hi", None], "messages": pyarrow.nulls(2), "score": [float("nan"), float("nan")]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert failure(tmp_path / "a.parquet") == 'FILE: row 2: "prompt" is empty. Fill it in or delete the row'
    assert load(tmp_path / "a.parquet", "data.format").ignored == []


# The hub


def test_sources_of_the_hub() -> None:
    assert parse_source("hub:a/b") == HubSource("a/b", None, None, "train")
    assert parse_source("hub:a/b.c/conf@v1.0:test[:10%]") == HubSource("a/b.c", "conf", "v1.0", "test[:10%]")
    for bad in ("hub:a", "hub:a/b:", "hub:../x/y/z", "hub:a/b@"):
        with pytest.raises(UserError, match="expected hub:OWNER/NAME"):
            parse_source(bad)


def test_the_commit_of_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    commits = {("a/b", None): "c" * 40, ("a/b", "v1.0"): "d" * 40}

    def dataset_info(_self, name, *, revision=None):
        return SimpleNamespace(sha=commits[name, revision])  # a KeyError stands for whatever the hub's client raises

    monkeypatch.setattr(huggingface_hub, "HfApi", type("HfApi", (), {"dataset_info": dataset_info}))
    assert hub_commit("hub:a/b") == hub_commit("hub:a/b/conf:test") == "c" * 40
    assert hub_commit("hub:a/b@v1.0:test") == "d" * 40
    assert hub_commit("hub:a/gone") is None
    assert at_commit("hub:a/b", "c" * 40) == f"hub:a/b@{'c' * 40}:train"
    for source in ("hub:a/b/conf@v1.0:test[:10%]", "hub:a/b/conf:test[:10%]"):
        assert parse_source(at_commit(source, "d" * 40)) == HubSource("a/b", "conf", "d" * 40, "test[:10%]")


def test_rows_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*names, **settings):
        asked.append((names, settings))
        return datasets.Dataset.from_list([{"prompt": "Hi", "chosen": "a", "rejected": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_comparisons("hub:a/b@main:test")
    assert asked == [(("a/b", None), {"revision": "main", "split": "test"})]
    assert data.notes[0].startswith("Read 1 row of hub:a/b@main:test in the preference format")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("Couldn't reach it\nmore"),
            "the hub cannot be reached (Couldn't reach it). Download the file",
        ),
        (ValueError('Unknown split "x".'), 'hub:a/b: Unknown split "x".'),
        (datasets.exceptions.DatasetNotFoundError("no a/b"), "data set not found, or it requires a login (no a/b)"),
    ],
)
def test_failures_of_the_hub(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def load_dataset(*_names, **_settings):
        raise error

    monkeypatch.setitem(
        sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, exceptions=datasets.exceptions)
    )
    assert message in failure("hub:a/b").replace("FILE", "hub:a/b")


# Round trips

SAID = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text.strip() == text and text and "Human:" not in text and "Assistant:" not in text
)


@given(st.lists(st.tuples(SAID, SAID), min_size=1, max_size=4))
def test_transcripts_come_back_turn_by_turn(exchanges: list[tuple[str, str]]) -> None:
    text = "".join(f"\n\nHuman: {asked}\n\nAssistant: {answered}" for asked, answered in exchanges)
    turns = transcript(Row(1, "my.jsonl:1", {}), "chosen", text)
    assert [turn.content for turn in turns] == [said for exchange in exchanges for said in exchange]
    assert [turn.role for turn in turns] == ["user", "assistant"] * len(exchanges)


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")).filter(str.strip)


@given(st.lists(st.fixed_dictionaries({"prompt": CELL, "chosen": CELL}), min_size=1, max_size=5))
def test_cells_of_csv_come_back_with_the_line_they_begin_on(tmp_path_factory, rows: list[dict[str, str]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "chosen"], quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    read = read_rows(path)
    assert [row.fields for row in read] == rows
    line = 2
    for row, fields in zip(read, rows, strict=True):
        assert row.number == line
        line += 1 + sum(cell.count("\n") for cell in fields.values())
