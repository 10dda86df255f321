"""The settings of a judge behind an OpenAI-compatible server."""

import re
from string import Formatter
from typing import Annotated, Literal

from pydantic import Field, field_validator

from lowrank_rlhf.config.section import Count, Section


class EndpointConfig(Section):
    """A language model behind an OpenAI-compatible server, which says which of two answers is better."""

    url: str
    """The server's base URL, such as `http://127.0.0.1:11434/v1` for Ollama; `/chat/completions` is added to it."""
    model: str
    """The model's name, as the server knows it."""
    template: str = "english"
    """`english`, `chinese`, or a question of yours with `{prompt}`, `{first}` and `{second}` that asks for a last line
    with A (the first is better), B or tie."""
    max_tokens: Count = 16
    """Longest reply; a model that thinks before it answers needs hundreds."""
    unreadable: Literal["error", "tie"] = "error"
    """A reply that names no winner, twice, is an `error`, or counts as a `tie` (models may refuse some texts)."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    """Ask no faster than this; as fast as the server answers by default."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest wait for a reply."""
    max_attempts: Count = 6
    """Tries per question while the server is busy, down or silent, with growing pauses."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key, the only place it is read from; a local server may need none."""

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", url):
            # Not repeated in the message: what makes it wrong may be a password.
            raise ValueError("must be an http:// or https:// URL, without a user, a password or anything after ? or #")
        return url

    @field_validator("model")
    @classmethod
    def _model_named(cls, model: str) -> str:
        if not model.strip():
            raise ValueError("must name a model of the server's")
        return model

    @field_validator("api_key_variable")
    @classmethod
    def _variable_named(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("must be the name of an environment variable, never the key itself")
        return name

    @field_validator("template")
    @classmethod
    def _placeholders(cls, template: str) -> str:
        if template in ("english", "chinese"):
            return template
        try:
            fields = {part[1:] for part in Formatter().parse(template) if part[1] is not None}
        except ValueError:  # a single brace
            fields = set()
        if fields != {(name, "", None) for name in ("prompt", "first", "second")}:
            raise ValueError(
                "must be english, chinese, or a text that holds {prompt}, {first} and {second} and no other "
                "braces (write {{ for a brace)"
            )
        return template
