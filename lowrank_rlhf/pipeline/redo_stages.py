"""Redo of stages: answers that people ranked are not replaced, earlier results are set aside, and can be restored."""

from collections.abc import Collection, Sequence

from lowrank_rlhf import stages
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import Fault, UserError
from lowrank_rlhf.pipeline.fingerprint import current_fingerprint, differences
from lowrank_rlhf.preferences.project import STORE
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Sample, read_jsonl
from lowrank_rlhf.run.results import Fingerprint
from lowrank_rlhf.run.results.rounds import prefix
from lowrank_rlhf.stages import Stage

_SAMPLES = "samples.jsonl"


def refuse_other_answers(again: Collection[Stage], config: Config, run_dir: RunDir) -> None:
    """Raise `UserError` if the run would replace answers that people have ranked: the rankings would refer to none.

    `again` are the stages of a redo; those that an earlier, unfinished redo set aside are compared too.
    """
    if config.rank.source != "human":
        return
    changed: list[str] = []  # among the stages before the answers of each round
    for entry in stages.of_rounds(config.rounds):
        stage = stages.made_by(entry, config)
        mark = run_dir.mark(stage.name)
        if (mark is None or stage in again) and (ranked := mark or run_dir.earlier_mark(stage.name)):
            changed += _changes(ranked.fingerprint, stage, config, run_dir)
            changed += [f"{stage.name} takes the current rankings"] if stage.kind == "rank" else []
        if stage.kind == "sample" and changed and (prompts := _ranked_prompts(run_dir.round(stage.round))):
            undo = "undo the redo (--undo-redo), " if run_dir.earlier.stages() else ""
            text = (
                "{store} has rankings of {prompts} prompts by people, of answers that these changes would replace:\n"
                "{changes}Start a new run under another name (name=...), {undo}or move the file away to rank again."
            )
            values = {"changes": "".join(f"  {line}\n" for line in changed), "undo": undo}
            store = str(run_dir.round(stage.round).path / STORE)
            raise UserError(Fault("ranked_answers", text, store=store, prompts=prompts, **values))


def set_aside(again: Sequence[Stage], run_dir: RunDir, progress: Progress) -> None:
    """Set the results of these stages aside until they are done again."""
    run_dir.earlier.set_aside({stage.name: stage.writes for stage in again})
    if kept := run_dir.earlier.stages():
        progress.say(
            f"Earlier results of {', '.join(kept)} are kept in {run_dir.earlier.folder} until the new ones are "
            "complete; `run` with --undo-redo restores them"
        )


def undo(run_dir: RunDir) -> list[str]:
    """Restore the results that an unfinished redo set aside; return their stages.

    Raises `RunLocked`, and `UserError` if people have ranked the newer answers or another version did the redo.
    """
    with run_dir.lock():
        run_dir.recover()
        run_dir.earlier.check()
        _refuse_earlier_answers(run_dir)
        return run_dir.earlier.put_back()


def _refuse_earlier_answers(run_dir: RunDir) -> None:
    """Raise `UserError` if undoing a redo would replace newer answers that people have ranked."""
    for each in run_dir.rounds:
        stage = f"{prefix(each.number)}sample"
        if not (run_dir.earlier.has(stage) and (prompts := _prompts_of_newer_rankings(each, stage))):
            continue
        newer, earlier = run_dir.mark(stage), run_dir.earlier_mark(stage)
        changed = differences(earlier.fingerprint, newer.fingerprint, finished=True) if newer and earlier else ()
        text = (
            "{store} has rankings of {prompts} prompts by people, of answers that the earlier results do not contain:\n"
            "{changes}Finish the redo, or move the file away to restore the earlier results without these rankings."
        )
        values = {"prompts": prompts, "changes": "".join(f"  {line}\n" for line in changed)}
        raise UserError(Fault("newer_rankings", text, store=str(each.path / STORE), **values))


def _prompts_of_newer_rankings(run_dir: RunDir, stage: str) -> int:
    """Return the number of prompts that people ranked with answers that only the round's present samples contain."""
    store = run_dir.path / STORE
    files = (run_dir.artifact(_SAMPLES), run_dir.earlier.files(stage) / prefix(run_dir.number) / _SAMPLES)
    newer, earlier = (set(read_jsonl(file, Sample)) if file.is_file() else set[Sample]() for file in files)
    if not (newer - earlier and store.is_file()):
        return 0
    contents = AnnotationStore(store).contents()
    ranked = {ranking.prompt_id for ranking in contents.current() if ranking.tiers}
    return len(ranked & {answer.prompt_id for answer in (newer - earlier).intersection(contents.answers)})


def _changes(ranked: Fingerprint, stage: Stage, config: Config, run_dir: RunDir) -> tuple[str, ...]:
    """Return the differences to the stage's current fingerprint, without inputs that are being made again."""
    missing = [name for name in stage.reads if not run_dir.artifact(name).exists()]
    inputs = {name: digest for name, digest in ranked.inputs.items() if name not in missing}
    old = ranked.model_copy(update={"inputs": inputs})
    return differences(old, current_fingerprint(stage, config, run_dir), finished=True)


def _ranked_prompts(run_dir: RunDir) -> int:
    store = run_dir.path / STORE
    return AnnotationStore(store).ranked_prompts() if store.is_file() else 0
