"""Benchmarks of lm-evaluation-harness on the base, the SFT model and the policy, from the one loaded base."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from lowrank_rlhf.config.messages import suggestion
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.evaluation.benchmarks.kept_values import KeptValues, digest_of
from lowrank_rlhf.maths.statistics import NORMAL_QUANTILE, Interval, wilson_interval
from lowrank_rlhf.models.adapters import fill_role
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.run.files import sha256
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.results.benchmarks import HarnessFigure, HarnessValue

INSTALL = "--benchmark requires lm-evaluation-harness. Install it: pip install -r requirements-lm-eval.txt"


class _Metric(NamedTuple):
    """Metric of a task or group; all models have the same ones."""

    task: str
    name: str
    rows: int


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
    names = {task: _registered(manager, task) for task in wanted}
    counts = {task: _count(manager, name) for task, name in names.items()}
    found: dict[_Metric, dict[str, HarnessValue]] = defaultdict(dict)
    for model, folder in models.items():
        fill_role(roles, Role.POLICY, folder)
        key = digest_of(folder and sha256(folder), config.model.model_dump(mode="json"))
        for task, rows in wanted.items():
            result = simple_evaluate(
                HarnessModel(roles, f"{model} {Path(task).stem}", key, kept, progress),
                tasks=[names[task]],
                limit=rows and math.ceil(rows / counts[task]),
                apply_chat_template=True,
                task_manager=manager,
                bootstrap_iters=1000,
            )
            for metric, value in _values(result):
                found[metric][model] = value
    longest = config.model.max_length
    return [
        HarnessFigure(task=metric.task, metric=metric.name, rows=metric.rows, max_length=longest, values=values)
        for metric, values in found.items()
    ]


def _registered(manager: Any, task: str) -> str:
    """Return the harness's name: `ceval` is its group `ceval-valid`, the only one so named. Raises `UserError`."""
    if task in manager.all_tasks or Path(task).is_file():
        return task
    groups = [group for group in manager.all_groups if group.startswith((f"{task}-", f"{task}_"))]
    if len(groups) == 1:
        return groups[0]
    near = suggestion(task, manager.all_tasks)
    raise UserError(f"--benchmark {task}: not a task of lm-evaluation-harness, nor a task's YAML file.{near}")


def _count(manager: Any, task: str) -> int:
    """Return the number of tasks in a task, group or tag. Raises `UserError` if it cannot be loaded here."""
    try:
        return len(manager.load([task])["tasks"])
    except ImportError as error:
        raise UserError(f"--benchmark {task}: {error}. {INSTALL}") from None
    except Exception as error:  # whatever the hub's client raises
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--benchmark {task}: its data cannot be loaded ({first})") from None


def _values(result: Mapping[str, Any]) -> Iterator[tuple[_Metric, HarnessValue]]:
    """Yield every metric of the groups, and of the tasks that are in no group."""
    groups = result.get("group_subtasks", {})
    inside = {task for tasks in groups.values() for task in tasks}
    for task, metrics in result["results"].items():
        if task in inside:
            continue
        samples = [sample for leaf in _leaves(task, groups) for sample in result["samples"].get(leaf, ())]
        for key, value in metrics.items():
            name, _, filtered = key.partition(",")
            if not filtered or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            of_rows = [sample[name] for sample in samples if sample["filter"] == filtered and name in sample]
            interval = metric_interval(value, of_rows, metrics.get(f"{name}_stderr,{filtered}"))
            label = name if filtered == "none" else f"{name} ({filtered})"
            yield _Metric(task, label, len(of_rows)), HarnessValue(value=value, interval=interval)


def metric_interval(value: float, of_rows: Sequence[Any], error: Any) -> Interval | None:
    """Return Wilson's interval of a share of rows, otherwise the normal one of the harness's standard error.

    None where there is no standard error, or where it is 0: rows that are all alike show no certainty.
    """
    ones = bool(of_rows) and all(isinstance(each, int | float) and each in (0, 1) for each in of_rows)
    if ones and math.isclose(value, fmean(of_rows), abs_tol=1e-9):  # a group may weigh its tasks equally
        return wilson_interval(value, len(of_rows))
    if not isinstance(error, int | float) or not math.isfinite(error) or error == 0:
        return None
    return Interval(value - NORMAL_QUANTILE * error, value + NORMAL_QUANTILE * error)


def _leaves(task: str, groups: Mapping[str, list[str]]) -> list[str]:
    inner = groups.get(task) or []
    return [leaf for each in inner for leaf in _leaves(each, groups)] if inner else [task]
