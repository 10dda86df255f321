"""Grid of a sweep: every combination of `ppo.kl_coef=0.02,0.1 seed=1,2`, with a name and a checked config."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.messages import Key
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline.preflight import problems as problems_here

_LONGEST_NAME = 64
_PAIRS = {"[": "]", "{": "}"}
_QUOTES = "\"'"


@dataclass(frozen=True)
class Combination:
    """One run of a sweep; `settings` has its values of the settings that vary, as typed."""

    config: Config
    settings: dict[str, str]
    overrides: tuple[str, ...]
    """Overrides of the sweep's config, as on the command line of `run`."""

    @property
    def label(self) -> str:
        """Short description, such as `kl_coef=0.05 seed=2`."""
        return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.settings.items())


@dataclass(frozen=True)
class Sweep:
    """Runs of a sweep, in the order of the settings, the last changing fastest."""

    name: str
    source: str
    axes: dict[str, tuple[str, ...]]
    combinations: list[Combination]

    @property
    def short_names(self) -> dict[str, str]:
        """Column name of each setting that varies."""
        return _short_names(self.axes)


def make_sweep(source: str, arguments: Sequence[str]) -> Sweep:
    """Expand the settings with several values into a grid on the config `source`.

    Raises a `UserError` that lists each mistake in any combination once, before anything runs.
    """
    choices = _choices(arguments)
    axes = {key: values for key, values in choices.items() if len(values) > 1}
    fixed = {key: values[0] for key, values in choices.items() if len(values) == 1}
    if "name" in axes:
        raise UserError("name: must have one value; each run's name is made from it and the run's settings")
    if not axes:
        raise UserError("nothing to sweep: give at least one setting several values, such as ppo.kl_coef=0.02,0.1")
    rows = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    overrides = [tuple(f"{key}={value}" for key, value in {**fixed, **row}.items()) for row in rows]
    configs = _checked(source, overrides)
    names = _names(configs[0].name, rows)
    named = [
        Combination(config.model_copy(update={"name": name}), row, (*_without_name(given), f"name={name}"))
        for config, row, given, name in zip(configs, rows, overrides, names, strict=True)
    ]
    return Sweep(f"{configs[0].name[: _LONGEST_NAME - 6]}-sweep", source, axes, named)


def split_values(text: str) -> list[str]:
    """Split at commas outside brackets and quotes: `1,[a, b]` -> `1`, `[a, b]`.

    Raises `ValueError` with the missing bracket or quote.
    """
    parts, closing, quote = [""], "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES and (closing or not parts[-1].strip()):  # elsewhere it is an apostrophe
            quote = character
        elif character in _PAIRS:
            closing += _PAIRS[character]
        elif closing and character == closing[-1]:
            closing = closing[:-1]
        elif character == "," and not closing:
            parts.append("")
            continue
        parts[-1] += character
    if closing or quote:
        raise ValueError(closing[-1:] or quote)
    return [part.strip() for part in parts]


def _choices(arguments: Sequence[str]) -> dict[str, tuple[str, ...]]:
    choices: dict[str, tuple[str, ...]] = {}
    problems = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        key = key.strip()
        if not equals or not key:
            problems.append(f'"{argument}": must be key=value or key=value,value, such as ppo.kl_coef=0.02,0.1')
            continue
        try:
            values = split_values(text)
        except ValueError as error:
            problems.append(f'"{argument}": {error} is missing; commas inside [a, b] and quotes do not separate values')
            continue
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if len(values) > 1 and not all(values):
            problems.append(f'"{argument}": empty value next to a comma')
        elif repeated:
            problems.append(f'"{argument}": {repeated[0]} is given twice')
        elif key in choices:
            problems.append(f'"{argument}": {key} is given twice; write all its values after one =')
        choices[key] = tuple(values)
    if problems:
        raise UserError("\n".join(problems))
    return choices


def _checked(source: str, overrides: Sequence[tuple[str, ...]]) -> list[Config]:
    """Load the config of each combination. Raises `UserError` that lists each mistake once."""
    configs: list[Config] = []
    mistakes: dict[str, None] = {}
    for given in overrides:
        try:
            configs.append(load_config(Path(source), given, _problems))
        except UserError as error:
            mistakes |= dict.fromkeys(str(error).splitlines())
    if mistakes:
        raise UserError("\n".join(mistakes))
    return configs


def _problems(config: Config) -> list[tuple[Key, str]]:
    """Return the mistakes of a config for a run on this machine and for a sweep."""
    chosen = "auto may choose different numbers for each run; set as_set and use the numbers that `plan` prints"
    return [*problems_here(config), *([(("model", "memory"), chosen)] if config.model.memory == "auto" else [])]


def _without_name(overrides: tuple[str, ...]) -> list[str]:
    return [override for override in overrides if override.partition("=")[0] != "name"]


def _names(base: str, rows: Sequence[dict[str, str]]) -> list[str]:
    """Return names such as `quickstart-kl_coef-0.05-seed-2`, with a hash if they are too long or not unique."""
    short = _short_names(rows[0])
    plain = []
    for row in rows:
        parts = [f"{short[key]}-{value}" for key, value in row.items()]
        plain.append(re.sub(r"[^A-Za-z0-9._]+", "-", "-".join([base, *parts])).strip("-"))
    count = Counter(plain)
    return [
        name if count[name] == 1 and len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 9]}-{_digest(row)}"
        for name, row in zip(plain, rows, strict=True)
    ]


def _short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return the last part of each key, or the whole key if it is not unique."""
    last = {key: key.rpartition(".")[2] for key in keys}
    count = Counter(last.values())
    return {key: short if count[short] == 1 else key for key, short in last.items()}


def _digest(row: dict[str, str]) -> str:
    return hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()[:8]
