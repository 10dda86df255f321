"""Weights of annotators by their reliability, from the comparisons that several of them made."""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.records import Comparison

PACKAGE = "crowd-kit"
FEWEST = 3
"""Voters with common pairs below which their reliabilities cannot be known apart: of two who differ, either may be the
careless one."""
PRIOR_PAIRS = 50
"""Pairs that the mean reliability counts as in each annotator's estimate, so that few pairs move a weight little."""
_DECISIONS = ""
"""Voter of all decisions; no annotator has this name."""


def reliability_problem(config: Config) -> str | None:
    """Return a message if the config asks for weights and their package is not installed, else None."""
    if config.reward.annotator_weights == "equal":
        return None
    try:
        version(PACKAGE)
    except PackageNotFoundError:
        return f'reliability requires {PACKAGE}. Run `pip install "{PACKAGE}>=1.4"`, or set it to equal'
    return None


class Reliability(NamedTuple):
    """Weights of the annotators, empty if they are not estimated, and the number of voters with common pairs."""

    weights: dict[str, float]
    common: int


def annotator_weights(comparisons: Iterable[Comparison]) -> Reliability:
    """Return the weight of each annotator's comparisons in the loss; the mean over those learned from is 1.

    The one-coin model of Dawid and Skene (1979; Zhang et al. 2016, arXiv 1406.3824, section 2) gives the probability s
    with which an annotator orders a pair rightly. The weight is proportional to 2s - 1, at least 0, with which
    verdicts of equal variance are averaged best. Annotators without common pairs have the mean of s. The comparisons
    that decisions replaced count as votes, and the decisions are one more voter. Nothing is estimated with fewer than
    `FEWEST` voters with common pairs. Raises `UserError` without the package crowd-kit.
    """
    rows = list(comparisons)
    skills, common = _skills(rows)
    if not skills:
        return Reliability({}, common)
    mean = sum(skills.values()) / len(skills)
    names = sorted({row.annotator for row in rows if not row.decision})
    raw = {name: max(0.0, 2 * skills.get(name, mean) - 1) for name in names}
    learned = [weight_of(row, raw) for row in rows if not row.replaced]
    average = sum(learned) / len(learned) if learned else 0.0
    weights = {name: weight / average for name, weight in raw.items()} if average else dict.fromkeys(raw, 1.0)
    return Reliability(weights, common)


def weight_of(comparison: Comparison, weights: Mapping[str, float]) -> float:
    """Return the weight of a comparison in the loss; the owner's decisions weigh as much as the best annotator."""
    return max(weights.values()) if comparison.decision else weights[comparison.annotator]


def _skills(rows: list[Comparison]) -> tuple[dict[str, float], int]:
    """Return the probability of a right order for each annotator with pairs that others compared too.

    It is empty with fewer than `FEWEST` such voters, whose number is the second value.
    """
    verdicts: defaultdict[tuple[str, str, str], dict[str, bool]] = defaultdict(dict)
    for row in rows:
        # At random, so that no annotator and no model can be right by the answers' ids.
        first, second = random.Random(" ".join(sorted((row.chosen, row.rejected)))).sample(
            sorted((row.chosen, row.rejected)), 2
        )
        voter = _DECISIONS if row.decision else row.annotator
        verdicts[row.prompt_id, first, second][voter] = row.chosen == first
    common = [given for given in verdicts.values() if len(given) > 1]
    table = [(pair, name, verdict) for pair, given in enumerate(common) for name, verdict in given.items()]
    voters = len({name for _, name, _ in table})
    if voters < FEWEST:
        return {}, voters
    try:
        import pandas
        from crowdkit.aggregation import OneCoinDawidSkene
    except ImportError as error:
        raise UserError(f'reward.annotator_weights: {error}. Run `pip install "{PACKAGE}>=1.4"`') from None
    data = pandas.DataFrame(table, columns=["task", "worker", "label"])
    right = OneCoinDawidSkene(n_iter=100).fit_predict_proba(data)
    shares: defaultdict[str, list[float]] = defaultdict(list)
    for pair, name, verdict in table:
        shares[name].append(float(right.loc[pair, verdict]) if verdict in right.columns else 0.0)
    shares.pop(_DECISIONS, None)
    mean = sum(map(sum, shares.values())) / sum(map(len, shares.values()))
    skills = {name: (sum(own) + PRIOR_PAIRS * mean) / (len(own) + PRIOR_PAIRS) for name, own in shares.items()}
    return skills, voters
