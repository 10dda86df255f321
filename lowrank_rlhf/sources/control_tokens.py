"""Control tokens in data, such as <|im_end|>: as text they could end an answer or forge a turn. Imports no torch."""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lowrank_rlhf.sources.chat_template import ANSWERED, ChatTemplate, TemplateRefuses

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NO_THOUGHTS = re.compile(r"<think>\s*</think>")


@dataclass(frozen=True)
class ControlTokens:
    """Tokens that only the chat template may write."""

    tokens: frozenset[str]
    end: str
    """Token that ends an answer; empty if there is none."""

    @classmethod
    def of(cls, template: ChatTemplate, special: Iterable[str], added: Iterable[str], end: str) -> "ControlTokens":
        """Return the special tokens, and the added ones that the template writes, whether or not they are special.

        Tokens of a generation prompt and of empty thoughts do not count: a think block is text of an answer.
        """
        try:
            written = _NO_THOUGHTS.sub("", template.render([*ANSWERED, ANSWERED[0]], answered=True))
        except TemplateRefuses:
            written = ""
        found = {*special, *(token for token in added if token in written), end}
        return cls(frozenset(token for token in found if len(token.strip()) > 1), end)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.tokens, key=lambda token: (-len(token), token))
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def found(self, messages: Sequence[Mapping[str, Any]]) -> str | None:
        """Return the first control token in the conversation, or None; an end token at the end of an answer is fine."""
        texts = (self._without_end(message) for message in messages)
        return next((found[0] for text in texts if (found := self._pattern.search(text))), None)

    def escaped(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the conversation with a space after the first character of each control token: `< |im_end|>`."""
        return [
            {**message, "content": self._pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)}
            for message in messages
            for text in [self._without_end(message)]
        ]

    def response(self, text: str) -> str:
        """Return a response without the token that ends it, if it has one: it is added to every response."""
        bare = text.rstrip()
        return bare.removesuffix(self.end) if self.end and bare.endswith(self.end) else text

    def _without_end(self, message: Mapping[str, Any]) -> str:
        text = str(message["content"])
        return self.response(text) if message["role"] == "assistant" else text


def with_special(tokenizer: "Tokenizer", tokens: Collection[str]) -> "Tokenizer":
    """Return a tokenizer in which all these added tokens are special, as in most; it truncates and pads nothing.

    If asked to, tokenizers read special tokens as text, but no others: DeepSeek's <｜User｜> would act in an answer.
    Without such a token the tokenizer itself is returned.
    """
    if all(token.special or token.content not in tokens for token in tokenizer.get_added_tokens_decoder().values()):
        return tokenizer
    saved = json.loads(tokenizer.to_str())
    for token in saved["added_tokens"]:
        token["special"] = token["special"] or token["content"] in tokens
    return type(tokenizer).from_str(json.dumps(saved | {"truncation": None, "padding": None}))
