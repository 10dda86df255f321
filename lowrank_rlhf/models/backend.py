"""Choice of the library that loads and runs the base: transformers or unsloth (decision 0020).

unsloth patches transformers, PEFT and TRL when it is imported, so it must be imported before them. Only this module
chooses and imports it; importing this module imports no torch.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.files import read_record, write_json_atomic
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.checksums import cache_folder
from lowrank_rlhf.sources.model_shape import find_shape

Backend = Literal["transformers", "unsloth"]

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types checked with unsloth: right-padded rows need no mask, and all linear layers are known."""
FILE = "backend.json"
"""File in the run folder with the backend that `auto` chose when the run started."""
_PATCHED = ("transformers", "peft", "trl")


class _BackendRecord(BaseModel):
    backend: Backend


class Choice(NamedTuple):
    """Chosen backend, with the reason as text."""

    backend: Backend
    reason: str


def take_backend(config: Config, run: Path, progress: Progress) -> Backend:
    """Choose the backend, import unsloth if chosen, and print the choice; `auto` keeps the choice of a resumed run.

    Call it after fetching the model and before anything imports transformers. Raises `UserError` if unsloth was
    requested and cannot be used or fails to start.
    """
    if config.model.backend == "transformers":
        return "transformers"
    kept = (read_record(run / FILE, _BackendRecord) or {}).get("backend") if config.model.backend == "auto" else None
    shape = find_shape(config.model)
    backend, reason = choose(config, shape.architecture if shape else None, started_with=kept)
    version = f" {_start_unsloth()}" if backend == "unsloth" else ""
    progress.say(f"model.backend: {backend}{version}: {reason}")
    if kept not in (None, backend):
        progress.say(
            f"NOTE: this run started with {kept} ({run / FILE}): its results will differ in their last bits from an "
            "uninterrupted run's"
        )
    if kept is None and config.model.backend == "auto":
        write_json_atomic(run / FILE, {"schema": 1, "backend": backend})
    return backend


def choose(config: Config, architecture: str | None, started_with: str | None = None) -> Choice:
    """Return the backend for a model type, None if unknown. Raises `UserError` if a requested unsloth is unusable."""
    requested = config.model.backend
    if requested == "transformers":
        return Choice("transformers", "set in the config")
    if requested == "auto" and started_with == "transformers":
        return Choice("transformers", "this run started with it")
    obstacle = next(_obstacles(config, architecture), None)
    if obstacle is None:
        reason = "set in the config" if requested == "unsloth" else "CUDA and the package are available"
        return Choice("unsloth", reason)
    if requested == "unsloth":
        raise UserError(f"model.backend: unsloth cannot be used: {obstacle}. Or set model.backend=transformers")
    return Choice("transformers", obstacle)


def _obstacles(config: Config, architecture: str | None) -> Iterator[str]:
    """Yield the reasons against unsloth, cheapest check first."""
    yield from (obstacle.text for obstacle in config.unsloth_obstacles())
    if find_spec("unsloth") is None:
        yield "the package unsloth is not installed (python -m pip install -r requirements-unsloth.txt)"
    if architecture not in FAMILIES:
        yield f"the model's type is {architecture or 'unknown'}, and unsloth is used for {', '.join(FAMILIES)}"
    early = [name for name in _PATCHED if name in sys.modules]
    if early and "unsloth" not in sys.modules:
        yield (
            f"unsloth must be imported before {early[0]}, which this process has already imported (converting a model "
            "does, once). Rerun the same command"
        )
    if not _cuda():
        yield "PyTorch finds no CUDA device"


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _start_unsloth() -> str:
    """Import unsloth and return its version; banner to stderr, compiled code to our cache, telemetry off."""
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_folder() / "unsloth"))
    try:
        with redirect_stdout(sys.stderr):
            import unsloth
    except (ImportError, NotImplementedError, RuntimeError, OSError, AttributeError) as error:
        raise UserError(
            f"model.backend: unsloth is installed but does not start: {error}. Reinstall it (python -m pip install -r "
            "requirements-unsloth.txt), or set model.backend=transformers"
        ) from None
    return str(unsloth.__version__)
