"""Chat templates: render conversations, and find the tokens that end an answer and pad a row. Imports no torch.

`Base` and commands that only count tokens use the same class, with a loaded tokenizer or with its files.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError

from lowrank_rlhf.errors import Stopped
from lowrank_rlhf.run.progress import stop_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASKED = {"role": "user", "content": "What is the capital of France?"}
_ANSWER = "Paris is the capital of France."
ANSWERED = (ASKED, {"role": "assistant", "content": _ANSWER})
"""Conversation that shows what a template writes after an answer."""


class TemplateRefuses(ValueError):
    """Error of a chat template that cannot render a conversation."""


class LeavesOut(TemplateRefuses):
    """Error of a chat template that renders a conversation without one of its turns."""


@dataclass(frozen=True)
class ChatTemplate:
    """Jinja template of a model with its special tokens."""

    text: str
    named: Mapping[str, str]
    """Special tokens by name, such as `bos_token`: variables of the template."""

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "ChatTemplate":
        """Return the template of a loaded tokenizer. Raises `TemplateRefuses` if it has none."""
        try:
            text = tokenizer.get_chat_template()
        except ValueError as error:
            raise TemplateRefuses(str(error)) from None
        return cls(text, dict(tokenizer.special_tokens_map))

    def render(self, messages: Sequence[Mapping[str, Any]], answered: bool = False) -> str:
        """Return the conversation as text, up to the beginning of the assistant's answer.

        With `answered` the last message is the answer, and the text ends with it. Raises `TemplateRefuses`, also for a
        text that lacks a turn. A stop request ends an endless template.
        """
        from transformers.utils.chat_template_utils import render_jinja_template  # imports no torch

        variables: dict[str, Any] = dict(self.named)
        try:
            with stop_at_once():
                rendered: Any = render_jinja_template(  # (texts, spans); its annotation says str
                    conversations=[[dict(message) for message in messages]],
                    chat_template=self.text,
                    add_generation_prompt=not answered,
                    **variables,
                )
        except Stopped:
            raise
        except TemplateSyntaxError as error:
            raise TemplateRefuses(f"line {error.lineno}: {error.message}") from None
        except Exception as error:  # a template is a program: it can recurse, divide by zero, fill the memory
            raise TemplateRefuses(_described(error)) from None
        text = str(rendered[0][0])
        if role := _left_out(text, messages):
            raise LeavesOut(f"leaves out the {role} message")
        return text

    def end_token(self, tokens: Iterable[str]) -> str | None:
        """Return the special token of `tokens` that the template writes after an answer, else the end of text.

        They differ in Gemma (<end_of_turn>, <eos>), Phi-3 (<|end|>, <|endoftext|>) and Qwen's base models.
        """
        try:
            found = end_of_turn(self.render(ANSWERED, answered=True), tokens)
        except TemplateRefuses:
            found = None
        return found or self.named.get("eos_token")


def _described(error: Exception) -> str:
    known = isinstance(error, TemplateError | TypeError | ValueError) and str(error)
    return str(error) if known else f"{type(error).__name__}: {error}".removesuffix(": ")


def _left_out(text: str, messages: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the role of the first turn whose text is not in the rendered conversation, or None.

    User and assistant turns keep their order; a system turn may be part of a later one (Mistral). Templates trim white
    space, and remove the thoughts of earlier answers.
    """
    rest = text
    for message in messages:
        content = str(message["content"])
        if message["role"] == "assistant":
            content = content.rpartition("</think>")[2]
        if not (content := content.strip()):
            continue
        if message["role"] == "system":
            found: bool | str = content in text
        else:
            _, found, rest = rest.partition(content)
        if not found:
            return {"user": "user's", "assistant": "assistant's"}.get(message["role"], str(message["role"]))
    return None


def render(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, Any]], answered: bool = False) -> str:
    """Render with the template of a loaded tokenizer: see `ChatTemplate.render`."""
    return ChatTemplate.of(tokenizer).render(messages, answered)


def end_token(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return the token that ends an answer: see `ChatTemplate.end_token`."""
    try:
        template = ChatTemplate.of(tokenizer)
    except TemplateRefuses:
        return tokenizer.eos_token
    return template.end_token({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens})


def end_of_turn(rendered: str, tokens: Iterable[str]) -> str | None:
    """Return the special token of `tokens` that follows the answer in the rendered `ANSWERED`, or None.

    White space between the two belongs to the template (Llama 2).
    """
    _, found, after = rendered.rpartition(_ANSWER)
    after = after.lstrip()
    following = [token for token in tokens if token and after.startswith(token)] if found else []
    return max(following, key=len, default=None)


def choose_padding(tokens: Collection[str], unknown: str | None, used: str) -> str | None:
    """Return the most suitable special token for padding; None if all of them occur in the text `used`.

    A padding token comes first (Llama 3: <|finetune_right_pad_id|>), then <|endoftext|>, then the unknown
    token, then a reserved one, then any.
    """

    def rank(token: str) -> int:
        name = token.lower()
        kinds = ("pad" in name, name == "<|endoftext|>", token == unknown, "reserved" in name or "unused" in name)
        return kinds.index(True) if True in kinds else len(kinds)

    return min((token for token in tokens if token and token not in used), key=rank, default=None)
