"""Stage 2a: K answers of the SFT model to each prompt, for ranking."""

import time
from typing import Any

from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.storage import load_role
from lowrank_rlhf.records import write_jsonl
from lowrank_rlhf.stages.answers import answer
from lowrank_rlhf.stages.context import Context


def run(context: Context) -> dict[str, Any]:
    """Make `samples.jsonl`. It is not checkpointed: stopped in the middle, it starts again."""
    config = context.config.sample
    prompts = context.prompts[0][: config.prompts]
    load_role(context.roles, Role.REFERENCE, context.run_dir.artifact("adapters/sft"))
    start = time.monotonic()
    with context.progress.track("sample", len(prompts) * config.answers_per_prompt, "answers") as bar:
        answers = answer(
            context, Role.REFERENCE, prompts, count=config.answers_per_prompt, seed=context.seed("sample"), bar=bar
        )
    samples = [sample for group in answers for sample in group]
    tokens = sum(len(sample.tokens or ()) for sample in samples)
    write_jsonl(context.work("sample") / "samples.jsonl", samples)
    return {
        "prompts": len(prompts),
        "answers": len(samples),
        "tokens": tokens,
        "tokens_per_second": tokens / (time.monotonic() - start),
        "eos_rate": sum(sample.finished for sample in samples) / len(samples),
    }
