"""Which library loads and runs the base: transformers, or unsloth where that is asked for (decision 0020).

unsloth patches transformers, PEFT and TRL while it is imported, and has to come before them. Here is the one place that
decides, and that imports it; importing this module imports no torch.
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
from lowrank_rlhf.run.directory import read_record, write_json_atomic
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.checksums import cache_folder
from lowrank_rlhf.sources.model_shape import find_shape

Backend = Literal["transformers", "unsloth"]

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose way through unsloth was read: right-padded rows need no mask, and all linear layers are known."""
FILE = "backend.json"
"""In a run's folder: what `auto` took when the run began."""
_PATCHED = ("transformers", "peft", "trl")


class _Taken(BaseModel):
    backend: Backend


class Choice(NamedTuple):
    """What was taken, and the reason in words."""

    backend: Backend
    why: str


def take_backend(config: Config, run: Path, progress: Progress) -> Backend:
    """Choose, import unsloth if it is to serve, and say what was taken and why; `auto` keeps to what a run began with.

    Call it when the model is fetched and before anything imports transformers. Raises `UserError` where unsloth is
    asked for and cannot serve, or does not start.
    """
    if config.model.backend == "transformers":
        return "transformers"
    kept = (read_record(run / FILE, _Taken) or {}).get("backend") if config.model.backend == "auto" else None
    shape = find_shape(config.model)
    backend, why = choose(config, shape.architecture if shape else None, began_with=kept)
    version = f" {_start_unsloth()}" if backend == "unsloth" else ""
    progress.say(f"model.backend: {backend}{version}: {why}")
    if kept not in (None, backend):
        progress.say(
            f"NOTE: this run began with {kept} ({run / FILE}): its results will differ in their last bits from an "
            "uninterrupted run's"
        )
    if kept is None and config.model.backend == "auto":
        write_json_atomic(run / FILE, {"schema": 1, "backend": backend})
    return backend


def choose(config: Config, architecture: str | None, began_with: str | None = None) -> Choice:
    """The backend for a model of that type (None: not known). Raises `UserError` where unsloth by name cannot serve."""
    asked = config.model.backend
    if asked == "transformers":
        return Choice("transformers", "asked for")
    if asked == "auto" and began_with == "transformers":
        return Choice("transformers", "this run began with it")
    obstacle = next(_obstacles(config, architecture), None)
    if obstacle is None:
        return Choice("unsloth", "asked for" if asked == "unsloth" else "CUDA and the package are here")
    if asked == "unsloth":
        raise UserError(f"model.backend: unsloth cannot serve: {obstacle}. Or set model.backend=transformers")
    return Choice("transformers", obstacle)


def _obstacles(config: Config, architecture: str | None) -> Iterator[str]:
    """Why unsloth cannot serve, what costs least to find out first."""
    yield from (obstacle.text for obstacle in config.unsloth_obstacles())
    if find_spec("unsloth") is None:
        yield "the package unsloth is not installed (python -m pip install -r requirements-unsloth.txt)"
    if architecture not in FAMILIES:
        yield f"unsloth is used for {', '.join(FAMILIES)}, and the model's type is {architecture or 'not known'}"
    early = [name for name in _PATCHED if name in sys.modules]
    if early and "unsloth" not in sys.modules:
        yield (
            f"unsloth has to be imported before {early[0]}, which this process has imported already (converting a "
            "model does, once): give the same command again"
        )
    if not _cuda():
        yield "PyTorch sees no CUDA device here"


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _start_unsloth() -> str:
    """Import it and return its version. Its banner goes to stderr, what it compiles to our cache, and nothing home."""
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_folder() / "unsloth"))
    try:
        with redirect_stdout(sys.stderr):
            import unsloth
    except (ImportError, NotImplementedError, RuntimeError, OSError, AttributeError) as error:
        raise UserError(
            f"model.backend: unsloth is installed and does not start: {error}. Mend it (python -m pip install -r "
            "requirements-unsloth.txt), or set model.backend=transformers"
        ) from None
    return str(unsloth.__version__)
