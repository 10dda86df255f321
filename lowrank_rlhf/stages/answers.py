"""Sampled answers as records: what sample, ppo and evaluate share."""

from collections.abc import Sequence

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.progress import Bar
from lowrank_rlhf.records import Prompt, Sample
from lowrank_rlhf.stages.context import Context


def encode_prompts(context: Context, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of the prompts. Raises `UserError` naming one that leaves no room for an answer."""
    room = context.config.model.max_length - context.config.sample.max_new_tokens
    encoded = [context.base.encode_prompt(prompt) for prompt in prompts]
    for prompt, tokens in zip(prompts, encoded, strict=True):
        if len(tokens) > room:
            raise UserError(
                f"prompt {prompt.id} has {len(tokens)} tokens; "
                f"model.max_length less sample.max_new_tokens leaves {room}"
            )
    return encoded


def answer(
    context: Context, role: Role, prompts: Sequence[Prompt], *, count: int = 1, seed: int, bar: Bar | None = None
) -> list[list[Sample]]:
    """`count` answers of that role to each prompt, with the run's sampling settings.

    With a `bar` it is shown, and a stop that was asked for is obeyed between batches.
    """
    config = context.config.sample

    def on_batch(answers: int, **figures: float) -> None:
        if bar:
            bar.advance(answers, **figures)
            context.stop.check("everything before this stage is saved")

    responses = sample_answers(
        context.roles,
        role,
        encode_prompts(context, prompts),
        answers_per_prompt=count,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=seed,
        batch_size=config.batch_size,
        on_batch=on_batch,
    )
    return [
        [
            Sample(
                id=f"{prompt.id}-{k}",
                prompt_id=prompt.id,
                text=context.base.decode(response.tokens),
                finished=response.finished,
                tokens=response.tokens,
            )
            for k, response in enumerate(answers)
        ]
        for prompt, answers in zip(prompts, responses, strict=True)
    ]
