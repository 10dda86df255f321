"""The figures of an evaluation, from its rows. Numpy only."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lowrank_rlhf.maths.length_control import length_controlled_win_rate
from lowrank_rlhf.maths.statistics import Floats, bootstrap_interval, wins
from lowrank_rlhf.maths.text import distinct_n, top_opener

Row = dict[str, Any]
SIDES = ("left", "right")
REWARD_MODEL = "reward model"
_SELDOM = 0.05


def match_figures(rows: Sequence[Row], answers_per_prompt: int, judge: str | None, samples: int, seed: int) -> Row:
    """Win rates of the right side, KL and the table of both sides, with 95 % bootstrap intervals over prompts.

    The judge decides, or the reward model where there is none; the other one's win rate is in the table. `judge` is its
    name; rows are in the order of `play`, those of one prompt together.
    """
    deciders = {
        key: name
        for key, name in (("judge", judge), ("score", REWARD_MODEL))
        if f"{key}_right" in rows[0] or f"{key}_prefers" in rows[0]
    }
    first = next(iter(deciders))
    won = {key: _won(rows, key).reshape(-1, answers_per_prompt) for key in deciders}
    kl = _column(rows, "kl").reshape(-1, answers_per_prompt).mean(axis=1)
    lengths = [_lengths(rows, side).reshape(-1, answers_per_prompt) for side in SIDES]
    controlled = length_controlled_win_rate(won[first], lengths[1], lengths[0], samples, seed)
    return {
        "prompts": len(kl),
        "answers_per_prompt": answers_per_prompt,
        "decided_by": deciders[first],
        "win_rate": float(won[first].mean()),
        "win_rate_interval": bootstrap_interval(won[first].mean(axis=1), samples, seed),
        "ties": int((won[first] == 0.5).sum()),
        "length_controlled_win_rate": controlled.win_rate,
        "length_controlled_interval": controlled.interval,
        "length_coefficient": controlled.coefficient,
        "longer_share": float(wins(lengths[1].ravel(), lengths[0].ravel()).mean()),
        "kl_per_answer": float(kl.mean()),
        "kl_interval": bootstrap_interval(kl, samples, seed),
        "table": _table(rows, deciders, won, samples, seed),
    }


def length_note(figures: Row) -> str | None:
    """A warning where one side is nearly always the longer one, so that equal length was hardly ever seen."""
    share = figures["longer_share"]
    if _SELDOM < share < 1 - _SELDOM:
        return None
    longer = "right" if share > 0.5 else "left"
    return (
        f"the {longer} answer is the longer one in {max(share, 1 - share):.0%} of the pairs: "
        "the length-controlled win rate is a guess about lengths that hardly occur"
    )


def _table(rows: Sequence[Row], deciders: dict[str, Any], won: dict[str, Floats], samples: int, seed: int) -> list[Row]:
    table: list[Row] = []

    def add(figure: str, values: Sequence[float], note: str = "", share: bool = False) -> None:
        table.append({"figure": figure, "left": values[0], "right": values[1], "share": share, "note": note})

    def means(name: str) -> list[float]:
        return [float(_column(rows, f"{name}_{side}").mean()) for side in SIDES]

    for key, name in deciders.items():
        rate = float(won[key].mean())
        low, high = bootstrap_interval(won[key].mean(axis=1), samples, seed)
        interval = f"right: {100 * low:.0f} to {100 * high:.0f} %; ties count half"
        add(f"{name}: win rate", (1 - rate, rate), interval, share=True)
        if f"{key}_right" in rows[0]:
            add(f"{name}: mean score", means(key))
    texts = [[row[side] for row in rows] for side in SIDES]
    openers = [top_opener(group) for group in texts]
    quoted = " / ".join(f"“{opener}”" for opener, _ in openers)
    add("length in tokens", means("tokens"))
    add("length in characters", [float(_lengths(rows, side).mean()) for side in SIDES])
    add("answers that end by themselves", means("finished"), share=True)
    add("distinct-2", [distinct_n(group, 2) for group in texts], "distinct word pairs / word pairs")
    add("commonest opener's share", [share for _, share in openers], quoted, share=True)
    return table


def _won(rows: Sequence[Row], key: str) -> Floats:
    """(N K,): 1 where that judge prefers the right answer, 0 where the left one, 0.5 where they tie."""
    if f"{key}_prefers" in rows[0]:
        return np.array([{"right": 1.0, "tie": 0.5, "left": 0.0}[row[f"{key}_prefers"]] for row in rows])
    return wins(_column(rows, f"{key}_right"), _column(rows, f"{key}_left"))


def _column(rows: Sequence[Row], name: str) -> Floats:
    return np.array([row[name] for row in rows], dtype=np.float64)


def _lengths(rows: Sequence[Row], side: str) -> Floats:
    return np.array([len(row[side]) for row in rows], dtype=np.float64)
