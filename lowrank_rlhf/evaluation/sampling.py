"""Sampled answers as records: what sample, ppo and evaluate share."""

from collections.abc import Sequence

from lowrank_rlhf.models.generation import Response, sample_answers
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.run.directory import StepLog
from lowrank_rlhf.run.progress import Bar
from lowrank_rlhf.run.records import Prompt, Sample
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.prompts import encode_prompts, max_prompt_tokens


class KeptAnswers:
    """The answers of a stage that samples for long, on disk batch by batch, in the order in which they were sampled."""

    def __init__(self, log: StepLog, stage: str, eos: int) -> None:
        self._log, self._stage = log, stage
        self.groups: list[list[Response]] = []
        """To each prompt, those that have been sampled."""
        for row in log.read(stage):
            if row["step"] == len(self.groups):  # a line cut short by a kill was sampled again, and stands further on
                self.groups += [
                    [Response(tuple(tokens), tokens[-1] == eos) for tokens in group] for group in row["new"]
                ]

    def add(self, groups: list[list[Response]]) -> None:
        """Keep a batch."""
        new = [[list(response.tokens) for response in group] for group in groups]
        self._log.append(self._stage, len(self.groups), new=new)
        self.groups += groups


def answer(
    session: Session,
    role: Role,
    prompts: Sequence[Prompt],
    *,
    count: int = 1,
    seed: int,
    bar: Bar | None = None,
    kept: KeptAnswers | None = None,
) -> list[list[Sample]]:
    """`count` answers of that role to each prompt, with the run's sampling settings.

    With a `bar` it is shown, and a stop that was asked for is obeyed between batches. `kept` has what a call before
    this one sampled, and gets what this one does.
    """
    config = session.config.sample

    def on_batch(groups: list[list[Response]], **figures: float) -> None:
        if kept:
            kept.add(groups)
        if bar:
            bar.advance(count * len(groups), **figures)
            session.stop.check("everything before this stage is saved")

    responses = sample_answers(
        session.roles,
        role,
        encode_prompts(session.base, prompts, max_prompt_tokens(session.config)),
        answers_per_prompt=count,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=seed,
        batch_size=config.batch_size,
        done=kept.groups if kept else (),
        on_batch=on_batch,
    )
    return [
        [
            Sample(
                id=f"{prompt.id}-{k}",
                prompt_id=prompt.id,
                text=session.base.decode(response.tokens),
                finished=response.finished,
                tokens=response.tokens,
            )
            for k, response in enumerate(answers)
        ]
        for prompt, answers in zip(prompts, responses, strict=True)
    ]
