"""A stop asked for at any forward of the model is obeyed there, and going on ends as if it had not been."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked
from tiny import make_roles, snapshot
from tiny_ppo import SCALE, make_ppo_config, rollout_of, start
from tiny_run import limit_tokens, make_config, write_prompts

from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.errors import Stopped
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import load_optimizer, save_optimizer
from lowrank_rlhf.training.ppo_update import Optimizers, OptimizerSteps, update
from lowrank_rlhf.training.rollout_file import load_rollout, save_rollout


@pytest.mark.parametrize(("target_kl", "expected_forwards"), [(None, 20), (1e-7, 16)])
def test_an_update_broken_off_at_any_forward_goes_on_alike(tiny_base, tmp_path, target_kl, expected_forwards) -> None:
    """Rollout and steps go through their files; gradients that were half accumulated are dropped."""
    roles, config = start(make_roles(tiny_base())), make_ppo_config(epochs=2, minibatches=2, target_kl=target_kl)
    limit_tokens(roles.base, 50)
    rollout = rollout_of(roles, config)
    before = {role: snapshot(roles, role) for role in Role}
    forwards, stop_at = [0], [-1]

    def poll(*_: Any) -> None:
        forwards[0] += 1
        if forwards[0] == stop_at[0]:
            raise Stopped("asked")

    roles.decoder.register_forward_pre_hook(poll)

    def outcome(at: int) -> tuple[dict[str, Any], dict[str, float]]:
        for role, weights in before.items():
            for name, parameter in roles.named_parameters(role).items():
                parameter.data.copy_(weights[name])
        optimizers, steps, own = Optimizers.create(roles, config), OptimizerSteps(), rollout
        forwards[0], stop_at[0] = 0, at
        if at:
            with pytest.raises(Stopped):
                update(roles, optimizers, own, config, SCALE, 0.9, 3, True, steps)
            optimizers, steps, own = _through_files(roles, config, optimizers, steps, own, tmp_path)
        figures = update(roles, optimizers, own, config, SCALE, 0.9, 3, True, steps)
        return {role: snapshot(roles, role) for role in Role}, _without_times(figures)

    expected, figures = outcome(0)
    total = forwards[0]
    # Two micro-batches in each of four steps of the critic and of four (or one, and one too far) of the policy, and
    # four for the approximate KL at the end.
    assert total == expected_forwards
    for at in range(1, total + 1):
        weights, found = outcome(at)
        assert found == figures, at
        for role in Role:
            assert all(torch.equal(weights[role][name], value) for name, value in expected[role].items()), (at, role)


def _through_files(
    roles: Roles, config: Any, optimizers: Optimizers, steps: OptimizerSteps, rollout: Any, folder: Path
) -> Any:
    save_rollout(rollout, folder)
    fresh = Optimizers.create(roles, config)
    for one, other in ((optimizers.policy, fresh.policy), (optimizers.critic, fresh.critic)):
        save_optimizer(one, folder / "optimizer.safetensors")
        load_optimizer(other, folder / "optimizer.safetensors")
    return fresh, OptimizerSteps(**json.loads(json.dumps(vars(steps)))), load_rollout(roles, folder)


def _without_times(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if not name.startswith("time/")}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM cannot be handled there")
@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ([signal.SIGTERM], "Stopped; everything before this stage is saved"),
        ([signal.SIGTERM, signal.SIGINT], "Stopped at once"),  # two of a kind might arrive as one
    ],
)
def test_a_real_signal_ends_a_real_process_soon(tiny_folder, tmp_path, signals, message) -> None:
    """In the middle of one batch of answers that takes half a minute."""
    changes = {"sft__source": "base", "stages": ("sft", "sample"), "sample__answers_per_prompt": 100}
    long = {"sample__batch_size": 800, "sample__max_new_tokens": 200, "model__max_length": 250}
    config = make_config(tiny_folder(), write_prompts(tmp_path / "prompts.jsonl"), "none", **changes, **long)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    command = ["-m", "lowrank_rlhf", "run", str(tmp_path / "config.yaml"), "--runs", str(tmp_path)]
    log = tmp_path / "said.txt"
    process = Forked(command, log, os.environ)
    try:
        while "answers    0%" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        time.sleep(0.5)
        since = time.monotonic()
        for number in signals:
            os.kill(process.pid, number)
        code = process.wait(30)
        seconds = time.monotonic() - since
    finally:
        process.kill()
    assert code == 130
    assert message in log.read_text()
    assert "Traceback" not in log.read_text()
    assert seconds < 5
    assert not (tmp_path / config.name / "done" / "sample.json").exists()
