"""Matches between two models: KL, scores and verdicts of their answers to the same prompts.

The baseline is in the role REFERENCE, the candidate in the role POLICY. The evaluate stage, PPO's evaluations and the
command `evaluate` all measure answers here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lowrank_rlhf.config.schema import Config, SampleConfig
from lowrank_rlhf.evaluation.answer_pair import COMMAND_SIDES, SCORE, AnswerPair, Verdict, reward_column
from lowrank_rlhf.evaluation.compared_models import Match
from lowrank_rlhf.evaluation.match_metrics import (
    MatchFigures,
    longer_side,
    longer_side_in_words,
    match_figures,
)
from lowrank_rlhf.evaluation.run_judges import judge_all
from lowrank_rlhf.evaluation.sampling import answer_prompts
from lowrank_rlhf.maths.kl import k1
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.maths.sequences import Sequences, pack
from lowrank_rlhf.maths.statistics import wins
from lowrank_rlhf.models.adapters import fill_role, trained_on
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import Scored, model_not_finite, not_finite, require_finite, score_logprobs
from lowrank_rlhf.preferences.judges.loading import Judge
from lowrank_rlhf.run.progress import Bar, Progress, StopRequest
from lowrank_rlhf.run.records import Prompt, Sample
from lowrank_rlhf.training.prompts import encode_prompts
from lowrank_rlhf.training.rewards.reward_sum import Scorer

ROWS_PER_BATCH = 128
"""Answers measured between two steps of the progress bar: states of the shared lower layers exist for these only."""
SEED_KEY = "test answers"
"""Seed key of all answers under comparison: the stage and the command sample the same ones. Evaluations during
training, which select the policy, have another key."""


@dataclass(frozen=True)
class Divergence:
    """Divergence of the policy from the reference on one answer per row."""

    policy: Tensor
    """(N, T), log-probabilities of the policy, 0 outside the response."""
    reference: Tensor
    """(N, T), the same of the reference."""

    @property
    def kl(self) -> Tensor:
        """(N,), nats of each answer: log policy - log reference, summed over its tokens."""
        return k1(self.policy, self.reference).sum(-1)

    @property
    def max_token_difference(self) -> float:
        """Largest absolute difference at any token, nats: it cannot cancel as in a sum."""
        return float(k1(self.policy, self.reference).abs().max())

    def problem(self, prompts: Sequence[Prompt]) -> str | None:
        """Return a message about log-probabilities that are NaN or infinite, or None."""
        ids = [prompt.id for prompt in prompts]
        sides = ((Role.POLICY, self.policy), (Role.REFERENCE, self.reference))
        return next(
            (found for role, side in sides if (found := not_finite(role, "log-probabilities", side, ids))), None
        )


@dataclass(frozen=True)
class MatchResult:
    """Outcome of a match."""

    pairs: list[AnswerPair]
    figures: MatchFigures
    notes: list[str]
    """Warnings about the figures, in sentences."""


def pack_answers(roles: Roles, prompts: Sequence[Prompt], answers: Sequence[Sample], max_new_tokens: int) -> Sequences:
    """Return one row for each prompt with its answer, (N, T)."""
    base = roles.base
    encoded = encode_prompts(base, prompts, base.config.max_length - max_new_tokens)
    batch = pack(encoded, [sample.tokens or () for sample in answers], base.pad, base.device)
    return roles.with_lower_states(batch)


def divergence(roles: Roles, batch: Sequences, temperature: float) -> Divergence:
    """Measure the divergence of the policy from the reference on the rows of a batch."""
    policy, reference = (
        score_logprobs(roles, role, batch, temperature).logprobs for role in (Role.POLICY, Role.REFERENCE)
    )
    return Divergence(policy, reference)


def finite_divergence(roles: Roles, batch: Sequences, temperature: float, prompts: Sequence[Prompt]) -> Divergence:
    """Return the `divergence` on answers to the prompts. Raises `ModelNotFinite` if a log-probability is not finite."""
    found = divergence(roles, batch, temperature)
    if problem := found.problem(prompts):
        raise model_not_finite(problem)
    return found


def finite_scores(
    roles: Roles, batch: Sequences, scorer: Scorer, prompts: Sequence[Prompt], answers: Sequence[Sample]
) -> Scored:
    """Return the scores of answers to the prompts. Raises `ModelNotFinite` if one is not finite."""
    found = scorer.score(roles, batch, prompts, answers)
    require_finite(Role.REWARD, "scores", found.total, [prompt.id for prompt in prompts])
    return found


def score_answers(
    roles: Roles, prompts: Sequence[Prompt], answers: Sequence[Sample], max_new_tokens: int, scorer: Scorer
) -> list[float]:
    """Return the score of one answer to each prompt. Raises as `finite_scores` does."""
    batch = pack_answers(roles, prompts, answers, max_new_tokens)
    scores: list[float] = finite_scores(roles, batch, scorer, prompts, answers).total.tolist()
    return scores


def measure_pairs(
    roles: Roles,
    prompts: Sequence[Prompt],
    baseline: Sequence[Sample],
    candidate: Sequence[Sample],
    sampling: SampleConfig,
    scorer: Scorer | None,
    *,
    rows_per_batch: int | None = None,
    bar: Bar | None = None,
) -> list[AnswerPair]:
    """Measure the KL of each candidate answer, and with a `scorer` the scores of both sides.

    Raises `ModelNotFinite` if a log-probability or a score is not finite.
    """
    pairs: list[AnswerPair] = []
    size = rows_per_batch or len(prompts)
    for start in range(0, len(prompts), size):
        part = slice(start, start + size)
        batch = pack_answers(roles, prompts[part], candidate[part], sampling.max_new_tokens)
        kl = finite_divergence(roles, batch, sampling.temperature, prompts[part]).kl.tolist()
        verdicts: list[dict[str, Verdict]] = [{} for _ in kl]
        spreads: list[tuple[float, float] | None] = [None for _ in kl]
        if scorer:
            own = finite_scores(roles, batch, scorer, prompts[part], candidate[part])
            others = pack_answers(roles, prompts[part], baseline[part], sampling.max_new_tokens)
            base = finite_scores(roles, others, scorer, prompts[part], baseline[part])
            verdicts = _verdicts(base, own)
            if base.spread is not None and own.spread is not None:
                spreads = list(zip(base.spread.tolist(), own.spread.tolist(), strict=True))
        pairs += map(AnswerPair, prompts[part], baseline[part], candidate[part], kl, verdicts, spreads)
        if bar:
            bar.advance(len(batch))
    return pairs


def _verdicts(baseline: Scored, candidate: Scored) -> list[dict[str, Verdict]]:
    """Return the verdicts of each pair: by the score, and by each reward in it."""
    both = {SCORE: (baseline.total, candidate.total)}
    both |= {reward_column(name): (baseline.parts[name], scores) for name, scores in candidate.parts.items()}
    columns = [absolute_verdicts(one.tolist(), other.tolist()) for one, other in both.values()]
    return [dict(zip(both, row, strict=True)) for row in zip(*columns, strict=True)]


def judge_pairs(
    judges: Mapping[str, Judge], pairs: Sequence[AnswerPair], progress: Progress, stop: StopRequest
) -> list[AnswerPair]:
    """Add each judge's verdicts under its key. A judge sees both answers in one call: some only compare."""
    judged = list(pairs)
    for key, judge in judges.items():
        groups = [(pair.prompt, (pair.baseline, pair.candidate)) for pair in judged]
        scores = judge_all(judge, "judge", groups, progress, stop)
        verdicts = (
            absolute_verdicts([pair[0] for pair in scores], [pair[1] for pair in scores])
            if judge.absolute
            else [Verdict(0.5 if other == own else float(own > other)) for other, own in scores]
        )
        judged = [
            replace(pair, verdicts={**pair.verdicts, key: verdict})
            for pair, verdict in zip(judged, verdicts, strict=True)
        ]
    return judged


def absolute_verdicts(baseline: Sequence[float], candidate: Sequence[float]) -> list[Verdict]:
    """Return the verdicts that follow from finite scores of both sides."""
    won = wins(candidate, baseline).tolist()
    return [Verdict(*row) for row in zip(won, zip(baseline, candidate, strict=True), strict=True)]


def run_match(
    roles: Roles, match: Match, scorer: Scorer | None, config: Config, progress: Progress, stop: StopRequest
) -> MatchResult:
    """Let both models answer, measure the answers, and return figures and warnings.

    Both sides sample from the same random streams. `scorer` is None without a reward model.
    """
    pairs = play_match(roles, match, scorer, config.sample, progress, stop)
    judges = {"judge": match.judge.name} if match.judge else {}
    seed = derive_seed(match.seed, "bootstrap")
    figures = match_figures(pairs, match.answers_per_prompt, judges, config.evaluate.bootstrap_samples, seed)
    notes = _other_bases(match, config.model.source)
    if (side := longer_side(figures)) is not None:
        notes.append(longer_side_in_words(side, figures, COMMAND_SIDES))
    return MatchResult(pairs, figures, notes)


def play_match(
    roles: Roles,
    match: Match,
    scorer: Scorer | None,
    sampling: SampleConfig,
    progress: Progress,
    stop: StopRequest,
) -> list[AnswerPair]:
    """Return the pairs of answers of a match, grouped by prompt."""
    fill_role(roles, Role.REFERENCE, match.left.folder)
    fill_role(roles, Role.POLICY, match.right.folder)
    count, seed = match.answers_per_prompt, derive_seed(match.seed, SEED_KEY)
    answers: dict[Role, list[Sample]] = {}
    for side, role in zip(COMMAND_SIDES, (Role.REFERENCE, Role.POLICY), strict=True):
        with progress.track(side, len(match.prompts) * count, "answers") as bar:
            groups = answer_prompts(
                roles, role, match.prompts, sampling, seed, answers_per_prompt=count, bar=bar, stop=stop
            )
        answers[role] = [sample for group in groups for sample in group]
    prompts = [prompt for prompt in match.prompts for _ in range(count)]
    left, right = answers[Role.REFERENCE], answers[Role.POLICY]
    with progress.track("read", len(prompts), "pairs") as bar:
        pairs = measure_pairs(roles, prompts, left, right, sampling, scorer, rows_per_batch=ROWS_PER_BATCH, bar=bar)
    return judge_pairs({"judge": match.judge} if match.judge else {}, pairs, progress, stop)


def _other_bases(match: Match, source: str) -> list[str]:
    """Return a warning for each adapter whose config names another base: shapes alone do not show it."""
    named = {model.name: trained_on(model.folder) for model in (match.left, match.right) if model.folder}
    return [
        f"{name} was trained on {base} according to its config, but runs on {source} here"
        for name, base in named.items()
        if base not in (None, source)
    ]
