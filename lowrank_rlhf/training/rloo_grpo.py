"""RLOO (Ahmadian et al. 2024) and GRPO (Shao et al. 2024) against the reward adapter, by TRL's trainers."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from lowrank_rlhf.maths.sequences import Sequences, pack
from lowrank_rlhf.models.generation import Response, sample_answers
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.prompts import encode_prompts, max_prompt_tokens, shuffled_order
from lowrank_rlhf.training.rollout import RewardScale, response_figures, reward_scores, shape_scores
from lowrank_rlhf.training.trl_bridge import Loan
from lowrank_rlhf.training.trl_loop import FiniteSteps


class Sampling:
    """K answers to each of some prompts in every step, scored by the reward model as PPO's are: a `Task`."""

    def __init__(self, session: Session, scale: RewardScale) -> None:
        config, prompts = session.config.align, session.prompts[0]
        self.session, self.scale, self.step = session, scale, 0
        self.steps, self.prompts_per_step = config.steps, config.batch_size // config.answers_per_prompt
        self.claim = f"TRL's KL is 0 in the first step: {config.algorithm.upper()}'s reference is SFT"
        # GRPO compares forwards of different micro-batches, whose bfloat16 differs by some percent of a probability.
        self.tolerance = 5e-3 if config.algorithm == "grpo" else 1e-4
        tokens = encode_prompts(session.base, prompts, max_prompt_tokens(session.config))
        self.rows: list[dict[str, Any]] = [
            {"prompt": [message.model_dump() for message in prompts[i].messages], "tokens": tokens[i]}
            for i in shuffled_order(session.config.seed, len(prompts), self.steps * self.prompts_per_step)
        ]
        self.width = max(map(len, tokens)) + session.config.sample.max_new_tokens
        self.sampled: list[Response] = []
        self.scored: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def begin(self, step: int) -> None:
        """TRL shuffles a step's answers: the same way after a stop, and without a stop."""
        self.step = step
        torch.manual_seed(self.session.seed("ppo", "shuffle", step))

    def generate(self, prompts: list[list[int]]) -> list[tuple[int, ...]]:
        """By this package's sampler: 2.5 times as fast as TRL's way, and every answer has a stream of its own."""
        start, sampling = time.monotonic(), self.session.config.sample
        each = self.session.config.align.answers_per_prompt
        groups = sample_answers(
            self.session.roles,
            Role.POLICY,
            prompts[::each],
            answers_per_prompt=each,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=self.session.seed("ppo", "rollout", self.step),
            batch_size=sampling.batch_size,
        )
        self.sampled = [response for group in groups for response in group]
        self.seconds["time/sampling"] = time.monotonic() - start
        return [response.tokens for response in self.sampled]

    def trainer(
        self, loan: Loan, finite: FiniteSteps, settings: dict[str, Any], steps: range, **rest: Any
    ) -> RLOOTrainer | GRPOTrainer:
        """With the reward adapter as the reward function; one optimiser step for each rollout, so the ratio is 1."""

        def reward(completion_ids: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], **_: Any) -> list[float]:
            with loan.aside():
                return self._rewards(completion_ids, tokens, finite)

        session, config = self.session, self.session.config.align
        sampling, base = session.config.sample, session.base
        settings |= {
            "num_generations": config.answers_per_prompt,
            "max_completion_length": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_k": 0,
            "top_p": 1.0,
            "beta": config.beta,
            "shuffle_dataset": False,
        }
        rows = self.rows[steps.start * self.prompts_per_step : steps.stop * self.prompts_per_step]
        rest |= {"train_dataset": Dataset.from_list(rows), "processing_class": base.tokenizer, "reward_funcs": reward}
        trainer: RLOOTrainer | GRPOTrainer
        if config.algorithm == "rloo":
            trainer = RLOOTrainer(model=session.roles.peft, args=RLOOConfig(**settings), **rest)
        else:
            trainer = GRPOTrainer(model=session.roles.peft, args=GRPOConfig(**settings, loss_type="grpo"), **rest)
        trainer.eos_token_ids = [base.eos]  # what ends an answer here; the tokenizer's own may be another
        return trainer

    def figures(self, logs: Mapping[str, float]) -> dict[str, float]:
        """TRL's KL is nats per token; GRPO's is the k3 estimate, taken in each micro-batch."""
        responses = response_figures(self.sampled)
        kl = self._kl(logs)
        tokens = sum(len(response.tokens) for response in self.sampled)
        found = {
            "objective/scores": self.scored["mean"],
            "objective/rlhf_reward": self.scored["shaped"] - self.session.config.align.beta * (kl or 0.0),
            "objective/entropy": logs["entropy"],
            "policy/loss": logs["loss"],
            "policy/grad_norm": logs["grad_norm"],
            "policy/learning_rate": logs["learning_rate"],
            "tokens_per_second": tokens / self.seconds["time/sampling"],
            **responses,
            **self.seconds,
        }
        return found if kl is None else found | {"objective/kl": kl}

    def first(self, logs: Mapping[str, float]) -> float | None:
        """From 0 nats a token; without a penalty TRL asks no reference."""
        return abs(logs["kl"]) if "kl" in logs else None

    def batch(self) -> Sequences:
        """The step's answers with their prompts."""
        each = self.session.config.align.answers_per_prompt
        rows = self.rows[self.step * self.prompts_per_step :][: self.prompts_per_step]
        prompts = [row["tokens"] for row in rows for _ in range(each)]
        return self._packed(prompts, [response.tokens for response in self.sampled])

    def _kl(self, logs: Mapping[str, float]) -> float | None:
        """Nats per answer."""
        return logs["kl"] * logs["completions/mean_length"] if "kl" in logs else None

    def _rewards(
        self, answers: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]], finite: FiniteSteps
    ) -> list[float]:
        """The shaped scores; where one is not finite the step is to be skipped: TRL would pass over that answer."""
        start, roles = time.monotonic(), self.session.roles
        scores = reward_scores(roles, roles.with_trunk(self._packed(prompts, answers)), self.scale)
        finished = torch.tensor([answer[-1] == roles.base.eos for answer in answers], device=scores.device)
        shaped: Tensor = shape_scores(scores, finished, self.session.config.ppo)
        self.scored = {"mean": float(scores.mean()), "shaped": float(shaped.mean())}
        self.seconds["time/scoring"] = time.monotonic() - start
        if not scores.isfinite().all():
            finite.problem = "the reward model's scores are not all finite"
        return shaped.nan_to_num().tolist()

    def _packed(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Sequences:
        return pack(prompts, answers, self.session.base.pad, self.session.base.device)
