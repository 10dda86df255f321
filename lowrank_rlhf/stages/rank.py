"""Stage 2b: rankings of the answers from a judge, a data set or people, and the comparisons that follow from them."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from lowrank_rlhf.data.comparisons import load_comparisons
from lowrank_rlhf.errors import UserError, WaitingForPeople
from lowrank_rlhf.ranking.agreement import krippendorff_alpha, length_bias
from lowrank_rlhf.ranking.expand import compare, ranking_from_scores
from lowrank_rlhf.ranking.judges import load_judge
from lowrank_rlhf.ranking.store import AnnotationStore
from lowrank_rlhf.records import Prompt, Ranking, Sample, read_jsonl, write_jsonl
from lowrank_rlhf.stages.context import Context

STORE = "annotations.sqlite"


def run(context: Context) -> dict[str, Any]:
    """Make `prompts.jsonl`, `answers.jsonl`, `rankings.jsonl` and `comparisons.jsonl`."""
    config = context.config.rank
    if config.source == "dataset":
        data = load_comparisons(Path(str(config.dataset)))
        for note in data.notes:
            context.progress.say(f"  {note}")
        prompts, answers, rankings = list(data.prompts), list(data.answers), list(data.rankings)
    else:
        answers = list(read_jsonl(context.run_dir.artifact("samples.jsonl"), Sample))
        asked = {sample.prompt_id for sample in answers}
        prompts = [prompt for prompt in context.prompts[0] if prompt.id in asked]
        rank = _rank_by_judge if config.source == "judge" else _rankings_of_people
        rankings = rank(context, prompts, answers)
    comparisons = [comparison for ranking in rankings for comparison in compare(ranking)]
    if not comparisons:
        raise UserError("no answer was preferred to another: nothing for the reward model to learn from")
    work = context.work("rank")
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
    }


def _rank_by_judge(context: Context, prompts: list[Prompt], answers: list[Sample]) -> list[Ranking]:
    config = context.config.rank
    judge = load_judge(config.judge)
    by_prompt = defaultdict(list)
    for sample in answers:
        by_prompt[sample.prompt_id].append(sample)
    rankings = []
    with context.progress.track("rank", len(prompts), "prompts") as bar:
        for prompt in prompts:
            group = by_prompt[prompt.id]
            shown = [sample.id for sample in group]
            scores = judge(prompt, group)
            rankings.append(ranking_from_scores(prompt.id, group, scores, config.judge, config.tie_margin, shown))
            bar.advance(1)
            context.stop.check("everything before this stage is saved")
    return rankings


def _rankings_of_people(context: Context, prompts: list[Prompt], answers: list[Sample]) -> list[Ranking]:
    store = AnnotationStore(context.run_dir.path / STORE)
    store.add_items(prompts, answers)
    enough = min(context.config.rank.minimum_rankings, len(prompts))
    if store.count() < enough:
        raise WaitingForPeople(
            f"Waiting for people: {store.count()} of {enough} prompts are ranked in {context.run_dir.path / STORE}. "
            "Import rankings there, then give the same command again to go on."
        )
    return store.rankings()
