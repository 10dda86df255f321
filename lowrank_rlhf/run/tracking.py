"""Send the figures of metrics.jsonl, step by step, to the tracker in the config; none by default.

Trackers are optional packages, imported only if configured.
"""

import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.step_log import StepLog

Send = Callable[[str, int, dict[str, float]], None]
"""Function of stage, step, and the figures of the step by name."""


def tracking_problem(config: Config) -> str | None:
    """Return a message if the package of the configured tracker is not installed, else None."""
    if config.tracking == "none":
        return None
    try:
        version(config.tracking)  # not find_spec: a folder `wandb`, as wandb creates, would count
    except PackageNotFoundError:
        return f"{config.tracking} is not installed. Run `pip install {config.tracking}`, or set tracking=none"
    return None


@contextmanager
def tracked(config: Config, log: StepLog, folder: Path) -> Iterator[None]:
    """Send each row of the log to the tracker inside the block.

    Raises `UserError` if the tracker is not installed or fails to start. A later failure disables it with a warning: it
    must not stop the run, and the log has all figures.
    """
    if config.tracking == "none":
        yield
        return
    if problem := tracking_problem(config):
        raise UserError(f"tracking: {problem}")
    begin = _tensorboard if config.tracking == "tensorboard" else _session
    try:
        send, end = begin(config, folder)
    except Exception as error:  # whatever the package raises: no login, no server, a full disk
        raise UserError(
            f"tracking: {config.tracking} failed to start ({error}). Fix its setup, or set tracking=none"
        ) from None
    log.also = lambda stage, step, row: _sent(send, log, stage, step, row)
    try:
        yield
    finally:
        log.also = None
        _ended(end)


def _sent(send: Send, log: StepLog, stage: str, step: int, row: dict[str, Any]) -> None:
    figures = {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    try:
        send(stage, step, figures)
    except Exception as error:  # as above
        log.also = None
        warnings.warn(f"the tracker failed and was disabled: {error}", stacklevel=2)


def _ended(end: Callable[[], None]) -> None:
    try:
        end()
    except Exception as error:  # as above
        warnings.warn(f"the tracker failed to close, and may lack the last figures: {error}", stacklevel=2)


def _tensorboard(_config: Config, folder: Path) -> tuple[Send, Callable[[], None]]:
    """Open TensorBoard event files in the run folder: `tensorboard --logdir runs` shows all runs."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def send(stage: str, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(f"{stage}/{name}", value, step)

    return send, writer.close


def _session(config: Config, _folder: Path) -> tuple[Send, Callable[[], None]]:
    """Start a session of wandb, trackio or SwanLab, which have nearly the same interface.

    They configure their destination, SwanLab by `swanlab login` or SWANLAB_MODE=local.
    """
    tracker = importlib.import_module(config.tracking)
    name = {"experiment_name" if config.tracking == "swanlab" else "name": config.name}
    tracker.init(project="lowrank_rlhf", config=config.model_dump(mode="json"), **name)

    def send(stage: str, step: int, figures: dict[str, float]) -> None:
        # The step is logged as a figure: each stage counts from 1, and these packages have one counter per run.
        tracker.log({f"{stage}/step": step} | {f"{stage}/{name}": value for name, value in figures.items()})

    return send, tracker.finish
