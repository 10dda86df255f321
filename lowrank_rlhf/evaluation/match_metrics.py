"""Figures of a match between two models, from its pairs of answers. Numpy only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from lowrank_rlhf.evaluation.answer_pair import REWARD_MODEL, SCORE, AnswerPair, Sides
from lowrank_rlhf.maths.length_control import length_controlled_win_rate
from lowrank_rlhf.maths.statistics import Floats, Interval, bootstrap_interval, wins
from lowrank_rlhf.maths.text import distinct_n, top_opener
from lowrank_rlhf.run.records import Sample
from lowrank_rlhf.run.results import SHARES, FigureId

RARE = 0.05
"""Share of pairs below which the longer answers of one side are too few to control for length."""

_LABELS: dict[FigureId, str] = {
    "mean_score": "mean score",
    "win_rate": "win rate",
    "length_tokens": "length in tokens",
    "length_characters": "length in characters",
    "eos_rate": "answers that end by themselves",
    "distinct_2": "distinct-2",
    "top_opener": "commonest opener's share",
}


@dataclass(frozen=True)
class Figure:
    """Figure of both models under comparison."""

    id: FigureId
    values: tuple[float, float]
    """Of the baseline and of the candidate."""
    judge: str | None = None
    """Judge (or `reward model`) behind `mean_score` and `win_rate`."""
    interval: Interval | None = None
    """95 % interval of the candidate's value."""
    openers: tuple[str, str] | None = None
    """Commonest first two words of either side."""

    @property
    def is_share(self) -> bool:
        """True for a share of 1, False for a number with a unit."""
        return self.id in SHARES

    @property
    def label(self) -> str:
        """Name for tables."""
        return f"{self.judge}: {_LABELS[self.id]}" if self.judge else _LABELS[self.id]

    def note(self, sides: Sides) -> str:
        """Return the remark on the figure in tables."""
        if self.id == "win_rate" and self.interval:
            low, high = self.interval
            return f"{sides.candidate}: {100 * low:.0f} to {100 * high:.0f} %; ties count half"
        if self.id == "distinct_2":
            return "distinct word pairs / word pairs"
        return " / ".join(f"“{opener}”" for opener in self.openers or ())

    def row(self, sides: Sides) -> dict[str, Any]:
        """Return the figure as a row of a JSON file."""
        values = dict(zip(sides, self.values, strict=True))
        return {"figure": self.label, **values, "share": self.is_share, "note": self.note(sides)}


@dataclass(frozen=True)
class MatchFigures:
    """Figures of a match; intervals are 95 % bootstrap intervals over prompts."""

    prompts: int
    answers_per_prompt: int
    decided_by: str
    """Judge, or `reward model`, behind the win rate."""
    win_rate: float
    """Of the candidate; ties count half."""
    win_rate_interval: Interval
    ties: int
    length_controlled_win_rate: float
    """Win rate if all answers were equally long (Dubois et al. 2024, arXiv 2404.04475)."""
    length_controlled_interval: Interval
    length_coefficient: float
    longer_share: float
    """Share of the pairs in which the candidate's answer is the longer one."""
    kl_per_answer: float
    """KL(candidate || baseline), nats."""
    kl_interval: Interval
    table: tuple[Figure, ...]

    def json(self, sides: Sides) -> dict[str, Any]:
        """Return the figures by name, the table as rows."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"table": [figure.row(sides) for figure in self.table]}


def match_figures(
    pairs: Sequence[AnswerPair], answers_per_prompt: int, judges: Mapping[str, str], samples: int, seed: int
) -> MatchFigures:
    """Return win rates of the candidate, KL, and the table of both sides.

    Args:
        pairs: pairs of answers, grouped by prompt.
        answers_per_prompt: pairs per prompt.
        judges: names by key. The first one with verdicts decides; the others' win rates are in the table.
        samples: bootstrap samples.
        seed: seed of the bootstrap.
    """
    deciders = {key: name for key, name in (*judges.items(), (SCORE, REWARD_MODEL)) if key in pairs[0].verdicts}
    first = next(iter(deciders))

    def grouped(values: Floats) -> Floats:
        return values.reshape(-1, answers_per_prompt)  # (N K,) -> (N, K)

    won = {key: grouped(win_values(pairs, key)) for key in deciders}
    kl = mean_per_prompt(kl_values(pairs), answers_per_prompt)
    lengths = [grouped(values) for values in both_sides(pairs, lambda sample: len(sample.text))]
    controlled = length_controlled_win_rate(won[first], lengths[1], lengths[0], samples, seed)
    intervals = {key: bootstrap_interval(values.mean(axis=1), samples, seed) for key, values in won.items()}
    judged = [
        figure
        for key, name in deciders.items()
        for figure in (win_rate_figure(pairs, key, name, intervals[key]), mean_score_figure(pairs, key, name))
        if figure
    ]
    return MatchFigures(
        prompts=len(kl),
        answers_per_prompt=answers_per_prompt,
        decided_by=deciders[first],
        win_rate=float(won[first].mean()),
        win_rate_interval=intervals[first],
        ties=int((won[first] == 0.5).sum()),
        length_controlled_win_rate=controlled.win_rate,
        length_controlled_interval=controlled.interval,
        length_coefficient=controlled.coefficient,
        longer_share=float(wins(lengths[1].ravel(), lengths[0].ravel()).mean()),
        kl_per_answer=float(kl.mean()),
        kl_interval=bootstrap_interval(kl, samples, seed),
        table=(*judged, *text_figures(pairs)),
    )


def longer_side(figures: MatchFigures) -> int | None:
    """Return the side, 0 or 1, whose answers are nearly always the longer ones; None if neither's are."""
    if RARE < figures.longer_share < 1 - RARE:
        return None
    return int(figures.longer_share > 0.5)


def longer_side_in_words(side: int, figures: MatchFigures, sides: Sides) -> str:
    """Return a warning about the length-controlled win rate."""
    share = max(figures.longer_share, 1 - figures.longer_share)
    return (
        f"the {sides[side]} answer is the longer one in {share:.0%} of the pairs: the length-controlled win rate "
        "extrapolates to lengths that hardly occur"
    )


def mean_per_prompt(values: Floats, answers_per_prompt: int) -> Floats:
    """Return (N,), the mean of each prompt's K values, from (N K,) with those of one prompt next to each other."""
    means: Floats = values.reshape(-1, answers_per_prompt).mean(axis=1)
    return means


def win_values(pairs: Sequence[AnswerPair], key: str) -> Floats:
    """Return (N,): 1 where that judge prefers the candidate's answer, 0 where the baseline's, 0.5 for ties."""
    return np.array([pair.verdicts[key].win for pair in pairs], dtype=np.float64)


def kl_values(pairs: Sequence[AnswerPair]) -> Floats:
    """Return (N,): nats of each candidate answer."""
    return np.array([pair.kl for pair in pairs], dtype=np.float64)


def score_values(pairs: Sequence[AnswerPair], key: str) -> tuple[list[float], list[float]] | None:
    """Return the scores of the baseline's and of the candidate's answers; None if that judge gives none."""
    scores = [pair.verdicts[key].scores for pair in pairs]
    given = [both for both in scores if both is not None]
    return ([both[0] for both in given], [both[1] for both in given]) if len(given) == len(scores) else None


def both_sides(pairs: Sequence[AnswerPair], measure: Callable[[Sample], float]) -> tuple[Floats, Floats]:
    """Return a measure of each of the baseline's and of the candidate's answers, (N,) each."""
    baseline = np.array([measure(pair.baseline) for pair in pairs], dtype=np.float64)
    return baseline, np.array([measure(pair.candidate) for pair in pairs], dtype=np.float64)


def win_rate_figure(pairs: Sequence[AnswerPair], key: str, judge: str, interval: Interval) -> Figure:
    """Return the win rates of both sides by that judge."""
    rate = float(win_values(pairs, key).mean())
    return Figure("win_rate", (1 - rate, rate), judge, interval)


def mean_score_figure(pairs: Sequence[AnswerPair], key: str, judge: str) -> Figure | None:
    """Return that judge's mean scores; None if its scores compare within one call only."""
    scores = score_values(pairs, key)
    return Figure("mean_score", _means(*scores), judge) if scores else None


def text_figures(pairs: Sequence[AnswerPair]) -> list[Figure]:
    """Return the figures that follow from the answers alone: lengths, ends, variety."""
    texts = [pair.baseline.text for pair in pairs], [pair.candidate.text for pair in pairs]
    (opener, share), (other_opener, other_share) = map(top_opener, texts)
    return [
        Figure("length_tokens", _means(*both_sides(pairs, lambda sample: len(sample.tokens or ())))),
        Figure("length_characters", _means(*both_sides(pairs, lambda sample: len(sample.text)))),
        Figure("eos_rate", _means(*both_sides(pairs, lambda sample: float(sample.finished)))),
        Figure("distinct_2", (distinct_n(texts[0], 2), distinct_n(texts[1], 2))),
        Figure("top_opener", (share, other_share), openers=(opener, other_opener)),
    ]


def _means(baseline: Sequence[float] | Floats, candidate: Sequence[float] | Floats) -> tuple[float, float]:
    return float(np.mean(baseline)), float(np.mean(candidate))
