"""Chat templates: render conversations, and find the tokens that end an answer and pad a row. Imports no torch.

`Base` and commands that only count tokens use the same class, with a loaded tokenizer or with its files.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASKED = {"role": "user", "content": "What is the capital of France?"}
_ANSWER = "Paris is the capital of France."
ANSWERED = (ASKED, {"role": "assistant", "content": _ANSWER})
"""Conversation that shows what a template writes after an answer."""
_SYSTEM = {"role": "system", "content": "Be brief."}


class TemplateRefuses(ValueError):
    """Error of a chat template that cannot render a conversation."""


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

        With `answered` the last message is the answer, and the text ends with it. Raises `TemplateRefuses`.
        """
        from transformers.utils.chat_template_utils import render_jinja_template  # imports no torch

        variables: dict[str, Any] = dict(self.named)
        try:
            rendered: Any = render_jinja_template(  # (texts, spans); its annotation says str
                conversations=[[dict(message) for message in messages]],
                chat_template=self.text,
                add_generation_prompt=not answered,
                **variables,
            )
        except TemplateSyntaxError as error:
            raise TemplateRefuses(f"line {error.lineno}: {error.message}") from None
        except (TemplateError, TypeError, ValueError) as error:
            raise TemplateRefuses(str(error) or type(error).__name__) from None
        return str(rendered[0][0])

    def end_token(self, tokens: Iterable[str]) -> str | None:
        """Return the special token of `tokens` that the template writes after an answer, else the end of text.

        They differ in Gemma (<end_of_turn>, <eos>), Phi-3 (<|end|>, <|endoftext|>) and Qwen's base models.
        """
        try:
            found = end_of_turn(self.render(ANSWERED, answered=True), tokens)
        except TemplateRefuses:
            found = None
        return found or self.named.get("eos_token")


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


def check_template(tokenizer: "PreTrainedTokenizerBase", config: ModelConfig, progress: Progress) -> None:
    """Raise `UserError` if the template is missing or fails; print a note if it rejects system messages."""
    if not tokenizer.chat_template:
        raise UserError(
            f"model.chat_template: {config.source} has no chat template. Set one in the config, as "
            "presets/quickstart.yaml does"
        )
    whose = "this template" if config.chat_template else f"the template of {config.source}"
    try:
        text = render(tokenizer, [ASKED])
    except TemplateRefuses as error:
        raise UserError(
            f"model.chat_template: {whose} cannot render a user's question ({error}). Set another in the config"
        ) from None
    if ASKED["content"] not in text:
        raise UserError(f"model.chat_template: {whose} leaves out the user's message. Set another in the config")
    try:
        render(tokenizer, [_SYSTEM, ASKED])
    except TemplateRefuses as error:
        progress.say(f"  {whose} rejects system messages ({error}): prompts with one are an error")
