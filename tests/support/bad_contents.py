"""More of the corpus of bad inputs: damaged, enormous and hostile files, and links to other places."""

import gzip
import io
import json

import pyarrow
import pyarrow.parquet
from bad_inputs import GOOD, ROWS, Case
from golden import FOLDER
from safetensors.numpy import load_file, save

ESCAPE = "\x1b[2J"
"""Clears a terminal that it is written to."""
LONG = "x" * 300
"""No disk has a file with so long a name."""
_NAMED = "name: a\nmodel: {source: ./m}\n"
_LLAMA = '{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, %s}'
_MODEL = {f"model/{path.name}": path.read_bytes() for path in (FOLDER / "model").iterdir()}
_SFT = FOLDER / "runs/golden/adapters/sft"
_FOREIGN = load_file(_SFT / "adapter_model.safetensors")


def _no_rows() -> bytes:
    into = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), into)
    return into.getvalue()


def _config(name: str, more: str | bytes, *says: str, **case: object) -> Case:
    text = GOOD.encode() + (more.encode() if isinstance(more, str) else more)
    return Case(name, "validate my.yaml", says, {"my.yaml": text}, **case)  # type: ignore[arg-type]


def _data(name: str, file: str, content: str | bytes, *says: str) -> Case:
    config = GOOD + f"data: {{prompts: {file}, held_out: 2}}\n"
    return Case(name, "run my.yaml", says, {"my.yaml": config, file: content})


def _tiny(name: str, more: str, files: dict[str, str | bytes], *says: str) -> Case:
    """A run on a tiny model, up to its sft stage."""
    model = "model: {source: model, device: cpu, threads: 1, compute_dtype: float32, max_length: 60}"
    text = f"name: a\n{model}\nlora: {{rank: 4, alpha: 8}}\nsample: {{max_new_tokens: 6}}\n{more}"
    return Case(name, "run my.yaml --until sft", says, {"my.yaml": text, **_MODEL, **files})


_MARK = {"fingerprint": {"settings": {}, "inputs": {}}, "seconds": 1.0, "summary": {}}


def _mark(name: str, *says: str, **changed: object) -> Case:
    """A done mark that was edited."""
    mark = json.dumps({**_MARK, **changed})
    return Case(name, "status a", says, {"runs/a/config.yaml": GOOD, "runs/a/done/sft.json": mark})


_MARKS = [
    _mark(
        "a mark's seconds", "runs/a/done/sft.json: seconds: Input should be a valid number", "delete it", seconds="x"
    ),
    _mark("a mark's endless seconds", "runs/a/done/sft.json: seconds: Input should be a finite", seconds=float("inf")),
    _mark("a mark's figures", "runs/a/done/sft.json: summary: Input should be a valid dict", summary=[1]),
    _mark("a mark of nothing", "runs/a/done/sft.json: fingerprint.settings: Field required", fingerprint={}),
    _mark("a mark's hashes", "runs/a/done/sft.json: fingerprint.inputs", fingerprint={"settings": {}, "inputs": [1]}),
    Case(
        "a half done stage's note",
        "status a",
        (
            "runs/a/work/sft/fingerprint.json: seconds: Input should be",
            "restore it, or delete it to compute its contents again",
        ),
        {
            "runs/a/config.yaml": GOOD,
            "runs/a/work/sft/fingerprint.json": json.dumps({**_MARK, "seconds": None}),
            "runs/a/work/sft/x": "",
        },
    ),
    _tiny(
        "a finished stage's plan",
        "",
        {"runs/a/work/sft/finish.json": json.dumps({"writes": "x", "mark": _MARK})},
        "runs/a/work/sft/finish.json: writes: Input should be a valid list",
    ),
    _tiny(
        "a note of what was halved",
        "data: {prompts: x.jsonl, held_out: 1}\n",
        {"x.jsonl": ROWS, "runs/a/room.json": '{"tokens": 0, "rows": null}'},
        "runs/a/room.json: tokens: ",
    ),
]
_CONFIGS = [
    Case("BOM before a mistake", "validate my.yaml", ("my.yaml:1:1: nam: unknown",), {"my.yaml": "\ufeffnam: a\n"}),
    _config("an include", "sft: !include my.yaml\n", "my.yaml:3:1: sft: the tag !include is not allowed\n"),
    _config("an alias of itself", "sft: &a {epochs: *a}\n", "my.yaml:3:10: sft.epochs: aliases (*name) are not"),
    Case("a tag on it all", "validate my.yaml", ("my.yaml:1:1: the tag !x is not",), {"my.yaml": "!x {name: a}\n"}),
    _config("a number of nothing", 'seed: !!int ""\n', "my.yaml:3:1: seed: nothing cannot be read as int\n"),
    _config("a merge key", "sft: {<<: {epochs: 1}}\n", "my.yaml:3:7: a key in sft must be text, not <<\n"),
    _config(
        "half a character as value",
        'data: {prompts: "\\uD800"}\n',
        "my.yaml:3:8: data.prompts: contains half a character",
    ),
    _config("half a character as key", '"\\uD800": 1\n', "my.yaml:3:1: a key contains half a character"),
    _config("a screen cleared", 'data: {prompts: "\\e[2J"}\n', "data.prompts: \\x1b[2J: file not found"),
    _config("a long file", "#" * 2**20 + "\n", "my.yaml: larger than 1 MiB. Expected a config in YAML\n"),
    Case("a file without end", "validate my.yaml", ("my.yaml: larger than 1 MiB",), links={"my.yaml": "/dev/zero"}),
    _config("a count of 5,000 digits", f"ppo: {{steps: {'1' * 5000}}}\n", "my.yaml:3:7: ppo.steps: 1111", "cannot be"),
    Case(
        "more threads than there can be",
        "validate my.yaml",
        ("my.yaml:2:20: model.threads: must be at most 1024, not 99999999999999999999\n",),
        {"my.yaml": "name: a\nmodel: {source: x, threads: 99999999999999999999}\n"},
    ),
    _config("a name too long", f"data: {{prompts: {LONG}}}\n", "my.yaml:3:8: data.prompts: xxx", "file not found"),
    _config("a null in a name", 'data: {prompts: "a\\0b"}\n', "my.yaml:3:8: data.prompts: a\\x00b: file not found"),
    _config("an adapter's long name", f"sft: {{source: adapter, adapter: {LONG}}}\n", "my.yaml:3:24: sft.adapter: xxx"),
    _config("a judge's path", "rank: {judge: '../evil:run'}\n", "my.yaml:3:8: rank.judge: judge '../evil:run'"),
    Case(
        "a model's long name",
        "plan my.yaml",
        ("xxx", "folder not found"),
        {"my.yaml": f"name: a\nmodel: {{source: ./{LONG}}}\n"},
    ),
]

_NAMES = [
    Case("a run's long name", f"status {LONG}", ("not found", "There are no runs yet.")),
    Case("a run elsewhere", "status ../../etc", ('run "../../etc" not found in runs.',)),
    Case("a run that is its own link", "status a", ('run "a" not found in runs.',), links={"runs/a": "a"}),
    Case("a config's long name", f"validate {LONG}.yaml", ("cannot be read: File name too long",)),
    Case("runs too long", f"run my.yaml --runs {LONG}", ("cannot be used: File name too long",), {"my.yaml": GOOD}),
    Case(
        "a link in an export",
        "export a out --what adapters",
        ("runs/a/adapters/sft/key: is a link, and only the run's own files are exported",),
        {"runs/a/config.yaml": GOOD, "runs/a/adapters/sft/adapter_config.json": "{}"},
        links={"runs/a/adapters/sft/key": "/etc/passwd"},
    ),
    Case(
        "a folder of links in an export",
        "export a out --what adapters",
        ("runs/a/adapters/sft: is a link",),
        {"runs/a/config.yaml": GOOD, "elsewhere/adapter_config.json": "{}", "runs/a/adapters/x": ""},
        links={"runs/a/adapters/sft": "../../../elsewhere"},
    ),
    Case(
        "a shard elsewhere",
        "run my.yaml",
        ("model.safetensors.index.json names ../key.safetensors, which is not in the folder",),
        {
            "my.yaml": _NAMED,
            "m/config.json": _LLAMA % '"vocab_size": 9',
            "m/model.safetensors.index.json": json.dumps({"weight_map": {"a": "../key.safetensors"}}),
            "key.safetensors": "",
        },
    ),
]

_TABLES = [
    _data("NaN for a prompt", "x.jsonl", ROWS + '{"prompt": NaN}\n', 'x.jsonl:9: "prompt" is empty. Fill it in'),
    _data("1e999 asked", "x.jsonl", ROWS + '{"prompt": 1e999}\n', 'x.jsonl:9: "prompt" must be a string, not'),
    _data("empty cells", "x.csv", 'prompt,response\nHi,a\n,b\n"","c"\n', 'x.csv:3: "prompt" is empty', "x.csv:4: "),
    _data("a header alone", "x.csv", "prompt,response\n", "x.csv: no rows"),
    _data("no rows of Parquet", "x.parquet", _no_rows(), "x.parquet: no rows"),
    _data("an empty list", "x.json", "[]", "x.json: no rows"),
    _data("UTF-16 rows", "x.jsonl", ROWS.encode("utf-16"), "x.jsonl:1: not UTF-8 text. Save the file as UTF-8"),
    _data("UTF-16 cells", "x.csv", "prompt\nHi\n".encode("utf-16"), "x.csv:1: not UTF-8 text"),
    _data(
        "half a character in a key", "x.jsonl", ROWS + '{"\\ud800": 1}\n', "x.jsonl:9: a key contains half a character"
    ),
    _data("a key twice, by halves", "x.jsonl", '{"\\ud800": 1, "\\ud800": 2}\n', '(duplicate key "\\ud800")'),
    _data("rows without end in a row", "x.jsonl", ROWS + "[" * 100_000, "x.jsonl:9: invalid JSON ("),
    _data("a role that clears", "x.jsonl", json.dumps({"messages": [{"role": ESCAPE, "content": "x"}]}), "\\x1b[2J"),
    _data("zipped nothing", "x.jsonl.gz", gzip.compress(b""), "x.jsonl.gz: no rows"),
    Case("NaN inspected", "data inspect x.csv", ("x.csv: no rows",), {"x.csv": ",,\n,,\n"}),
]

_ANNOTATIONS = [
    Case(
        f"import {name}",
        "annotations import people x.jsonl",
        (says, "Nothing was imported.\n"),
        {"x.jsonl": content},
        setup="people",
    )
    for name, content, says in [
        ("a newer version", '{"kind": "header", "version": 99}\n', "x.jsonl:1: written by a newer version (format 99)"),
        ("Latin-1", b'{"kind": "skip", "annotator": "\xe9", "prompt_id": "p0"}\n', "x.jsonl:1: not UTF-8 text"),
        ("nested without end", "[" * 100_000, "x.jsonl:1: invalid JSON (nested too deeply)"),
        ("NaN seconds", '{"tiers": [["p0-0"]], "seconds": NaN}\n', "x.jsonl:1: NaN is not a JSON number"),
        ("long seconds", '{"prompt_id": "p0", "tiers": [["p0-0"]], "annotator": "a", "seconds": 1e999}', "seconds: "),
        ("half a character", '{"kind": "\\ud800"}\n', "x.jsonl:1: contains half a character (a lone surrogate)"),
        ("an unknown kind", '{"kind": "pickle"}\n', "x.jsonl:1: unknown kind of row: 'pickle'; see docs/"),
        ("an answer twice", '{"prompt_id": "p0", "tiers": [["p0-0", "p0-0"]], "annotator": "a"}\n', "appears twice"),
        ("a foreign key", '{"prompt_id": "p0", "tiers": [["p0-0"]], "annotator": "a", "x": 1}\n', "x.jsonl:1: x: "),
    ]
]  # fmt: skip

_MODELS = [
    _tiny(
        "a prompt longer than the context",
        "data: {prompts: x.jsonl, held_out: 1}\n",
        {"x.jsonl": ROWS + json.dumps({"prompt": "word " * 500, "response": "x"}) + "\n"},
        "x.jsonl:9",
        "model.max_length",
    ),
    *(
        _tiny(
            f"an adapter with {name}",
            "data: {prompts: x.jsonl, held_out: 1}\nsft: {source: adapter, adapter: l}\n",
            {
                "x.jsonl": ROWS,
                "l/adapter_config.json": (_SFT / "adapter_config.json").read_bytes(),
                "l/adapter_model.safetensors": content,
            },
            *says,
        )
        for name, content, says in [
            ("foreign keys", save(_FOREIGN | {"os.system": next(iter(_FOREIGN.values()))}), ("unexpected os.system",)),
            ("no keys", save({}), ("l/adapter_model.safetensors: ", "missing base_model.model.model.layers.0")),
            ("a header without end", (2**60).to_bytes(8, "little"), ("l/adapter_model.safetensors: not a readable",)),
        ]
    ),
]

CASES = [*_CONFIGS, *_MARKS, *_NAMES, *_TABLES, *_ANNOTATIONS, *_MODELS]
