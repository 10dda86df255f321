"""Stage 2a: K answers to each prompt, for ranking: of the SFT model, in later rounds mostly of the last policy."""

import time
from collections.abc import Iterable, Sequence
from itertools import chain

from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.errors import Stopped
from lowrank_rlhf.evaluation.sampling import AnswerLog, answer_prompts
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.run.records import Prompt, Sample, write_jsonl
from lowrank_rlhf.run.results import SampleResult
from lowrank_rlhf.run.step_log import StepLog
from lowrank_rlhf.session import Session


def run(session: Session) -> SampleResult:
    """Write `samples.jsonl`. Each batch is saved as soon as it is sampled; a stopped stage resumes after the last."""
    config, roles, run_dir = session.config.sample, session.load_roles(), session.run_dir
    prompts = round_prompts(session.prompts.training, config.prompts, run_dir.number)
    load_role(roles, Role.REFERENCE, run_dir.artifact("adapters/sft"))
    if run_dir.number > 1:
        load_role(roles, Role.POLICY, run_dir.round(run_dir.number - 1).artifact("adapters/policy"))
    parts, log = _parts(config, run_dir.number), StepLog(session.work("sample") / "batches.jsonl")
    kept = {role: AnswerLog(log, name, roles.base.eos) for role, (name, _) in parts.items()}
    start, before = time.monotonic(), _tokens(kept.values())
    done = sum(count * len(kept[role].groups) for role, (_, count) in parts.items())
    with session.progress.track("sample", len(prompts) * config.answers_per_prompt, "answers", done) as bar:
        try:
            answers = [
                answer_prompts(
                    roles,
                    role,
                    prompts,
                    config,
                    derive_seed(session.round_seed, name),
                    answers_per_prompt=count,
                    bar=bar,
                    stop=session.stop,
                    log=kept[role],
                )
                for role, (name, count) in parts.items()
            ]
        except Stopped:
            if bar.count:
                session.stop.check(f"{bar.count} of {bar.total} answers are saved")
            raise
    samples = [
        sample
        for groups in zip(*answers, strict=True)
        for sample in _named(list(chain.from_iterable(groups)), run_dir.number)
    ]
    write_jsonl(session.work("sample") / "samples.jsonl", samples)
    tokens = _tokens(kept.values())
    return SampleResult(
        prompts=len(prompts),
        answers=len(samples),
        tokens=tokens,
        tokens_per_second=(tokens - before) / (time.monotonic() - start),
        eos_rate=sum(sample.finished for sample in samples) / len(samples),
    )


def round_prompts(prompts: Sequence[Prompt], count: int | None, number: int) -> list[Prompt]:
    """Return the prompts of a round: the next `count` ones after the last round's, from the first again at the end."""
    if count is None or count >= len(prompts):
        return list(prompts)
    return [prompts[index % len(prompts)] for index in range((number - 1) * count, number * count)]


def _parts(config: SampleConfig, number: int) -> dict[Role, tuple[str, int]]:
    """Return the roles that answer, each with the name of its random stream and its answers per prompt."""
    of_sft = config.sft_answers
    if number == 1:
        return {Role.REFERENCE: ("sample", config.answers_per_prompt)}
    found = {Role.POLICY: ("sample", config.answers_per_prompt - of_sft), Role.REFERENCE: ("sample sft", of_sft)}
    return {role: (name, count) for role, (name, count) in found.items() if count}


def _named(answers: Sequence[Sample], number: int) -> list[Sample]:
    """Return the answers to one prompt with ids that no other round has."""
    if number == 1:
        return list(answers)
    return [
        sample.model_copy(update={"id": f"{sample.prompt_id}-round-{number}-{k}"}) for k, sample in enumerate(answers)
    ]


def _tokens(kept: Iterable[AnswerLog]) -> int:
    return sum(len(response.tokens) for log in kept for group in log.groups for response in group)
