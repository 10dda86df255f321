"""Settings of `ppo.rewards`: what is refused with which key, and what follows for stages and critic."""

import sys

import pytest

from lowrank_rlhf import cli
from lowrank_rlhf.config.loading import dump_config, parse_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline.preflight import problems

RULE = "{source: pattern, pattern: 'x'}"


def config(rewards: str, more: str = "", overrides: tuple[str, ...] = ()) -> Config:
    return parse_config(f"name: x\nmodel: {{source: m}}\n{more}ppo:\n  rewards: {rewards}\n", "my.yaml", overrides)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ("{a: {source: lenght}}", "ppo.rewards.a.source: must be model, length, overlong, pattern, json, banned"),
        ("{a: {source: length}}", "ppo.rewards.a: `source: length` requires `minimum` or `maximum`"),
        ("{a: {source: length, minimum: 3, maximum: 2}}", "ppo.rewards.a: minimum (3) must be at most maximum (2)"),
        ("{a: {source: overlong, maximum: 3}}", "ppo.rewards.a: `source: overlong` requires `buffer`"),
        ("{a: {source: overlong, buffer: 3}}", "ppo.rewards.a: `source: overlong` requires `maximum` of at least"),
        ("{a: {source: pattern}}", "ppo.rewards.a: `source: pattern` requires `pattern`"),
        ("{a: {source: pattern, pattern: '('}}", "ppo.rewards.a.pattern: not a regular expression: missing )"),
        ("{a: {source: banned}}", "ppo.rewards.a: `source: banned` requires `phrases`"),
        ("{a: {source: exact}}", "ppo.rewards.a: `source: exact` requires `column`"),
        ("{a: {source: exact, column: c, pattern: 'x'}}", "ppo.rewards.a: pattern must have a group"),
        ("{a: {source: 'f:g', maximum: 3}}", "ppo.rewards.a: maximum has no effect with `source: f:g`; remove it"),
        ("{a: {source: model, normalize: true}}", "ppo.rewards.a: normalize has no effect on the model"),
        ("{a: {source: model}, b: {source: model}}", "ppo: rewards.b: the reward model is rewards.a already"),
        ("{a: {source: json, wieght: 1}}", 'ppo.rewards.a.wieght: unknown key. Did you mean "weight"?'),
        ("{a: {source: endpoint, rubric: 'Good? {answer}'}}", "ppo.rewards.a.rubric: must be english, chinese, or a"),
        ("{a: {source: endpoint}}", "ppo.rewards.a.source is endpoint, which requires a section rank.endpoint"),
        (f"{{'a b': {RULE}}}", 'ppo.rewards: "a b" is not a name: up to 32 letters'),
        (f"{{a: {RULE}}}\n  critic_head: reward", "ppo: critic_head must be zero without the reward model in rewards"),
        (f"{{m: {{source: model}}, a: {RULE}}}\n  contrastive: true", "ppo: contrastive must be false with rewards"),
        (f"{{a: {RULE}}}\nalign: {{algorithm: dpo}}", "align.algorithm is dpo, which learns from comparisons"),
        (f"{{a: {RULE}}}\nstages: [sample, rank]", "stages must name at least one stage that runs; without the reward"),
    ],
)  # fmt: skip
def test_it_is_refused_with_its_key(rewards, expected) -> None:
    with pytest.raises(UserError) as caught:
        config(rewards)
    (line,) = str(caught.value).splitlines()
    assert expected in line


def test_the_position_is_that_of_the_setting() -> None:
    with pytest.raises(UserError, match=r"^my\.yaml:5:9: ppo\.rewards\.a: `source: pattern` requires"):
        config("\n    a: {source: pattern}")


def test_without_the_reward_model_its_stages_do_not_run() -> None:
    own = config(f"{{a: {RULE}}}")
    assert own.active_stages == ("sft", "ppo", "evaluate")
    assert own.ppo.critic_head == "zero"
    both = config(f"{{m: {{source: model}}, a: {RULE}}}")
    assert both.active_stages == both.stages == config("{}").active_stages
    assert both.ppo.critic_head == config("{}").ppo.critic_head == "reward"


def test_a_dump_reads_back_equal_and_overrides_reach_inside() -> None:
    own = config("{a: {source: banned, phrases: [x, y], weight: 2}, b: {source: json, keys: [k]}}")
    assert own.ppo.rewards["a"].phrases == ["x", "y"]
    for changed_only in (False, True):
        assert parse_config(dump_config(own, changed_only), "again.yaml") == own
    changed = config(f"{{a: {RULE}}}", overrides=("ppo.rewards.a.weight=3", "ppo.rewards.b={source: json}"))
    assert {name: term.weight for name, term in changed.ppo.rewards.items()} == {"a": 3, "b": 1}


@pytest.mark.parametrize(("command", "expected"), [("validate", "rewards: 2 question + brief"), ("plan", "PPO on 2")])
def test_the_commands_name_the_rewards(monkeypatch, capsys, tmp_path, command, expected) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", command, "own_reward"])
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr().out
    assert expected in printed
    assert "adapters/reward" not in printed


def test_a_function_that_is_not_there_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ((key, text),) = [found for found in problems(config("{a: {source: 'no_such_file:f'}}")) if "ppo" in found[0]]
    assert key == ("ppo", "rewards", "a", "source")
    assert text.startswith("reward 'no_such_file:f': cannot import 'no_such_file' (ModuleNotFoundError")
