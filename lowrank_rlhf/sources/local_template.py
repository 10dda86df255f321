"""Check the chat template that a run will use, as far as it is on this machine. Imports no torch, fetches nothing."""

from pathlib import Path
from typing import Any

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.sources.chat_template import ChatTemplate
from lowrank_rlhf.sources.fetch import local_model
from lowrank_rlhf.sources.template_checks import (
    BadTemplate,
    check_template,
    first_token,
    missing_template,
    named_template,
)
from lowrank_rlhf.sources.tokenizer import local_tokenizer

_PLACEHOLDERS = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
"""Special tokens of a model that is not on this machine, for a template that writes them."""


def check_local_template(config: ModelConfig) -> None:
    """Raise `BadTemplate` for the template of the config, of a folder or of a GGUF file on this machine.

    Raises `UserError` for a local path that does not exist.
    """
    local = local_model(config)
    if tokenizer := local_tokenizer(config):
        _ = tokenizer.template  # checked when it is read
    elif local and local.is_file():
        _check_gguf(local, config)
    elif config.chat_template:
        check_template(ChatTemplate(config.chat_template, _PLACEHOLDERS), named_template(config), "")


def _check_gguf(file: Path, config: ModelConfig) -> None:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
    except (ValueError, OSError, IndexError, KeyError):
        return  # whatever reads the model names the damage

    def field(name: str) -> Any:
        entry = reader.get_field(f"tokenizer.{name}")
        return entry.contents() if entry else None

    tokens = reader.get_field("tokenizer.ggml.tokens")
    ids = {f"{name}_token": field(f"ggml.{name}_token_id") for name in ("bos", "eos")}
    named = {name: str(tokens.contents(int(number))) for name, number in ids.items() if tokens and number is not None}
    own = field("chat_template")
    text = config.chat_template or own
    if not text:
        raise BadTemplate(missing_template(config))
    first = first_token(ChatTemplate(own, named) if own else None, named.get("bos_token"), "")
    check_template(ChatTemplate(text, named), named_template(config), first)
