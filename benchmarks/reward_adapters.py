"""Train the reward adapter on people's comparisons and compare it with the head alone, on the splits of reward_heads.

    python benchmarks/reward_adapters.py hh_harmless_test.jsonl.gz --cache /tmp/states --characters 420 \
        --setting 16:1e-4:1 --setting 16:3e-4:2 --inner --splits 2
    python benchmarks/reward_adapters.py hh_harmless_test.jsonl.gz --cache /tmp/states --characters 420 \
        --setting 16:3e-4:1 --setting 16:3e-4:1:0.1

A setting is rank, learning rate, epochs, and optionally the weight of the language-model loss on the preferred answer,
the mean over its tokens, which is added to the ranking loss (the simplest form of GRM, arXiv 2406.10216). Each training
starts from the head that is fitted on the bare base, in the setting of presets/human_preferences.yaml. With `--inner`
the training prompts of each split are split again, and the second part is measured, so that a setting can be chosen
without the held-out prompts. The states below the adapters are read once and kept in `--cache`, and so is the outcome
of each setting and split: a rerun adds what is missing. Prints a Markdown table; intervals as in reward_heads.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmarks.reward_heads import HELD_OUT, OWN, PRESET, SPLITS, difference, read_data, share
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.evaluation.prompt_audit import emptied, exchanged
from lowrank_rlhf.maths.masking import masked_mean
from lowrank_rlhf.maths.sequences import Sequences
from lowrank_rlhf.maths.statistics import expected_calibration_error
from lowrank_rlhf.models.base import load_base
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import score_features, score_tokens
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.training.reward_data import Group, group_loss, rows_of, split_groups, split_scores
from lowrank_rlhf.training.rewards import reward_training
from lowrank_rlhf.training.rewards.reward_head import fit_head
from lowrank_rlhf.training.rewards.reward_training import train_adapter
from lowrank_rlhf.training.rollout import RewardScale

Loss = Callable[[Tensor, Group, str, float], Tensor]


@dataclass(frozen=True)
class Setting:
    """One row of the table; without epochs the head alone."""

    rank: int = 16
    rate: float = 1e-4
    epochs: int = 0
    language: float = 0.0
    """Weight of the language-model loss."""

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """Read `rank:rate:epochs` or `rank:rate:epochs:language`."""
        rank, rate, epochs, *language = text.split(":")
        return cls(int(rank), float(rate), int(epochs), *map(float, language))

    @property
    def cells(self) -> list[str]:
        """First cells of the row."""
        if not self.epochs:
            return ["head alone", "", "", ""]
        return [str(self.rank), f"{self.rate:g}", str(self.epochs), f"{self.language:g}"]

    @property
    def config(self) -> Config:
        """The preset with this setting."""
        own = [f"lora.rank={self.rank}", f"lora.alpha={2 * self.rank}", f"reward.learning_rate={self.rate}"]
        return load_config(PRESET, [*own, f"reward.epochs={self.epochs}", "reward.save_every=1000000"])


@dataclass
class Outcome:
    """Margins of the held-out pairs, preferred less other answer, by prompt (`as it is`, `emptied`, `shuffled`)."""

    margins: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    """CPU seconds of training."""


@dataclass(frozen=True)
class Answers:
    """All answers of the groups after one of the prompts."""

    rows: Sequences
    """With the states below the adapters, if there are layers below them."""
    features: Tensor
    """(N, h), the head's inputs without an adapter."""
    place: dict[str, list[int]]
    """Rows of each prompt's answers."""

    @classmethod
    def read(cls, roles: Roles, groups: Sequence[Group], pooling: str, cache: Path) -> "Answers":
        """Read the answers as the base, or load what was read before."""
        rows = rows_of(groups, roles.base)
        if not cache.exists():
            roles.reset(Role.REWARD, torch.Generator().manual_seed(0))
            rows = roles.with_lower_states(rows)
            features = score_features(roles, Role.REWARD, rows, pooling, lambda _: None)
            save_file({"features": features} | ({} if rows.lower is None else {"lower": rows.lower}), cache)
        stored, index = load_file(cache), iter(range(len(rows)))
        place = {group.prompt_id: [next(index) for _ in group.answers] for group in groups}
        return cls(replace(rows, lower=stored.get("lower")), stored["features"], place)

    def of(self, groups: Sequence[Group]) -> list[int]:
        """Return the rows of these groups' answers."""
        return [row for group in groups for row in self.place[group.prompt_id]]

    def scores(self, roles: Roles, groups: Sequence[Group], scale: RewardScale) -> list[Tensor]:
        """Return the reward model's scores of these groups' answers, (K,) each."""
        rows = self.rows.rows(self.of(groups))
        return split_scores(scale.raw(score_tokens(roles, Role.REWARD, rows), rows.response), groups)

    def scores_of_head(self, weight: Tensor, groups: Sequence[Group]) -> list[Tensor]:
        """Return the scores of these groups' answers, (K,) each, by a head (h,) on the bare base."""
        return split_scores(self.features[self.of(groups)] @ weight, groups)


@contextmanager
def training_on(answers: Answers, loss: Loss) -> Iterator[None]:
    """Let the stage's training take rows with lower states from `answers`, and another loss of a prompt."""
    rows = {"rows_of": lambda groups, _: answers.rows.rows(answers.of(groups))}
    with patch.multiple(reward_training, members_loss=loss, **rows):
        yield


def with_language_loss(roles: Roles, answers: Answers, weight: float) -> Loss:
    """Return the ranking loss plus `weight` times the mean negative log-likelihood of the preferred answers' tokens."""

    def loss(scores: Tensor, group: Group, kind: str, margin: float) -> Tensor:
        ranking = group_loss(scores, group, kind, margin)
        best = [answers.place[group.prompt_id][index] for index in sorted({better for better, *_ in group.pairs})]
        rows = answers.rows.rows(best)
        with patch.object(roles, "head_layers", len(roles.decoder.layers)):  # the base's other layers follow
            logprobs = roles.logprobs(rows, temperature=1.0).logprobs
        return ranking - weight * masked_mean(logprobs, rows.response)

    return loss if weight else group_loss


def measure(
    roles: Roles, setting: Setting, config: Config, answers: dict[str, Answers], parts: Sequence[list[Group]], seed: int
) -> Outcome:
    """Fit the head on the first part's groups, train the adapter on them, and measure on the second part's."""
    train, held_out = parts
    own = answers[OWN]
    weight, fit = fit_head(train, split_scores(own.features[own.of(train)], train), config.reward, seed)
    if not setting.epochs:
        return Outcome(
            {name: margins(of.scores_of_head(weight[0], held_out), held_out) for name, of in answers.items()}
        )
    roles.reset(Role.REWARD, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        roles.heads[Role.REWARD].weight.copy_(weight)
    scale, since = fit.training_scale(config.reward.pooling), time.process_time()
    with tempfile.TemporaryDirectory() as folder, training_on(own, with_language_loss(roles, own, setting.language)):
        run = RunDir(Path(folder))
        train_adapter(config.reward, seed, roles, train, scale, run, Progress.silent(), StopRequest())
    seconds = time.process_time() - since
    return Outcome(
        {name: margins(of.scores(roles, held_out, scale), held_out) for name, of in answers.items()}, seconds
    )


def margins(scores: Sequence[Tensor], groups: Sequence[Group]) -> list[float]:
    """Return the margin of each pair of the groups from their answers' scores, (K,) each."""
    return [
        float(own[better] - own[worse])
        for own, group in zip(scores, groups, strict=True)
        for better, worse, _ in group.pairs
    ]


def outcomes(given: argparse.Namespace, setting: Setting) -> tuple[list[Group], list[Outcome]]:
    """Return the held-out groups of all splits and the setting's outcome on each, from the cache where it is there."""
    folder, config = Path(given.cache), setting.config
    folder.mkdir(parents=True, exist_ok=True)
    base = load_base(config.model, Progress.silent())
    roles = Roles(base, config.lora, config.reward.layers)
    roles.prepare(Role.REWARD)
    groups = read_data(base, given.file, given.characters, given.pairs)
    name = f"{Path(given.file).name.split('.')[0]}-{given.characters}-{given.pairs}"
    by_prompt = {OWN: groups}
    if given.audit:
        by_prompt |= {"emptied": emptied(base, groups), "shuffled": exchanged(groups)}
    answers: dict[str, Answers] = {}
    measured, found = [], []
    for seed in range(given.splits):
        train, held_out = split_groups(groups, HELD_OUT, seed)
        if given.inner:
            train, held_out = split_groups(train, HELD_OUT, seed)
        path = folder / f"{name}-{'-'.join(map(str, asdict(setting).values()))}-{given.inner}-{given.audit}-{seed}.json"
        if not path.exists():
            answers = answers or {
                prompts: Answers.read(roles, own, config.reward.pooling, folder / f"{name}-{prompts}.safetensors")
                for prompts, own in by_prompt.items()
            }
            outcome = measure(roles, setting, config, answers, (train, held_out), seed)
            path.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        measured += held_out
        found.append(Outcome(**json.loads(path.read_text(encoding="utf-8"))))
        print(f"{setting} split {seed}: {found[-1].seconds:.0f} s", file=sys.stderr, flush=True)
    return measured, found


def table(groups: Sequence[Group], by_setting: dict[Setting, Sequence[Outcome]]) -> str:
    """Return the table of all settings, the first of which is the head alone, on the held-out groups of all splits."""
    prompts = [group.prompt_id for group in groups for _ in group.pairs]
    longer = [_right(float(g.lengths[better] - g.lengths[worse])) for g in groups for better, worse, _ in g.pairs]
    names = [name for name in next(iter(by_setting.values()))[0].margins if name != OWN]
    columns = ["rank", "rate", "epochs", "language", "accuracy", "over length", "over head alone"]
    columns += ["loss", "ECE", *names, "CPU s"]
    lines = [f"longer wins {share(longer, prompts)}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    alone: list[float] = []
    for setting, found in by_setting.items():
        margins = torch.tensor([margin for outcome in found for margin in outcome.margins[OWN]])
        right = [_right(margin) for margin in margins.tolist()]
        alone = alone or right
        cells = [*setting.cells, share(right, prompts), difference(right, longer, prompts)]
        cells += [difference(right, alone, prompts), f"{-logsigmoid(margins).mean():.4f}"]
        cells.append(f"{100 * expected_calibration_error(margins.abs().sigmoid().tolist(), right):.1f}")
        for name in names:
            without = [_right(margin) for outcome in found for margin in outcome.margins[name]]
            cells.append(f"{100 * sum(without) / len(without):.1f}")
        cells.append(f"{sum(outcome.seconds for outcome in found) / len(found):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _right(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="comparisons, in a format that rank.dataset reads")
    parser.add_argument("--cache", required=True, help="folder for states and outcomes")
    parser.add_argument("--pairs", type=int, help="comparisons of randomly drawn prompts; all by default")
    parser.add_argument("--characters", type=int, help="leave out longer transcripts, prompt and answer together")
    parser.add_argument(
        "--setting", action="append", type=Setting.parse, default=[], help="rank:rate:epochs[:language]"
    )
    parser.add_argument("--inner", action="store_true", help="measure on a part of the training prompts")
    parser.add_argument("--audit", action="store_true", help="measure with the prompts emptied and shuffled too")
    parser.add_argument("--splits", type=int, default=SPLITS, help="number of splits")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure the head alone and every setting, and print the table."""
    given = _parse(arguments)
    groups: list[Group] = []
    by_setting: dict[Setting, Sequence[Outcome]] = {}
    for setting in (Setting(), *given.setting):
        groups, by_setting[setting] = outcomes(given, setting)
    print(table(groups, by_setting))


if __name__ == "__main__":
    main()
