"""Turn pydantic's errors into sentences with the key, the value and the allowed values."""

import difflib
import json
import re
from collections import defaultdict
from collections.abc import Iterable

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.config.section import nested_section

Key = tuple[str | int, ...]

_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "tuple_type": "a list",
    "model_type": "a section of settings",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
}
_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": 'up to 64 letters, digits, ".", "_" and "-", a letter or digit first',
}
# pydantic adds to the key which branch of a union it tried: ("lora", "target_modules", "tuple[str, ...]", 0).
_BRANCH = re.compile(r"(literal|tuple)\[")


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean "x"?` for the closest known word, or an empty string if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f' Did you mean "{close[0]}"?' if close else ""


def dotted(key: Key) -> str:
    """Return the key as text: `("stages", 1)` gives `stages[1]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")


def section_fields(key: Key) -> Iterable[str]:
    """Return the names of the settings under a key of the config; empty if the key is not a section."""
    model: type[BaseModel] = Config
    in_mapping = False
    for part in key:
        if in_mapping:  # the user's own name
            in_mapping = False
            continue
        field = model.model_fields.get(str(part))
        below = nested_section(field.annotation) if field else None
        if below is None:
            return ()
        model, in_mapping = below
    if in_mapping:
        return ()
    return tuple(model.model_fields)


def sentences(error: ValidationError) -> list[tuple[Key, str]]:
    """Return the key and one sentence for each wrong setting."""
    by_key: defaultdict[Key, list[tuple[Key, ErrorDetails]]] = defaultdict(list)
    for detail in error.errors():
        key = detail["loc"]
        branch = next((index for index, part in enumerate(key) if _BRANCH.match(str(part))), len(key))
        by_key[key[:branch]].append((key[branch + 1 :], detail))
    found = []
    for key, details in by_key.items():
        # If one branch of a union reports an element, that branch was meant.
        inner = [(rest, detail) for rest, detail in details if rest]
        if inner:
            found += [((*key, *rest), _sentence((*key, *rest), [detail])) for rest, detail in inner]
        else:
            found.append((key, _sentence(key, [detail for _, detail in details])))
    return found


def _sentence(key: Key, details: list[ErrorDetails]) -> str:
    first = details[0]
    if first["type"] == "missing":
        text = "missing; it has no default"
    elif first["type"] == "extra_forbidden":
        text = f"unknown key.{_instead(key)}"
    elif first["type"] == "value_error":
        text = str(first["ctx"]["error"])
    else:
        text = f"must be {' or '.join(map(_allowed, details))}, not {_shown(first)}"
    return f"{dotted(key)}: {text}" if key else text


def _allowed(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    if detail["type"] == "literal_error":
        return str(context["expected"]).replace("'", '"')
    if detail["type"] == "string_pattern_mismatch":
        return _PATTERNS.get(context["pattern"], f"text that matches {context['pattern']}")
    return _KINDS[detail["type"]].format(**context) if detail["type"] in _KINDS else detail["msg"]


def _shown(detail: ErrorDetails) -> str:
    value = detail["input"]
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > 60:
        text = text[:57] + "..."
    looks_like_text = detail["type"] == "string_type" and isinstance(value, bool | int | float)
    return f"{text}. Put it in quotes" if looks_like_text else text


def _instead(key: Key) -> str:
    """Suggest a key for an unknown one: a similar key of its section, or the same key of another section."""
    name, siblings = str(key[-1]), section_fields(key[:-1])
    elsewhere = [section for section in Config.model_fields if name in section_fields((section,))]
    if elsewhere:
        return f' Did you mean "{elsewhere[0]}.{name}"?'
    if close := suggestion(name, siblings):
        return close
    if name in Config.model_fields:
        return f' Did you mean "{name}", at the top level?'
    return f" Valid keys: {', '.join(siblings)}"
