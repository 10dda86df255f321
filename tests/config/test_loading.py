"""YAML and overrides to `Config`: every message word for word, every position exact."""

from pathlib import Path

import pytest

from lowrank_rlhf.config import loading, messages
from lowrank_rlhf.config.loading import dump_config, load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError

HEAD = "name: a\nmodel: {source: x}\n"  # a whole config; what is tested starts on line 3
STAGES = '"sft", "sample", "rank", "reward", "ppo" or "evaluate"'


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes my.yaml into the current folder, so that messages name it as a person would."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> Path:
        path = Path("my.yaml")
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def complaint(path: Path, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_reads_values_and_leaves_the_rest_at_its_default(written) -> None:
    config = load_config(written(HEAD + "sft: {learning_rate: 2e-4}\nppo:\n  kl_horizon: 1e4\n  kl_coef: 1\n"))
    assert config.sft.learning_rate == 0.0002
    assert config.ppo.kl_horizon == 10_000
    assert isinstance(config.ppo.kl_horizon, int)
    assert isinstance(config.ppo.kl_coef, float)
    assert config.lora == Config(name="a", model={"source": "x"}).lora


@pytest.mark.parametrize(
    ("text", "overrides", "beta"),
    [
        ("", (), 0.05),
        ("ppo: {kl_controller: adaptive}\n", (), 0.15),
        ("", ("ppo.kl_controller=adaptive",), 0.15),
        ("ppo: {kl_controller: adaptive, kl_coef: 0.3}\n", (), 0.3),
        ("ppo: {kl_controller: adaptive, kl_coef: 0.05}\n", (), 0.05),
        ("ppo: {kl_coef: 0.3}\n", ("ppo.kl_controller=adaptive",), 0.3),
        ("ppo: {kl_controller: adaptive}\n", ("ppo.kl_controller=fixed",), 0.05),
    ],
)
def test_the_adaptive_controller_starts_from_a_beta_of_its_own(written, tmp_path, text, overrides, beta) -> None:
    config = load_config(written(HEAD + text), overrides)
    assert config.ppo.kl_coef == beta
    dumped = tmp_path / "dumped.yaml"
    for changed_only in (False, True):
        dumped.write_text(dump_config(config, changed_only))
        assert load_config(dumped) == config


def test_a_section_whose_lines_are_all_comments_keeps_its_defaults(written) -> None:
    assert load_config(written(HEAD + "ppo:\n  # steps: 3\n")).ppo.steps == 50


def test_a_date_is_text(written) -> None:
    assert load_config(written("name: 2026-07-30\nmodel: {source: x}\n")).name == "2026-07-30"


def test_an_emoji_may_be_spelt_as_json_spells_it(written) -> None:
    text = 'name: a\nmodel: {source: x, chat_template: "\\ud83d\\ude00 \\U0001F600 \U0001f600"}\n'
    assert load_config(written(text)).model.chat_template == "\U0001f600 \U0001f600 \U0001f600"


def test_a_byte_order_mark_is_no_key(written) -> None:
    assert load_config(written(b"\xef\xbb\xbf" + HEAD.encode())).name == "a"


IN_THE_FILE = [
    ("ppo:\n  kl_coeff: 1\n", 'my.yaml:4:3: ppo.kl_coeff: unknown key. Did you mean "kl_coef"?'),
    ("lora:\n  kl_coef: 1\n", 'my.yaml:4:3: lora.kl_coef: unknown key. Did you mean "ppo.kl_coef"?'),
    ("lora:\n  sft: 1\n", 'my.yaml:4:3: lora.sft: unknown key. Did you mean "sft", at the top level?'),
    ("steps: 3\n", 'my.yaml:3:1: steps: unknown key. Did you mean "ppo.steps"?'),  # and not "stages"
    (
        "lora: {zz: 1}\n",
        "my.yaml:3:8: lora.zz: unknown key. Valid keys: rank, alpha, use_rslora, target_modules, last_layers",
    ),
    ("pppo: {}\n", 'my.yaml:3:1: pppo: unknown key. Did you mean "ppo"?'),
    ("ppo: {steps: 0}\n", "my.yaml:3:7: ppo.steps: must be at least 1, not 0"),
    ("ppo: {clip_range: 0}\n", "my.yaml:3:7: ppo.clip_range: must be above 0, not 0"),
    ("ppo: {gamma: 1.5}\n", "my.yaml:3:7: ppo.gamma: must be at most 1, not 1.5"),
    ("ppo: {learning_rate: 2}\n", "my.yaml:3:7: ppo.learning_rate: must be below 1, not 2"),
    ("ppo: {kl_coef: -0.5}\n", "my.yaml:3:7: ppo.kl_coef: must be at least 0, not -0.5"),
    ("ppo: {kl_coef: much}\n", 'my.yaml:3:7: ppo.kl_coef: must be a number, not "much"'),
    ("ppo: {kl_coef: '0.1'}\n", 'my.yaml:3:7: ppo.kl_coef: must be a number, not "0.1"'),
    ("ppo: {steps: 1.5}\n", "my.yaml:3:7: ppo.steps: must be a whole number, not 1.5"),
    ("ppo: {steps: true}\n", "my.yaml:3:7: ppo.steps: must be a whole number, not true"),
    ("ppo: {steps: }\n", "my.yaml:3:7: ppo.steps: must be a whole number, not null"),
    ("ppo: {steps: [3]}\n", "my.yaml:3:7: ppo.steps: must be a whole number, not [3]"),
    ("ppo: {whiten_rewards: yes}\n", 'my.yaml:3:7: ppo.whiten_rewards: must be true or false, not "yes"'),
    ("ppo: {missing_eos_score: .inf}\n", "my.yaml:3:7: ppo.missing_eos_score: must be a finite number, not Infinity"),
    ("ppo: {missing_eos_score: .nan}\n", "my.yaml:3:7: ppo.missing_eos_score: must be a finite number, not NaN"),
    ("ppo: {batch_size: 8, minibatches: 3}\n", "my.yaml:3:22: ppo: minibatches (3) must divide batch_size (8)"),
    ("ppo: 5\n", "my.yaml:3:1: ppo: must be a section of settings, not 5"),
    ("reward: {pooling: lst}\n", 'my.yaml:3:10: reward.pooling: must be "last" or "mean", not "lst"'),
    ("rank: {judge: 7}\n", "my.yaml:3:8: rank.judge: must be text, not 7. Put it in quotes"),
    (f"rank: {{judge: [{'x' * 70}]}}\n", f'my.yaml:3:8: rank.judge: must be text, not ["{"x" * 55}...'),
    ("sft: {source: adapter}\n", "my.yaml:3:1: sft: `adapter` and `source: adapter` must be set together"),
    ("sft: {source: base, scale: 0.5}\n", "my.yaml:3:21: sft: `scale` has no effect with `source: base`; remove it"),
    ("lora: {target_modules: 5}\n", 'my.yaml:3:8: lora.target_modules: must be "all-linear" or a list, not 5'),
    (
        "lora:\n  target_modules:\n  - q_proj\n  - 5\n",
        "my.yaml:6:5: lora.target_modules[1]: must be text, not 5. Put it in quotes",
    ),
    ("stages: sft\n", 'my.yaml:3:1: stages: must be a list, not "sft"'),
    ("stages: [sft, ppp]\n", f'my.yaml:3:15: stages[1]: must be {STAGES}, not "ppp"'),
    (
        "stages: [ppo, sft]\n",
        "my.yaml:3:1: stages must be a subset of sft, sample, rank, reward, ppo, evaluate, in this order",
    ),
    ("ppo:\n  steps: 1\n  steps: 2\n", "my.yaml:5:3: ppo.steps: duplicate key, first on line 4"),
    ("ppo: {3: 1}\n", "my.yaml:3:7: a key in ppo must be text, not 3"),
    ("? [a]\n: 1\n", "my.yaml:3:3: a key must be text, not a list or a mapping"),
    ("lora: &l {rank: 3}\nppo: *l\n", "my.yaml:4:1: ppo: aliases (*name) are not allowed. Write the value out"),
    ("ppo:\n  <<: {steps: 3}\n", "my.yaml:4:3: a key in ppo must be text, not <<"),
    ("ppo: {steps: !!python/name:os.system x}\n", None),
    ("ppo: {steps: !!int three}\n", "my.yaml:3:7: ppo.steps: three cannot be read as int"),
    (f"seed: {'1' * 5000}\n", f"my.yaml:3:1: seed: {'1' * 40} cannot be read as int"),
    (
        "lora: {rank: [[[[[[[[3]]]]]]]]}\n",
        "my.yaml:3:8: lora.rank: must be a whole number, not [[[[null]]]]\n"
        "my.yaml:3:18: lora.rank[0][0][0][0]: nested too deeply",
    ),
    ("name: b\n", "my.yaml:3:1: name: duplicate key, first on line 1"),
]


@pytest.mark.parametrize(("text", "message"), IN_THE_FILE)
def test_names_the_mistake_and_its_position(written, text: str, message: str | None) -> None:
    expected = message or "my.yaml:3:7: ppo.steps: the tag tag:yaml.org,2002:python/name:os.system is not allowed"
    assert complaint(written(HEAD + text)) == expected


WHOLE_FILES = [
    ("", "my.yaml: empty file. A config needs at least `name` and `model: {source: ...}`"),
    ("# nothing\n", "my.yaml: empty file. A config needs at least `name` and `model: {source: ...}`"),
    ("- a\n", "my.yaml: expected `key: value` lines at the top level"),
    ("name:a\n", "my.yaml: expected `key: value` lines at the top level"),
    ("name: a\n", "my.yaml: model: missing; it has no default"),
    ("name: a\nmodel: {}\n", "my.yaml:2:1: model.source: missing; it has no default"),
    ("model: {source: x}\n", "my.yaml: name: missing; it has no default"),
    (
        "name: a b\nmodel: {source: x}\n",
        'my.yaml:1:1: name: must be up to 64 letters, digits, ".", "_" and "-", a letter or digit first, not "a b"',
    ),
    ("a: 1\n\tb: 2\n", "my.yaml:2:1: not valid YAML: while scanning for the next token, found character '\\t' that"),
    ("a: b: c\n", "my.yaml:1:5: not valid YAML: mapping values are not allowed here"),
    ("a: [1\n", "my.yaml:2:1: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream"),
    ("a: 1\n---\nb: 1\n", "my.yaml:2:1: not valid YAML: expected a single document in the stream, but found another"),
    ("a: \0\n", "my.yaml: not valid YAML: unacceptable character #x0000: special characters are not allowed"),
    ("a: " + "[" * 1000, "my.yaml: not valid YAML: nested too deeply"),
    (b"name: caf\xe9\n", "my.yaml: not UTF-8 text (byte 9). Save it as UTF-8"),
    (HEAD.encode("utf-16"), "my.yaml: not UTF-8 text (byte 0). Save it as UTF-8"),
]


@pytest.mark.parametrize(("text", "message"), WHOLE_FILES)
def test_a_file_that_is_no_config(written, text: str | bytes, message: str) -> None:
    assert complaint(written(text)).startswith(message)


OVERRIDES = [
    ("ppo.kl_coeff=1", 'ppo.kl_coeff: unknown key. Did you mean "kl_coef"?'),
    ("ppo.kl_coef=-1", "ppo.kl_coef: must be at least 0, not -1"),
    ("ppo.kl_coef", "must be key=value, such as ppo.kl_coef=0.1"),
    ("=1", "must be key=value, such as ppo.kl_coef=0.1"),
    ("ppo..steps=1", "must be key=value, such as ppo.kl_coef=0.1"),
    ("name.first=1", "name.first: name is not a section"),
    ("ppo.steps=[1", "ppo.steps: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got '<st"),
    ("ppo={steps: 1, steps: 2}", "ppo.steps: duplicate key"),
    ("ppo={batch_size: 8, minibatches: 3}", "ppo: minibatches (3) must divide batch_size (8)"),
    ("stages=[sft, sft]", "stages must be a subset of"),
    ("model=", "model.source: missing; it has no default"),
]


@pytest.mark.parametrize(("override", "message"), OVERRIDES)
def test_an_override_is_named_where_it_is_wrong(written, override: str, message: str) -> None:
    assert complaint(written(HEAD), (override,)).startswith(f'override "{override}": {message}')


def test_overrides_replace_the_file_and_the_last_one_wins(written) -> None:
    path = written(HEAD + "ppo: {kl_coef: -1, steps: 7}\n")
    config = load_config(
        path, ["ppo.kl_coef=0.1", "ppo.kl_coef=2e-1", "sft.examples=", "lora={rank: 2}", "model.source=b=c"]
    )
    assert (config.ppo.kl_coef, config.ppo.steps, config.sft.examples) == (0.2, 7, None)
    assert (config.lora.rank, config.model.source) == (2, "b=c")


def test_all_mistakes_come_at_once_in_reading_order(written) -> None:
    path = written("seed: x\nppo:\n  steps: 0\n  steps: 1\n  3: 4\nname: a\nmodel: {sorce: x}\n")
    assert complaint(path, ("sft.epochs=0", "what")).splitlines() == [
        'my.yaml:1:1: seed: must be a whole number, not "x"',
        "my.yaml:3:3: ppo.steps: must be at least 1, not 0",
        "my.yaml:4:3: ppo.steps: duplicate key, first on line 3",
        "my.yaml:5:3: a key in ppo must be text, not 3",
        "my.yaml:7:1: model.source: missing; it has no default",
        'my.yaml:7:9: model.sorce: unknown key. Did you mean "source"?',
        'override "sft.epochs=0": sft.epochs: must be at least 1, not 0',
        'override "what": must be key=value, such as ppo.kl_coef=0.1',
    ]


def test_a_billion_laughs_are_refused_before_they_expand(written) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    assert "aliases (*name) are not allowed" in complaint(written("\n".join(lines)))


def test_missing_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint(Path("none.yaml")) == "none.yaml: file not found"
    assert complaint(tmp_path) == f"{tmp_path}: expected a YAML file, got a folder"


class TestPresets:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "presets").mkdir()
        (tmp_path / "presets" / "quickstart.yaml").write_text(HEAD)
        (tmp_path / "presets" / "gpu.yaml").write_text(HEAD)
        monkeypatch.setattr(loading, "preset_folder", lambda: tmp_path / "presets")

    def test_a_bare_name_is_a_preset(self) -> None:
        assert load_config(Path("quickstart")).name == "a"

    def test_a_folder_of_that_name_is_not_in_the_way_but_a_file_is(self) -> None:
        Path("quickstart").mkdir()
        assert load_config(Path("quickstart")).name == "a"
        Path("gpu").write_text(HEAD.replace("name: a", "name: mine"))
        assert load_config(Path("gpu")).name == "mine"

    def test_an_unknown_preset(self) -> None:
        expected = 'preset not found: "quikstart". The presets are: gpu, quickstart. Did you mean "quickstart"?'
        assert complaint(Path("quikstart")) == expected

    def test_no_presets_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loading, "preset_folder", lambda: tmp_path / "none")
        assert complaint(Path("x")).startswith('preset not found: "x". ')


def test_in_a_checkout_the_preset_folder_is_next_to_the_package() -> None:
    import lowrank_rlhf

    assert loading.preset_folder() == Path(lowrank_rlhf.__file__).parents[1] / "presets"


@pytest.mark.parametrize("text", ["null", "1e5", "0x1F", "true", "~", "2026-07-30", "", " a ", "a: b # c", "- x", "*a"])
@pytest.mark.parametrize("wrap", ["{}", "{{%\n\t{}\n\n  ü%}}\u2028\x85 '\"\\ \x07"])
def test_a_dumped_config_reads_back_equal(tmp_path: Path, text: str, wrap: str) -> None:
    config = Config(
        name="1e5",
        model={"source": text or "x", "chat_template": wrap.format(text)},
        stages=("sft", "ppo"),
        lora={"target_modules": ("q_proj", text)},
        ppo={"learning_rate": 1e-7, "adam_epsilon": 1e22, "score_clip": None, "missing_eos_score": -0.1 - 0.2},
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_every_pattern_of_the_schema_has_its_sentence() -> None:
    patterns = [
        part.pattern for field in Config.model_fields.values() for part in field.metadata if hasattr(part, "pattern")
    ]
    assert patterns == list(messages._PATTERNS)


@pytest.mark.parametrize("wrong", ["data.prompts=5", "data.format=5", "ppo.steps=0"])
def test_a_wrong_setting_hides_only_conflicts_that_involve_it(written, wrong: str) -> None:
    """A word of the conflict's sentence may be another setting's name (`prompts` here), which must not matter."""
    found = complaint(written(HEAD), ("data.held_out=0", wrong))
    assert [line.partition('": ')[0].removeprefix('override "') for line in found.splitlines()] == [
        "data.held_out=0",
        wrong,
    ]


@pytest.mark.parametrize(
    "wrong", ["data.held_out=x", "stages=[ppo, walk]", "data=5"], ids=["its key", "an element of it", "its section"]
)
def test_a_wrong_setting_hides_the_conflicts_that_involve_it(written, wrong: str) -> None:
    assert len(complaint(written(HEAD), ("data.held_out=0", wrong)).splitlines()) == 1


def test_a_run_folder_instead_of_its_config_is_named_with_the_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/config.yaml").write_text("name: mine\n")
    with pytest.raises(UserError, match=r"^mine: expected a YAML file, got a folder\. Write mine/config\.yaml$"):
        load_config(Path("mine"))
    Path("quickstart").mkdir()
    assert load_config(Path("quickstart")).name == "quickstart"  # the preset


@pytest.mark.parametrize(
    "excluded", ["model.merged_rollouts=true", "model.cuda_graphs=true", "model.backend=unsloth", "model.backend=auto"]
)
def test_a_divided_base_excludes_copies_recordings_and_another_library(written, excluded: str) -> None:
    path = written(HEAD)
    model = load_config(path, ("model.shard=true",)).model
    assert (model.shard, model.merged_rollouts, model.cuda_graphs) == (True, False, False)
    assert load_config(path).model.merged_rollouts
    assert "shard: true requires" in complaint(path, ("model.shard=true", excluded))
