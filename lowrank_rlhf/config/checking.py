"""Find all mistakes of a config at once: a wrong setting hides only the conflicts that involve it."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from lowrank_rlhf.config.messages import Key, dotted, sentences
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.config.section import UNCHECKED

Check = Callable[[Config], Iterable[tuple[Key, str]]]
"""Return keys and sentences of the mistakes in a valid config."""

_REQUIRED: dict[str, Any] = {"name": "x", "model": {"source": "x"}}  # placeholders where these are missing or wrong


def find_problems(values: dict[str, Any], check: Check) -> tuple[Config | None, list[tuple[Key, str]]]:
    """Return the config, or None and its mistakes, each with the key to change and a sentence."""
    try:
        config, found = _read(values), []
    except ValidationError as error:
        found = sentences(error)
        config = _read(_without(values, {key for key, _ in found}))
    found += _contradictions(config, check, wrong={key for key, _ in found})
    return (None if found else config), found


def _without(values: dict[str, Any], wrong: set[Key]) -> dict[str, Any]:
    """Return the values with wrong settings removed, so that defaults or placeholders take their place."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        bad = {key[1] for key in wrong if key[0] == name and len(key) > 1}
        if isinstance(value, dict) and (name,) not in wrong:
            kept[name] = {key: inner for key, inner in value.items() if key not in bad}
        elif not bad and (name,) not in wrong:
            kept[name] = value
    return _REQUIRED | kept | {"model": _REQUIRED["model"] | kept.get("model", {})}


def _read(values: dict[str, Any]) -> Config:
    """Validate strictly (`true` is not a number, "3" is not a count), but by JSON's rules: a list may fill a tuple."""
    return Config.model_validate_json(json.dumps(values), strict=True, context=UNCHECKED)


def _contradictions(config: Config, check: Check, wrong: set[Key]) -> Iterator[tuple[Key, str]]:
    """Yield the mistakes of a config without wrong settings, except those that involve a replaced setting."""
    for prefix, section in config.sections():
        for conflict in section.conflicts():
            keys: list[Key] = [(*prefix, *key.split(".")) for key in conflict.keys]
            if not any(_overlap(key, bad) for key in keys for bad in wrong):
                yield keys[0], f"{dotted(prefix)}: {conflict.text}" if prefix else conflict.text
    sections = {key[0] for key in wrong}
    for key, text in check(config):
        if key[0] not in sections and not (wrong and key == ("stages",)):  # earlier stages depend on every section
            yield key, f"{dotted(key)}: {text}"


def _overlap(key: Key, other: Key) -> bool:
    """Return True if the keys are equal or one is inside the other."""
    return all(left == right for left, right in zip(key, other, strict=False))
