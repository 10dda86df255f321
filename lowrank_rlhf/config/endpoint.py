"""Settings of a judge behind an OpenAI-compatible server."""

import re
from collections.abc import Iterator, Sequence
from string import Formatter
from typing import Annotated, Literal

from pydantic import Field, field_validator

from lowrank_rlhf.config.section import Conflict, Count, Section


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
    """Language model behind an OpenAI-compatible server that compares two answers, or grades one."""

    url: str
    """Base URL of the server, such as `http://127.0.0.1:11434/v1` for Ollama; `/chat/completions` is appended."""
    model: str
    """Name of the model on the server."""
    ask: Literal["pairwise", "pointwise"] = "pairwise"
    """`pairwise` shows two answers and asks for the better one, in both orders. `pointwise` has each answer graded
    alone by the `rubric`: K questions per prompt instead of K (K - 1), and grades that compare between prompts."""
    verdict: Literal["text", "logprobs"] = "text"
    """`text` reads the last line of the reply. `logprobs` reads the probabilities of A and B (of the digits, for a
    grade) as the reply's first token, for small models; the server must return log-probabilities, as llama.cpp's and
    vLLM do. For the grades of `ppo.rewards` too."""
    template: str = "english"
    """With `pairwise`: `english`, `chinese`, or your own question with `{prompt}`, `{first}` and `{second}` that asks
    for a last line with A (the first is better), B or tie; with `logprobs`, for A or B at once."""
    rubric: str = "english"
    """With `pointwise`: `english`, `chinese`, or your own question with `{prompt}` and `{answer}` that asks for a last
    line with a number from 0 to 10; with `logprobs`, for one digit from 0 to 9 at once."""
    max_tokens: Count = 16
    """With `text`: maximum length of a reply, in tokens; a model that reasons first needs hundreds."""
    unreadable: Literal["error", "tie"] = "error"
    """A reply without a winner or grade, twice in a row with `text`, is an `error`, or counts as a `tie` (a grade in
    the middle); models may refuse some texts."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    """Maximum request rate; unlimited by default."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Maximum wait for a reply."""
    max_attempts: Count = 6
    """Attempts per question while the server is busy, unavailable or silent, with growing pauses."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the API key, which is read from nowhere else; a local server may need none."""

    def conflicts(self) -> Iterator[Conflict]:
        """Yield settings that `ask` or `verdict` ignores."""
        unread = {"template": "pointwise", "rubric": "pairwise"}
        for name, ask in unread.items():
            if self.ask == ask and getattr(self, name) != "english":
                yield Conflict((name, "ask"), f"{name} has no effect with `ask: {ask}`; remove it")
        if self.verdict == "logprobs" and self.max_tokens != type(self).model_fields["max_tokens"].default:
            text = "max_tokens has no effect with `verdict: logprobs`, which reads the first token; remove it"
            yield Conflict(("max_tokens", "verdict"), text)

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

    @field_validator("rubric")
    @classmethod
    def _rubric_placeholders(cls, rubric: str) -> str:
        return checked_template(rubric, ("prompt", "answer"))
