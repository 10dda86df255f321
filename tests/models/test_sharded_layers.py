"""A base whose weights two processes share: what a whole one computes, in about half the memory."""

import sys
from pathlib import Path

import pytest
import tiny
from launched import Launched

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo")
SLOW = 400
"""Seconds: every layer of every pass waits for the other process, on machines that are busy too."""
SUPPORT = str(Path(__file__).parents[1] / "support")

SHARED = """
import gc, sys
from pathlib import Path

import torch

sys.path.append(sys.argv[1])
from tiny import gradients, load_tiny, make_batch, make_roles, random_tokens, snapshot

from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.models.base import load_base
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.scoring import score_logprobs, score_tokens
from lowrank_rlhf.run import distributed
from lowrank_rlhf.run.progress import Progress

folder, quantization, dtype = Path(sys.argv[2]), *sys.argv[3:]


def held():
    gc.collect()
    storages = [each.untyped_storage() for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


with distributed.join() as group:
    for checkpointing in (False, True):
        batch, before = make_batch(), held()
        whole = load_tiny(folder, quantization, checkpointing, compute_dtype=dtype)
        bytes_of_whole = held() - before
        settings = {"shard": True, "merged_rollouts": False, "cuda_graphs": False}
        before = held()
        base = load_base(whole.config.model_copy(update=settings), Progress.silent(), group)
        bytes_here = held() - before
        rest = sum(each.nbytes for each in whole.model.parameters() if each.dim() < 2)
        rest += whole.model.get_input_embeddings().weight.nbytes
        roles, others = make_roles(base), make_roles(whole)
        layers = base.model.get_decoder().layers
        joined = len(roles.slots.joints) == len(others.slots.joints)
        checksum, weights = base.checksum(), {role: snapshot(roles, role) for role in Role}
        print(f"bytes {bytes_here - rest} of {bytes_of_whole - rest}", flush=True)
        worst = 0.0
        for _ in range(2 if group.is_main else 1):  # unequal shares
            for role in (Role.POLICY, Role.REWARD):
                found, expected = gradients(roles, role, batch), gradients(others, role, batch)
                assert all(p.grad is None for p in roles.peft.parameters())
                gaps = [(found[name] - expected[name]).abs().max() / expected[name].abs().max() for name in found]
                worst = max(worst, float(max(gaps)))
        group.barrier()
        with group.single_process():  # as in a stage of the main process
            ours = score_tokens(roles, Role.REWARD, batch) if group.is_main else None
            theirs = score_tokens(others, Role.REWARD, batch)
        group.barrier()
        gap = float((ours - theirs).abs().max()) if group.is_main else 0.0
        prompts, sampling = random_tokens(1, [4] * 3), SampleConfig(max_new_tokens=3, batch_size=8)
        same = sample_answers(roles, Role.POLICY, prompts, sampling, 0) == sample_answers(
            others, Role.POLICY, prompts, sampling, 0
        )
        unmoved = all(torch.equal(snapshot(roles, role)[n], w) for role in Role for n, w in weights[role].items())
        kept = base.checksum() == checksum and unmoved
        read = layers[0].self_attn.q_proj.get_base_layer().weight.numel()  # the checksum ends with a later layer
        print(f"gradients {worst} scores {gap} sampled {same} unmoved {kept} joined {joined} read {read}", flush=True)
"""


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> Path:
    """A Llama of four layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny.ARCHITECTURES, "llama", {"num_hidden_layers": 4})
        return tiny.make_tiny_model(tmp_path_factory.mktemp("deep"))


FORMATS = [("none", "float32"), ("nf4", "float32"), ("int8", "float32"), ("gguf", "float32"), ("none", "bfloat16")]


@pytest.mark.parametrize(("quantization", "dtype"), FORMATS)
def test_a_shared_base_computes_what_a_whole_one_does_in_half_the_memory(tmp_path, deep, quantization, dtype) -> None:
    """With passes of one process only, gradients of every role, and the main process working alone."""
    if dtype == "bfloat16" and not tiny.bfloat16_works():
        pytest.skip("this CPU crashes on bfloat16")
    if quantization == "gguf":
        tiny.tiny_gguf(deep)  # or both processes would write it
    launched = Launched(tmp_path, "-c", SHARED, SUPPORT, str(deep), quantization, dtype)
    assert launched.wait(SLOW) == [0, 0], launched.said
    lines = [line.split() for line in launched.said.splitlines()]
    found = [line for line in lines if line[0] == "gradients"]
    assert len(found) == 2 * 2
    for _, gradient, _, score, _, sampled, _, unmoved, _, joined, _, read in found:
        assert float(gradient) < (1e-6 if dtype == "float32" else 1e-2)
        assert float(score) < (1e-5 if dtype == "float32" else 1e-2)
        assert (unmoved, joined, read) == ("True", "True", "0")
        assert sampled == "True" or dtype == "bfloat16"  # whose rounding depends on the other rows
    for _, here, _, whole in (line for line in lines if line[0] == "bytes"):
        share = int(here) / int(whole)
        if quantization == "none":  # a half, and one layer of four
            assert share == pytest.approx(1 / 2 + 1 / 4, abs=0.02)
        else:  # NF4's scales are larger
            assert share < 0.9


ORDER = """
from lowrank_rlhf.run import distributed

with distributed.join() as group:
    met = []
    group.on_gather = met.append
    for layer in ((0, 1, 2) if group.is_main else (2, 0)):
        group.gather(layer)
    group.barrier()
    with group.single_process():
        if group.is_main:
            group.gather(7)
    total = group.sum(1 + group.is_main)
    print(f"met {met} sum {total}", flush=True)
"""


def test_processes_that_need_different_layers_meet_and_those_that_wait_take_part(tmp_path) -> None:
    launched = Launched(tmp_path, "-c", ORDER)
    assert launched.wait() == [0, 0], launched.said
    lines = [line for line in launched.said.splitlines() if line.startswith("met")]
    assert sorted(lines) == ["met [0, 1, 2, 0, 7] sum 3"] * 2
