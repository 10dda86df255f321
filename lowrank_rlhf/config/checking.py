"""All mistakes of a config at once: a section with a wrong setting hides nothing about the others."""

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

_STAND_IN = {"name": "x", "model": {"source": "x"}}  # where what has no default is wrong or missing


def find_problems(values: dict[str, Any], check: Check) -> tuple[Config | None, list[tuple[Key, str]]]:
    """The config that the values make, and the mistakes in it, each with its key and as a sentence."""
    try:
        config, found = _read(values), []
    except ValidationError as error:
        found = sentences(error)
        wrong = {key[0] for key, _ in found}
        config = _read(_STAND_IN | {name: value for name, value in values.items() if name not in wrong})
    found += _contradictions(config, check, wrong={str(key[0]) for key, _ in found})
    return (None if found else config), found


def _read(values: dict[str, Any]) -> Config:
    """Strict, so that `true` is no number and "3" no count; JSON's rules, so that a list may fill a tuple."""
    return Config.model_validate_json(json.dumps(values), strict=True, context=UNCHECKED)


def _contradictions(config: Config, check: Check, wrong: set[str]) -> Iterator[tuple[Key, str]]:
    """What is wrong with a config whose every setting is fine, but for what speaks of sections read as defaults."""
    for of, section in config.sections():
        for text in section.conflicts():
            if not wrong & {*of[:1], *re.findall(r"\w+", text)}:
                yield of, f"{dotted(of)}: {text}" if of else text
    for key, text in check(config):
        if key[0] not in wrong and not (wrong and key == ("stages",)):  # earlier stages depend on every section
            yield key, f"{dotted(key)}: {text}"
