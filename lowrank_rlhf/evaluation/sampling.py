"""Sampled answers as records, for all stages and commands that sample."""

from collections.abc import Sequence

from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.models.generation import Response, sample_answers
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.run.progress import Bar, StopRequest
from lowrank_rlhf.run.records import Prompt, Sample
from lowrank_rlhf.run.step_log import StepLog
from lowrank_rlhf.training.prompts import encode_prompts


class AnswerLog:
    """Answers sampled so far by a long stage, on disk batch by batch, in the order of sampling."""

    def __init__(self, log: StepLog, stage: str, eos: int) -> None:
        self._log, self._stage = log, stage
        self.groups: list[list[Response]] = []
        """Responses to each prompt that has some."""
        for row in log.read(stage):
            if row["step"] == len(self.groups):  # a line cut short by a kill was sampled again, and follows later
                self.groups += [
                    [Response(tuple(tokens), tokens[-1] == eos) for tokens in group] for group in row["new"]
                ]

    def add(self, groups: list[list[Response]]) -> None:
        """Append a batch."""
        new = [[list(response.tokens) for response in group] for group in groups]
        self._log.append(self._stage, len(self.groups), new=new)
        self.groups += groups


def answer_prompts(
    roles: Roles,
    role: Role,
    prompts: Sequence[Prompt],
    sampling: SampleConfig,
    seed: int,
    *,
    answers_per_prompt: int = 1,
    bar: Bar | None = None,
    stop: StopRequest | None = None,
    log: AnswerLog | None = None,
) -> list[list[Sample]]:
    """Sample answers of a role to each prompt.

    `bar` advances by answers, and a requested stop is obeyed between batches. With `log`, sampling resumes after the
    answers in it, and new ones are added to it. Raises `UserError` for a prompt that is too long.
    """
    base = roles.base

    def on_batch(groups: list[list[Response]], **figures: float) -> None:
        if log:
            log.add(groups)
        if bar:
            bar.advance(answers_per_prompt * len(groups), **figures)
        if stop:
            stop.check("everything before this stage is saved")

    responses = sample_answers(
        roles,
        role,
        encode_prompts(base, prompts, base.config.max_length - sampling.max_new_tokens),
        sampling,
        seed,
        answers_per_prompt=answers_per_prompt,
        done=log.groups if log else (),
        on_batch=on_batch,
    )
    return [
        [
            Sample(
                id=f"{prompt.id}-{k}",
                prompt_id=prompt.id,
                text=base.decode(response.tokens),
                finished=response.finished,
                tokens=response.tokens,
            )
            for k, response in enumerate(group)
        ]
        for prompt, group in zip(prompts, responses, strict=True)
    ]


def answer_greedily(
    roles: Roles,
    role: Role,
    prompts: Sequence[Prompt],
    sampling: SampleConfig,
    *,
    bar: Bar | None = None,
    stop: StopRequest | None = None,
) -> list[Sample]:
    """Return a role's answer to each prompt with the most likely token at every step, whatever the temperature.

    `bar`, `stop` and errors are those of `answer_prompts`.
    """
    greedy = sampling.model_copy(update={"temperature": 0.0})
    return [group[0] for group in answer_prompts(roles, role, prompts, greedy, 0, bar=bar, stop=stop)]
