"""Out of memory: micro-batches are halved, and the result equals that of a run with the smaller ones."""

import json
from typing import Any

import pytest
import torch
from tiny import snapshot
from tiny_finished import finished_run
from tiny_run import make_config, make_session, save_sft, separable, write_prompts, write_ranked
from torch import Tensor

from lowrank_rlhf.errors import CannotFit
from lowrank_rlhf.models.batch_limits import BatchLimits, is_out_of_memory
from lowrank_rlhf.models.layers import merging
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import ppo, reward, sample, sft

CPU_SAYS = (
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
)
ERRORS = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_SAYS)]


@pytest.mark.parametrize("error", ERRORS)
def test_a_lack_of_memory_is_known_by_its_kind_or_its_words(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_it_is_tried_with_half_until_a_single_row_is_too_much() -> None:
    limits, said, tried = BatchLimits(100), list[str](), list[int]()
    limits.on_halved = said.append

    def attempt() -> None:
        tried.append(limits.tokens)
        raise MemoryError

    with pytest.raises(CannotFit, match="single row of 30 tokens"):
        limits.retry(attempt, 30)
    assert tried == [100, 50, 25]
    assert len(said) == 2
    with pytest.raises(RuntimeError, match="another"):
        limits.retry(lambda: (_ for _ in ()).throw(RuntimeError("another")), 30)


def fail_above(session: Session, tokens: int, error: Exception, training: bool = True) -> list[int]:
    """A forward of more padded tokens fails with out of memory; the list records the failed sizes."""
    failed: list[int] = []

    def check(_: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if ids.numel() > tokens and torch.is_grad_enabled() == training:
            failed.append(ids.numel())
            raise error

    session.load_roles().decoder.register_forward_pre_hook(check, with_kwargs=True)
    return failed


def make_sft(folder: Any, tmp_path: Any, tokens: int) -> Session:
    data = write_prompts(tmp_path / "prompts.jsonl")
    return make_session(make_config(folder, data, "none", model__micro_batch_tokens=tokens), tmp_path / str(tokens))


def make_reward(folder: Any, tmp_path: Any, tokens: int) -> Session:
    changes = {"model__micro_batch_tokens": tokens, "reward__batch_size": 4}
    session = make_session(make_config(folder, None, "none", **changes), tmp_path / str(tokens))
    save_sft(session)
    write_ranked(session, *separable(10))
    return session


def make_ppo(folder: Any, tmp_path: Any, tokens: int) -> Session:
    (tmp_path / str(tokens)).mkdir()
    changes = {"quantization": "none", "model__micro_batch_tokens": tokens, "ppo__steps": 2, "ppo__evaluate_prompts": 1}
    return finished_run(folder, tmp_path / str(tokens), adapters=("sft", "reward"), **changes)


STAGES = {
    "sft": (make_sft, sft.run, Role.POLICY, 100),
    "reward": (make_reward, reward.run, Role.REWARD, 200),
    "ppo": (make_ppo, ppo.run, Role.POLICY, 80),
}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(("stage", "error"), zip(STAGES, ERRORS, strict=True))
def test_a_stage_that_runs_out_of_memory_ends_as_with_less_from_the_start(tiny_folder, tmp_path, stage, error) -> None:
    """Bit-identical; and equal to the run with more memory up to rounding. The limit is kept for the next process."""
    make, run, role, limit = STAGES[stage]
    found: dict[str, dict[str, Tensor]] = {}
    session = make(tiny_folder(), tmp_path, 4 * limit)
    failed = fail_above(session, limit, error)
    run(session)
    assert failed, "the limit was never reached"
    assert session.load_roles().acting is None
    tokens = json.loads((session.run_dir.path / "room.json").read_text())["tokens"]
    assert tokens == session.load_roles().base.limits.tokens < 4 * limit
    assert '"kind": "halved"' in (session.run_dir.path / "events.jsonl").read_text()
    found["halved"] = snapshot(session.load_roles(), role)
    for name, size in (("small", tokens), ("large", 5 * limit)):
        other = make(tiny_folder(), tmp_path, size)
        run(other)
        found[name] = snapshot(other.load_roles(), role)
    assert difference(found["halved"], found["small"]) == 0
    assert 0 <= difference(found["halved"], found["large"]) < 1e-4
    assert make_session(session.config, session.run_dir.path.parent).load_roles().base.limits.tokens == tokens


def test_sampling_takes_half_the_prompts_at_once(tiny_folder, tmp_path) -> None:
    session = make_sft(tiny_folder(), tmp_path, 240)
    save_sft(session)
    sample.run(session)
    whole = (session.work("sample") / "samples.jsonl").read_text()
    (session.work("sample") / "batches.jsonl").unlink()  # or nothing were left to sample
    steps: list[int] = []

    def check(_: Any, __: Any, kwargs: Any) -> None:
        steps.append(len(kwargs["input_ids"]))
        if steps[-1] > 6:
            raise MemoryError

    session.load_roles().decoder.register_forward_pre_hook(check, with_kwargs=True)
    sample.run(session)
    assert (session.work("sample") / "samples.jsonl").read_text() == whole
    assert session.load_roles().base.limits.rows == 6
    assert max(steps) > 6
    assert sum(rows > 6 for rows in steps) == 1


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("stage", ["sample", "ppo"])
def test_out_of_memory_while_weights_are_merged_is_not_tried_again(
    tiny_folder, tmp_path, monkeypatch, stage, error
) -> None:
    """In a rollout of PPO too, where other failures are retried: smaller micro-batches make no smaller copy."""
    session = (make_ppo if stage == "ppo" else make_sft)(tiny_folder(), tmp_path, 240)
    save_sft(session)
    layers, calls = dict(session.load_roles().base.model.named_modules()), list[Any]()
    merge, collect = merging._merged, ppo.collect

    def fail_from_the_third_on(layer: Any, dtype: torch.dtype) -> Tensor:
        calls.append(layer)
        if len(calls) >= 3:
            raise error
        return merge(layer, dtype)

    def fail_from_here_on(*args: Any) -> Any:
        monkeypatch.setattr(merging, "_merged", fail_from_the_third_on)
        return collect(*args)

    monkeypatch.setattr(ppo, "collect", fail_from_here_on)
    if stage == "sample":
        monkeypatch.setattr(merging, "_merged", fail_from_the_third_on)
    with pytest.raises(CannotFit, match=r"out of memory while .* merged .*model\.merged_rollouts: false"):
        (ppo if stage == "ppo" else sample).run(session)
    assert len(calls) == 3
    assert session.load_roles().base.limits.tokens == 240
    assert session.load_roles().merged is None
    assert all(joint.merged is None for joint in session.load_roles().slots.joints)
    after = dict(session.load_roles().base.model.named_modules())
    assert {name: after.get(name) for name in layers} == layers


@pytest.mark.parametrize("stage", STAGES)
def test_out_of_memory_inside_an_optimisers_step_is_not_tried_again(tiny_folder, tmp_path, monkeypatch, stage) -> None:
    """Some weights may have moved by then."""
    make, run, _, limit = STAGES[stage]
    session = make(tiny_folder(), tmp_path, 5 * limit)
    steps: list[int] = []

    def step(*_: Any, **__: Any) -> None:
        steps.append(1)
        raise MemoryError

    for kind in (torch.optim.Adam, torch.optim.AdamW):
        monkeypatch.setattr(kind, "step", step)
    with pytest.raises(CannotFit, match="out of memory in the optimizer's step"):
        run(session)
    assert len(steps) == 1
    assert not (session.run_dir.path / "room.json").exists()
