"""Provenance of adapters: checksums of the model they were trained on, in the header of their weights.

The same weights mean something else on another model. Imports no torch.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.sources.fetch import weights_identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCHEMA = 1
KEY = "lowrank_rlhf"
"""Key of the entry in the safetensors header; PEFT ignores it."""
_PROBE = "The café's “quick” fox: 12.5 km, 你好 – naïve?\n\n\tif x == 1:  # TOKENS"
"""Text to compare tokenizers, which may split text differently in spite of equal vocabularies."""


def provenance(folder: Path, config: ModelConfig, tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    """Return checksums of weights, tokenizer and chat template, and the quantisation; no paths of this machine.

    The folder of the weights and the number format of the products do not matter.
    """
    tokens = [sorted(tokenizer.get_vocab().items()), tokenizer(_PROBE)["input_ids"]]
    return {
        "base": weights_identity(config, folder),
        "tokenizer": _sha256(json.dumps(tokens)),
        "chat template": _sha256(json.dumps(tokenizer.chat_template)),
        "quantisation": config.quantization,
    }


def as_metadata(found: Mapping[str, str]) -> dict[str, str]:
    """Return the entry for the header of an adapter's weights."""
    return {KEY: json.dumps({"schema": SCHEMA, **found})}


def check_provenance(path: Path, here: Mapping[str, str]) -> None:
    """Raise `UserError` if the weights in a safetensors file were trained on another model than `here`.

    Files without the entry, from older versions or from PEFT alone, pass.
    """
    with safe_open(path, framework="numpy") as file:
        entry = (file.metadata() or {}).get(KEY)
    if entry is None:
        return
    try:
        there = dict(json.loads(entry))
        newer = there.get("schema", 1) > SCHEMA
    except (ValueError, TypeError):
        raise UserError(f"{path}: the entry {KEY} in its header is damaged. Save the adapter again") from None
    if newer:
        raise UserError(f"{path}: written by a newer version (schema {there['schema']}). Update lowrank_rlhf")
    other = [
        f"{name} ({str(there[name])[:12]} there, {value[:12]} here)"
        for name, value in here.items()
        if there.get(name, value) != value
    ]
    if other:
        raise UserError(
            f"{path}: trained with another {', another '.join(other)}. "
            "Use it with the settings of `model` that it was trained with"
        )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
