"""Measure the presets for graphics cards with random weights of the models' shapes: peak memory against `plan`.

    python benchmarks/cards.py --preset gpu_8gb --preset gpu_24gb --output build/cards

For a machine without a model hub: memory and time of a stage do not depend on the weights. Prompts and answers
fill the preset's `max_length`; steps are few. Writes `cards.json` and `cards.md` (a table) into that folder.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, Qwen3Config

from benchmarks.memory import command
from benchmarks.setting import SMOLLM2
from lowrank_rlhf.config.loading import load_config, preset_folder
from lowrank_rlhf.config.schema import Config, DataConfig, ModelConfig
from lowrank_rlhf.data.prompts import load_prompts
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.fetch import fetch_model
from lowrank_rlhf.sources.tokenizer import read_tokenizer

QWEN3 = {
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36, "num_attention_heads": 32},
    "14B": {"hidden_size": 5120, "intermediate_size": 17_408, "num_hidden_layers": 40, "num_attention_heads": 40},
}
"""Published shapes; all have 8 key heads of 128 and 151,936 tokens, and the small ones tie their embeddings."""
FEW_STEPS = (
    "data.held_out=8", "sft.epochs=1", "sft.examples=32", "sample.prompts=16", "rank.tie_margin=0", "reward.epochs=1",
    "ppo.batch_size=32", "ppo.steps=2", "ppo.epochs=1", "ppo.evaluate_every=100", "ppo.evaluate_prompts=8",
    "ppo.accept_weak_reward=true",
)  # fmt: skip
PROMPTS = 40

Row = dict[str, Any]


def main() -> None:
    """Measure each preset and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", help="a preset with a Qwen3 model; may be repeated")
    parser.add_argument("--tokenizer", default=SMOLLM2, help="a model whose tokenizer is used; any will do")
    parser.add_argument("--output", type=Path, default=Path("build/cards"))
    parser.add_argument("changes", nargs="*", help="settings such as model.device=cuda")
    given = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for preset in given.preset or ["gpu_8gb"]:
            rows += _measure(preset, given.tokenizer, given.changes, Path(folder))
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "cards.json").write_text(json.dumps(rows, indent=1) + "\n")
    (given.output / "cards.md").write_text(table(rows))
    print(table(rows))


def measure(preset: str, setting: str, changes: Sequence[str], runs: Path, name: str) -> list[Row]:
    """Return forecast and measured peak of each stage of one run up to PPO."""
    arguments = [preset, "--runs", str(runs), f"name={name}", *changes]
    plan = json.loads(command("plan", *arguments, "--json"))
    predicted = {stage["stage"]: stage["memory"] for stage in plan["stages"] if stage["memory"]}
    command("run", *arguments, "--until", "ppo")
    rows = []
    for stage, memory in predicted.items():
        mark = runs / name / "done" / f"{stage}.json"
        if mark.exists():
            measured = json.loads(mark.read_text())["peak_memory_bytes"]
            row = {"setting": setting, "stage": stage, "measured": measured, "predicted": memory["shown_bytes"]}
            rows.append(row)
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def table(rows: list[Row]) -> str:
    """Format a Markdown row for each stage of each setting."""
    lines = [
        "| setting | stage | measured, MiB | forecast | measured / forecast | over sft |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        sft = next(one["measured"] for one in rows if one["setting"] == row["setting"] and one["stage"] == "sft")
        mib = (row["measured"] / 2**20, row["predicted"] / 2**20)
        ratios = (row["measured"] / row["predicted"], row["measured"] / sft)
        cells = (row["setting"], row["stage"], *(f"{value:,.0f}" for value in mib), *(f"{r:.2f}" for r in ratios))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _measure(preset: str, tokenizer: str, changes: list[str], folder: Path) -> list[Row]:
    config = load_config(preset_folder() / f"{preset}.yaml")
    size = config.model.source.removeprefix("Qwen/Qwen3-").removesuffix("-Base")
    model, data = folder / preset, folder / f"{preset}.jsonl"
    silent, borrowed = Progress.silent(), ModelConfig(source=tokenizer)
    reader = read_tokenizer(fetch_model(borrowed, silent), borrowed, silent)
    make_model(size, reader, model)
    data.write_text("".join(json.dumps(row) + "\n" for row in full_rows(config, reader)), encoding="utf-8")
    given = (f"model.source={model}", f"data.prompts={data}", *FEW_STEPS, *changes)
    found = measure(preset, f"{preset} ({size})", given, folder / "runs", f"cards-{preset}".replace("_", "-"))
    shutil.rmtree(model)
    return found


def make_model(size: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Create the folder of a Qwen3 of that size with random weights in bfloat16, on the fastest device."""
    config = Qwen3Config(
        **QWEN3[size],
        vocab_size=151_936,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=size in ("0.6B", "1.7B", "4B"),
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def full_rows(config: Config, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, str]]:
    """Return prompts and responses joined from the built-in texts, slightly shorter than `max_length` allows."""
    prompts, _ = load_prompts(DataConfig(prompts="builtin:everyday", held_out=0), seed=0)
    words = cycle(word for prompt in prompts for word in prompt.messages[0].content.split())
    answer = config.sample.max_new_tokens
    for number in range(PROMPTS):
        yield {
            "id": f"p{number}",
            "prompt": _fill(words, config.model.max_length - answer - 40, tokenizer),  # 40 tokens for the template
            "response": _fill(words, answer - 4, tokenizer),
        }


def _fill(words: Iterator[str], tokens: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a text of at most that many tokens, and nearly as many."""
    text = " ".join(islice(words, tokens))
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]))


if __name__ == "__main__":
    main()
