"""Which stages a command is about, and whether everything that they read is there or will be."""

from collections.abc import Collection, Iterator, Sequence

from lowrank_rlhf import stages
from lowrank_rlhf.config.messages import suggestion
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.stages import Stage


def up_to(last: str | None, wanted: Sequence[Stage]) -> list[Stage]:
    """Those of the wanted stages up to the one of that name; None is all of them."""
    if last is None:
        return list(wanted)
    return list(wanted[: wanted.index(named([last], wanted)[0]) + 1])


def named(names: Sequence[str], known: Sequence[Stage]) -> list[Stage]:
    """The stages of these names. Raises `UserError` for a name that no stage of the run has."""
    by_name = {stage.name: stage for stage in known}
    for name in names:
        if name not in by_name:
            raise UserError(
                f'"{name}" is not a stage of this run; they are {", ".join(by_name)}.{suggestion(name, by_name)}'
            )
    return [by_name[name] for name in names]


def built_on(first: Collection[Stage]) -> list[Stage]:
    """Those stages and all that read what they write, directly or not."""
    affected: list[Stage] = []
    for stage in stages.STAGES:
        made = {name for earlier in affected for name in earlier.writes}
        if stage in first or made.intersection(stage.reads):
            affected.append(stage)
    return affected


def check_inputs(
    chosen: Sequence[Stage], again: Collection[Stage], run_dir: RunDir, not_needed: Collection[str] = ()
) -> None:
    """Raises `UserError` with what `missing_inputs` finds first."""
    for sentence in missing_inputs(chosen, again, run_dir, not_needed):
        raise UserError(f"stages: {sentence}")


def missing_inputs(
    chosen: Sequence[Stage], again: Collection[Stage], run_dir: RunDir, not_needed: Collection[str] = ()
) -> Iterator[str]:
    """A sentence for each stage with an input that neither lies in the run nor will be made before it.

    `again` are the stages whose outputs will be discarded first; nothing is said of the files `not_needed`.
    """
    makers = {name: stage.name for stage in stages.STAGES for name in stage.writes}
    discarded = {name for stage in again for name in stage.writes}
    made = set(not_needed)
    for stage in chosen:
        absent = [
            name
            for name in stage.reads
            if name not in made and (name in discarded or not run_dir.artifact(name).exists())
        ]
        if absent:
            maker = makers[absent[0]]
            yield (
                f"{stage.name} reads {absent[0]}, which is not in {run_dir.path}; "
                f"stage {maker} makes it: add {maker} to `stages`"
            )
        made.update(stage.writes)
