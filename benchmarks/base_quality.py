"""Measure what each `model.quantization` costs: perplexity of the base on answers, and memory of its linear layers.

    python benchmarks/base_quality.py --model path/to/model.gguf
    python benchmarks/base_quality.py --model path/to/folder --storages none,nf4,int8 --data answers.jsonl --rows 50

Perplexity is exp of the mean negative log-likelihood of all answer tokens, end of turn included, after their prompts in
the chat template. `none` on a GGUF file rounds its weights to bfloat16. Prints a Markdown table.
"""

import argparse
import gc
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch.nn.functional import cross_entropy

from benchmarks.setting import SMOLLM2
from lowrank_rlhf.config.schema import DataConfig, ModelConfig
from lowrank_rlhf.data.prompts import load_prompt_data
from lowrank_rlhf.models.base import Base, load_base
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Demonstration


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    given = _parse(arguments)
    torch.set_num_threads(given.threads or torch.get_num_threads())
    data = load_prompt_data(DataConfig(prompts=given.data, held_out=0, skip_bad_rows=1), seed=0)
    rows = data.demonstrations[: given.rows]
    print("| storage | computed in | perplexity | linear layers, MB | answer tokens |\n|---|---|---|---|---|")
    for storage in given.storages.split(","):
        settings = {"source": given.model, "device": given.device, "compute_dtype": given.dtype}
        base = load_base(ModelConfig.model_validate(settings | {"quantization": storage}), Progress.silent())
        found, tokens = perplexity(base, rows)
        megabytes, dtype = linear_bytes(base) / 1e6, str(base.compute_dtype).removeprefix("torch.")
        print(f"| {storage} | {dtype} | {found:.3f} | {megabytes:.0f} | {tokens:,} |", flush=True)
        del base
        gc.collect()


def perplexity(base: Base, rows: Sequence[Demonstration]) -> tuple[float, int]:
    """Return the perplexity of the answers, and the number of their tokens."""
    total, count = 0.0, 0
    for row in rows:
        prompt, answer = base.encode_prompt(row.prompt), base.encode_response(row.response)
        ids = torch.tensor([prompt + answer], device=base.device)
        with torch.no_grad():
            logits = base.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        total += float(cross_entropy(logits, ids[0, len(prompt) :], reduction="sum"))
        count += len(answer)
    return math.exp(total / count), count


def linear_bytes(base: Base) -> int:
    """Return the bytes of the decoder layers, quantisation statistics included."""
    layers = base.model.get_decoder().layers
    weights = list(layers.parameters())
    states = [weight.quant_state.as_dict(packed=True) for weight in weights if hasattr(weight, "quant_state")]
    return sum(w.nbytes for w in weights) + sum(part.nbytes for state in states for part in state.values())


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2, help="a folder, a GGUF file, pypi:... or a hub id")
    parser.add_argument("--storages", default="none,nf4,int8,gguf")
    parser.add_argument("--data", default="builtin:everyday", help="demonstrations: builtin:everyday or a file")
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves PyTorch's choice")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
