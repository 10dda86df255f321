"""Difference between the output of an exported folder and the run's own, with its table for the model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.reports.format import Table
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.memory_usage import free_memory_bytes
from lowrank_rlhf.run.progress import Progress, memory
from lowrank_rlhf.run.records import Prompt, Sample, read_jsonl
from lowrank_rlhf.training.prompts import encode_prompts, first_fitting, max_prompt_tokens

if TYPE_CHECKING:
    from lowrank_rlhf.export.merged_model import Plan
    from lowrank_rlhf.export.reloaded_model import Difference
    from lowrank_rlhf.models.roles import Roles

PROMPTS, TOKENS = 16, 32
"""Number of prompts, and of tokens of each answer, on which the difference to the run's own output is measured."""
NO_PROMPT = "no prompt leaves room for an answer of sample.max_new_tokens in model.max_length"


def output_difference(
    roles: "Roles", config: Config, prompts: Sequence[Prompt], plan: "Plan", out: Path, progress: Progress
) -> tuple["Difference | None", str | None]:
    """Measure the difference between the folder's output and the run's, or return why it cannot be measured."""
    from lowrank_rlhf.export.reloaded_model import difference, role_logprobs
    from lowrank_rlhf.models.generation import sample_answers
    from lowrank_rlhf.models.roles import Role

    base, sampling = roles.base, config.sample
    needed, free = plan.size * base.compute_dtype.itemsize // 2, free_memory_bytes(base.device)
    if needed > free:
        return None, f"loading the model again takes {memory(needed)} of memory, and {memory(free)} are free here"
    limit = max_prompt_tokens(config)
    if not (chosen := first_fitting(base, prompts, limit, PROMPTS)):
        return None, NO_PROMPT
    progress.say("measuring the difference to the run's own output")
    encoded = encode_prompts(base, chosen, limit)
    answers = sample_answers(
        roles,
        Role.POLICY,
        encoded,
        sampling.model_copy(update={"max_new_tokens": min(TOKENS, sampling.max_new_tokens)}),
        derive_seed(config.seed, "export"),
    )
    responses = [response for (response,) in answers]
    expected = role_logprobs(roles, Role.POLICY, encoded, responses)
    return difference(expected, out, encoded, responses, base), None


def score_difference(
    roles: "Roles",
    run_dir: RunDir,
    config: Config,
    prompts: Sequence[Prompt],
    settings: Mapping[str, Any],
    out: Path,
) -> tuple[float, int] | None:
    """Return the largest difference of normalised scores, and the number of ranked answers; None without any."""
    from lowrank_rlhf.evaluation.match import score_answers
    from lowrank_rlhf.export.reloaded_model import classifier_scores
    from lowrank_rlhf.training.rollout import RewardScale

    scale = RewardScale.of(settings)
    base, most, limit = roles.base, config.model.max_length, max_prompt_tokens(config)
    if not (chosen := first_fitting(base, prompts, limit, PROMPTS)):
        return None
    encoded = encode_prompts(base, chosen, limit)
    samples = {sample.prompt_id: sample for sample in read_jsonl(run_dir.artifact("answers.jsonl"), Sample)}
    answers = [samples[prompt.id] for prompt in chosen]
    tokens = [sample.tokens or tuple(base.encode_response(sample.text)) for sample in answers]
    tokens = [of[: most - len(before)] for of, before in zip(tokens, encoded, strict=True)]  # as the reward stage does
    answers = [sample.model_copy(update={"tokens": of}) for sample, of in zip(answers, tokens, strict=True)]
    own = score_answers(roles, chosen, answers, config.sample.max_new_tokens, scale)
    exported = classifier_scores(out, encoded, tokens, scale, base)
    return max(abs(a - (b - scale.mean) / scale.std) for a, b in zip(own, exported, strict=True)), len(answers)


def score_table(gap: float, answers: int) -> Table:
    """Return the card's table for `score_difference`."""
    return Table(
        "Against the run's own scores",
        "What rounding to 16 bits changed, in deviations of the run's scores.",
        ("figure", "value"),
        (("largest difference", f"{gap:.2g}"), ("answers", str(answers))),
    )


def difference_table(measured: "Difference | None") -> Table | None:
    """Return the card's table for `output_difference`; None if it was not measured."""
    if measured is None:
        return None
    rows = (
        ("log-probability of a token, largest difference", f"{measured.max_logprob:.3g} nats"),
        ("log-probability of a token, mean difference", f"{measured.mean_logprob:.3g} nats"),
        ("KL divergence per token", f"{measured.kl_per_token:.3g} nats"),
        ("same most probable token", f"{100 * measured.same_best:.1f} %"),
    )
    lead = (
        f"The merged weights are rounded to 16 bits. Against the quantised base with a separate adapter, on "
        f"{measured.tokens} sampled tokens of answers to {measured.prompts} prompts, both computed in "
        f"{measured.computed_in}"
        + (":" if measured.computed_in == "float32" else ", whose own rounding is in these figures too:")
    )
    return Table("Against the run's own output", lead, ("figure", "value"), rows)
