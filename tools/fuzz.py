"""Damaged configs, data files and annotations: each must be read, or refused with a `UserError` that can be printed.

    make fuzz
    .venv/bin/python tools/fuzz.py --seconds 300 --seed 7

Good inputs are damaged in their bytes and in their structure. What breaks a reader is printed and kept in FOLDER.
"""

import argparse
import gzip
import io
import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import pyarrow
import pyarrow.parquet
from ruamel.yaml import YAML

from lowrank_rlhf.config.loading import load_config, preset_folder
from lowrank_rlhf.config.schema import DataConfig
from lowrank_rlhf.data.comparisons import load_comparisons
from lowrank_rlhf.data.formats import FORMATS
from lowrank_rlhf.data.prompts import load_prompts
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline.preflight import problems
from lowrank_rlhf.preferences.contents import Contents
from lowrank_rlhf.preferences.export_file import Header
from lowrank_rlhf.preferences.import_file import read_rows
from lowrank_rlhf.preferences.import_plan import plan_import

SLOW_SECONDS = 10.0
"""No reader may take longer for the few kilobytes that there are."""
LONGEST_MESSAGE = 20_000
NASTY: tuple[Any, ...] = (
    *(None, True, 0, -1, 0.5, 10**30, 1e308, float("nan"), float("inf")),
    *(
        "",
        " ",
        "\x00",
        "\ud800",
        "\u202e",
        "\x1b[2J",
        "x" * 3000,
        "1" * 5000,
        "~",
        "/",
        "../../etc/passwd",
        "builtin:x",
    ),
    *("\n\nHuman: ", "=1+1", [], {}, [[]], [None], {"": ""}, {"role": "user"}, [{"role": "user", "content": None}]),
)
PIECES = (
    *(b"\xef\xbb\xbf", b"\xff", b"\x00", b"\r", b"\n\n", b'"', b"'", b"{", b"[" * 3000, b"&a ", b"*a", b"!!python/x"),
    *(b": ", b"- ", b",,", b"\\ud800", b"NaN", b"1e999", b"<<: ", b"%YAML 9", b"---\n", b"\xe2\x80\xa8", b"\x1f\x8b"),
)
Reader = Callable[[Path], object]


def read_config(path: Path) -> None:
    load_config(path, ("ppo.kl_coef=0.1",), problems)


def read_prompts(path: Path) -> None:
    load_prompts(DataConfig(prompts=str(path), held_out=0), seed=1)


def read_annotations(path: Path) -> None:
    plan_import(Contents(), read_rows(path), new_items=True)


def seeds() -> list[tuple[str, bytes, tuple[Reader, ...]]]:
    """Good inputs: what the file's name ends with, its content, and who reads it."""
    found = [(".yaml", path.read_bytes(), (read_config,)) for path in sorted(preset_folder().glob("*.yaml"))]
    for form in FORMATS:
        rows = [json.loads(form.example)] * 3
        if "helpfulness" in rows[0]:  # one row per answer: equal ratings alone make no comparison
            rows = [row | {"response": f"{row['response']} {n}", "helpfulness": n} for n, row in enumerate(rows)]
        content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
        readers: tuple[Reader, ...] = (read_prompts, load_comparisons) if form.ordered else (read_prompts,)
        found.append((".jsonl", content, readers))
        found += [(".json", json.dumps(rows).encode(), readers), (".parquet", as_parquet(rows), readers)]
        found.append((".jsonl.gz", gzip.compress(content, mtime=0), readers))
    found.append((".csv", b'prompt,response,id\nHi,"a ""b"",\nc",1\nHo,d,2\n', (read_prompts,)))
    return [*found, (".jsonl", annotations(), (read_annotations,))]


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    into = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), into)
    return into.getvalue()


def annotations() -> bytes:
    rows = [
        {"kind": "header", **Header().model_dump()},
        {"kind": "prompt", "id": "p", "messages": [{"role": "user", "content": "Hi"}]},
        *({"kind": "answer", "id": f"p-{k}", "prompt_id": "p", "text": f"answer {k}"} for k in range(3)),
        {
            "kind": "ranking",
            "prompt_id": "p",
            "tiers": [["p-0"], ["p-1", "p-2"]],
            "annotator": "ann",
            "withdrawn": False,
        },
        {"kind": "skip", "annotator": "bob", "prompt_id": "p"},
        {"prompt": "Hi", "chosen": "answer 0", "rejected": "answer 1", "prompt_id": "p", "chosen_id": "p-0"}
        | {"rejected_id": "p-1", "annotator": "cat", "tier_gap": 1},
    ]
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def damaged(suffix: str, content: bytes, chance: random.Random) -> bytes:
    """The content after one to four damages, of its structure where it has one, and of its bytes."""
    if suffix.endswith(".gz") and chance.random() < 0.7:
        return gzip.compress(damaged(".jsonl", gzip.decompress(content), chance), mtime=0)
    for _ in range(chance.randint(1, 4)):
        if suffix in STRUCTURED and chance.random() < 0.6:
            content = STRUCTURED[suffix](content, chance)
        else:
            content = with_other_bytes(content, chance)
    return content


def with_other_bytes(content: bytes, chance: random.Random) -> bytes:
    first, last = sorted(chance.choices(range(len(content) + 1), k=2))
    middle = {
        "cut": b"",
        "twice": content[first:last] * 2,
        "piece": chance.choice(PIECES),
        "flip": bytes(byte ^ 1 << chance.randrange(8) for byte in content[first:last][:1]) + content[first + 1 : last],
        "shuffled": bytes(chance.sample(content[first:last], last - first)),
    }
    return content[:first] + middle[chance.choice(list(middle))] + content[last:]


def with_other_values(value: Any, chance: random.Random) -> Any:
    """One place in what JSON or YAML holds is replaced, renamed, removed or repeated."""
    if not value or not isinstance(value, dict | list) or chance.random() < 0.2:
        return chance.choice(NASTY)
    if isinstance(value, list):
        place = chance.randrange(len(value))
        other = with_other_values(value[place], chance)
        return chance.choice(([*value[:place], other, *value[place + 1 :]], value[:place], value * 2))
    key = chance.choice(list(value))
    rest = {name: entry for name, entry in value.items() if name != key}
    changes = ({**value, key: with_other_values(value[key], chance)}, rest, {**rest, f"{key}s": value[key]})
    return chance.choices(changes, (8, 1, 1))[0]


def json_lines(content: bytes, chance: random.Random) -> bytes:
    lines = content.split(b"\n")
    place = chance.randrange(len(lines))
    try:
        lines[place] = json.dumps(with_other_values(json.loads(lines[place]), chance)).encode()
    except (ValueError, RecursionError):
        return content  # damaged already
    return b"\n".join(lines)


def yaml_text(content: bytes, chance: random.Random) -> bytes:
    into = io.BytesIO()
    try:
        YAML(typ="safe", pure=True).dump(with_other_values(YAML(typ="safe", pure=True).load(content), chance), into)
    except Exception:  # of the library that makes the input, which is damaged already
        return content
    return into.getvalue()


STRUCTURED = {".jsonl": json_lines, ".json": json_lines, ".yaml": yaml_text}


def complaint(reader: Reader, path: Path) -> str | None:
    """What is wrong with how the reader took the file; None where it read or refused it well."""
    start = time.monotonic()
    try:
        reader(path)
    except UserError as error:
        said = str(error)
        try:
            said.encode()
        except UnicodeEncodeError:
            return f"its message cannot be printed: {said!a:.300}"
        if len(said) > LONGEST_MESSAGE:
            return f"its message has {len(said):,} characters: {said:.300}"
    except Exception:
        return traceback.format_exc()
    took = time.monotonic() - start
    return f"took {took:.0f} s" if took > SLOW_SECONDS else None


def inputs(seed: int) -> Iterator[tuple[str, bytes, Reader]]:
    """Without end: suffix, content and reader; the same for the same seed."""
    chance, good = random.Random(seed), seeds()
    while True:
        suffix, content, readers = chance.choice(good)
        yield suffix, damaged(suffix, content, chance), chance.choice(readers)


def fuzz(seconds: float, seed: int, folder: Path, most: int | None = None) -> int:
    """Try inputs for so long, or so many; 1 at the first that breaks a reader, else 0."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    number = 0
    for number, (suffix, content, reader) in enumerate(inputs(seed), 1):
        path = folder / f"input{suffix}"
        path.write_bytes(content)  # there, should the process itself die of it
        if wrong := complaint(reader, path):
            kept = path.rename(folder / f"broke-{seed}-{number}{suffix}")
            print(f"{reader.__name__} of {kept} (seed {seed}, input {number}):\n{content[:2000]!r}\n{wrong}")
            return 1
        path.unlink()
        if number == most or time.monotonic() - start > seconds:
            break
    print(f"{number:,} inputs, seed {seed}: each was read, or refused with a message")
    return 0


def main() -> int:
    about, _, usage = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=about, epilog=usage, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0, help="how long to go on (180)")
    parser.add_argument("--seed", type=int, default=1, help="another seed tries other inputs (1)")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="where what breaks a reader is kept")
    chosen = parser.parse_args()
    return fuzz(chosen.seconds, chosen.seed, chosen.folder)


if __name__ == "__main__":
    sys.exit(main())
