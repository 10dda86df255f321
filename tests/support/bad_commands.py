"""More of the corpus of bad inputs: every command, every exit code, unknown options."""

import json

from bad_inputs import GOOD, ROWS, Case

HUGE = {
    "model_type": "llama",
    "num_hidden_layers": 400,
    "hidden_size": 65_536,
    "intermediate_size": 262_144,
    "num_attention_heads": 512,
    "vocab_size": 1_000_000,
}
"""A model of some 27,000 billion weights, of which a plan reads this alone."""
SFT_MADE_WITH = {"seed": 1, "sft.epochs": 3}

_RUN = {"runs/a/config.yaml": GOOD}
_EXIT_CODES = [
    Case(
        "plan that cannot fit",
        "plan my.yaml",
        (),
        {"my.yaml": "name: a\nmodel: {source: huge}\n", "huge/config.json": json.dumps(HUGE)},
        code=4,
        shows=("free: does not fit\n", "Settings that reduce memory:\n"),
    ),
    Case(
        "stale",
        "run my.yaml",
        (
            "Stage sft does not match the current settings and inputs:\n",
            "  sft.epochs: 3 -> 2\n",
            "Redo it, with all stages that depend on it: --redo sft\n"
            "Or keep it, and start a new run under another name: name=...\n",
        ),
        {
            "my.yaml": GOOD,
            "runs/a/done/sft.json": json.dumps(
                {"fingerprint": {"settings": SFT_MADE_WITH, "inputs": {}}, "seconds": 1, "summary": {}}
            ),
        },
        code=3,
    ),
    Case(
        "locked",
        "run my.yaml",
        ("runs/a: in use by process ", "Wait until it ends, or stop it: it saves its work on SIGTERM.\n"),
        {"my.yaml": GOOD},
        code=6,
        setup="locked",
    ),
    Case(
        "people are needed",
        "label people --annotator ann",
        ("1 of 2 prompts ranked, 1 more needed.",),
        code=5,
        setup="people",
        stdin="1 > 2 > 3\n",
    ),
]

_INSPECTED = [
    Case(
        "inspect broken line", "data inspect my.jsonl", (), {"my.jsonl": ROWS + "{\n"}, shows=("my.jsonl:9: invalid",)
    ),
    Case(
        "inspect two readings",
        "data inspect my.jsonl",
        ("my.jsonl: the rows fit 2 formats", "Choose one: --format=prompt-completion or messages\n"),
        {"my.jsonl": '{"prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}]}\n'},
    ),
    Case(
        "inspect empty",
        "data inspect my.jsonl",
        ('my.jsonl: no rows. Expected one object like {"prompt": "..."} per line\n',),
        {"my.jsonl": "\n\n"},
    ),
    Case("inspect not known", "data inspect my.doc", ("my.doc: unknown file type",), {"my.doc": "Hello\n"}),
    Case(
        "inspect damaged gzip", "data inspect my.jsonl.gz", ("my.jsonl.gz: the gzip",), {"my.jsonl.gz": b"\x1f\x8b\x08"}
    ),
    Case(
        "inspect broken list",
        "data inspect my.json",
        ("my.json:2: invalid JSON (Expecting value). Correct this line\n",),
        {"my.json": '[{"prompt": "a"},\n{"prompt": ]'},
    ),
    Case("inspect nothing", "data inspect gone.jsonl", ("gone.jsonl: file not found. Relative paths",)),
    Case("inspect wrong format", "data inspect my.jsonl --format csv", ("'csv' is not one of",), {"my.jsonl": ROWS}),
    Case(
        "inspect wrong reading",
        "data inspect my.jsonl --format hh-rlhf",
        (),
        {"my.jsonl": ROWS},
        shows=("my.jsonl:1: no chosen, rejected, which hh-rlhf needs. Keys found: prompt, response\n",),
    ),
    Case(
        "inspect no tokenizer",
        "data inspect my.jsonl --tokenizer gone.yaml",
        ("gone.yaml: file not found\n",),
        {"my.jsonl": ROWS},
    ),
]

_RANKING = '{"prompt_id": "q", "tiers": [["q-0"], ["q-1"]], "annotator": "ann"}\n'

_PEOPLE = [
    Case("label no run", "label nothing", ('run "nothing" not found in runs. There are no runs yet.\n',)),
    Case(
        "label a judge's run",
        "label a",
        ("runs/a: people rank runs with rank.source=human; this one has rank.source=judge",),
        _RUN,
    ),
    Case(
        "label nothing there",
        "label a",
        ("runs/a: no answers to rank yet",),
        {"runs/a/config.yaml": GOOD + "rank: {source: human}\n"},
    ),
    Case(
        "label wrong line",
        "label people --annotator ann",
        ("stdin:1: no answer 9 here: they are 1 to 3. The lines before it are saved",),
        setup="people",
        stdin="1 > 9\n",
    ),
    Case("label json alone", "label people --json", ("--json requires --stats\n",), setup="people"),
    Case(
        "label no name",
        "label people --annotator=",
        ("not a valid name: ''. Use 1 to 100 printable characters\n",),
        setup="people",
    ),
    Case(
        "foreign prompt",
        "annotations import people x.jsonl",
        ("x.jsonl:1: unknown prompt 'q'",),
        {"x.jsonl": _RANKING},
        setup="people",
    ),
    Case(
        "foreign answer",
        "annotations import people x.jsonl",
        ("x.jsonl:1: prompt 'p0' has no answer 'p1-0'",),
        {"x.jsonl": '{"prompt_id": "p0", "tiers": [["p0-0"], ["p1-0"]], "annotator": "ann"}\n'},
        setup="people",
    ),
    Case(
        "import broken line",
        "annotations import people x.jsonl",
        ("x.jsonl:1: invalid JSON",),
        {"x.jsonl": "{\n"},
        setup="people",
    ),
    Case(
        "import nothing",
        "annotations import people x.jsonl",
        ("x.jsonl: the file is empty\n",),
        {"x.jsonl": "\n"},
        setup="people",
    ),
    Case(
        "import no file",
        "annotations import people x.jsonl",
        ("x.jsonl: cannot be read: No such file",),
        setup="people",
    ),
    Case(
        "import no run",
        "annotations import nothing x.jsonl",
        ('run "nothing" not found in runs.',),
        {"x.jsonl": _RANKING},
    ),
    Case("export unranked", "annotations export a x.jsonl", ("runs/a: answers are not ranked yet.",), _RUN),
    Case(
        "export over a file",
        "annotations export people x.jsonl",
        ("x.jsonl already exists",),
        {"x.jsonl": ""},
        setup="people",
    ),
]

_FINISHED_RUNS = [
    Case("chat no run", "chat nothing", ('run "nothing" not found in runs. There are no runs yet.\n',)),
    Case("chat not made yet", "chat a --as policy", ("--as: runs/a has no model `policy`; it has base\n",), _RUN),
    Case(
        "chat no room",
        "chat a --max-new-tokens 512",
        ("--max-new-tokens: must be less than the context of this run's model",),
        _RUN,
    ),
    Case("chat json alone", "chat a --json", ("--json requires --prompt\n",), _RUN),
    Case("evaluate no run", "evaluate nothing", ('run "nothing" not found in runs.',)),
    Case("evaluate not made yet", "evaluate a", ("runs/a: adapters/sft not found; stage sft writes it. ",), _RUN),
    Case(
        "evaluate nobody",
        "evaluate a --left plicy",
        ('unknown model "plicy": expected base, sft, policy, policy-last',),
        _RUN,
    ),
    Case("evaluate a fixed setting", "evaluate a ppo.steps=3", ('"ppo.steps=3": only settings of model',), _RUN),
    Case("evaluate no comparisons", "evaluate a --comparisons x.jsonl", ("runs/a: adapters/reward not found",), _RUN),
    Case("evaluate into nothing", "evaluate a --out x.txt", ("--out x.txt: must end in .json",), _RUN),
    Case("export no run", "export nothing out", ('run "nothing" not found in runs.',)),
    Case(
        "export not made yet",
        "export a out",
        ("runs/a: no adapter `policy` yet; it has none. Resume the run to make it\n",),
        _RUN,
    ),
    Case(
        "export no adapters", "export a out --what adapters", ("runs/a: no adapters yet; `run` makes the first",), _RUN
    ),
    Case(
        "export role of adapters", "export a out --what adapters --role sft", ("--role: requires --what merged",), _RUN
    ),
    Case(
        "export into a folder",
        "export a . --what adapters",
        (".: exists already",),
        {**_RUN, "runs/a/adapters/sft/x": ""},
    ),
]

_SWEEPS = [
    Case(
        "sweep unknown key",
        "sweep my.yaml ppo.kl_coeff=1,2",
        ('ppo.kl_coeff: unknown key. Did you mean "kl_coef"?',),
        {"my.yaml": GOOD},
    ),
    Case("sweep no settings", "sweep my.yaml", ("Missing argument",), {"my.yaml": GOOD}),
    Case(
        "sweep no values",
        "sweep my.yaml seed=",
        ("nothing to sweep: give at least one setting several values, such as",),
        {"my.yaml": GOOD},
    ),
    Case(
        "sweep a missing value",
        "sweep my.yaml seed=1,",
        ('"seed=1,": empty value next to a comma\n',),
        {"my.yaml": GOOD},
    ),
    Case("sweep a value twice", "sweep my.yaml seed=1,1", ('"seed=1,1": 1 is given twice\n',), {"my.yaml": GOOD}),
    Case("sweep a key twice", "sweep my.yaml seed=1 seed=2", ("seed is given twice; write all",), {"my.yaml": GOOD}),
    Case(
        "sweep no equals sign",
        "sweep my.yaml seed",
        ('"seed": must be key=value or key=value,value',),
        {"my.yaml": GOOD},
    ),
    Case("sweep no config", "sweep gone.yaml seed=1,2", ("gone.yaml: file not found\n",)),
]

_OPTIONS = [
    Case("schema of nothing", "schema ppo.kl", ('unknown setting "ppo.kl".', "`schema --markdown` lists all settings")),
    Case("schema twice", "schema ppo --markdown", ("--markdown prints all settings; remove it or KEY\n",)),
    Case(
        "unknown option of run", "run my.yaml --untill ppo", ("No such option: --untill", "--until"), {"my.yaml": GOOD}
    ),
    Case("unknown option of plan", "plan my.yaml --al", ("No such option",), {"my.yaml": GOOD}),
    Case("unknown option of chat", "chat a --who sft", ("No such option: --who",), _RUN),
    Case("unknown command of a group", "data look my.jsonl", ("No such command 'look'",)),
    Case("text for a count", "evaluate a --samples many", ("Invalid value for '--samples'",), _RUN),
    Case("count of 0", "evaluate a --limit 0", ("Invalid value for '--limit'",), _RUN),
    Case(
        "no such choice of export",
        "export a out --what onnx",
        ("'onnx' is not one of 'merged', 'gguf', 'adapters', 'reward'",),
        _RUN,
    ),
    Case("too many arguments", "status a b", ("unexpected extra argument",), _RUN),
    Case(
        "option without a value", "run my.yaml --until", ("Option '--until' requires an argument",), {"my.yaml": GOOD}
    ),
]

CASES = [*_EXIT_CODES, *_INSPECTED, *_PEOPLE, *_FINISHED_RUNS, *_SWEEPS, *_OPTIONS]
