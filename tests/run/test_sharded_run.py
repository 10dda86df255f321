"""Runs of two processes that share one base: what one process with a whole base makes."""

import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from launched import Launched
from tiny_run import make_config, write_prompts

from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.step_log import StepLog

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and SIGTERM")
SLOW = 600
"""Seconds: every layer of every pass waits for the other process, on machines that are busy too."""
SETTINGS: dict[str, Any] = {
    "sft__epochs": 1,
    "sft__examples": 9,  # the last step has a single row
    "sample__prompts": 7,  # an odd number: one process has more
    "reward__epochs": 1,
    "reward__fit_head_first": True,
    "ppo__steps": 2,
    "ppo__evaluate_prompts": 2,
    "evaluate__yardstick_prompts": 0,
    "rank__judge": "plain-language",
    "model__merged_rollouts": False,
    "model__cuda_graphs": False,
}
STAGES = {
    "nf4": ("sft", "sample", "rank", "reward", "ppo", "evaluate"),
    "none": ("sft", "sample", "rank", "reward"),
}


def config_of(folder: Path, model: Path, quantization: str, shard: bool) -> Config:
    prompts = write_prompts(folder / "prompts.jsonl")
    stages = STAGES[quantization]
    return make_config(model, prompts, quantization, stages=stages, model__shard=shard, **SETTINGS)


@pytest.fixture(scope="module", params=STAGES)
def run(request: pytest.FixtureRequest, tiny_folder, tmp_path_factory) -> SimpleNamespace:
    """A run in two processes, the one in NF4 killed in reward first; and the same in one process, not sharded."""
    folder, killed = tmp_path_factory.mktemp(request.param), None
    config = config_of(folder, tiny_folder(), request.param, shard=True)
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    path = folder / "runs" / config.name
    arguments = "-m", "lowrank_rlhf", "run", str(folder / "config.yaml"), "--runs", str(folder / "runs")
    if request.param == "nf4":
        launched = Launched(folder, *arguments)
        launched.wait_for(lambda: bool(list(StepLog(path / "metrics.jsonl").read("reward"))), SLOW)
        launched.all[1].send_signal(signal.SIGKILL)
        killed = launched.wait(SLOW), launched.said
    launched = Launched(folder, *arguments)
    ended = launched.wait(SLOW), launched.said
    whole = config_of(folder, tiny_folder(), request.param, shard=False)
    single = pipeline.run(whole, folder / "single", progress=Progress.silent()).path
    return SimpleNamespace(path=path, killed=killed, ended=ended, single=single, config=config)


def test_adapters_samples_and_scores_are_those_of_a_whole_base(run) -> None:
    from lowrank_rlhf.models.storage import WEIGHTS, read_tensors

    codes, said = run.ended
    assert codes == [0, 0], said
    names = sorted(path.name for path in (run.single / "adapters").iterdir())
    assert names == ["reward", "sft"] if len(run.config.stages) == 4 else len(names) == 5
    for name in names:
        ours, theirs = (read_tensors(path / "adapters" / name / WEIGHTS) for path in (run.path, run.single))
        assert ours.keys() == theirs.keys()
        apart = sum(float((ours[key] - theirs[key]).square().sum()) for key in ours) ** 0.5
        size = sum(float(tensor.square().sum()) for tensor in theirs.values()) ** 0.5
        assert apart < 1e-5 * size, name
    assert (run.path / "samples.jsonl").read_bytes() == (run.single / "samples.jsonl").read_bytes()
    scores = [
        [json.loads(line)["score"] for line in (path / "scores.jsonl").read_text().splitlines()]
        for path in (run.path, run.single)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4, abs=1e-4)


def test_every_self_check_holds(run) -> None:
    """The frozen base among them: its checksum is that of all processes' parts."""
    claims = [
        claim
        for stage in run.config.stages
        for claim in json.loads((run.path / "done" / f"{stage}.json").read_text())["summary"].get("claims", [])
    ]
    assert {"base_unchanged", "reward_reloads", "other_roles_unchanged"} <= {claim["id"] for claim in claims}
    assert all(claim["holds"] for claim in claims)


def test_one_killed_ends_the_other_with_a_sentence(run) -> None:
    if run.killed is None:
        assert "no longer" not in run.ended[1]
        return
    codes, said = run.killed
    assert codes == [1, -signal.SIGKILL], said
    assert said.count("process 1 of this run, on ") == said.count(", was killed or crashed") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["run", "plan"])
def test_one_process_has_nothing_to_divide(command, tiny_folder, tmp_path, name) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config_of(tmp_path, tiny_folder(), "nf4", shard=True)), encoding="utf-8")
    code, _, errors = command(name, str(path), "--runs", str(tmp_path / "runs"))
    assert code == 2
    assert "model.shard: one process cannot divide the base" in errors
    assert not (tmp_path / "runs").exists()
