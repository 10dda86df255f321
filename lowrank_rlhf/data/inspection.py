"""Count rows, duplicates, leakage and biases of a data set."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_rlhf.data.examples import Example
from lowrank_rlhf.data.loading import Loaded, Located
from lowrank_rlhf.data.turns import prompt_key
from lowrank_rlhf.maths.statistics import Interval, clustered_bootstrap

_SHOWN = 5
_RESAMPLES = 2_000


@dataclass(frozen=True)
class Balance:
    """Share of rows whose first answer is best; ties are a share of all rows with answers."""

    first_wins: float
    expected: float
    """The same share by chance."""
    ties: float


@dataclass(frozen=True)
class LongerWins:
    """Share of comparisons won by the answer with more characters, without equal lengths."""

    share: float
    interval: Interval
    comparisons: int


@dataclass(frozen=True)
class Figures:
    """Counts over the valid rows."""

    rows: int
    bad_rows: int
    prompts: int
    """Number of different prompts."""
    demonstrations: int
    """Rows with a response, or with one answer preferred to all others."""
    rankings: int
    """Rows with ranked answers."""
    comparisons: int
    undecided: dict[str, int]
    multi_turn: int
    """Rows with more than one turn of user and assistant in the prompt."""
    repeated_prompts: int
    """Rows with the prompt of an earlier row."""
    repeated_rows: int
    """Rows equal to an earlier one, including answers."""
    balance: Balance | None
    longer_wins: LongerWins | None


@dataclass(frozen=True)
class Leakage:
    """Number of prompts that the held-out file contains too, with the first places."""

    prompts: int
    places: list[str]


def figures(loaded: Loaded) -> Figures:
    """Return all counts that need no tokenizer."""
    examples = [example for _, example in loaded.located]
    keys = [prompt_key(example.prompt) for example in examples]
    whole = [(key, one.response, one.answers, one.tiers) for key, one in zip(keys, examples, strict=True)]
    undecided = Counter(example.undecided for example in examples if example.undecided)
    return Figures(
        rows=loaded.rows,
        bad_rows=len(loaded.problems),
        prompts=len(set(keys)),
        demonstrations=sum(example.imitated is not None for example in examples),
        rankings=sum(len(example.tiers) > 1 and not example.undecided for example in examples),
        comparisons=sum(len(example.pairs) for example in examples),
        undecided={str(reason): count for reason, count in undecided.items()},
        multi_turn=sum(is_multi_turn(example) for example in examples),
        repeated_prompts=len(keys) - len(set(keys)),
        repeated_rows=len(whole) - len(set(whole)),
        balance=_balance(examples) if loaded.format.keeps_positions else None,
        longer_wins=_longer_wins(examples),
    )


def is_multi_turn(example: Example) -> bool:
    """Return True if the prompt has more than one turn, not counting a system message."""
    return sum(message.role != "system" for message in example.prompt) > 1


def leakage(loaded: Loaded, held_out: Loaded) -> Leakage:
    """Find prompts that occur in both files; evaluation on them would be invalid."""
    kept = {prompt_key(example.prompt): row.where for row, example in reversed(held_out.located)}
    shared: dict[object, str] = {}
    for row, example in loaded.located:
        key = prompt_key(example.prompt)
        if key in kept:
            shared.setdefault(key, f"{row.where} = {kept[key]}")
    return Leakage(len(shared), list(shared.values())[:_SHOWN])


def shown_examples(loaded: Loaded) -> list[Located]:
    """Return up to two rows to look at: the first, and the first with several turns or else the last.

    Rows with something to train on come first.
    """
    located = [entry for entry in loaded.located if entry.example.imitated or entry.example.pairs] or loaded.located
    several = [entry for entry in located[1:] if is_multi_turn(entry.example)]
    return [*located[:1], *(several or located[1:][-1:])[:1]]


def _balance(examples: Sequence[Example]) -> Balance | None:
    answered = [example for example in examples if len(example.answers) > 1 and example.undecided != "same answer"]
    clear = [example for example in answered if not example.undecided and len(example.tiers[0]) == 1]
    if not clear:
        return None
    return Balance(
        first_wins=sum(example.tiers[0][0] == 0 for example in clear) / len(clear),
        expected=sum(1 / len(example.answers) for example in clear) / len(clear),
        ties=1 - len(clear) / len(answered),
    )


def _longer_wins(examples: Sequence[Example]) -> LongerWins | None:
    won, prompts = [], []
    for example in examples:
        for better, worse in example.pairs:
            if len(better) != len(worse):
                won.append(float(len(better) > len(worse)))
                prompts.append(str(prompt_key(example.prompt)))
    if not won:
        return None
    interval = clustered_bootstrap(won, prompts, _RESAMPLES, seed=0)
    return LongerWins(sum(won) / len(won), interval, len(won))
