"""Figures of the final evaluation that put its win rate to the test: length, wording, and KL at temperature 1."""

from collections.abc import Sequence
from dataclasses import replace

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.evaluation.answer_pair import SCORE, AnswerPair
from lowrank_rlhf.evaluation.match import ROWS_PER_BATCH, finite_divergence, pack_answers
from lowrank_rlhf.evaluation.match_metrics import both_sides, kl_values, win_values
from lowrank_rlhf.maths.length_control import length_controlled_win_rate
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.maths.statistics import Floats, bootstrap_interval
from lowrank_rlhf.maths.word_shift import favoured_words, variety_change
from lowrank_rlhf.models.roles import Roles
from lowrank_rlhf.run.results import EvaluateResult, VarietyFall, WordGrowth


def kl_at_temperature(
    roles: Roles, pairs: Sequence[AnswerPair], max_new_tokens: int, temperature: float
) -> list[AnswerPair]:
    """Return the pairs with their KL measured again, of the same tokens at another temperature.

    The roles POLICY and REFERENCE must be the models that the pairs were sampled from.
    """
    measured: list[AnswerPair] = []
    for start in range(0, len(pairs), ROWS_PER_BATCH):
        part = pairs[start : start + ROWS_PER_BATCH]
        prompts = [pair.prompt for pair in part]
        batch = pack_answers(roles, prompts, [pair.candidate for pair in part], max_new_tokens)
        kl = finite_divergence(roles, batch, temperature, prompts).kl.tolist()
        measured += [replace(pair, kl=nats) for pair, nats in zip(part, kl, strict=True)]
    return measured


def with_final_checks(
    result: EvaluateResult, roles: Roles, pairs: Sequence[AnswerPair], config: Config
) -> EvaluateResult:
    """Return the result with its win rate at equal length, favoured words, variety, and KL at temperature 1.

    `pairs` are grouped by prompt, equally many to each; the roles are as for `kl_at_temperature`.
    """
    prompts, sampling = len({pair.prompt.id for pair in pairs}), config.sample
    samples, seed = config.evaluate.bootstrap_samples, derive_seed(config.seed, "bootstrap")

    def grouped(values: Floats) -> Floats:
        return values.reshape(prompts, -1)  # (N K,) -> (N, K)

    at_1 = pairs if sampling.temperature == 1 else kl_at_temperature(roles, pairs, sampling.max_new_tokens, 1.0)
    kl = grouped(kl_values(at_1)).mean(axis=1)
    won = grouped(win_values(pairs, "judge" if "judge" in pairs[0].verdicts else SCORE))
    lengths = [grouped(values) for values in both_sides(pairs, lambda sample: len(sample.text))]
    controlled = length_controlled_win_rate(won, lengths[1], lengths[0], samples, seed)
    before, after = [pair.baseline.text for pair in pairs], [pair.candidate.text for pair in pairs]
    words = favoured_words(before, after)
    return result.model_copy(
        update={
            "temperature": sampling.temperature,
            "kl_at_temperature_1": float(kl.mean()),
            "kl_at_temperature_1_interval": bootstrap_interval(kl, samples, seed),
            "length_controlled_win_rate": controlled.win_rate,
            "length_controlled_interval": controlled.interval,
            "favoured_words": WordGrowth(**words._asdict()) if words else None,
            "variety": VarietyFall(**variety_change(before, after)._asdict()),
        }
    )
