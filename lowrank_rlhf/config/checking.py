"""All mistakes of a config at once: a wrong setting hides nothing but what can only be said with its value."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from lowrank_rlhf.config.messages import Key, dotted, sentences
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.config.section import UNCHECKED

Check = Callable[[Config], Iterable[tuple[Key, str]]]
"""Keys and sentences of what is wrong with a valid config."""

_STAND_IN: dict[str, Any] = {"name": "x", "model": {"source": "x"}}  # where what has no default is wrong or missing


def find_problems(values: dict[str, Any], check: Check) -> tuple[Config | None, list[tuple[Key, str]]]:
    """The config that the values make, and the mistakes in it, each with its key and as a sentence."""
    try:
        config, found = _read(values), []
    except ValidationError as error:
        found = sentences(error)
        config = _read(_without(values, {key for key, _ in found}))
    found += _contradictions(config, check, wrong={key for key, _ in found})
    return (None if found else config), found


def _without(values: dict[str, Any], wrong: set[Key]) -> dict[str, Any]:
    """The values with the wrong settings left to their defaults, or to something that stands in."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        bad = {key[1] for key in wrong if key[0] == name and len(key) > 1}
        if isinstance(value, dict) and (name,) not in wrong:
            kept[name] = {key: inner for key, inner in value.items() if key not in bad}
        elif not bad and (name,) not in wrong:
            kept[name] = value
    return _STAND_IN | kept | {"model": _STAND_IN["model"] | kept.get("model", {})}


def _read(values: dict[str, Any]) -> Config:
    """Strict, so that `true` is no number and "3" no count; JSON's rules, so that a list may fill a tuple."""
    return Config.model_validate_json(json.dumps(values), strict=True, context=UNCHECKED)


def _contradictions(config: Config, check: Check, wrong: set[Key]) -> Iterator[tuple[Key, str]]:
    """What is wrong with a config whose every setting is fine, but for what speaks of a setting read as a default."""
    names = {str(part) for key in wrong for part in key[1:] or key}
    sections = {key[0] for key in wrong}
    for of, section in config.sections():
        for text in section.conflicts():
            if not names.intersection(re.findall(r"\w+", text)):
                yield of, f"{dotted(of)}: {text}" if of else text
    for key, text in check(config):
        if key[0] not in sections and not (wrong and key == ("stages",)):  # earlier stages depend on every section
            yield key, f"{dotted(key)}: {text}"
