"""Rendering conversations with a chat template, and finding out at load time whether it can."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.progress import Progress

_SAID = "What is the capital of France?"
_USER = {"role": "user", "content": _SAID}
_SYSTEM = {"role": "system", "content": "Be brief."}


class TemplateRefuses(ValueError):
    """A chat template's own words on why it cannot render a conversation."""


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]]) -> str:
    """The conversation as text, up to where the assistant's answer begins. Raises `TemplateRefuses`."""
    try:
        return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))
    except TemplateSyntaxError as error:
        raise TemplateRefuses(f"line {error.lineno}: {error.message}") from None
    except (TemplateError, TypeError, ValueError) as error:
        raise TemplateRefuses(str(error) or type(error).__name__) from None


def check_template(tokenizer: PreTrainedTokenizerBase, config: ModelConfig, progress: Progress) -> None:
    """Raise `UserError` where there is no template or it cannot render a question; say so if it takes no system."""
    if not tokenizer.chat_template:
        raise UserError(
            f"model.chat_template: {config.source} brings no chat template; give one in the config, as "
            "presets/quickstart.yaml does"
        )
    whose = "this template" if config.chat_template else f"the template of {config.source}"
    try:
        text = render(tokenizer, [_USER])
    except TemplateRefuses as error:
        raise UserError(
            f"model.chat_template: {whose} cannot render a user's question ({error}); give another in the config"
        ) from None
    if _SAID not in text:
        raise UserError(f"model.chat_template: {whose} leaves out what the user says; give another in the config")
    try:
        render(tokenizer, [_SYSTEM, _USER])
    except TemplateRefuses as error:
        progress.say(f"  {whose} takes no system turn ({error}): a prompt with one will be refused")
