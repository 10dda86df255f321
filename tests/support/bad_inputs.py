"""A corpus of bad inputs: each with its exit code and the words of the error that help to correct it.

Each case lays its files into an empty folder and gives one command there.
"""

from typing import NamedTuple

GOOD = "name: a\nmodel: {source: x}\n"
ROWS = "".join(f'{{"prompt": "Question {number}?", "response": "Answer {number}."}}\n' for number in range(8))
BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


class Case(NamedTuple):
    """Each of `says` must be in the message on stderr, each of `shows` on stdout."""

    name: str
    command: str
    says: tuple[str, ...]
    files: dict[str, str | bytes] = {}  # noqa: RUF012 - never changed
    code: int = 2
    shows: tuple[str, ...] = ()
    setup: str = ""
    """`people`: the run `people` waits for rankings. `locked`: somebody holds the run `a`."""
    environment: dict[str, str] = {}  # noqa: RUF012
    stdin: str = ""
    links: dict[str, str] = {}  # noqa: RUF012


def _config(name: str, text: str | bytes, *says: str) -> Case:
    return Case(name, "validate my.yaml", says, {"my.yaml": text})


def _setting(name: str, text: str, *says: str) -> Case:
    """A config whose further lines are `text`, from line 3."""
    return _config(name, GOOD + text, *says)


def _prompts(name: str, text: str | bytes, *says: str, held_out: int = 2) -> Case:
    config = GOOD + f"data: {{prompts: my.jsonl, held_out: {held_out}}}\n"
    return Case(name, "run my.yaml", says, {"my.yaml": config, "my.jsonl": text})


def _comparisons(name: str, text: str | bytes, *says: str) -> Case:
    config = GOOD + "stages: [rank]\nrank: {source: dataset, dataset: prefs.jsonl}\n"
    return Case(name, "run my.yaml", says, {"my.yaml": config, "prefs.jsonl": text})


def _override(name: str, override: str, *says: str) -> Case:
    return Case(name, f"validate my.yaml {override}", says, {"my.yaml": GOOD})


_CONFIG_FILES = [
    Case("no such file", "validate my.yaml", ("my.yaml: file not found",)),
    Case("a folder", "validate folder/x.yaml", ("expected a YAML file, got a folder",), {"folder/x.yaml/keep": ""}),
    Case("no such preset", "run quickstrat", ("preset not found", 'Did you mean "quickstart"?')),
    _config("empty", "", "my.yaml: empty file. A config needs at least `name` and `model: {source: ...}`\n"),
    _config(
        "comments only",
        "# nothing\n",
        "my.yaml: empty file. A config needs at least `name` and `model: {source: ...}`\n",
    ),
    _config("a list", "- name: a\n", "key: value"),
    _config("one word", "quickstart\n", "key: value"),
    _config("two documents", GOOD + "---\n" + GOOD, "my.yaml:3:1", "not valid YAML"),
    _config("Latin-1", "name: café\n".encode("latin-1"), "not UTF-8", "byte 9"),
    _config("UTF-16", GOOD.encode("utf-16"), "not UTF-8"),
    _config("tab", "name: a\nmodel:\n\tsource: x\n", "my.yaml:3:1", "not valid YAML"),
    _config("open bracket", "name: a\nmodel: {source: x\n", "my.yaml:3:1", "not valid YAML"),
    _config("nested without end", "name: " + "[" * 5000, "not valid YAML", "deep"),
    _config("a thousand levels", GOOD + "ppo: " + "{a: " * 50 + "1" + "}" * 50 + "\n", "nested too deeply"),
    _config("aliases", GOOD + "sft: &x {epochs: 1}\nppo: *x\n", "my.yaml:4:1", "aliases"),
    _config("a bomb", GOOD + BOMB, "aliases"),
    _config(
        "Python object",
        GOOD + "seed: !!python/object/apply:os.getpid []\n",
        "python/object/apply:os.getpid is not allowed",
    ),
    _config("set of stages", GOOD + "stages: !!set {sft}\n", "my.yaml:3:1: stages: the tag", "set is not allowed"),
    _config("number as key", GOOD + "1: x\n", "my.yaml:3:1", "must be text, not 1"),
    _config("list as key", GOOD + "? [a, b]\n: x\n", "must be text"),
]

_KEYS = [
    _setting("misspelt", "ppo: {kl_coeff: 1}\n", "my.yaml:3:7: ppo.kl_coeff: unknown key", 'Did you mean "kl_coef"?'),
    _setting("unknown section", "training: {epochs: 1}\n", "my.yaml:3:1: training: unknown key"),
    _setting("in another section", "sft: {kl_coef: 1}\n", "my.yaml:3:7: sft.kl_coef: unknown key", "ppo"),
    _setting("twice", "seed: 1\nseed: 2\n", "my.yaml:4:1: seed: duplicate key", "line 3"),
    _setting("section twice", "ppo: {steps: 1}\nppo: {epochs: 1}\n", "my.yaml:4:1: ppo: duplicate key"),
    _config("no name", "model: {source: x}\n", "name: missing"),
    _config("no model", "name: a\n", "model: missing"),
    _config("no source", "name: a\nmodel: {}\n", "model.source: missing"),
    _setting("section is a list", "ppo: [1, 2]\n", "my.yaml:3:1: ppo: must be a section"),
    _setting("several at once", "seed: -1\nlora: {rank: x}\n", "my.yaml:3:1: seed", "my.yaml:4:8: lora.rank"),
]

_VALUES = [
    _setting("text for a number", "lora: {rank: many}\n", "my.yaml:3:8: lora.rank: must be a whole number", "many"),
    _setting("true for a number", "lora: {rank: true}\n", "lora.rank: must be a whole number, not true"),
    _setting("number in quotes", "ppo: {steps: '50'}\n", 'ppo.steps: must be a whole number, not "50"'),
    _setting("fraction of a count", "ppo: {steps: 1.5}\n", "ppo.steps: must be a whole number, not 1.5"),
    _setting("list for a number", "ppo: {kl_coef: [0.1]}\n", "ppo.kl_coef: must be a number"),
    _setting("nothing", "ppo: {steps: }\n", "ppo.steps: must be a whole number, not null"),
    _setting("infinite", "ppo: {kl_coef: .inf}\n", "my.yaml:3:7: ppo.kl_coef"),
    _setting("not a number", "ppo: {kl_coef: .nan}\n", "my.yaml:3:7: ppo.kl_coef"),
    _setting("out of float's range", "ppo: {kl_coef: 1e400}\n", "ppo.kl_coef"),
    _setting("negative", "seed: -1\n", "seed: must be at least 0, not -1"),
    _setting("rate of 0", "sft: {learning_rate: 0}\n", "sft.learning_rate: must be above 0"),
    _setting("rate of 2", "sft: {learning_rate: 2}\n", "sft.learning_rate: must be below 1"),
    _setting("temperature 0", "sample: {temperature: 0}\n", "sample.temperature: must be at least"),
    _setting("chat temperature 0", "chat: {temperature: 0}\n", "chat.temperature: must be at least"),
    _setting("temperature that overflows", "sample: {temperature: 1.0e-320}\n", "sample.temperature: must be at least"),
    _setting("infinite chat temperature", "chat: {temperature: .inf}\n", "chat.temperature"),
    _setting("top-p of 0", "chat: {top_p: 0}\n", "chat.top_p: must be above 0, not 0"),
    _setting("top-p above 1", "chat: {top_p: 1.1}\n", "chat.top_p: must be at most 1, not 1.1"),
    _setting("one answer", "sample: {answers_per_prompt: 1}\n", "sample.answers_per_prompt: must be at least 2, not 1"),
    _setting("no such choice", "rank: {source: robot}\n", "rank.source: must be", "judge", "human", "robot"),
    _setting("number as text", "data: {prompts: 12}\n", "data.prompts: must be text, not 12. Put it in quotes"),
    _setting("no such stage", "stages: [sft, pop]\n", "my.yaml:3:15: stages[1]", "pop"),
    _config("path as name", "name: ../../etc\nmodel: {source: x}\n", "my.yaml:1:1: name", "letters"),
    _config("long name", f"name: {'a' * 65}\nmodel: {{source: x}}\n", "name", "up to 64"),
]

_CROSS_FIELD = [
    _setting("stages out of order", "stages: [ppo, sft]\n", "stages must be a subset of sft, sample"),
    _setting("no stage", "stages: []\n", "my.yaml:3:1: stages must name at least one stage that runs. Remove the key"),
    _setting(
        "a stage that is not needed",
        "stages: [sample]\nrank: {source: dataset, dataset: my.yaml}\n",
        "my.yaml:3:1: stages must name at least one stage that runs; rank.source: dataset needs no stage sample",
    ),
    _setting("stage twice", "stages: [sft, sft]\n", "must be a subset of"),
    _setting(
        "minibatches",
        "ppo: {batch_size: 32, minibatches: 5}\n",
        "my.yaml:3:23",
        "minibatches (5) must divide batch_size (32)",
    ),
    _setting(
        "answers as long as the context", "sample: {max_new_tokens: 512}\n", "must be below model.max_length (512)"
    ),
    _setting("nothing held out", "data: {held_out: 0}\n", "data.held_out must be above 0"),
    _setting("data set unnamed", "rank: {source: dataset}\n", "`dataset` and `source: dataset` must be set together"),
    _setting("data set unused", "rank: {dataset: x.jsonl}\n", "`dataset` and `source: dataset` must be set together"),
    _setting("adapter unnamed", "sft: {source: adapter}\n", "`adapter` and `source: adapter` must be set together"),
    _setting("adapter unused", "sft: {adapter: x}\n", "`adapter` and `source: adapter` must be set together"),
    _setting(
        "a warm-up to the end",
        "ppo: {steps: 3, critic_warmup_steps: 3}\n",
        "my.yaml:3:",
        "critic_warmup_steps (3) must be below steps (3)",
    ),
    _setting(
        "margin of a list", "reward: {loss: plackett_luce, margin: 0.5}\n", "margin (0.5) requires `loss: pairwise`"
    ),
    _setting(
        "contrast without SFT's answers",
        "rank: {source: dataset, dataset: x}\nppo: {contrastive: true}\n",
        "ppo.contrastive requires ranked SFT answers",
    ),
]

_THINGS_THAT_ARE_NOT_THERE = [
    _setting("data missing", "data: {prompts: gone.csv}\n", "my.yaml:3:8: data.prompts: gone.csv: file not found. Rel"),
    _setting("data is a folder", "data: {prompts: .}\n", "my.yaml:3:8: data.prompts: .: expected a file, got a folder"),
    _setting(
        "comparisons missing",
        "rank: {source: dataset, dataset: gone.jsonl}\n",
        "my.yaml:3:25: rank.dataset: gone.jsonl: file not found. Relative paths start at ",
    ),
    _setting(
        "adapter missing",
        "sft: {source: adapter, adapter: gone}\n",
        "my.yaml:3:24: sft.adapter: gone: folder not found. Relative paths start at ",
    ),
    Case(
        "adapter without weights",
        "validate my.yaml",
        ("my.yaml:3:24: sft.adapter: lora: adapter_model.safetensors not found. An adapter is a folder saved by PEFT",),
        {"my.yaml": GOOD + "sft: {source: adapter, adapter: lora}\n", "lora/adapter_config.json": "{}"},
    ),
    _setting(
        "nothing before ppo",
        "stages: [ppo, evaluate]\n",
        "my.yaml:3:1: stages: ppo reads adapters/sft, which is not in runs/a; stage sft makes it: add sft",
        "my.yaml:3:1: stages: evaluate reads adapters/sft, which is not in runs/a; stage sft makes it: add sft",
    ),
    _setting(
        "several things not there",
        "stages: [sft, sample, rank, ppo]\ndata: {prompts: gone.csv}\nrank: {judge: robot}\n",
        "my.yaml:3:1: stages: ppo reads adapters/reward, which is not in runs/a; stage reward makes it: add reward to",
        "my.yaml:4:8: data.prompts: gone.csv: file not found",
        "my.yaml:5:8: rank.judge: unknown judge 'robot'",
    ),
]

_OVERRIDES = [
    _override("no equals sign", "ppo.steps", 'override "ppo.steps": must be key=value'),
    _override("unknown key", "ppo.stepps=1", 'Did you mean "steps"?'),
    _override("below a value", "name.first=x", "name is not a section"),
    _override("not YAML", "ppo.steps=[", "ppo.steps: not valid YAML"),
    _override("empty key", ".steps=1", "must be key=value"),
    _override("out of range", "ppo.steps=0", "ppo.steps: must be at least 1, not 0"),
]

_COMMAND_LINE = [
    Case(
        "unknown stage until",
        "run my.yaml --until pop",
        ('"pop" is not a stage', 'Did you mean "ppo"?'),
        {"my.yaml": GOOD},
    ),
    Case("unknown stage redo", "run my.yaml --redo train", ('"train" is not a stage',), {"my.yaml": GOOD}),
    Case(
        "skipped stage", "run my.yaml --redo ppo stages=[sft]", ('"ppo" is not a stage of this run',), {"my.yaml": GOOD}
    ),
    Case("unknown run", "status nothing", ('run "nothing" not found', "There are no runs yet")),
    Case("damaged run", "status a", ("config.yaml:1:8", "not valid YAML"), {"runs/a/config.yaml": "name: a: b\n"}),
    Case("show no preset", "presets show fast", ("preset not found",)),
    Case("copy over a file", "presets copy quickstart my.yaml", ("my.yaml already exists",), {"my.yaml": GOOD}),
    Case("runs is a file", "run my.yaml --runs my.yaml", ("cannot create the run folder",), {"my.yaml": GOOD}),
    Case("no such command", "train my.yaml", ("No such command",), {"my.yaml": GOOD}),
    Case("no config", "run", ("Missing argument",)),
]

_PROMPT_FILES = [
    Case(
        "no such data",
        "run my.yaml",
        ("my.yaml:3:8: data.prompts: gone.jsonl: file not found. Relative paths start at /",),
        {"my.yaml": GOOD + "data: {prompts: gone.jsonl}\n"},
    ),
    Case(
        "no such set",
        "run my.yaml",
        ("my.yaml:3:8: data.prompts: built-in set not found: 'daily'. Available: everyday, replies, replies_zh\n",),
        {"my.yaml": GOOD + "data: {prompts: 'builtin:daily'}\n"},
    ),
    _prompts("empty data", "", 'my.jsonl: no rows. Expected one object like {"prompt": "..."} per line\n'),
    _prompts("broken line", ROWS + '{"prompt": "x"\n', "my.jsonl:9: invalid JSON"),
    _prompts("list line", ROWS + "[1]\n", "my.jsonl:9: expected an object like {"),
    _prompts(
        "no prompt",
        ROWS + '{"response": "x"}\n',
        "my.jsonl:9: no prompt, which prompt-completion needs. Keys found: response\n",
    ),
    _prompts("empty prompt", ROWS + '{"prompt": "  ", "response": "x"}\n', 'my.jsonl:9: "prompt" is empty'),
    _prompts(
        "number as prompt",
        ROWS + '{"prompt": 7, "response": "x"}\n',
        'my.jsonl:9: "prompt" must be a string, not a number',
    ),
    _prompts("half a character", ROWS + '{"prompt": "\\ud800", "response": "x"}\n', "my.jsonl:9", "surrogate"),
    _prompts("Latin-1 data", ROWS.encode() + '{"prompt": "café"}\n'.encode("latin-1"), "my.jsonl:9: not UTF-8"),
    _prompts(
        "one id twice", '{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n' + ROWS, "my.jsonl:2", "my.jsonl:1"
    ),
    _prompts("too few", ROWS, "only 8 different prompt(s)", "data.held_out is 20", held_out=20),
    _prompts("none left", ROWS, "all 8 prompts are held out", held_out=8),
    _prompts("repeated", '{"prompt": "Hello", "response": "x"}\n' * 9, "1 different prompt", held_out=4),
]

_COMPARISON_FILES = [
    _comparisons(
        "no such keys",
        '{"question": "a", "good": "b"}\n',
        "prefs.jsonl:1: unknown format. Keys found: question, good. Name the columns, such as ",
    ),
    _comparisons("empty file", "\n", 'prefs.jsonl: no rows. Expected one object like {"prompt": "..."} per line\n'),
    _comparisons(
        "number as answer",
        '{"prompt": "a", "chosen": 1, "rejected": "c"}\n',
        'prefs.jsonl:1: "chosen" must be a string',
    ),
    _comparisons("all the same", '{"prompt": "a", "chosen": "b", "rejected": "b"}\n', "no comparisons left"),
    _comparisons(
        "a vote of 3",
        '{"instruction": "a", "input": "", "response1": "b", "response2": "c", '
        '"annotator1": 3, "annotator2": 1, "annotator3": 1}\n',
        'prefs.jsonl:1: "annotator1" is 3',
    ),
]

_ENDPOINT = """\
name: a
model: {source: x}
rank:
  judge: endpoint
  endpoint: {url: 'http://127.0.0.1:9/v1', model: m}
"""

_ENDPOINTS = [
    _setting(
        "endpoint undescribed",
        "rank: {judge: endpoint}\n",
        "my.yaml:3:8: rank.judge is endpoint, which requires a section",
    ),
    _setting(
        "endpoint unused",
        "rank: {endpoint: {url: 'http://x/v1', model: m}}\n",
        "my.yaml:3:8: rank.endpoint requires rank.judge: endpoint or evaluate.second_judge: endpoint, or such a ",
    ),
    _config(
        "url without http", _ENDPOINT.replace("http://", ""), "my.yaml:5:14: rank.endpoint.url: must be an http:// or"
    ),
    _config(
        "url with a password", _ENDPOINT.replace("127", "me:secret@127"), "rank.endpoint.url: must be an http:// or"
    ),
    _config(
        "endpoint without a model", _ENDPOINT.replace(", model: m", ""), "my.yaml:5:3: rank.endpoint.model: missing"
    ),
    _config(
        "a key for its variable",
        _ENDPOINT.replace("m}", "m, api_key_variable: sk-123}"),
        "rank.endpoint.api_key_variable: must be the name of an environment variable, never the key itself\n",
    ),
    _config(
        "a template without answers",
        _ENDPOINT.replace("m}", "m, template: Hi}"),
        "rank.endpoint.template: must be english,",
    ),
    Case(
        "a key with a line end in it",
        "evaluate a",
        ("the environment variable OPENAI_API_KEY contains invalid characters; copy the key again\n",),
        {"runs/a/config.yaml": _ENDPOINT, "runs/a/adapters/sft/x": "", "runs/a/adapters/policy/x": ""},
        environment={"OPENAI_API_KEY": "sk-1\nsk-2"},
    ),
]

CASES = [
    *_CONFIG_FILES,
    *_KEYS,
    *_VALUES,
    *_CROSS_FIELD,
    *_THINGS_THAT_ARE_NOT_THERE,
    *_OVERRIDES,
    *_COMMAND_LINE,
    *_PROMPT_FILES,
    *_COMPARISON_FILES,
    *_ENDPOINTS,
]
