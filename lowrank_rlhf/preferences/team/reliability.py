"""Weights of annotators by their reliability, from the comparisons that several of them made."""

import random
from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.records import Comparison

PACKAGE = "crowd-kit"
FEWEST = 3
"""Annotators with common pairs below which their reliabilities cannot be known apart: of two who differ, either may be
the careless one."""
PRIOR_PAIRS = 50
"""Pairs that the mean reliability counts as in each annotator's estimate, so that few pairs move a weight little."""


def reliability_problem(config: Config) -> str | None:
    """Return a message if the config asks for weights and their package is not installed, else None."""
    if config.reward.annotator_weights == "equal":
        return None
    try:
        version(PACKAGE)
    except PackageNotFoundError:
        return f'reliability requires {PACKAGE}. Run `pip install "{PACKAGE}>=1.4"`, or set it to equal'
    return None


def annotator_weights(comparisons: Iterable[Comparison]) -> dict[str, float]:
    """Return the weight of each annotator's comparisons in the loss; their mean over the comparisons is 1.

    The one-coin model of Dawid and Skene (1979; Zhang et al. 2016, arXiv 1406.3824, section 2) gives the probability s
    with which an annotator orders a pair rightly. The weight is proportional to 2s - 1, at least 0, with which
    verdicts of equal variance are averaged best. Annotators without common pairs have the mean of s. All weights are 1
    with fewer than three annotators with common pairs. Raises `UserError` without the package crowd-kit.
    """
    rows = list(comparisons)
    skills = _skills(rows)
    every = {row.annotator for row in rows}
    if len(skills) < FEWEST:
        return dict.fromkeys(sorted(every), 1.0)
    mean = sum(skills.values()) / len(skills)
    raw = {name: max(0.0, 2 * skills.get(name, mean) - 1) for name in sorted(every)}
    average = sum(raw[row.annotator] for row in rows) / len(rows)
    return {name: weight / average for name, weight in raw.items()} if average else dict.fromkeys(raw, 1.0)


def _skills(rows: list[Comparison]) -> dict[str, float]:
    """Return the probability of a right order for each annotator with pairs that others compared too."""
    verdicts: defaultdict[tuple[str, str, str], dict[str, bool]] = defaultdict(dict)
    for row in rows:
        # At random, so that no annotator and no model can be right by the answers' ids.
        first, second = random.Random(" ".join(sorted((row.chosen, row.rejected)))).sample(
            sorted((row.chosen, row.rejected)), 2
        )
        verdicts[row.prompt_id, first, second][row.annotator] = row.chosen == first
    common = [given for given in verdicts.values() if len(given) > 1]
    table = [(pair, name, verdict) for pair, given in enumerate(common) for name, verdict in given.items()]
    if len({name for _, name, _ in table}) < FEWEST:
        return {}
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
    mean = sum(map(sum, shares.values())) / len(table)
    return {name: (sum(own) + PRIOR_PAIRS * mean) / (len(own) + PRIOR_PAIRS) for name, own in shares.items()}
