"""Stage 2a: K answers of the SFT model to each prompt, for ranking."""

import time

from lowrank_rlhf.errors import Stopped
from lowrank_rlhf.evaluation.sampling import AnswerLog, answer_prompts
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.run.records import write_jsonl
from lowrank_rlhf.run.results import SampleResult
from lowrank_rlhf.run.step_log import StepLog
from lowrank_rlhf.session import Session


def run(session: Session) -> SampleResult:
    """Write `samples.jsonl`. Each batch is saved as soon as it is sampled; a stopped stage resumes after the last."""
    config, roles = session.config.sample, session.load_roles()
    prompts = session.prompts.training[: config.prompts]
    load_role(roles, Role.REFERENCE, session.run_dir.artifact("adapters/sft"))
    kept = AnswerLog(StepLog(session.work("sample") / "batches.jsonl"), "sample", roles.base.eos)
    start, count = time.monotonic(), config.answers_per_prompt
    before, seed = _tokens(kept), session.seed("sample")
    with session.progress.track("sample", len(prompts) * count, "answers", len(kept.groups) * count) as bar:
        try:
            answers = answer_prompts(
                roles,
                Role.REFERENCE,
                prompts,
                config,
                seed,
                answers_per_prompt=count,
                bar=bar,
                stop=session.stop,
                log=kept,
            )
        except Stopped:
            if bar.count:
                session.stop.check(f"{bar.count} of {bar.total} answers are saved")
            raise
    samples = [sample for group in answers for sample in group]
    write_jsonl(session.work("sample") / "samples.jsonl", samples)
    return SampleResult(
        prompts=len(prompts),
        answers=len(samples),
        tokens=_tokens(kept),
        tokens_per_second=(_tokens(kept) - before) / (time.monotonic() - start),
        eos_rate=sum(sample.finished for sample in samples) / len(samples),
    )


def _tokens(kept: AnswerLog) -> int:
    return sum(len(response.tokens) for group in kept.groups for response in group)
