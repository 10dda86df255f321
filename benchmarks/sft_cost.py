"""Measure what SFT costs a base in general: perplexity of answers by others, at several scales of the SFT adapter.

    python benchmarks/sft_cost.py runs/quickstart pandalm.json autoj.jsonl --scales 0,0.25,0.5,0.75,1

A scale multiplies the saved adapter's update of the base: 0 is the bare base, and 1 what the run saved (a run with
`sft.scale` has saved a scaled one). Perplexity is exp of the mean negative log-likelihood of the answers' tokens after
their prompts, as plain text without the chat template. The last column is the mean negative log-likelihood per token of
the run's own held-out demonstrations, in the chat template and with the end of turn. Prints a Markdown table.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import DataConfig
from lowrank_rlhf.data.prompts import load_prompt_data
from lowrank_rlhf.models.base import Base, load_base
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.run.progress import Progress

LONGEST = 400
"""Tokens of prompt and answer; longer ones are left out."""

Text = tuple[list[int], int]
"""Tokens, and where the answer begins."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("answers", nargs="+", help="demonstrations or comparisons, in a format that the package reads")
    parser.add_argument("--scales", default="0,0.25,0.5,0.75,1")
    parser.add_argument("--rows", type=int, default=40, help="answers of each file, and held-out demonstrations")
    given = parser.parse_args()
    config = load_config(given.run / "config.yaml")
    base = load_base(config.model, Progress.silent())
    roles = Roles(base, config.lora, config.reward.layers)
    roles.prepare(Role.REFERENCE)
    saved = load_file(given.run / "adapters/sft/adapter_model.safetensors")
    texts = {Path(file).stem: list(islice(plain(base, file), given.rows)) for file in given.answers}
    own = list(islice(held_out(base, config.data, config.seed), given.rows))
    print(f"| scale | {' | '.join(texts)} | own replies, nats |\n|{'---|' * (len(texts) + 2)}")
    bare: list[float] = []
    for scale in map(float, given.scales.split(",")):
        for name, parameter in roles.named_parameters(Role.REFERENCE).items():
            parameter.data.copy_(saved[name] * (scale if ".lora_B." in name else 1.0))
        found = [mean_loss(roles, rows) for rows in texts.values()]
        bare = bare or found
        pairs = zip(found, bare, strict=True)
        cells = [f"{math.exp(loss):.2f} ({100 * math.expm1(loss - first):+.1f} %)" for loss, first in pairs]
        print(f"| {scale:g} | {' | '.join(cells)} | {mean_loss(roles, own):.2f} |", flush=True)


def plain(base: Base, file: str) -> Iterator[Text]:
    """Yield prompts and answers of a file as plain text, an empty line between them."""
    data = load_prompt_data(DataConfig(prompts=file, held_out=0, skip_bad_rows=1), seed=0)
    for row in data.demonstrations:
        asked = "\n".join(message.content for message in row.prompt.messages)
        prompt, answer = (
            base.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f"{asked}\n\n", row.response)
        )
        if answer and len(prompt) + len(answer) <= LONGEST:
            yield prompt + answer, len(prompt)


def held_out(base: Base, data: DataConfig, seed: int) -> Iterator[Text]:
    """Yield the demonstrations of `data.prompts` on which the run has not trained."""
    trained = {row.prompt.id for row in load_prompt_data(data, seed).demonstrations}
    for row in load_prompt_data(data.model_copy(update={"held_out": 0}), seed).demonstrations:
        if row.prompt.id not in trained:
            prompt = base.encode_prompt(row.prompt)
            yield prompt + base.encode_response(row.response), len(prompt)


def mean_loss(roles: Roles, rows: Sequence[Text]) -> float:
    """Return the mean negative log-likelihood of the answers' tokens, in nats."""
    total, count = 0.0, 0
    for ids, start in rows:
        tokens = torch.tensor([ids], device=roles.base.device)  # (1, T)
        with torch.no_grad(), roles.acting_as(Role.REFERENCE):
            logits = roles.base.model(input_ids=tokens, use_cache=False).logits[0, start - 1 : -1].float()
        total += float(cross_entropy(logits, tokens[0, start:], reduction="sum"))
        count += len(ids) - start
    return total / count


if __name__ == "__main__":
    main()
