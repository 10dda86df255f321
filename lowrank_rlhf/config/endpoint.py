"""Settings of a judge behind an OpenAI-compatible server."""

import re
from collections.abc import Sequence
from string import Formatter
from typing import Annotated, Literal

from pydantic import Field, field_validator

from lowrank_rlhf.config.section import Count, Section


def checked_template(template: str, names: Sequence[str]) -> str:
    """Return a template that is built in or has these placeholders alone. Raises `ValueError` for any other."""
    if template in ("english", "chinese"):
        return template
    try:
        fields = {part[1:] for part in Formatter().parse(template) if part[1] is not None}
    except ValueError:  # a single brace
        fields = set()
    if fields != {(name, "", None) for name in names}:
        *first, last = (f"{{{name}}}" for name in names)
        raise ValueError(
            f"must be english, chinese, or a text with {', '.join(first)} and {last} and no other "
            "braces (write {{ for a literal brace)"
        )
    return template


class EndpointConfig(Section):
    """Language model behind an OpenAI-compatible server that compares two answers."""

    url: str
    """Base URL of the server, such as `http://127.0.0.1:11434/v1` for Ollama; `/chat/completions` is appended."""
    model: str
    """Name of the model on the server."""
    template: str = "english"
    """`english`, `chinese`, or your own question with `{prompt}`, `{first}` and `{second}` that asks for a last line
    with A (the first is better), B or tie."""
    max_tokens: Count = 16
    """Maximum length of a reply, in tokens; a model that reasons first needs hundreds."""
    unreadable: Literal["error", "tie"] = "error"
    """Two replies in a row without a winner are an `error`, or count as a `tie` (models may refuse some texts)."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    """Maximum request rate; unlimited by default."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Maximum wait for a reply."""
    max_attempts: Count = 6
    """Attempts per question while the server is busy, unavailable or silent, with growing pauses."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the API key, which is read from nowhere else; a local server may need none."""

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", url):
            # The message does not repeat the URL, which may contain a password.
            raise ValueError("must be an http:// or https:// URL without user, password, query or fragment")
        return url

    @field_validator("model")
    @classmethod
    def _model_named(cls, model: str) -> str:
        if not model.strip():
            raise ValueError("must be the name of a model on the server")
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
        return checked_template(template, ("prompt", "first", "second"))
