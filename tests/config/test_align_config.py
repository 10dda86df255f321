"""Section `align`: what contradicts itself is refused with its key, and configs without the section go on."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from lowrank_rlhf.config.align import AlignConfig
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline.fingerprint import differences
from lowrank_rlhf.planner.compute_cost import compute_cost, policy_steps
from lowrank_rlhf.planner.memory import Device, need
from lowrank_rlhf.run.results import Fingerprint


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 3}, "steps has no effect with `algorithm: ppo`; set section ppo instead"),
        ({"algorithm": "dpo", "steps": 3}, "steps has no effect with `algorithm: dpo`; remove it"),
        ({"algorithm": "dpo", "answers_per_prompt": 8}, "answers_per_prompt has no effect with `algorithm: dpo`"),
        ({"algorithm": "rloo", "epochs": 2}, "epochs has no effect with `algorithm: rloo`"),
        ({"algorithm": "grpo", "epochs": 2}, "epochs has no effect with `algorithm: grpo`"),
        ({"algorithm": "grpo", "batch_size": 30}, r"answers_per_prompt \(4\) must divide batch_size \(30\)"),
        ({"algorithm": "dpo", "beta": 0}, "beta must be above 0 with `algorithm: dpo`"),
        ({"algorithm": "reinforce"}, "'ppo', 'rloo', 'grpo' or 'dpo'"),
        ({"algorithm": "rloo", "answers_per_prompt": 1}, "greater than or equal to 2"),
        ({"algorithm": "rloo", "kl_coef": 0.1}, "kl_coef"),
    ],
)
def test_it_is_refused_with_its_key(settings, said) -> None:
    with pytest.raises(ValidationError, match=said):
        AlignConfig.model_validate(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"algorithm": "rloo", "beta": 0, "steps": 3},
        {"algorithm": "grpo", "batch_size": 8, "answers_per_prompt": 2},
        {"algorithm": "dpo", "epochs": 3, "batch_size": 7},
    ],
)
def test_it_is_accepted(settings) -> None:
    assert AlignConfig.model_validate(settings).algorithm == settings.get("algorithm", "ppo")


def test_a_whole_resolved_config_is_read_again() -> None:
    """Of a run's config.yaml every setting is set."""
    config = AlignConfig(algorithm="dpo", epochs=3)
    assert AlignConfig.model_validate(config.model_dump()) == config


def test_the_baseline_of_ppo_is_ppo_s() -> None:
    with pytest.raises(UserError, match=r"ppo\.contrastive must be false with align\.algorithm: rloo"):
        load_config(Path("quickstart"), ["align.algorithm=rloo"])
    assert load_config(Path("quickstart"), ["align.algorithm=rloo", "ppo.contrastive=false"]).align.algorithm == "rloo"


def test_a_run_from_before_the_section_is_ppo_s() -> None:
    old = Fingerprint(settings={"ppo.steps": 4}, inputs={})
    assert AlignConfig() == Config.model_validate({"name": "x", "model": {"source": "x"}}).align
    new = Fingerprint(settings={"ppo.steps": 4, "align.algorithm": "ppo", "align.beta": 0.05}, inputs={})
    assert differences(old, new) == ()
    new.settings["align.algorithm"] = "dpo"
    assert differences(old, new) == ('align.algorithm: (not set) -> "dpo"',)


def quickstart(*changes: str) -> Config:
    return load_config(Path("quickstart"), ["ppo.contrastive=false", "ppo.steps=16", *changes])


def test_the_plan_counts_what_the_algorithm_does() -> None:
    """480 x 4 answers make 480 x 6 comparisons; without a critic there is one adapter less, and none of its Adam."""
    from quickstart_plan import COUNTS, SMOLLM

    dpo = quickstart("align.algorithm=dpo", "align.batch_size=32", "align.epochs=2")
    rloo = quickstart("align.algorithm=rloo", "align.batch_size=72", "align.steps=16")
    grpo = quickstart("align.algorithm=grpo", "align.batch_size=72", "align.steps=16")
    assert policy_steps(quickstart(), COUNTS.answers) == 16
    assert policy_steps(rloo, COUNTS.answers) == 16
    assert policy_steps(dpo, COUNTS.answers) == -(-COUNTS.answers * 3 // 2 * 2 // 32)
    ppo, first, second = (compute_cost("ppo", config, COUNTS, SMOLLM) for config in (quickstart(), rloo, grpo))
    assert ppo > 0
    assert first > second > 0
    assert compute_cost("ppo", quickstart("align.algorithm=dpo", "align.epochs=4"), COUNTS, SMOLLM) > compute_cost(
        "ppo", quickstart("align.algorithm=dpo"), COUNTS, SMOLLM
    )
    stays = {
        name: {term.name: term.size for term in need("ppo", config, SMOLLM, COUNTS, Device(False, 2)).fixed}
        for name, config in {"ppo": quickstart(), "dpo": dpo, "rloo": rloo}.items()
    }
    # Four bytes for each weight of four or three roles, and two for the acting role's copy.
    assert stays["dpo"]["adapters"] == stays["rloo"]["adapters"] == stays["ppo"]["adapters"] * (4 * 3 + 2) / (4 * 4 + 2)
    assert stays["dpo"]["optimiser"] == stays["rloo"]["optimiser"] < stays["ppo"]["optimiser"]
