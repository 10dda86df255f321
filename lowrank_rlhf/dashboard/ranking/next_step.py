"""Sentence below the progress: the verdict on the rankings, for the run's owner and for annotators."""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from lowrank_rlhf.dashboard.ranking.text import at_work_text, percent, say
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline.pipeline import stages_of
from lowrank_rlhf.preferences.carelessness import AnnotatorCheck
from lowrank_rlhf.preferences.enough import RankingNeed
from lowrank_rlhf.preferences.overview import RankingProgress
from lowrank_rlhf.preferences.project import Project
from lowrank_rlhf.preferences.team.doubt import Doubt
from lowrank_rlhf.run.directory import RunDir

_MORE = {"setting": "next.more", "power": "next.more_power", "weak": "next.more_weak"}
_ENOUGH = ("next.enough", "next.enough_passes")
_DOUBTFUL = ("next.doubtful", "next.doubtful_all", "next.unclear", "next.unclear_alone")


class NextStep(NamedTuple):
    """Sentence on what is missing or comes next.

    `sound`: enough prompts are ranked, and nothing speaks against the rankings. `may_start`: the owner may resume the
    run or, if it is `finished`, train it again with other rankings than it was trained with.
    """

    text: str
    sound: bool
    may_start: bool
    finished: bool = False


def next_step(
    project: Project, now: RankingProgress, careless: Sequence[AnnotatorCheck], language: str, owner: bool
) -> NextStep:
    """Return the sentence for the owner or for annotators, who get the same verdict without names and commands."""
    if project.settings is None:
        return NextStep("", False, now.enough)
    doubt = project.doubtful if now.enough else None
    verdict = _verdict(project, now, careless, doubt)
    sound, resumes = verdict in _ENOUGH, now.enough and not project.refused
    if not owner:
        return NextStep(_say(_for_annotators(verdict, project), project, now, doubt, language), sound, resumes)
    if now.enough and (at_work := at_work_text(project, language)):
        return NextStep(at_work, sound, may_start=False)
    finished = is_finished(project)
    changed = finished and project.rankings_changed
    if finished and not changed:
        return NextStep(say("next.finished", language), sound, may_start=False, finished=True)
    key = "next.finished_changed" if changed and sound else verdict
    return NextStep(_say(key, project, now, doubt, language), sound, resumes, finished)


def is_finished(project: Project) -> bool:
    """Return True if all stages of the project's run are done."""
    run_dir = RunDir(project.folder)
    with suppress(UserError):
        return project.config is not None and all(run_dir.mark(one.name) for one in reversed(stages_of(project.config)))
    return False


def _verdict(project: Project, now: RankingProgress, careless: Sequence[AnnotatorCheck], doubt: Doubt | None) -> str:
    """Return the key of the owner's sentence."""
    need, left = project.need, project.has_unranked
    if not now.enough:
        return _MORE[need.reason] if left else "next.more_none"
    if doubt:
        if doubt.more:
            return "next.unclear_alone" if doubt.alone else "next.unclear"
        return "next.doubtful" if left else "next.doubtful_all"
    if project.refused:
        return "next.refused"
    if careless:
        return "next.check_first"
    if need.few:
        return "next.enough_few" if left else "next.enough_all"
    return "next.enough" if need.passes is None else "next.enough_passes"


def _for_annotators(verdict: str, project: Project) -> str:
    """Return the key of the annotators' sentence with the same verdict."""
    if verdict in _DOUBTFUL:
        return verdict
    if verdict in _MORE.values():
        return "next.more"
    if verdict in _ENOUGH:
        return "next.thanks" if project.has_unranked else "next.thanks_all"
    return "next.unsure" if project.has_unranked else "next.unsure_all"


def _say(key: str, project: Project, now: RankingProgress, doubt: Doubt | None, language: str) -> str:
    """Return a sentence with its figures.

    They are those of the guided path: how often a reward model of a certain accuracy passes its test.
    """
    need, tests = project.need, project.reward_tests
    return say(
        key,
        language,
        more=doubt.more if doubt else now.needed - now.ranked_by_anyone,
        needed=_ranked(need, language),
        passes=percent(need.passes or 0.0),
        accuracy=percent(need.accuracy or 0.0),
        measured=percent(tests[-1].accuracy) if tests else "-",
        share=percent(doubt.share) if doubt else "-",
        pairs=doubt.pairs if doubt else 0,
        command=project.next_command,
    )


def _ranked(need: RankingNeed, language: str) -> str:
    """Return the number of ranked prompts that a reward model learns from, with those of earlier rounds."""
    if not need.earlier:
        return str(need.prompts)
    return say("next.of_all_rounds", language, count=need.prompts + need.earlier, earlier=need.earlier)
