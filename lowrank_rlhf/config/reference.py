"""The settings as a JSON schema for editors and as a page to read, both made from `schema.py`."""

import json
from typing import Any, TypeGuard, get_args

from pydantic_core import PydanticUndefined

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.config.section import Section


def json_schema() -> str:
    """The JSON schema (2020-12) of a config file: completion, hints and checks in an editor."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def markdown() -> str:
    """Every setting with its default and its sentence, section by section."""
    lines = [
        "# Configuration",
        "",
        "Made by `python -m lowrank_rlhf schema --markdown` from `lowrank_rlhf/config/schema.py`; a test keeps it so.",
        "",
    ]
    sections = {name: field.annotation for name, field in Config.model_fields.items() if _is_section(field.annotation)}
    lines += _table("", {name: field for name, field in Config.model_fields.items() if name not in sections})
    for name, section in sections.items():
        lines += [f"## {name}", "", str(section.__doc__), ""]
        lines += _table(f"{name}.", section.model_fields)
        for key, field in section.model_fields.items():
            for inner in filter(_is_section, get_args(field.annotation)):  # a section that may be left out
                lines += [f"### {name}.{key}", "", str(inner.__doc__), ""]
                lines += _table(f"{name}.{key}.", inner.model_fields)
    return "\n".join(lines)


def _is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _table(prefix: str, fields: dict[str, Any]) -> list[str]:
    rows = [f"| `{prefix}{name}` | {_default(field)} | {_cell(field.description)} |" for name, field in fields.items()]
    return ["| key | default | what it is |", "|---|---|---|", *rows, ""]


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "required"
    return f"`{json.dumps(field.default)}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
