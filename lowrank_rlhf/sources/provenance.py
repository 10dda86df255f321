"""What an adapter was trained on, in the header of its weights: on anything else its numbers mean something else."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.sources.fetch import weights_identity

SCHEMA = 1
KEY = "lowrank_rlhf"
"""Of the entry in the safetensors header, which PEFT passes over."""
_PROBE = "The café's “quick” fox: 12.5 km, 你好 – naïve?\n\n\tif x == 1:  # TOKENS"
"""Two tokenizers of one vocabulary may still cut text differently."""


def origin(folder: Path, config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Checksums of weights, tokenizer and chat template, and the quantisation; no names, so nothing of this machine.

    Where the weights lie and in which number format products are taken makes no difference.
    """
    tokens = [sorted(tokenizer.get_vocab().items()), tokenizer(_PROBE)["input_ids"]]
    return {
        "base": weights_identity(config, folder),
        "tokenizer": _sha256(json.dumps(tokens)),
        "chat template": _sha256(json.dumps(tokenizer.chat_template)),
        "quantisation": config.quantization,
    }


def as_metadata(found: Mapping[str, str]) -> dict[str, str]:
    """The entry for the header of an adapter's weights."""
    return {KEY: json.dumps({"schema": SCHEMA, **found})}


def check_origin(path: Path, here: Mapping[str, str]) -> None:
    """Raise `UserError` where the weights in a safetensors file were trained on something else than there is here.

    Files without the entry, of older versions or of PEFT alone, say nothing and pass.
    """
    with safe_open(path, framework="numpy") as file:
        entry = (file.metadata() or {}).get(KEY)
    if entry is None:
        return
    try:
        there = dict(json.loads(entry))
        newer = there.get("schema", 1) > SCHEMA
    except (ValueError, TypeError):
        raise UserError(f"{path}: the entry {KEY} in its header is damaged; save the adapter again") from None
    if newer:
        raise UserError(f"{path}: written by a newer version (schema {there['schema']}); update lowrank_rlhf")
    other = [
        f"{name} ({str(there[name])[:12]} there, {value[:12]} here)"
        for name, value in here.items()
        if there.get(name, value) != value
    ]
    if other:
        raise UserError(
            f"{path}: trained with another {', another '.join(other)}, and made for that alone; "
            "use it with the settings of `model` that it was trained with"
        )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
