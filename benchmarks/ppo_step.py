"""Measure seconds and memory of one PPO update by phase, and the time the arithmetic alone would take.

    python benchmarks/ppo_step.py --batch 16 --new-tokens 48 --epochs 4 --updates 5
    python benchmarks/ppo_step.py --json --model path/to/model

Answers never end early (no token counts as the end of a turn), so that every update does the same work. The first
update warms up and is not counted. With --json the last line is one JSON object.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.operations import host_figures
from benchmarks.setting import LORA, SMOLLM2, make_prompts, make_roles, product_rate, read_rate
from lowrank_rlhf.config.schema import PpoConfig, SampleConfig
from lowrank_rlhf.models.roles import Roles
from lowrank_rlhf.run.memory_usage import peak_memory_bytes
from lowrank_rlhf.training.ppo_update import Optimizers, update
from lowrank_rlhf.training.rollout import RewardScale, collect

SCALE = RewardScale("last", 0.0, 1.0)
PHASES = ("rollout", "scoring", "policy_update", "critic_update")


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    given = _parse(arguments)
    torch.set_num_threads(given.threads or torch.get_num_threads())
    roles = make_roles(
        source=given.model,
        device=given.device,
        quantization=given.quantization,
        compute_dtype=given.dtype,
        micro_batch_tokens=given.micro_batch_tokens,
        max_length=given.prompt_tokens + given.new_tokens,
    )
    updates = list(_updates(roles, given))[1:]
    phases = {name: [figures[name] for figures in updates] for name in PHASES}
    seconds = [figures["update"] for figures in updates]
    result: dict[str, Any] = {
        "seconds_per_update": [round(value, 3) for value in seconds],
        "phases": {name: round(median(values), 3) for name, values in phases.items()},
        "cpu_seconds_per_update": round(median(figures["cpu"] for figures in updates), 3),
        "peak_rss_mb": round(peak_memory_bytes() / 2**20),
        "rollout_tokens_per_second": round(given.batch * given.new_tokens / median(phases["rollout"]), 1),
        "arithmetic_floor_seconds": round(_floor(roles, given), 3),
        "compute_dtype": str(roles.base.compute_dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        **host_figures(roles),
    }
    print(json.dumps(result) if given.json else _words(result))


def _updates(roles: Roles, given: argparse.Namespace) -> Any:
    """Yield the seconds of each phase of consecutive updates, and of the whole, by the clock and of the processors."""
    ppo = PpoConfig(
        steps=given.updates + 1,
        batch_size=given.batch,
        epochs=given.epochs,
        minibatches=1,
        missing_eos="keep",
        target_kl=None,
    )
    sampling = SampleConfig(max_new_tokens=given.new_tokens, temperature=0.7, batch_size=given.batch)
    prompts = make_prompts(roles.base, given.batch * (given.updates + 1), given.prompt_tokens)
    optimizers = Optimizers.create(roles, ppo)
    for step in range(given.updates + 1):
        chosen = prompts[step * given.batch : (step + 1) * given.batch]
        start, cpu = time.monotonic(), time.process_time()
        rollout = collect(roles, chosen, ppo, sampling, SCALE, 0.05, seed=step)
        optimizers.schedule(ppo, step)
        found = rollout.figures | update(roles, optimizers, rollout, ppo, SCALE, sampling.temperature, seed=step)
        names = {"rollout": "sampling"} | {name: name for name in PHASES[1:]}
        whole = {"update": time.monotonic() - start, "cpu": time.process_time() - cpu}
        yield {phase: found[f"time/{name}"] for phase, name in names.items()} | whole


def _floor(roles: Roles, given: argparse.Namespace) -> float:
    """Return the seconds if only matrix products and reading weights took time, at the best rates of this machine.

    A forward costs two operations a weight and token, a backward through a frozen base two more; the reference, the
    reward model, the critic and the policy read each token once, then policy and critic are trained. Every decoding
    step reads the weights once, vocabulary projection included.
    """
    model, dtype = roles.base.model, roles.base.compute_dtype
    text = model.config.get_text_config()
    layers = (layer for layer in roles.decoder.layers.modules() if isinstance(layer, torch.nn.Linear))
    linear = sum(layer.in_features * layer.out_features for layer in layers if not _is_adapter(layer))
    tokens, new = given.batch * (given.prompt_tokens + given.new_tokens), given.batch * given.new_tokens
    vocabulary = text.vocab_size * text.hidden_size
    read = 4 * 2 * linear * tokens + 2 * 2 * vocabulary * new
    trained = given.epochs * (2 * 4 * linear * tokens + 4 * vocabulary * new)
    prefill = 2 * linear * given.batch * given.prompt_tokens
    decoded = given.new_tokens * (linear + vocabulary) * dtype.itemsize
    return (read + trained + prefill) / product_rate(dtype, roles.base.device) + decoded / read_rate(roles.base.device)


def _is_adapter(layer: torch.nn.Linear) -> bool:
    return min(layer.in_features, layer.out_features) == LORA.rank


def _words(result: dict[str, Any]) -> str:
    phases = "\n".join(f"  {name:<14} {seconds:7.2f} s" for name, seconds in result["phases"].items())
    return (
        f"{median(result['seconds_per_update']):.2f} s an update, {result['arithmetic_floor_seconds']:.2f} s if only "
        f"matrix products and memory took time ({result['compute_dtype']}, {result['threads']} threads); "
        f"{result['cpu_seconds_per_update']:.2f} s of the processors\n{phases}\n"
        f"  {result['rollout_tokens_per_second']:.0f} tokens/s sampled, peak memory {result['peak_rss_mb']} MiB\n"
        f"  {result['operations_per_pass']:,} operations a policy pass, "
        f"{result['role_switch_ms']} ms a switch of role, {result['merge_ms']} ms a merge"
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2, help="a folder, a GGUF file, pypi:... or a hub id")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--batch", type=int, default=16, help="answers in a rollout")
    parser.add_argument("--prompt-tokens", type=int, default=40)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--micro-batch-tokens", type=int, default=768)
    parser.add_argument("--quantization", choices=("nf4", "int8", "gguf", "none"), default="nf4")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves PyTorch's choice")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
