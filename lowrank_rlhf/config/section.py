"""What every part of the config is made of."""

from collections.abc import Iterator
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import to_jsonable_python

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


UNCHECKED = {"conflicts": "not looked for"}
"""A context for pydantic, in which settings that contradict each other pass."""


class Section(BaseModel):
    """A frozen part of the config that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def conflicts(self) -> Iterator[str]:
        """A sentence for each contradiction between this section's settings; it begins with the key it is about."""
        return iter(())

    def sections(self) -> Iterator[tuple[tuple[str, ...], "Section"]]:
        """This section and all in it, each with its key."""
        yield (), self
        for name in type(self).model_fields:
            inner = getattr(self, name)
            if isinstance(inner, Section):
                yield from (((name, *key), section) for key, section in inner.sections())

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Default of each setting by its dotted key, as JSON has it; of those in a section that may be null, too."""
        found: dict[str, Any] = {}
        for name, field in cls.model_fields.items():
            kinds = (field.annotation, *get_args(field.annotation))
            for inner in (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)):
                found |= {f"{name}.{key}": default for key, default in inner.defaults().items()}
            if not field.is_required() and not isinstance(field.default, Section):
                found[name] = to_jsonable_python(field.default)
        return found

    @model_validator(mode="after")
    def _no_conflicts(self, info: ValidationInfo) -> Self:
        if info.context != UNCHECKED and (found := list(self.conflicts())):
            raise ValueError("\n".join(found))
        return self
