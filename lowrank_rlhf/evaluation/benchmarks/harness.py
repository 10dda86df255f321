"""Benchmarks of lm-evaluation-harness on the base, the SFT model and the policy, from the one loaded base."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank_rlhf.config.messages import suggestion
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.evaluation.benchmarks.kept_values import KeptValues, digest_of
from lowrank_rlhf.maths.statistics import NORMAL_QUANTILE
from lowrank_rlhf.models.adapters import fill_role
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.run.files import sha256
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.results.benchmarks import HarnessFigure, HarnessValue

INSTALL = "--benchmark requires lm-evaluation-harness. Install it: pip install -r requirements-lm-eval.txt"


def measure_benchmarks(
    roles: Roles,
    models: Mapping[str, Path | None],
    wanted: Mapping[str, int | None],
    config: Config,
    kept: KeptValues,
    progress: Progress,
) -> list[HarnessFigure]:
    """Return the figures of each task, as the harness computes them, for each model (None is the bare base).

    All prompts are rendered with the model's chat template. A group of tasks, such as mmlu, has one row of figures, and
    a limit is divided evenly among its tasks. Raises `UserError` for unknown tasks and for data that cannot be loaded.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        from lowrank_rlhf.evaluation.benchmarks.harness_model import HarnessModel
    except ModuleNotFoundError as error:
        raise UserError(f"{INSTALL} ({error})") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager()
    counts = {task: _count(manager, task) for task in wanted}
    found: dict[tuple[str, str], HarnessFigure] = {}
    for name, folder in models.items():
        fill_role(roles, Role.POLICY, folder)
        key = digest_of(folder and sha256(folder), config.model.model_dump(mode="json"))
        for task, rows in wanted.items():
            result = simple_evaluate(
                HarnessModel(roles, f"{name} {Path(task).stem}", key, kept, progress),
                tasks=[task],
                limit=rows and math.ceil(rows / counts[task]),
                apply_chat_template=True,
                task_manager=manager,
                log_samples=False,
                bootstrap_iters=1000,
            )
            for figure in _figures(result, name, config.model.max_length):
                known = found.get((figure.task, figure.metric), figure)
                found[figure.task, figure.metric] = known.model_copy(update={"values": known.values | figure.values})
    return list(found.values())


def _count(manager: Any, task: str) -> int:
    """Return the number of tasks in a task, group or tag. Raises `UserError` if it is unknown or has no data here."""
    try:
        return len(manager.load([task])["tasks"])
    except KeyError:
        near = suggestion(task, manager.all_tasks)
        raise UserError(
            f"--benchmark {task}: not a task of lm-evaluation-harness, nor a task's YAML file.{near}"
        ) from None
    except ImportError as error:
        raise UserError(f"--benchmark {task}: {error}. {INSTALL}") from None
    except Exception as error:  # whatever the hub's client raises
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--benchmark {task}: its data cannot be loaded ({first})") from None


def _figures(result: Mapping[str, Any], model: str, longest: int) -> list[HarnessFigure]:
    """Return every metric of the groups, and of the tasks that are in no group."""
    inside = {task for tasks in result.get("group_subtasks", {}).values() for task in tasks}
    found = []
    for task, metrics in result["results"].items():
        if task in inside:
            continue
        tasks = _leaves(task, result.get("group_subtasks", {}))
        rows = sum(result["n-samples"][each]["effective"] for each in tasks if each in result["n-samples"])
        for name, value in metrics.items():
            metric, _, filtered = name.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{filtered}")
            known = isinstance(error, int | float) and math.isfinite(error)
            interval = (value - NORMAL_QUANTILE * error, value + NORMAL_QUANTILE * error) if known else None
            label = metric if filtered == "none" else f"{metric} ({filtered})"
            values = {model: HarnessValue(value=value, interval=interval)}
            found.append(HarnessFigure(task=task, metric=label, rows=rows, max_length=longest, values=values))
    return found


def _leaves(task: str, groups: Mapping[str, list[str]]) -> list[str]:
    inner = groups.get(task) or []
    return [leaf for each in inner for leaf in _leaves(each, groups)] if inner else [task]
