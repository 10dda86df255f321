"""Typed results of the stages, stored in their done marks (`done/<stage>.json`, key `summary`).

Report, model card, page and sweep read these. Fields that older versions did not write have defaults, so that their run
folders stay readable.
"""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt

from lowrank_rlhf.maths.reward_gate import Weakness
from lowrank_rlhf.run.results.parts import (
    FileSum,
    Interval,
    PromptAudit,
    ReliabilityRow,
    Result,
    RoundAccuracy,
    RowsSum,
)
from lowrank_rlhf.run.results.yardsticks import Yardsticks

ClaimId = Literal[
    "",
    "kl_is_zero",
    "starts_as_last_round",
    "first_ratio_is_one",
    "reference_is_sft",
    "base_unchanged",
    "other_roles_unchanged",
    "reward_reloads",
]


class Claim(Result):
    """One self-check of a run."""

    id: ClaimId = ""
    """Key of the check; empty in runs of version 0.1."""
    claim: str
    """The check as a sentence, for people."""
    figure: float | str | None = None
    holds: bool


class StageResult(Result):
    """Fields that any stage may have."""

    claims: tuple[Claim, ...] = ()
    message: str | None = None
    """Last line for the terminal. For people: no code reads it."""


class SftResult(StageResult):
    """Result of `sft`."""

    source: Literal["train", "base", "adapter"] = "train"
    examples: NonNegativeInt | None = None
    """Demonstrations in one epoch; None where nothing was trained."""
    steps: NonNegativeInt | None = None
    loss: float | None = None
    """Mean over the last steps, nats per token."""


class SampleResult(StageResult):
    """Result of `sample`."""

    prompts: NonNegativeInt
    answers: NonNegativeInt
    tokens: NonNegativeInt | None = None
    tokens_per_second: float | None = None
    eos_rate: float | None = None


class RankResult(StageResult):
    """Result of `rank`."""

    annotators: tuple[str, ...] = ()
    rankings: NonNegativeInt
    comparisons: NonNegativeInt
    longer_preferred: float | None = None
    """Share of the comparisons in which the longer answer was preferred."""
    krippendorff_alpha: float | None = None
    judge: dict[str, Any] | None = None
    """Cost and consistency of an endpoint judge."""


ScoresOf = Literal["SFT answers", "the compared answers"]
"""Answers over which the scores' mean and deviation are computed."""


class ScoreStatistics(Result):
    """Mean and deviation of the reward model's raw scores, in `reward.json` and in the result of `reward`."""

    score_mean: float
    score_std: float
    scores_of: ScoresOf


class RewardResult(StageResult):
    """Result of `reward`."""

    prompts_train: NonNegativeInt | None = None
    pairs_train: NonNegativeInt | None = None
    pairs_held_out: NonNegativeInt | None = None
    prompts_held_out: NonNegativeInt | None = None
    accuracy: float | None = None
    accuracy_interval: Interval | None = None
    longer_wins: float | None = None
    """Accuracy of the rule "the longer answer wins" on the same pairs."""
    longer_wins_interval: Interval | None = None
    over_length: float | None = None
    """Accuracy less that of the better rule by length, longer or shorter; paired by prompt."""
    over_length_interval: Interval | None = None
    ece: float | None = None
    """Expected calibration error, 0 to 1."""
    reliability: tuple[ReliabilityRow, ...] = ()
    margins: tuple[float, ...] = ()
    length_correlation: float | None = None
    score_mean: float | None = None
    score_std: float | None = None
    scores_of: ScoresOf | None = None
    weakness: Weakness | None = None
    weak: str | None = None
    """The weakness as a sentence, for people; all that version 0.1 wrote."""
    verdict: str | None = None
    prompt_audit: PromptAudit | None = None
    by_round: tuple[RoundAccuracy, ...] = ()
    """Accuracy on the answers of each round, from the second round on."""
    head_l2: float | None = None
    annotator_weights: dict[str, float] | None = None
    member_accuracies: tuple[float, ...] = ()
    """Accuracy of each of several members on the held-out pairs."""
    score_spread: float | None = None
    """Standard deviation of several members on a reference answer, on average, in deviations of the score."""


class UsedReward(Result):
    """One of `ppo.rewards`, as the policy was trained on it."""

    name: str
    source: str
    weight: float
    mean: float = 0.0
    """Subtracted from each score: its mean on SFT's answers if it is normalised."""
    std: float = 1.0
    """Divides each score."""


class PolicyResult(StageResult):
    """Result of the stage `ppo`, with any `align.algorithm`."""

    algorithm: str = "ppo"
    steps: NonNegativeInt | None = None
    best_step: NonNegativeInt | None = None
    seconds_per_step: float | None = None
    gold: str | None = None
    """Judge that scored the training curves in addition to the reward model."""
    second_judge: str | None = None
    """Another judge that scored them, which nothing was tuned on; None if `gold` is that judge."""
    rewards: tuple[UsedReward, ...] = ()
    """Rewards in the sum that the policy was trained on; empty for the reward model alone."""


FigureId = Literal[
    "mean_score", "win_rate", "length_tokens", "length_characters", "eos_rate", "distinct_2", "top_opener"
]


SHARES: frozenset[FigureId] = frozenset(("win_rate", "eos_rate", "top_opener"))
"""Figures that are shares of 1; the others are numbers with a unit."""


class FigureRow(Result):
    """One figure of the two models under comparison."""

    id: FigureId | None = None
    """None in runs of version 0.1, which have a label only."""
    judge: str | None = None
    """Judge (or `reward model`) of the figure, for `mean_score` and `win_rate`."""
    interval: Interval | None = None
    openers: tuple[str, str] | None = None
    """Most common two-word openers of both models, for `top_opener`."""
    figure: str = ""
    """Label in English."""
    sft: float | None = None
    policy: float | None = None
    note: str = ""


class WordGrowth(Result):
    """Content words whose share of answers grows most from SFT to policy (`maths.word_shift`)."""

    words: tuple[str, ...]
    before: float
    """Share of SFT's answers with any of the words."""
    after: float
    p: float
    """One-sided p-value at equal length; accounts for the choice among all words."""


class VarietyFall(Result):
    """Distinct-2 of both models' answers, each pair cut to the shorter one's words (`maths.word_shift`)."""

    before: float
    after: float
    p: float
    """One-sided p-value of a fall."""


class EvaluateResult(StageResult):
    """Result of `evaluate`: SFT against the policy on test prompts."""

    prompts: NonNegativeInt
    answers_per_prompt: PositiveInt = 1
    selected_on_test: bool = True
    """True if the policy was selected on these prompts, as in all results of versions without this field."""
    judge: str | None = None
    """Name of the judge that ranked; None for people or a data set."""
    second_judge: str | None = None
    win_rate: float | None = None
    win_rate_interval: Interval | None = None
    mean_shift: float | None = None
    """Rise of the judge's mean score, in standard deviations of SFT's scores."""
    kl_per_answer: float | None = None
    kl_mean_interval: Interval | None = None
    temperature: float | None = None
    """Sampling temperature, at which the KL is measured too."""
    kl_at_temperature_1: float | None = None
    """KL of the same tokens at temperature 1, as publications report it; nats per answer."""
    kl_at_temperature_1_interval: Interval | None = None
    length_controlled_win_rate: float | None = None
    """Win rate if all answers were equally long (Dubois et al. 2024, arXiv 2404.04475)."""
    length_controlled_interval: Interval | None = None
    favoured_words: WordGrowth | None = None
    variety: VarietyFall | None = None
    table: tuple[FigureRow, ...] = ()
    yardsticks: Yardsticks | None = None


class Results(Result):
    """Results of a run's finished stages; None for a stage that is not done."""

    sft: SftResult | None = None
    sample: SampleResult | None = None
    rank: RankResult | None = None
    reward: RewardResult | None = None
    ppo: PolicyResult | None = None
    evaluate: EvaluateResult | None = None

    def by_stage(self) -> dict[str, StageResult]:
        """Return the existing results by stage name, in the order of the stages."""
        return {name: result for name in type(self).model_fields if (result := getattr(self, name)) is not None}


class Fingerprint(Result):
    """Settings under dotted keys, and hashes or commits of the inputs, that determine a stage's result."""

    settings: dict[str, Any]
    inputs: dict[str, str]


class Started(Result):
    """Record of a started stage (`work/<stage>/fingerprint.json`)."""

    fingerprint: Fingerprint
    seconds: FiniteFloat = 0.0
    """Seconds of all attempts so far."""
    peak_memory_bytes: NonNegativeInt = 0
    processes: NonNegativeInt = 1


R = TypeVar("R", bound=StageResult)


class DoneMark(Started, Generic[R]):
    """Done mark of a stage: record of its start, its result, time and memory."""

    result: Annotated[R, Field(alias="summary")]
    loading_seconds: float = 0.0
    """Part of `seconds` spent loading the model."""
    planned_memory_bytes: NonNegativeInt | None = None
    finished_at: str | None = None
    outputs: dict[str, FileSum] | None = None
    """Size and checksum of every output file; None in marks of older versions, whose outputs cannot be checked."""
    logs: dict[str, RowsSum] = Field(default_factory=dict)
    """Checksums of the stage's rows in metrics.jsonl, watched.jsonl and rollouts.jsonl."""
    taken_from: str | None = None
    """Name of the run from which a sweep copied the outputs."""


MARKS: dict[str, type[DoneMark[Any]]] = {
    "sft": DoneMark[SftResult],
    "sample": DoneMark[SampleResult],
    "rank": DoneMark[RankResult],
    "reward": DoneMark[RewardResult],
    "ppo": DoneMark[PolicyResult],
    "evaluate": DoneMark[EvaluateResult],
}
"""Type of each stage's done mark."""
