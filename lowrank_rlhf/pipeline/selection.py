"""Select the stages of a command, and check that their inputs exist or will be produced."""

from collections.abc import Collection, Iterator, Sequence

from lowrank_rlhf import stages
from lowrank_rlhf.config.messages import suggestion
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline.fingerprint import current_fingerprint, differences
from lowrank_rlhf.preferences.project import STORE
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.results import Fingerprint
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


def built_on(first: Collection[Stage]) -> list[Stage]:
    """Return the stages and all that depend on their outputs, directly or indirectly."""
    affected: list[Stage] = []
    for stage in stages.STAGES:
        made = {name for earlier in affected for name in earlier.writes}
        if stage in first or made.intersection(stage.reads):
            affected.append(stage)
    return affected


def check_inputs(
    chosen: Sequence[Stage], again: Collection[Stage], run_dir: RunDir, not_needed: Collection[str] = ()
) -> None:
    """Raise `UserError` with the first message of `missing_inputs`."""
    for sentence in missing_inputs(chosen, again, run_dir, not_needed):
        raise UserError(f"stages: {sentence}")


def missing_inputs(
    chosen: Sequence[Stage], again: Collection[Stage], run_dir: RunDir, not_needed: Collection[str] = ()
) -> Iterator[str]:
    """Yield a message for each stage with an input that is neither in the run nor produced before it.

    `again` are the stages whose outputs will be discarded first; the files `not_needed` are ignored.
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


def refuse_other_answers(again: Collection[Stage], config: Config, run_dir: RunDir) -> None:
    """Raise `UserError` if the run would replace answers that people have ranked: the rankings would refer to none.

    `again` are the stages of a redo; those that an earlier, unfinished redo set aside are compared too.
    """
    if config.rank.source != "human":
        return
    changed: list[str] = []
    for stage in map(stages.stage, ("sft", "sample")):
        mark = run_dir.mark(stage.name)
        if (mark is None or stage in again) and (ranked := mark or run_dir.earlier_mark(stage.name)):
            changed += _changes(ranked.fingerprint, stage, config, run_dir)
    if changed and (prompts := _ranked_prompts(run_dir)):
        undo = "undo the redo (--undo-redo), " if run_dir.earlier.stages() else ""
        raise UserError(
            f"{run_dir.path / STORE} has rankings of {prompts} prompts by people, of answers that these changes would "
            "replace:\n"
            + "".join(f"  {line}\n" for line in changed)
            + f"Start a new run under another name (name=...), {undo}or move the file away to rank again."
        )


def refuse_earlier_answers(run_dir: RunDir) -> None:
    """Raise `UserError` if undoing a redo would replace newer answers that people have ranked."""
    newer, earlier = run_dir.mark("sample"), run_dir.earlier_mark("sample")
    changed = differences(earlier.fingerprint, newer.fingerprint, finished=True) if newer and earlier else ()
    if changed and (prompts := _ranked_prompts(run_dir)):
        raise UserError(
            f"{run_dir.path / STORE} has rankings of {prompts} prompts by people, of answers that the earlier results "
            "do not contain:\n"
            + "".join(f"  {line}\n" for line in changed)
            + "Finish the redo, or move the file away to restore the earlier results without these rankings."
        )


def _changes(ranked: Fingerprint, stage: Stage, config: Config, run_dir: RunDir) -> tuple[str, ...]:
    """Return the differences to the stage's current fingerprint, without inputs that are being made again."""
    missing = [name for name in stage.reads if not run_dir.artifact(name).exists()]
    inputs = {name: digest for name, digest in ranked.inputs.items() if name not in missing}
    old = ranked.model_copy(update={"inputs": inputs})
    return differences(old, current_fingerprint(stage, config, run_dir), finished=True)


def _ranked_prompts(run_dir: RunDir) -> int:
    store = run_dir.path / STORE
    return AnnotationStore(store).ranked_prompts() if store.is_file() else 0
