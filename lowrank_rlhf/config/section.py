"""Base class of the config's sections, and their number types."""

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import to_jsonable_python

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(ge=1e-6, le=1e6)]
"""Divisor of logits: beyond these bounds the quotient overflows, or says nothing of the logits."""


UNCHECKED = {"conflicts": "not checked"}
"""Validation context for pydantic that skips the check for conflicts."""


class Conflict(NamedTuple):
    """Settings that contradict each other."""

    keys: tuple[str, ...]
    """Dotted keys of the settings involved, relative to the section. The error message points at the first."""
    text: str
    """Message for the user."""


class Nested(NamedTuple):
    """Section inside a setting."""

    section: "type[Section]"
    named: bool
    """True in a mapping from the user's names to sections; then keys have `NAME` below the setting."""


def nested_section(annotation: Any) -> Nested | None:
    """Return the section of a setting's annotation: `Section`, `Section | None` or `dict[str, Section]`."""
    kinds = (annotation, *get_args(annotation))
    found = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
    return Nested(found, get_origin(annotation) is dict) if found else None


def flat(key: str, value: Any) -> dict[str, Any]:
    """Return the settings of a section, as a mapping, by dotted key; any other value under its own key."""
    if not isinstance(value, dict):
        return {key: value}
    return {inner: leaf for name, item in value.items() for inner, leaf in flat(f"{key}.{name}", item).items()}


class Section(BaseModel):
    """Immutable part of the config; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def conflicts(self) -> Iterator[Conflict]:
        """Yield the contradictions between the section's settings."""
        return iter(())

    def sections(self) -> Iterator[tuple[tuple[str, ...], "Section"]]:
        """Yield this section and all nested sections, each with its key."""
        yield (), self
        for name in type(self).model_fields:
            inner = getattr(self, name)
            named = {(name, key): item for key, item in inner.items()} if isinstance(inner, dict) else {(name,): inner}
            for place, section in named.items():
                if isinstance(section, Section):
                    yield from (((*place, *key), found) for key, found in section.sections())

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the JSON default of each setting by dotted key, including those of optional sections."""
        found: dict[str, Any] = {}
        for name, field in cls.model_fields.items():
            below = nested_section(field.annotation)
            if below and not below.named:
                found |= {f"{name}.{key}": default for key, default in below.section.defaults().items()}
            if not field.is_required() and not isinstance(field.default, Section):
                found[name] = to_jsonable_python(field.default)
        return found

    @model_validator(mode="after")
    def _no_conflicts(self, info: ValidationInfo) -> Self:
        if info.context != UNCHECKED and (found := list(self.conflicts())):
            raise ValueError("\n".join(conflict.text for conflict in found))
        return self
