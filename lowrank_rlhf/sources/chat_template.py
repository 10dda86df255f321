"""A model's tokenizer with its chat template: rendering conversations, what ends an answer, what can pad."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Prompt
from lowrank_rlhf.sources.special_tokens import ANSWERED, ASKED, choose_padding, end_of_turn

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


def token_id(tokenizer: PreTrainedTokenizerBase, token: object) -> int:
    """Id of one token, which the tokenizer knows."""
    return int(tokenizer.get_vocab()[str(token)])


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of the conversation up to where the assistant's answer begins.

    Raises `UserError` where the chat template refuses it.
    """
    try:
        text = render(tokenizer, [message.model_dump() for message in prompt.messages])
    except TemplateRefuses as error:
        raise UserError(
            f"prompt {prompt.id}: the model's chat template refuses it: {error}; change the prompt, or give "
            "another template as model.chat_template"
        ) from None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


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


def read_tokenizer(folder: Path, config: ModelConfig, progress: Progress) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder, with the config's template and a token to pad with.

    Raises `UserError` where it cannot be read, where its template does not work, and for want of a token to pad with.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(f"model.source: {config.source}: the tokenizer cannot be read ({error})") from None
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template
    check_template(tokenizer, config, progress)
    end = end_token(tokenizer)
    if end is None:
        raise UserError(f"model.source: {config.source}: the tokenizer has no end-of-turn token")
    if tokenizer.pad_token in (None, end):
        tokenizer.pad_token = _padding(tokenizer, end, config)
    return tokenizer


def _padding(tokenizer: PreTrainedTokenizerBase, end: str, config: ModelConfig) -> str:
    """A token to pad with, for want of the tokenizer's own: special, and nothing that the template ever writes."""
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    named = [token for token in ("<pad>", "<|endoftext|>", tokenizer.unk_token) if token in tokenizer.get_vocab()]
    written = [end, tokenizer.eos_token or "", tokenizer.bos_token or ""]
    with contextlib.suppress(TemplateRefuses):
        written.append(render(tokenizer, ANSWERED, answered=True))
    found = choose_padding(dict.fromkeys([*special, *named]), tokenizer.unk_token, " ".join(written))
    if found is None:
        raise UserError(
            f"model.source: {config.source}: its tokenizer has no spare token to pad with, beside {end} that ends an "
            "answer; set pad_token in the folder's tokenizer_config.json to a special token that no text holds"
        )
    return found
