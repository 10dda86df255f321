"""What is wrong with a valid config on this machine: told by `validate`, `plan` and `run` before anything heavy."""

from collections.abc import Collection, Iterator
from pathlib import Path

from lowrank_rlhf import stages
from lowrank_rlhf.artifacts import RunDir
from lowrank_rlhf.config.messages import Key
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.prompts import resolve
from lowrank_rlhf.data.sources import check_source
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline import stages_of
from lowrank_rlhf.ranking.judges import ENDPOINT, load_judge

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def problems(config: Config, run_dir: RunDir | None = None) -> list[tuple[Key, str]]:
    """Keys and sentences: judges that cannot be loaded, data and adapters that are not there, and with the folder of
    the run also stages that need what no stage makes.

    A user's judge is imported for that, as the run would; no data is read.
    """
    names = {stage.name for stage in stages_of(config)}
    missing = _nothing_before(config, run_dir) if run_dir else ()
    return [*missing, *_data(config), *_adapter(config, names), *_judges(config, names)]


def _judges(config: Config, names: Collection[str]) -> Iterator[tuple[Key, str]]:
    judges: dict[Key, str | None] = {}
    if config.rank.source == "judge" and {"rank", "ppo", "evaluate"}.intersection(names):
        judges["rank", "judge"] = config.rank.judge
    if "evaluate" in names:
        judges["evaluate", "second_judge"] = config.evaluate.second_judge
    for key, judge in judges.items():
        if judge and judge != ENDPOINT:
            try:
                load_judge(judge)
            except UserError as error:
                yield key, str(error)


def _data(config: Config) -> Iterator[tuple[Key, str]]:
    sources: dict[Key, str | None] = {
        ("data", "prompts"): config.data.prompts,
        ("rank", "dataset"): config.rank.dataset,
    }
    for key, source in sources.items():
        try:
            if source:
                check_source(resolve(source) if key == ("data", "prompts") else source)
        except UserError as error:
            yield key, str(error)


def _adapter(config: Config, names: Collection[str]) -> Iterator[tuple[Key, str]]:
    if config.sft.adapter is None or "sft" not in names:
        return
    folder = Path(config.sft.adapter)
    if not folder.is_dir():
        yield ("sft", "adapter"), f"{folder}: there is no such folder; relative paths start at {Path.cwd()}"
    elif missing := [name for name in ADAPTER_FILES if not (folder / name).is_file()]:
        yield (
            ("sft", "adapter"),
            f"{folder}: no {missing[0]} there; an adapter is a folder that PEFT wrote, in safetensors",
        )


def _nothing_before(config: Config, run_dir: RunDir) -> Iterator[tuple[Key, str]]:
    """Each stage that reads what is neither in the run's folder nor made by a stage before it."""
    unused = {"answers.jsonl", "scores.jsonl"} if not config.ppo.contrastive else set()
    chosen = stages_of(config)
    made: set[str] = set()
    for stage in chosen:
        read = set(stage.reads) - (unused if stage.name == "ppo" else set())
        if config.rank.source == "dataset":
            read.discard("samples.jsonl")
        absent = [name for name in stage.reads if name in read - made and not run_dir.artifact(name).exists()]
        if absent:
            maker = next(other.name for other in stages.STAGES if absent[0] in other.writes)
            yield (
                ("stages",),
                f"{stage.name} needs {absent[0]}, which stage {maker} makes, and {run_dir.path} has none; "
                f"add {maker} to the stages",
            )
        made.update(stage.writes)
