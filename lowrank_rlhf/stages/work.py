"""How much work each stage is, so that the time a run still takes can be told from the stages it has done.

The unit is one answer with its prompt read once through the base. The weights were measured on a CPU (docs/log.md,
2026-11-23); they hold to a factor of about two, and only their ratios count.
"""

from lowrank_rlhf.data.prompts import load_demonstrations
from lowrank_rlhf.records import Prompt
from lowrank_rlhf.stages.context import Context

TRAINED = 3.0
"""Forward, backward and what the adapters add."""
SAMPLED = 2.0
READ_BY_PPO = 4.0
"""As policy, reference, reward model and critic."""


def work(stage: str, context: Context) -> float:
    """The stage's work in answers read; 0 for one that runs no model."""
    config = context.config
    training, held_out = context.prompts
    if stage == "sft":
        if config.sft.source != "train":
            return 0.0
        return len(load_demonstrations(config.data, config.seed)[: config.sft.examples]) * config.sft.epochs * TRAINED
    if stage == "sample":
        return SAMPLED * _answers(context, training)
    if stage == "reward":
        return _answers(context, training) * (1 + config.reward.epochs * TRAINED)
    if stage == "ppo":
        ppo = config.ppo
        learnt = ppo.steps * ppo.batch_size * (SAMPLED + READ_BY_PPO + 2 * TRAINED * ppo.epochs)
        evaluations = 1 + ppo.steps // ppo.evaluate_every
        return learnt + evaluations * min(ppo.evaluate_prompts, len(held_out)) * (SAMPLED + READ_BY_PPO)
    if stage == "evaluate":
        return len(held_out) * (2 * SAMPLED + READ_BY_PPO)
    return 0.0


def _answers(context: Context, training: list[Prompt]) -> int:
    """Answers to rank: those there are, or those there will be."""
    path = context.run_dir.artifact("answers.jsonl")
    if path.exists():
        with path.open(encoding="utf-8") as lines:
            return sum(1 for _ in lines)
    return len(training[: context.config.sample.prompts]) * context.config.sample.answers_per_prompt


def seconds_to_go(done: dict[str, float], left: list[str], context: Context) -> float | None:
    """Seconds that the stages in `left` will take, from those that the stages in `done` took.

    None at the beginning, when there is no pace yet, and at the end, when no model has to run any more.
    """
    finished = {name: amount for name in done if (amount := work(name, context))}
    remaining = sum(work(name, context) for name in left)
    if not finished or not remaining:
        return None
    return remaining * sum(done[name] for name in finished) / sum(finished.values())
