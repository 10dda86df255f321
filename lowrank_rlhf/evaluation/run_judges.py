"""A run's judges: opened with the run's settings, and run over answers with progress."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from lowrank_rlhf.config.schema import Config, RankConfig
from lowrank_rlhf.preferences.judges.annotator import Vectors
from lowrank_rlhf.preferences.judges.loading import ENDPOINT, KIND_ANNOTATOR, KIND_ANNOTATOR_ZH, Judge, load_judge
from lowrank_rlhf.preferences.rewards.loading import GRADES
from lowrank_rlhf.run.progress import Progress, StopRequest, figure
from lowrank_rlhf.run.records import Prompt, Sample
from lowrank_rlhf.sources.encoder import MINILM, MULTILINGUAL

JudgeRole = Literal["judge", "second_judge"]
"""Roles of judges, as named among the figures of an evaluation: the one that ranked the answers, and the second."""
VERDICTS = "verdicts.jsonl"
"""Replies of an endpoint by the question's hash. In the run folder itself, so that `--redo` asks nothing twice."""

ENCODERS = {KIND_ANNOTATOR: MINILM, KIND_ANNOTATOR_ZH: MULTILINGUAL}
"""Sentence encoders of the judges that read embeddings."""


def open_judge(name: str, rank: RankConfig, run_folder: Path, progress: Progress, stop: StopRequest) -> Judge:
    """Open the judge of that name. Raises `UserError` if it does not exist."""
    if name != ENDPOINT or rank.endpoint is None:
        return load_judge(name, _embed_multilingual if name == KIND_ANNOTATOR_ZH else _embed_english)
    from lowrank_rlhf.preferences.judges.grading import GradingJudge
    from lowrank_rlhf.preferences.judges.llm_client import ChatClient  # only these runs need its HTTP library
    from lowrank_rlhf.preferences.judges.llm_judge import EndpointJudge

    client = ChatClient(rank.endpoint, stop, progress.say)
    if rank.endpoint.ask == "pointwise":
        return GradingJudge(client, run_folder / GRADES)
    return EndpointJudge(client, run_folder / VERDICTS)


def _embed_english(texts: Sequence[str]) -> Vectors:
    from lowrank_rlhf.models.encoders.minilm import embed_sentences  # imports torch

    return embed_sentences(texts)


def _embed_multilingual(texts: Sequence[str]) -> Vectors:
    from lowrank_rlhf.models.encoders.multilingual import embed_sentences  # imports tokenizers

    return embed_sentences(texts)


def followed_judges(config: Config) -> dict[JudgeRole, str]:
    """Return the names of the judges whose scores are followed during training, next to the reward model's.

    They are the judge that ranked the answers, if one did, and `second_judge`, which nothing was tuned on. Never an
    `endpoint`: training must not send (and pay for) requests at every evaluation, and scores of pairs are comparable
    within one call only. The evaluate stage asks it once.
    """
    first, second = config.ranking_judge, config.evaluate.second_judge
    named: dict[JudgeRole, str | None] = {"judge": first, "second_judge": second if second != first else None}
    return {role: name for role, name in named.items() if name and name != ENDPOINT}


def judge_all(
    judge: Judge, task: str, groups: Iterable[tuple[Prompt, Sequence[Sample]]], progress: Progress, stop: StopRequest
) -> list[list[float]]:
    """Return the judge's scores of each prompt's answers, from one call per prompt, with a bar named `task`."""
    groups = list(groups)
    steps = [judge.steps(prompt, samples) for prompt, samples in groups]
    total, done = sum(step.total for step in steps), sum(step.done for step in steps)
    scores = []
    with progress.track(task, total, judge.unit, done) as bar:
        for prompt, samples in groups:
            scores.append(judge.score(prompt, samples, bar.advance))
            stop.check("everything before this stage is saved")
    if summary := judge.summary():
        progress.say(f"  {', '.join(figure(name, value) for name, value in summary.items())}")
    return scores
