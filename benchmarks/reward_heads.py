"""Compare reward heads on frozen features of people's comparisons: pooling, layers, length input, ridge.

    python benchmarks/reward_heads.py hh_harmless_test.jsonl.gz --cache /tmp/features --characters 420
    python benchmarks/reward_heads.py testset-v1.json --cache /tmp/features
    python benchmarks/reward_heads.py testdata_pairwise.jsonl --cache /tmp/features --characters 800

The base of presets/human_preferences.yaml reads every answer once, after its prompt, and unless `--no-audit` is given
once more after an empty prompt and after another prompt; the pooled states of all layers and poolings are kept in
`--cache` as safetensors, so that another head costs seconds. In each of five splits by prompt every head is fitted on
the training prompts and measured on the others.
Prints a Markdown table. Intervals are 95 % bootstrap intervals over prompts: all splits of a prompt are drawn together.
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import RewardConfig
from lowrank_rlhf.data.comparisons import load_comparisons
from lowrank_rlhf.evaluation.prompt_audit import emptied, exchanged
from lowrank_rlhf.maths.masking import pool
from lowrank_rlhf.maths.sequences import micro_batches, pack
from lowrank_rlhf.maths.statistics import clustered_bootstrap, expected_calibration_error, paired_difference
from lowrank_rlhf.models.base import Base, load_base
from lowrank_rlhf.models.layers.partial_forward import partial_forward
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.training.reward_data import Group, make_groups, split_groups
from lowrank_rlhf.training.rewards.reward_head import fit_head, with_length

LAYERS = (15, 18, 30)
POOLINGS = ("mean", "last")
MAX_LENGTH = 256
HELD_OUT = 0.3
SPLITS = 5
SAMPLES = 2000
OWN = "as it is"
Features = dict[str, dict[str, Tensor]]
"""Pooled states of all answers by prompt (`as it is`, `emptied`, `shuffled`), then by pooling and layer."""
PRESET = Path(__file__).parent.parent / "presets" / "human_preferences.yaml"


def read_data(base: Base, file: str, characters: int | None, pairs: int | None) -> list[Group]:
    """Return the groups of randomly drawn prompts until there are `pairs` comparisons, all by default."""
    data = load_comparisons(file, skip_bad_rows=0.01)
    comparisons = [comparison for ranking in data.rankings for comparison in compare(ranking)]
    groups = make_groups(base, MAX_LENGTH, data.prompts, data.answers, comparisons, data.rankings)[0]
    if characters:
        size = {prompt.id: sum(len(turn.content) + 14 for turn in prompt.messages) for prompt in data.prompts}
        groups = [group for group in groups if size[group.prompt_id] + max(group.lengths) <= characters]
    chosen: list[Group] = []
    for group in random.Random(0).sample(groups, len(groups)):
        if pairs and sum(len(g.pairs) for g in chosen) >= pairs:
            break
        chosen.append(group)
    return chosen


def read_features(base: Base, groups: Sequence[Group], layers: Sequence[int]) -> dict[str, Tensor]:
    """Return the pooled states of each answer, (N, h) float16 for each layer and pooling."""
    prompts = [group.prompt for group in groups for _ in group.answers]
    answers = [answer for group in groups for answer in group.answers]
    decoder, found, since, done = base.model.get_decoder(), {}, time.monotonic(), 0
    states: dict[int, Tensor] = {}
    hooks = [
        decoder.layers[layer - 1].register_forward_hook(
            lambda _module, _inputs, output, layer=layer: states.__setitem__(
                layer, output[0] if isinstance(output, tuple) else output
            )
        )
        for layer in layers
    ]
    parts = micro_batches([len(p) + len(a) for p, a in zip(prompts, answers, strict=True)], 1024)
    for index in parts:
        batch = pack([prompts[i] for i in index], [answers[i] for i in index], base.pad)
        with torch.no_grad(), partial_forward(decoder, 0, None, max(layers)):
            decoder(input_ids=batch.ids, attention_mask=batch.attention.long(), use_cache=False)
            for layer in layers:
                normed = decoder.norm(states[layer]).float()
                for pooling in POOLINGS:
                    table = found.setdefault(f"{pooling}-{layer}", torch.zeros(len(answers), normed.shape[-1]))
                    table[index] = pool(normed, batch.response, pooling)
        done += len(index)
        print(f"\r{done} of {len(answers)} answers, {time.monotonic() - since:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    for hook in hooks:
        hook.remove()
    return {name: table.half() for name, table in found.items()}


def cached(given: argparse.Namespace) -> tuple[list[Group], Features]:
    """Return the groups and the features of the file, from the cache or read now."""
    folder = Path(given.cache)
    folder.mkdir(parents=True, exist_ok=True)
    base = load_base(load_config(PRESET).model, Progress.silent())
    groups = read_data(base, given.file, given.characters, given.pairs)
    print(f"{len(groups)} prompts, {sum(len(g.pairs) for g in groups)} pairs", file=sys.stderr)
    by_prompt = {OWN: groups}
    if not given.no_audit:
        by_prompt |= {"emptied": emptied(base, groups), "shuffled": exchanged(groups)}
    name = f"{Path(given.file).name.split('.')[0]}-{given.characters}-{given.pairs}-{'-'.join(map(str, given.layers))}"
    features: Features = {}
    for prompts, changed in by_prompt.items():
        path = folder / f"{name}-{prompts.replace(' ', '-')}.safetensors"
        if not path.exists():
            save_file(read_features(base, changed, given.layers), path)
        features[prompts] = load_file(path)
    return groups, features


@dataclass(frozen=True)
class Head:
    """One row of the table: the features that the head reads, its ridge penalty (None: by cross-validation), length."""

    pooling: str
    layer: int
    l2: float | None
    length: str = "ignore"

    @property
    def cells(self) -> list[str]:
        """First cells of the row."""
        return [self.pooling, str(self.layer), "validated" if self.l2 is None else f"{self.l2:g}", self.length]


HEADS = (
    Head("mean", 30, 30),
    Head("mean", 18, 200),
    *(Head(pooling, layer, None) for pooling in POOLINGS for layer in (30, 18, 15)),
    *(Head("mean", layer, None, length) for layer in (30, 18, 15) for length in ("use", "debias")),
)


@dataclass
class Measured:
    """Outcomes of one head on the held-out pairs of all splits, in the same order for every head."""

    correct: list[float]
    confidence: list[float]
    ridges: list[float]
    without: dict[str, list[float]]
    """Outcomes with the prompts emptied and shuffled."""


def measure(head: Head, groups: Sequence[Group], features: Features) -> Measured:
    """Fit the head on the training prompts of each split and measure it on the others."""
    found = Measured([], [], [], {name: [] for name in features if name != OWN})
    position = {group.prompt_id: place for place, group in enumerate(groups)}
    sizes = [len(group.answers) for group in groups]
    tables = {name: table[f"{head.pooling}-{head.layer}"].float().split(sizes) for name, table in features.items()}
    settings = RewardConfig.model_validate(
        {"head_l2": head.l2, "length": head.length, "fit_head_first": True, "pooling": head.pooling}
    )
    for seed in range(SPLITS):
        train, held_out = split_groups(groups, HELD_OUT, seed)
        weight, fit = fit_head(train, [tables[OWN][position[group.prompt_id]] for group in train], settings, seed)
        found.ridges.append(fit.l2 or 0.0)
        full = torch.cat([weight[0], torch.tensor([fit.scale(settings).length])])
        for group in held_out:
            for name, table in tables.items():
                scores = with_length(group, table[position[group.prompt_id]]) @ full  # (K,)
                margins = [float(scores[better] - scores[worse]) for better, worse, _ in group.pairs]
                outcomes = [0.5 if margin == 0 else float(margin > 0) for margin in margins]
                if name == OWN:
                    found.correct += outcomes
                    found.confidence += [1 / (1 + math.exp(-abs(margin))) for margin in margins]
                else:
                    found.without[name] += outcomes
    return found


def report(file: str, groups: Sequence[Group], features: Features, layers: Sequence[int]) -> None:
    """Print the table of the heads on these layers of one data set."""
    held_out = [group for seed in range(SPLITS) for group in split_groups(groups, HELD_OUT, seed)[1]]
    prompts = [group.prompt_id for group in held_out for _ in group.pairs]
    differences = [g.lengths[better] - g.lengths[worse] for g in held_out for better, worse, _ in g.pairs]
    longer = [0.5 if not difference else float(difference > 0) for difference in differences]
    pairs = sum(len(group.pairs) for group in groups)
    print(f"\n{Path(file).name}: {pairs} pairs of {len(groups)} prompts; longer wins {share(longer, prompts)}\n")
    names = [name for name in features if name != OWN]
    columns = [
        "pooling",
        "layers",
        "ridge",
        "length",
        "accuracy",
        "over length",
        "over the first",
        "ECE",
        *names,
        "ridges",
    ]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    first: list[float] = []
    for head in (head for head in HEADS if head.layer in layers):
        found = measure(head, groups, features)
        first = first or found.correct
        cells = [*head.cells, share(found.correct, prompts)]
        cells += [difference(found.correct, other, prompts) for other in (longer, first)]
        cells.append(f"{100 * expected_calibration_error(found.confidence, found.correct):.1f}")
        cells += [f"{100 * sum(found.without[name]) / len(prompts):.1f}" for name in names]
        cells.append(" ".join(f"{l2:g}" for l2 in found.ridges))
        print(f"| {' | '.join(cells)} |", flush=True)


def share(values: Sequence[float], prompts: Sequence[str]) -> str:
    """Return the mean in percent with its interval, for a table."""
    low, high = clustered_bootstrap(values, prompts, SAMPLES, 0)
    return f"{100 * sum(values) / len(values):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def difference(first: Sequence[float], second: Sequence[float], prompts: Sequence[str]) -> str:
    """Return the paired difference in points with its interval, for a table."""
    mean, (low, high) = paired_difference(first, second, prompts, SAMPLES, 0)
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="comparisons, in a format that rank.dataset reads")
    parser.add_argument("--cache", required=True, help="folder for the features")
    parser.add_argument("--pairs", type=int, help="comparisons of randomly drawn prompts; all by default")
    parser.add_argument("--characters", type=int, help="leave out longer transcripts, prompt and answer together")
    parser.add_argument("--no-audit", action="store_true", help="leave out the emptied and shuffled prompts")
    parser.add_argument("--layers", type=int, nargs="+", choices=LAYERS, default=LAYERS, help="layers to read")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Read the features and compare the heads."""
    given = _parse(arguments)
    groups, features = cached(given)
    report(given.file, groups, features, given.layers)


if __name__ == "__main__":
    main()
