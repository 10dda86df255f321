"""Stage 2b: rankings of the answers from a judge, a data set or people, and the comparisons that follow from them."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from lowrank_rlhf.config.schema import Config, RankConfig
from lowrank_rlhf.errors import Fault, UserError, WaitingForPeople
from lowrank_rlhf.evaluation.run_judges import judge_all, open_judge
from lowrank_rlhf.preferences.agreement import krippendorff_alpha, length_bias
from lowrank_rlhf.preferences.enough import needed
from lowrank_rlhf.preferences.expand import compare, ranking_from_scores
from lowrank_rlhf.preferences.judges.loading import Judge
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.records import Comparison, Prompt, Ranking, Sample, read_jsonl, write_jsonl
from lowrank_rlhf.run.results import RankResult
from lowrank_rlhf.session import Session

STORE = "annotations.sqlite"


def run(session: Session) -> RankResult:
    """Write `prompts.jsonl`, `answers.jsonl`, `rankings.jsonl` and `comparisons.jsonl`."""
    config = session.config.rank
    judge = (
        open_judge(config.judge, config, session.run_dir.run, session.progress, session.stop)
        if config.source == "judge"
        else None
    )
    if data := session.data.comparisons:
        prompts, answers, rankings = list(data.prompts), list(data.answers), list(data.rankings)
    else:
        answers = list(read_jsonl(session.run_dir.artifact("samples.jsonl"), Sample))
        asked = {sample.prompt_id for sample in answers}
        prompts = [prompt for prompt in session.prompts.training if prompt.id in asked]
        rankings = (
            _rank_by_judge(judge, config.tie_margin, prompts, answers, session.progress, session.stop)
            if judge
            else _rankings_of_people(session.run_dir, session.config, prompts, answers)
        )
    own, decided = _before_decisions(session.run_dir, config, rankings)
    comparisons = _comparisons(rankings, own, decided)
    learned = sum(not comparison.replaced for comparison in comparisons)
    if not learned:
        text = "rank: no answer was preferred to another, so the reward model has nothing to learn"
        raise UserError(Fault("nothing_preferred", text))
    work = session.work("rank")
    write_jsonl(work / "prompts.jsonl", prompts)
    write_jsonl(work / "answers.jsonl", answers)
    write_jsonl(work / "rankings.jsonl", rankings)
    write_jsonl(work / "comparisons.jsonl", comparisons)
    usage: dict[str, Any] = {"judge": summary} if judge and (summary := judge.summary()) else {}
    return RankResult(
        annotators=tuple(sorted({ranking.annotator for ranking in rankings})),
        rankings=len(rankings),
        comparisons=learned,
        longer_preferred=length_bias(rankings, answers),
        krippendorff_alpha=krippendorff_alpha(own),
        **usage,
    )


def _rank_by_judge(
    judge: Judge,
    tie_margin: float,
    prompts: Sequence[Prompt],
    answers: Sequence[Sample],
    progress: Progress,
    stop: StopRequest,
) -> list[Ranking]:
    """Return the judge's rankings; answers whose scores differ by at most `tie_margin` are tied."""
    by_prompt = defaultdict(list)
    for sample in answers:
        by_prompt[sample.prompt_id].append(sample)
    scores = judge_all(judge, "rank", [(prompt, by_prompt[prompt.id]) for prompt in prompts], progress, stop)
    rankings = []
    for prompt, own in zip(prompts, scores, strict=True):
        group = by_prompt[prompt.id]
        shown = [sample.id for sample in group]
        rankings.append(ranking_from_scores(prompt.id, group, own, judge.name, tie_margin, shown))
    return rankings


def _before_decisions(
    run_dir: RunDir, config: RankConfig, rankings: Sequence[Ranking]
) -> tuple[Sequence[Ranking], set[str]]:
    """Return people's own rankings and the decided prompts.

    Decisions on disagreements must neither raise the agreement nor hide how reliable each annotator is.
    """
    if config.source != "human":
        return rankings, set()
    asked = {ranking.prompt_id for ranking in rankings}
    contents = AnnotationStore(run_dir.path / STORE).contents()
    own = [ranking for ranking in contents.current() if ranking.prompt_id in asked]
    return own, {ranking.prompt_id for ranking in contents.decisions}


def _comparisons(rankings: Sequence[Ranking], own: Sequence[Ranking], decided: Collection[str]) -> list[Comparison]:
    """Return the comparisons to learn from, then those of people's `own` rankings that decisions replace."""
    learned = [pair for ranking in rankings for pair in compare(ranking)]
    replaced = [pair for ranking in own if ranking.prompt_id in decided for pair in compare(ranking)]
    return [
        *(pair.model_copy(update={"decision": pair.prompt_id in decided}) for pair in learned),
        *(pair.model_copy(update={"replaced": True}) for pair in replaced),
    ]


def _rankings_of_people(
    run_dir: RunDir, config: Config, prompts: Sequence[Prompt], answers: Sequence[Sample]
) -> list[Ranking]:
    """Return the rankings of these prompts; the store may have more, of prompts sampled before a setting changed.

    Attention checks are left out. Raises `WaitingForPeople` if fewer prompts are ranked than `needed` requires.
    """
    store = AnnotationStore(run_dir.path / STORE)
    store.add_items(prompts, answers)
    contents = store.contents()
    asked = {prompt.id for prompt in prompts} - {check.prompt_id for check in contents.checks}
    rankings = [ranking for ranking in contents.learned() if ranking.prompt_id in asked]
    ranked = len({ranking.prompt_id for ranking in rankings if ranking.tiers})
    enough = needed(config, run_dir.path, len(asked)).prompts
    if ranked < enough:
        of_round = f" of round {run_dir.number}" if run_dir.number > 1 else ""
        raise WaitingForPeople(
            f"Waiting for people: {ranked} of {enough} prompts{of_round} are ranked in {run_dir.path / STORE}. "
            f"Rank with `python -m lowrank_rlhf label {run_dir.run}`, or import rankings "
            "(docs/annotations.md); then resume with the same command."
        )
    return rankings
