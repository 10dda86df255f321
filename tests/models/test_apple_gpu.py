"""An Apple GPU, which no machine of ours has: its switches by a device that pretends, and no float64 on a device."""

from types import SimpleNamespace

import pytest
import torch
from tiny import make_roles
from tiny_aligned import SETTINGS
from tiny_ppo import SCALE, make_ppo_config, rollout_of, start
from tiny_run import make_config, make_session, save_sft, separable, write_prompts, write_ranked
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowrank_rlhf.config.model import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models import allocator, base
from lowrank_rlhf.models.batch_limits import is_out_of_memory
from lowrank_rlhf.models.precision import choose_dtype, sum_dtype
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.pipeline.preflight import problems
from lowrank_rlhf.planner import machine
from lowrank_rlhf.run import memory_usage
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.training import ppo_update
from lowrank_rlhf.training.reward_data import read_groups
from lowrank_rlhf.training.rewards import reward_training
from lowrank_rlhf.training.rollout import RewardScale

MPS = torch.device("mps")
GIB = 2**30
PLAIN = ModelConfig(source="a/b", quantization="none", device="mps")


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An Apple GPU as PyTorch reports it, with 3 GiB reserved; the calls that release memory."""
    released: list[str] = []
    monkeypatch.setattr(memory_usage.sys, "platform", "darwin")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3 * GIB)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: released.append("mps"))
    return released


@pytest.mark.usefixtures("apple")
def test_it_is_used_only_if_set_and_available(monkeypatch) -> None:
    assert base._device(PLAIN) == MPS
    assert base._device(PLAIN.model_copy(update={"device": "auto"})).type != "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"model\.device: MPS device not found"):
        base._device(PLAIN)


def test_the_cpu_is_taken_without_looking_for_gpus(monkeypatch) -> None:
    for module in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(module, "is_available", lambda: pytest.fail("looked for a GPU"))
    assert base._device(PLAIN.model_copy(update={"device": "cpu"})).type == "cpu"


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantisations_of_bitsandbytes_are_refused_with_the_alternative(quantization) -> None:
    (conflict,) = PLAIN.model_copy(update={"quantization": quantization}).conflicts()
    assert conflict.keys == ("quantization", "device")
    assert conflict.text.endswith("does not run on mps; set gguf with a GGUF file, or none")
    assert not [*PLAIN.conflicts(), *ModelConfig(source="a.gguf", device="mps").conflicts()]


def test_formats() -> None:
    found = {name: choose_dtype(name, MPS) for name in ("auto", "float32", "bfloat16", "float16")}
    assert found == {
        "auto": torch.float32,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    assert (sum_dtype(MPS), sum_dtype(torch.device("cpu"))) == (torch.float32, torch.float64)


def test_its_memory_is_the_systems(apple, monkeypatch) -> None:
    monkeypatch.setattr(memory_usage, "_resident", lambda: GIB)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=GIB))
    monkeypatch.setattr(memory_usage.psutil, "Process", lambda: process)
    monkeypatch.setattr(memory_usage, "system_memory_bytes", lambda: (5 * GIB, 8 * GIB))
    assert (memory_usage.memory_in_use_bytes(), memory_usage.peak_memory_bytes()) == (4 * GIB, 4 * GIB)
    assert memory_usage.free_memory_bytes(MPS) == 5 * GIB
    allocator.release_freed_memory()
    assert apple == ["mps"]
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 7.64 GiB, ...)"))


def test_the_plan_counts_the_systems_memory(monkeypatch) -> None:
    monkeypatch.setattr(machine, "_gpu_memory", lambda: [(GIB, GIB)])
    found = machine.find_machine(PLAIN.model_copy(update={"compute_dtype": "float16"}))
    assert (found.device.cuda, found.number_format) == (False, "float16")
    assert machine.find_machine(PLAIN).number_format == "float32"
    with pytest.raises(UserError, match=r"--gpu: model\.device is mps"):
        machine.card(8, PLAIN)


def test_several_processes_and_unsloth_are_refused(monkeypatch, tiny_folder) -> None:
    config = make_config(tiny_folder())
    config = config.model_copy(update={"model": config.model.model_copy(update={"device": "mps"})})
    assert [obstacle.keys for obstacle in config.unsloth_obstacles()] == [("model.device",)]
    assert not problems(config)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert problems(config) == [
        (("model", "device"), "mps supports one process only: gloo and nccl do not reach an Apple GPU")
    ]


class NoFloat64(TorchDispatchMode):
    """Raises on every float64 tensor that an operation returns, as an Apple GPU does.

    Tensors without dimensions are numbers for logs, made on the CPU.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if any(
            isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64 and leaf.dim() for leaf in tree_leaves(found)
        ):
            raise TypeError(f"float64 from {func}")
        return found


@pytest.fixture
def without_float64(monkeypatch: pytest.MonkeyPatch) -> NoFloat64:
    for module in (ppo_update, reward_training):
        monkeypatch.setattr(module, "sum_dtype", lambda _: sum_dtype(MPS))
    return NoFloat64()


def test_a_ppo_step_computes_nothing_in_float64(tiny_base, without_float64) -> None:
    roles, config = start(make_roles(tiny_base())), make_ppo_config()
    with without_float64:
        rollout = rollout_of(roles, config)
        figures = ppo_update.update(
            roles, ppo_update.Optimizers.create(roles, config), rollout, config, SCALE, 0.9, seed=3
        )
    assert figures["value/loss"] > 0


def test_a_step_of_the_reward_model_computes_nothing_in_float64(tiny_folder, tmp_path, without_float64) -> None:
    session = make_session(make_config(tiny_folder(), quantization="none"), tmp_path)
    save_sft(session)
    write_ranked(session, *separable(2))
    roles = session.load_roles()
    roles.copy(Role.POLICY, Role.REWARD)
    roles.new_head(Role.REWARD, torch.Generator().manual_seed(0))
    groups = read_groups(roles.base, session.run_dir, session.config.model.max_length)[0]
    optimizer = torch.optim.SGD(roles.parameters(Role.REWARD), lr=0.0)
    with without_float64:
        loss, _ = reward_training._step(roles, optimizer, groups, session.config.reward, RewardScale("last", 0.0, 1.0))
    assert loss > 0


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "grpo", "dpo"])
def test_no_stage_computes_anything_in_float64(tiny_folder, tmp_path, without_float64, algorithm) -> None:
    """SFT, sampling, scores and evaluation with PPO, and the policies that TRL trains."""
    changes = {} if algorithm == "ppo" else SETTINGS[algorithm] | {"align__batch_size": 6, "align__steps": 2}
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    config = make_config(
        tiny_folder(),
        prompts,
        quantization="none",
        align__algorithm=algorithm,
        ppo__steps=2,
        evaluate__yardstick_prompts=0,  # NumPy's float64, of scores on the CPU
        **{key: value for key, value in changes.items() if algorithm != "dpo" or key != "align__steps"},
    )
    with without_float64:
        run_dir = pipeline.run(
            config, tmp_path / "runs", until="evaluate" if algorithm == "ppo" else "ppo", progress=Progress.silent()
        )
    assert run_dir.artifact("adapters/policy").is_dir()
