r"""Compare ways of choosing what to ask annotators next, by the accuracy of the reward head fitted to the answers.

    python -m lowrank_rlhf run quickstart --until rank sample.prompts=700 data.held_out=100
    python benchmarks/choosing.py test.jsonl.gz testdata_pairwise.jsonl testset-v1.json runs/quickstart \
        --cache /tmp/features --output docs/performance

The rankings of a file, in a format of `rank.dataset`, or of a run are revealed in rounds. The first round is random;
before each later one the head is fitted to all rankings revealed so far, and a strategy chooses the next by that head:

    random        no head
    uncertain     the largest mean of 4 p (1 - p) over the pairs of answers, p by the head
    disagreement  the largest mean deviation of the pairs' score differences over four heads, each fitted to a bootstrap
                  sample of the revealed rankings
    far_apart     the largest mean score difference

With `--pairs` the next prompts are random and one pair of each prompt's answers is asked, chosen in the same way.
A share of the revealed comparisons is flipped; the tested ones are as people gave them. The tested prompts, 30 %, are
the same for all seeds, and nothing is chosen from them. The base of presets/human_preferences.yaml reads every answer
once; its pooled states are kept in `--cache`. Prints a Markdown table, with `--json` one JSON object instead; with
`--output` also writes `choosing.json` and `choosing.svg` into that folder. Intervals are 95 % bootstrap intervals over
seeds and prompts, paired with random.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from safetensors.torch import load_file, save_file

from benchmarks.questions import STRATEGIES, Floats, Questions, choose, heads, outcome, values
from benchmarks.reward_heads import PRESET, read_features
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.data.comparisons import load_comparisons
from lowrank_rlhf.models.base import load_base
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.reports.svg.drawing import Chart, Guide, Line, draw
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.training.reward_data import make_groups, read_groups, split_groups

MEMBERS = 4
HELD_OUT = 0.3
SAMPLES = 2000
Row = dict[str, Any]


def curve(
    strategy: str, pool: Questions, test: Questions, share: float, seed: int, given: argparse.Namespace
) -> dict[int, Floats]:
    """Reveal questions of the pool round by round; return the outcomes on the test at each budget, (Q,) each."""
    order = np.random.default_rng(seed).permutation(pool.units.max() + 1)  # the same first round for all strategies
    groups = pool.flipped(share, np.random.default_rng([seed, 1]), given.by_gap)
    differences, question = pool.differences()
    generator, members = np.random.default_rng([seed, 2]), MEMBERS if strategy == "disagreement" else 0
    asked = choose(generator.random(len(groups)), pool.units, order[: given.budgets[0]], given.budgets[0])
    found = {}
    rounds = sorted({*given.budgets, *(3 * budget // 2 for budget in given.budgets[:-1])})
    for now, then in zip(rounds, [*rounds[1:], 0], strict=True):
        head = heads([groups[i] for i in asked], [pool.features[i] for i in asked], given.ridge, members, seed + now)
        if now in given.budgets:
            found[now] = test.correct(head[0])
        if then:
            order = order[~np.isin(order, pool.units[asked])]
            wanted = values(strategy, differences @ head.T, question, generator)
            asked += choose(wanted, pool.units, order, then - now)
    return found


def crossed_bootstrap(differences: Floats, prompts: Sequence[str]) -> tuple[float, float, float]:
    """Return the mean of differences (S, Q) and its 95 % interval over seeds and prompts, both drawn again."""
    _, member = np.unique(np.asarray(prompts), return_inverse=True)
    counts = np.bincount(member).astype(float)  # (G,)
    sums = np.stack([np.bincount(member, own) for own in differences])  # (S, G)
    generator = np.random.default_rng(0)
    seeds = generator.multinomial(len(sums), [1 / len(sums)] * len(sums), SAMPLES)  # (B, S): times drawn
    drawn = generator.multinomial(counts.size, [1 / counts.size] * counts.size, SAMPLES)  # (B, G)
    means = (seeds * (drawn @ sums.T)).sum(1) / (len(sums) * (drawn @ counts))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(differences.mean()), float(low), float(high)


def study(name: str, pool: Questions, test: Questions, given: argparse.Namespace) -> list[Row]:
    """Return a row for each share of flipped comparisons and strategy, and one for the mean of the shares."""
    found: dict[str, dict[float, Floats]] = {}  # (S, budgets, Q) by strategy and share
    for strategy in STRATEGIES:
        for share in given.noise:
            curves = [curve(strategy, pool, test, share, seed, given) for seed in range(given.seeds)]
            found.setdefault(strategy, {})[share] = np.stack([np.stack([*one.values()]) for one in curves])
            print(f"{name}: {share:g} flipped, {strategy}", file=sys.stderr, flush=True)
    prompts, rows = [group.prompt_id for group in test.groups], []
    for share in [*given.noise, None]:
        chosen = given.noise if share is None else [share]
        mean = {strategy: np.mean([own[one] for one in chosen], axis=0) for strategy, own in found.items()}
        for strategy, own in mean.items():
            less = (own - mean["random"])[:, 1:].mean(1)  # (S, Q); the first round is the same for all
            accuracy = dict(zip(given.budgets, own.mean((0, 2)).tolist(), strict=True))
            row = {"data": name, "flipped": share, "strategy": strategy, "accuracy": accuracy}
            rows.append(row | {"less_random": crossed_bootstrap(less, prompts)})
    return rows


def read(file: Path, given: argparse.Namespace) -> tuple[Questions, Questions, Row]:
    """Return the questions to choose from, those of the test, and the file's figures."""
    base = load_base(load_config(PRESET, given.settings).model, Progress.silent())
    if file.is_dir():
        groups = read_groups(base, RunDir(file), given.max_length)[0]
    else:
        data = load_comparisons(file, skip_bad_rows=0.01)
        pairs = [comparison for ranking in data.rankings for comparison in compare(ranking)]
        groups = make_groups(base, given.max_length, data.prompts, data.answers, pairs, data.rankings)[0]
    cached = Path(given.cache) / f"{file.name.split('.')[0]}-{given.max_length}-{given.layer}.safetensors"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        save_file(read_features(base, groups, [given.layer]), cached)
    tables = load_file(cached)[f"mean-{given.layer}"].float().split([len(group.answers) for group in groups])
    own = dict(zip((group.prompt_id for group in groups), tables, strict=True))
    rest, held_out = split_groups(groups, HELD_OUT, 0)
    pool = Questions.of(rest, [own[group.prompt_id] for group in rest], given.pairs)
    test = Questions.of(held_out, [own[group.prompt_id] for group in held_out], by_pair=False)
    kept = [place for place, group in enumerate(test.groups) if group.pairs]
    test = Questions([test.groups[i] for i in kept], [test.features[i] for i in kept], test.units[kept])
    longer = [outcome([g.lengths[better] - g.lengths[worse] for better, worse, _ in g.pairs]) for g in test.groups]
    figures = {"data": file.name.split(".")[0], "asked_from": int(pool.units.max()) + 1, "tested": len(test.groups)}
    return pool, test, figures | {"longer_wins": sum(longer) / len(longer)}


def table(files: Sequence[Row], rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table after a line for each file."""
    lines = [
        f"- {one['data']}: asked from {one['asked_from']:,} rankings, tested on {one['tested']:,}; "
        f"longer wins {100 * one['longer_wins']:.1f} %"
        for one in files
    ]
    budgets = list(rows[0]["accuracy"])
    columns = [
        "data",
        "flipped, %",
        "strategy",
        *map(str, budgets),
        f"mean of {budgets[1]} to {budgets[-1]}, less random",
    ]
    lines += ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        mean, low, high = (100 * figure for figure in row["less_random"])
        less = "" if row["strategy"] == "random" else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
        flipped = "mean" if row["flipped"] is None else f"{100 * row['flipped']:g}"
        cells = [row["data"], flipped, f"`{row['strategy']}`"]
        cells += [f"{100 * accuracy:.1f}" for accuracy in row["accuracy"].values()]
        lines.append(f"| {' | '.join([*cells, less])} |")
    return "\n".join(lines)


def plot(rows: Sequence[Row]) -> str:
    """Return the gain over random by the number of rankings as SVG, the mean of all files and a thin line for each."""
    curves = {(row["strategy"], row["data"]): row["accuracy"] for row in rows if row["flipped"] is None}
    names = list(dict.fromkeys(row["data"] for row in rows))
    lines = []
    for colour, strategy in enumerate(STRATEGIES[1:]):
        gains = [
            {int(n): 100 * (at - curves["random", name][n]) for n, at in curves[strategy, name].items()}
            for name in names
        ]
        lines += [Line(strategy, list(gain.items()), colour, thin=True) for gain in gains]
        mean = [(n, sum(gain[n] for gain in gains) / len(gains)) for n in gains[0]]
        lines.append(Line(strategy, mean, colour))
    label = "held-out accuracy less that of random, by the number of rankings"
    at_random = Guide((None, None), (0, 0), "random")
    chart = Chart(label, "rankings", "accuracy less random, points", lines=lines, guides=[at_random], legend=True)
    return draw(chart, standalone=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="rankings, as rank.dataset, or a run ranked by a judge")
    parser.add_argument("--cache", required=True, help="folder for the features")
    parser.add_argument("--pairs", action="store_true", help="choose a pair of each prompt's answers, not the prompt")
    parser.add_argument("--budgets", type=int, nargs="+", default=[24, 48, 96, 192, 384], help="rankings revealed")
    parser.add_argument("--noise", type=float, nargs="+", default=[0, 0.15, 0.3], help="shares of flipped comparisons")
    parser.add_argument("--by-gap", action="store_true", help="divide the share by the tiers between the two answers")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--ridge", type=float, default=300, help="ridge penalty of the heads")
    parser.add_argument("--layer", type=int, default=15, help="layer to read")
    parser.add_argument("--max-length", type=int, default=160, help="tokens of prompt and answer; answers are cut")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="of the preset"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--output", type=Path, help="folder for choosing.json and choosing.svg")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Read the features and compare the strategies."""
    given = _parse(arguments)
    given.budgets.sort()
    files, rows = [], []
    for file in given.files:
        pool, test, figures = read(file, given)
        if figures["asked_from"] < given.budgets[-1]:
            sys.exit(f"{file}: {figures['asked_from']} rankings to ask from. Lower --budgets")
        files.append(figures)
        rows += study(figures["data"], pool, test, given)
    result = {"files": files, "rows": rows, "seeds": given.seeds, "ridge": given.ridge, "pairs": given.pairs}
    result["by_gap"] = given.by_gap
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "choosing.json").write_text(json.dumps(result, indent=1) + "\n")
        (given.output / "choosing.svg").write_text(plot(rows))
    print(json.dumps(result) if given.json else table(files, rows))


if __name__ == "__main__":
    main()
