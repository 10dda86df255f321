"""Rendering conversations with a chat template, and finding out at load time whether it can."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.special_tokens import ANSWERED, ASKED, end_of_turn
from lowrank_rlhf.progress import Progress

_SYSTEM = {"role": "system", "content": "Be brief."}


class TemplateRefuses(ValueError):
    """A chat template's own words on why it cannot render a conversation."""


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], answered: bool = False) -> str:
    """The conversation as text, up to where the assistant's answer begins; or, `answered`, to the end of its last turn.

    Raises `TemplateRefuses`.
    """
    try:
        return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=not answered, tokenize=False))
    except TemplateSyntaxError as error:
        raise TemplateRefuses(f"line {error.lineno}: {error.message}") from None
    except (TemplateError, TypeError, ValueError) as error:
        raise TemplateRefuses(str(error) or type(error).__name__) from None


def end_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token that ends an answer: what the chat template puts there, else the tokenizer's own end of text.

    They differ in Gemma (<end_of_turn>, <eos>), Phi-3 (<|end|>, <|endoftext|>) and Qwen's base models.
    """
    try:
        rendered = render(tokenizer, ANSWERED, answered=True)
    except TemplateRefuses:
        return tokenizer.eos_token
    return end_of_turn(rendered, {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}) or tokenizer.eos_token


def check_template(tokenizer: PreTrainedTokenizerBase, config: ModelConfig, progress: Progress) -> None:
    """Raise `UserError` where there is no template or it cannot render a question; say so if it takes no system."""
    if not tokenizer.chat_template:
        raise UserError(
            f"model.chat_template: {config.source} brings no chat template; give one in the config, as "
            "presets/quickstart.yaml does"
        )
    whose = "this template" if config.chat_template else f"the template of {config.source}"
    try:
        text = render(tokenizer, [ASKED])
    except TemplateRefuses as error:
        raise UserError(
            f"model.chat_template: {whose} cannot render a user's question ({error}); give another in the config"
        ) from None
    if ASKED["content"] not in text:
        raise UserError(f"model.chat_template: {whose} leaves out what the user says; give another in the config")
    try:
        render(tokenizer, [_SYSTEM, ASKED])
    except TemplateRefuses as error:
        progress.say(f"  {whose} takes no system turn ({error}): a prompt with one will be refused")
