"""Score the rows of RewardBench or RewardBench 2 with a run's reward model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.length_filter import SHORTEST_ANSWER
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.evaluation.benchmarks.kept_values import KeptValues, digest_of
from lowrank_rlhf.evaluation.benchmarks.rows import BenchmarkData, BenchmarkRow
from lowrank_rlhf.evaluation.benchmarks.scoring import TIES, ScoredRow, question_of, reward_bench_figures
from lowrank_rlhf.evaluation.reward_metrics import GROUPS_PER_BATCH, load_reward_model, raw_scores
from lowrank_rlhf.models.base import Base
from lowrank_rlhf.models.roles import Roles
from lowrank_rlhf.run.files import sha256
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.results.benchmarks import RewardBenchResult, RewardBenchScore
from lowrank_rlhf.training.reward_data import Group, cut_answers


@dataclass(frozen=True)
class _Tokenized:
    row: BenchmarkRow
    group: Group
    cut: int
    """Number of answers that were too long."""


def measure_reward_bench(
    roles: Roles, reward: Path, data: BenchmarkData, config: Config, kept: KeptValues, seed: int, progress: Progress
) -> RewardBenchResult:
    """Return the scores of the reward model in the folder `reward`; batches that are in `kept` are not scored again.

    As in the published evaluation, answers are cut to the maximum length. Raises `UserError` if no prompt fits it.
    """
    longest, model = config.model.max_length, sha256(reward)
    rows = _complete([found for row in data.rows if (found := _tokenized(roles.base, row, longest))])
    if not rows:
        raise UserError(
            f"no prompt of {data.source} fits model.max_length={longest}; "
            "add a larger model.max_length=... to the command"
        )
    batches = [rows[start : start + GROUPS_PER_BATCH] for start in range(0, len(rows), GROUPS_PER_BATCH)]
    digests = [_digest(model, config, batch) for batch in batches]
    missing = [index for index, digest in enumerate(digests) if kept.get(digest) is None]
    left = sum(len(batches[index]) for index in missing)
    scale = load_reward_model(roles, reward)
    with progress.track("reward-bench", len(rows), "rows", len(rows) - left) as bar:
        for index in missing:
            scores = raw_scores(roles, [each.group for each in batches[index]], scale)
            kept.add(digests[index], [own.tolist() for own in scores])
            bar.advance(len(batches[index]))
    scored = [
        ScoredRow(each.row.prompt.id, each.row.subset, scores, each.row.correct)
        for batch, digest in zip(batches, digests, strict=True)
        for each, scores in zip(batch, kept.get(digest), strict=True)
    ]
    figures = reward_bench_figures(data.benchmark, scored, config.evaluate.bootstrap_samples, seed)
    return RewardBenchResult(
        benchmark=data.benchmark,
        file=data.source,
        reward_model=model,
        max_length=longest,
        rows=len(rows),
        left_out=len(data.rows) - len(rows),
        cut=sum(each.cut for each in rows),
        scores=tuple(RewardBenchScore(**figure._asdict()) for figure in figures),
    )


def _tokenized(base: Base, row: BenchmarkRow, max_length: int) -> _Tokenized | None:
    """Return the row with its answers cut to the maximum length, or None if the prompt leaves no room for any."""
    prompt = base.encode_prompt(row.prompt)
    longest = max_length - len(prompt)
    if longest < SHORTEST_ANSWER:
        return None
    answers = [base.encode_response(text) for text in row.answers]
    names = [f"{row.prompt.id}-{index}" for index in range(len(answers))]
    lengths = [len(text) for text in row.answers]
    group = Group(row.prompt.id, prompt, names, answers, lengths, pairs=[], rankings=[])
    return _Tokenized(row, cut_answers(group, longest), sum(len(answer) > longest for answer in answers))


def _complete(rows: Sequence[_Tokenized]) -> list[_Tokenized]:
    """Return the rows without those of Ties whose question has not both its rows."""
    ties = {each.row.prompt.id for each in rows if each.row.subset == TIES}
    both = {name for name in map(question_of, ties) if {f"tied:{name}", f"ref:{name}"} <= ties}
    return [each for each in rows if each.row.subset != TIES or question_of(each.row.prompt.id) in both]


def _digest(model: str, config: Config, batch: Sequence[_Tokenized]) -> str:
    """Return the digest of all that the scores of a batch depend on: a row's depend on the others by rounding."""
    tokens = [[each.group.prompt, each.group.answers] for each in batch]
    return digest_of(model, config.model.model_dump(mode="json"), tokens)
