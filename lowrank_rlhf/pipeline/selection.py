"""Select the stages of a command, and check that their inputs exist or will be produced."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from lowrank_rlhf.config.messages import suggestion
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.stages import Stage


def up_to(last: str | None, wanted: Sequence[Stage]) -> list[Stage]:
    """Return the stages up to the one named `last`; all of them for None."""
    if last is None:
        return list(wanted)
    return list(wanted[: wanted.index(named([last], wanted)[0]) + 1])


def named(names: Sequence[str], known: Sequence[Stage]) -> list[Stage]:
    """Return the stages of these names. Raises `UserError` for an unknown name."""
    by_name = {stage.name: stage for stage in known}
    for name in names:
        if name not in by_name:
            raise UserError(
                f'"{name}" is not a stage of this run; they are {", ".join(by_name)}.{suggestion(name, by_name)}'
            )
    return [by_name[name] for name in names]


def built_on(first: Collection[Stage], known: Iterable[Stage]) -> list[Stage]:
    """Return the stages and all known ones that depend on their outputs, directly or indirectly."""
    affected: list[Stage] = []
    for stage in known:
        made = {name for earlier in affected for name in earlier.writes}
        if stage in first or made.intersection(stage.reads):
            affected.append(stage)
    return affected


def check_inputs(
    chosen: Sequence[Stage],
    known: Iterable[Stage],
    again: Collection[Stage],
    run_dir: RunDir,
    not_needed: Collection[str] = (),
) -> None:
    """Raise `UserError` with the first message of `missing_inputs`."""
    for sentence in missing_inputs(chosen, known, again, run_dir, not_needed):
        raise UserError(f"stages: {sentence}")


def missing_inputs(
    chosen: Sequence[Stage],
    known: Iterable[Stage],
    again: Collection[Stage],
    run_dir: RunDir,
    not_needed: Collection[str] = (),
) -> Iterator[str]:
    """Yield a message for each stage with an input that is neither in the run nor produced before it.

    `known` are all stages of its rounds, `again` are the stages whose outputs will be discarded first; the files
    `not_needed` are ignored.
    """
    makers = {name: stage.kind for stage in known for name in stage.writes}
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


def check_rounds(config: Config, run_dir: RunDir) -> None:
    """Raise `UserError` if the run has more rounds than the config: their results would be out of date unnoticed."""
    if (last := run_dir.rounds[-1]).number > config.rounds:
        raise UserError(
            f"rounds is {config.rounds}, but {run_dir.path} has {last.number} rounds. Set rounds={last.number}, or "
            f"move {last.path} away"
        )
