"""Stage 2b: rankings of the answers from a judge, a data set or people, and the comparisons that follow from them."""

from collections import defaultdict
from typing import Any

from lowrank_rlhf.errors import UserError, WaitingForPeople
from lowrank_rlhf.evaluation.run_judges import judge_all, open_judge
from lowrank_rlhf.preferences.agreement import krippendorff_alpha, length_bias
from lowrank_rlhf.preferences.expand import compare, ranking_from_scores
from lowrank_rlhf.preferences.judges.loading import Judge
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.records import Prompt, Ranking, Sample, read_jsonl, write_jsonl
from lowrank_rlhf.session import Session

STORE = "annotations.sqlite"


def run(session: Session) -> dict[str, Any]:
    """Make `prompts.jsonl`, `answers.jsonl`, `rankings.jsonl` and `comparisons.jsonl`."""
    config = session.config.rank
    judge = (
        open_judge(config.judge, config, session.run_dir.path, session.progress, session.stop)
        if config.source == "judge"
        else None
    )
    if data := session.data.comparisons:
        prompts, answers, rankings = list(data.prompts), list(data.answers), list(data.rankings)
    else:
        answers = list(read_jsonl(session.run_dir.artifact("samples.jsonl"), Sample))
        asked = {sample.prompt_id for sample in answers}
        prompts = [prompt for prompt in session.prompts[0] if prompt.id in asked]
        rankings = (
            _rank_by_judge(session, judge, prompts, answers)
            if judge
            else _rankings_of_people(session, prompts, answers)
        )
    comparisons = [comparison for ranking in rankings for comparison in compare(ranking)]
    if not comparisons:
        raise UserError("no answer was preferred to another: nothing for the reward model to learn from")
    work = session.work("rank")
    write_jsonl(work / "prompts.jsonl", prompts)
    write_jsonl(work / "answers.jsonl", answers)
    write_jsonl(work / "rankings.jsonl", rankings)
    write_jsonl(work / "comparisons.jsonl", comparisons)
    return {
        "annotators": sorted({ranking.annotator for ranking in rankings}),
        "rankings": len(rankings),
        "comparisons": len(comparisons),
        "longer_preferred": length_bias(rankings, answers),
        "krippendorff_alpha": krippendorff_alpha(rankings),
        **({"judge": summary} if judge and (summary := judge.summary()) else {}),
    }


def _rank_by_judge(session: Session, judge: Judge, prompts: list[Prompt], answers: list[Sample]) -> list[Ranking]:
    by_prompt = defaultdict(list)
    for sample in answers:
        by_prompt[sample.prompt_id].append(sample)
    scores = judge_all(
        judge, "rank", [(prompt, by_prompt[prompt.id]) for prompt in prompts], session.progress, session.stop
    )
    margin = session.config.rank.tie_margin
    rankings = []
    for prompt, own in zip(prompts, scores, strict=True):
        group = by_prompt[prompt.id]
        shown = [sample.id for sample in group]
        rankings.append(ranking_from_scores(prompt.id, group, own, judge.name, margin, shown))
    return rankings


def _rankings_of_people(session: Session, prompts: list[Prompt], answers: list[Sample]) -> list[Ranking]:
    """Those of the run's prompts; the store may hold more, of prompts that were sampled before a setting changed."""
    store = AnnotationStore(session.run_dir.path / STORE)
    store.add_items(prompts, answers)
    asked = {prompt.id for prompt in prompts}
    rankings = [ranking for ranking in store.rankings() if ranking.prompt_id in asked]
    ranked = len({ranking.prompt_id for ranking in rankings if ranking.tiers})
    enough = min(session.config.rank.minimum_rankings, len(prompts))
    if ranked < enough:
        raise WaitingForPeople(
            f"Waiting for people: {ranked} of {enough} prompts are ranked in {session.run_dir.path / STORE}. "
            f"Rank with `python -m lowrank_rlhf label {session.run_dir.path}`, or import rankings "
            "(docs/annotations.md); then give the same command again to go on."
        )
    return rankings
