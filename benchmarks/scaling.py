"""Measure how the time of a PPO update and of sampling grows with batch, length, answers per prompt and model size.

    python benchmarks/scaling.py --output docs/performance

Writes `scaling.json`, `scaling.md` (a table) and `scaling.svg` (a plot) into that folder. Plain `generate` on the 4-bit
model is measured next to our own decoding loop. Each setting is the median of `--repeats` after a warm-up.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.setting import SMOLLM2, make_prompts, make_roles
from lowrank_rlhf.config.schema import ModelConfig, PpoConfig, SampleConfig
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.fetch import fetch_model
from lowrank_rlhf.training.ppo_update import Optimizers, update
from lowrank_rlhf.training.rollout import RewardScale, collect

PROMPT = 40
SCALE = RewardScale("last", 0.0, 1.0)
SIZES = {"20M": (256, 8), "60M": (448, 16), "135M": (576, 30)}
"""Hidden size and layers of random Llamas; their speed does not depend on their weights."""

Row = dict[str, Any]


def main() -> None:
    """Measure everything and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--output", type=Path, default=Path("docs/performance"))
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    roles = make_roles(source=given.model, max_length=512)
    rows: list[Row] = []
    for batch in (4, 8, 16, 32, 64):
        rows.append(_update(roles, "batch", str(batch), batch, 48, given.repeats))
    for new in (16, 48, 96, 192, 256):
        rows.append(_update(roles, "new tokens", str(new), 16, new, given.repeats))
    for answers in (1, 2, 4, 8):
        rows.append(_sampling(roles, "answers to a prompt", str(answers), 16 // answers, answers, given.repeats))
    rows.append(_plain_generate(roles, given.repeats))
    with tempfile.TemporaryDirectory() as folder:
        for name, (hidden, layers) in SIZES.items():
            smaller = make_roles(source=str(_random_llama(Path(folder) / name, given.model, hidden, layers)))
            rows.append(_update(smaller, "model size", name, 16, 48, given.repeats))
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "scaling.json").write_text(json.dumps(rows, indent=1) + "\n")
    (given.output / "scaling.md").write_text(_table(rows))
    _plot(rows, given.output / "scaling.svg")
    print(_table(rows))


def _update(roles: Roles, axis: str, value: str, batch: int, new: int, repeats: int) -> Row:
    """Measure one epoch (sample, score, train): seconds per generated token."""
    ppo = PpoConfig(steps=repeats + 1, batch_size=batch, epochs=1, minibatches=1, missing_eos="keep")
    sampling = SampleConfig(max_new_tokens=new, temperature=0.7, batch_size=batch)
    optimizers = Optimizers.create(roles, ppo)
    prompts = make_prompts(roles.base, batch, PROMPT)

    def once(step: int) -> None:
        rollout = collect(roles, prompts, ppo, sampling, SCALE, 0.05, seed=step)
        update(roles, optimizers, rollout, ppo, SCALE, sampling.temperature, seed=step)

    return _row(axis, value, "PPO update", batch * new, once, repeats)


def _sampling(roles: Roles, axis: str, value: str, prompts: int, answers: int, repeats: int) -> Row:
    """Measure sampling of rows that share a prefill, 16 rows in total."""
    texts = make_prompts(roles.base, prompts, PROMPT)
    sampling = SampleConfig(max_new_tokens=48, temperature=0.7, batch_size=prompts * answers)

    def once(step: int) -> None:
        sample_answers(roles, Role.POLICY, texts, sampling, step, answers_per_prompt=answers)

    return _row(axis, value, "sampling", prompts * answers * 48, once, repeats)


def _plain_generate(roles: Roles, repeats: int) -> Row:
    """Measure transformers' `generate` through the adapter on the 4-bit weights, as a plain script would call it."""
    ids = torch.tensor(make_prompts(roles.base, 16, PROMPT))

    def once(step: int) -> None:
        torch.manual_seed(step)
        with roles.acting_as(Role.POLICY), torch.autocast("cpu", roles.base.compute_dtype):
            roles.base.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, min_new_tokens=48,
                do_sample=True, top_k=0, top_p=1.0, temperature=0.7,
            )  # fmt: skip

    return _row("plain generate", "16 rows", "sampling", 16 * 48, once, repeats)


def _row(axis: str, value: str, what: str, tokens: int, once: Callable[[int], None], repeats: int) -> Row:
    seconds = []
    for step in range(repeats + 1):
        start = time.perf_counter()
        once(step)
        seconds.append(time.perf_counter() - start)
    middle = median(seconds[1:])
    row = {"axis": axis, "value": value, "what": what, "tokens": tokens, "seconds": round(middle, 3)}
    row |= {"ms_per_token": round(1000 * middle / tokens, 2), "tokens_per_second": round(tokens / middle, 1)}
    print(row, file=sys.stderr, flush=True)
    return row


def _random_llama(folder: Path, source: str, hidden: int, layers: int) -> Path:
    """Create a model folder with random weights and the real model's tokenizer."""
    real = fetch_model(ModelConfig(source=source), Progress.silent())
    tokenizer = AutoTokenizer.from_pretrained(real)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=layers, num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64,
        tie_word_embeddings=True, pad_token_id=0, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _table(rows: list[Row]) -> str:
    lines = ["| what grows | to | measured | seconds | ms per new token | tokens/s |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = (row[key] for key in ("axis", "value", "what", "seconds", "ms_per_token", "tokens_per_second"))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _plot(rows: list[Row], path: Path) -> None:
    """Plot time per token over batch and length; flat is good."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    FigureCanvasSVG(figure)
    for axes, axis in zip(figure.subplots(1, 2, sharey=True), ("batch", "new tokens"), strict=True):
        found = [row for row in rows if row["axis"] == axis]
        axes.plot([int(row["value"]) for row in found], [row["ms_per_token"] for row in found], marker="o")
        axes.set(xlabel=axis, xscale="log", ylim=(0, None))
    figure.axes[0].set_ylabel("ms per new token, one PPO epoch")
    figure.savefig(path)


if __name__ == "__main__":
    main()
