"""A run's judges: opened with what the run has, and watched while they work."""

from collections.abc import Iterable, Sequence

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.preferences.judges.loading import ENDPOINT, Judge, load_judge
from lowrank_rlhf.run.progress import figure
from lowrank_rlhf.run.records import Prompt, Sample
from lowrank_rlhf.session import Session

VERDICTS = "verdicts.jsonl"
"""What an endpoint said, by the question's hash: in the run's folder itself, so that `--redo` asks nothing twice."""


def open_judge(session: Session, name: str) -> Judge:
    """The judge of that name in the config. Raises `UserError` if there is none."""
    settings = session.config.rank.endpoint
    if name != ENDPOINT or settings is None:
        return load_judge(name)
    from lowrank_rlhf.preferences.judges.llm_client import ChatClient  # imports an HTTP library that no other run needs
    from lowrank_rlhf.preferences.judges.llm_judge import EndpointJudge

    return EndpointJudge(ChatClient(settings, session.stop, session.progress.say), session.run_dir.path / VERDICTS)


def followed_judge(config: Config) -> str | None:
    """The judge that PPO's evaluations follow beside the reward model: the one that ranked the answers.

    Where people or a data set ranked, it is `second_judge` in its place, so that over-optimisation shows there too. An
    `endpoint` never is: its scores compare within one call only, so no curve can be drawn from them, and nobody expects
    training to ask (and pay for) one question more at every evaluation of PPO; the evaluate stage asks it once.
    """
    if config.rank.source == "judge":
        return config.rank.judge
    second = config.evaluate.second_judge
    return None if second == ENDPOINT else second


def judge_all(
    session: Session, judge: Judge, task: str, groups: Iterable[tuple[Prompt, Sequence[Sample]]]
) -> list[list[float]]:
    """The judge's scores of each prompt's answers, one call for each prompt, under a bar with the task's name."""
    groups = list(groups)
    steps = [judge.steps(prompt, samples) for prompt, samples in groups]
    total, done = sum(step.total for step in steps), sum(step.done for step in steps)
    scores = []
    with session.progress.track(task, total, judge.unit, done) as bar:
        for prompt, samples in groups:
            scores.append(judge.score(prompt, samples, bar.advance))
            session.stop.check("everything before this stage is saved")
    if summary := judge.summary():
        session.progress.say(f"  {', '.join(figure(name, value) for name, value in summary.items())}")
    return scores
