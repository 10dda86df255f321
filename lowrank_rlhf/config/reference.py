"""Reference of the settings, generated from `schema.py`: JSON schema, Markdown page, and one setting at a time."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

from pydantic_core import PydanticUndefined

from lowrank_rlhf.config.messages import suggestion
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.config.section import Section, nested_section
from lowrank_rlhf.errors import UserError

_WIDTH = 100
_NAME = "NAME."
"""Part of a key for the user's own names, as in `ppo.rewards.NAME.weight`."""
_KINDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "object": "a mapping",
}
_LIMITS = {
    "minimum": "at least {:g}",
    "exclusiveMinimum": "above {:g}",
    "maximum": "at most {:g}",
    "exclusiveMaximum": "below {:g}",
}


class _SettingEntry(NamedTuple):
    """Setting or section in the reference."""

    key: str
    field: Any
    schema: Mapping[str, Any]
    """Part of the JSON schema."""
    section: type[Section] | None


def json_schema() -> str:
    """Return the JSON schema (2020-12) of a config file, for completion, hints and checks in an editor."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def markdown() -> str:
    """Return a page of all settings with default and description, section by section."""
    lines = [
        "# Configuration",
        "",
        "Generated from `lowrank_rlhf/config/` by `python -m lowrank_rlhf schema --markdown`. Do not edit.",
        "",
    ]
    sections = {name: field.annotation for name, field in Config.model_fields.items() if _is_section(field.annotation)}
    lines += _table("", {name: field for name, field in Config.model_fields.items() if name not in sections})
    for name, section in sections.items():
        lines += [f"## {name}", "", str(section.__doc__), ""]
        lines += _table(f"{name}.", section.model_fields)
        for key, field in section.model_fields.items():
            if below := nested_section(field.annotation):
                place = f"{name}.{key}.{_NAME if below.named else ''}"
                lines += [f"### {place.rstrip('.')}", "", str(below.section.__doc__), ""]
                lines += _table(place, below.section.model_fields)
    return "\n".join(lines)


def explanation(key: str) -> str:
    """Return type, default and description of a setting; for a section, those of all its settings.

    Raises `UserError` for an unknown key.
    """
    known = {entry.key: entry for entry in _entries(Config)}
    if key not in known:
        raise UserError(f'unknown setting "{key}".{suggestion(key, known)} `schema --markdown` lists all settings')
    of, section = known[key], known[key].section
    own = [_explained(of) if of.field.description else key]
    lead = [_indented(str(section.__doc__))] if section else []
    inner = [entry for name, entry in known.items() if name.startswith(f"{key}.") and entry.field.description]
    return "\n".join([*own, *lead, *(f"\n{_explained(entry)}" for entry in inner)]) + "\n"


def _explained(entry: _SettingEntry) -> str:
    default, sentence = _default(entry.field).strip("`"), _indented(entry.field.description)
    return f"{entry.key}\n  type:    {_type(entry.schema)}\n  default: {default}\n{sentence}"


def _indented(text: str) -> str:
    return textwrap.fill(
        " ".join(text.split()),
        _WIDTH,
        initial_indent="  ",
        subsequent_indent="  ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def _entries(section: type[Section], prefix: str = "") -> Iterator[_SettingEntry]:
    properties = section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        below = nested_section(field.annotation)
        yield _SettingEntry(f"{prefix}{name}", field, properties[name], below and below.section)
        if below:
            yield from _entries(below.section, f"{prefix}{name}.{_NAME if below.named else ''}")


def _type(schema: Mapping[str, Any]) -> str:
    """Return the type in words, such as `a number, above 0` or `nf4 | int8 | none`."""
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "$ref" in schema:
        return "a section"
    if "items" in schema:
        return f"a list of {_type(schema['items'])}"
    if choices := schema.get("enum") or [schema[name] for name in ("const",) if name in schema]:
        return " | ".join(choices)
    limits = [words.format(schema[name]) for name, words in _LIMITS.items() if name in schema]
    return ", ".join([_KINDS[schema["type"]], *limits])


def _is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _table(prefix: str, fields: dict[str, Any]) -> list[str]:
    rows = [f"| `{prefix}{name}` | {_default(field)} | {_cell(field.description)} |" for name, field in fields.items()]
    return ["| key | default | description |", "|---|---|---|", *rows, ""]


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "required"
    return f"`{json.dumps(field.default)}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
