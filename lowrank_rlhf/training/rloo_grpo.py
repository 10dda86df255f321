"""RLOO (Ahmadian et al. 2024) and GRPO (Shao et al. 2024) against the rewards, with TRL's trainers."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.maths.sequences import Sequences, pack
from lowrank_rlhf.models.generation import Response, sample_answers
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.run.records import Prompt
from lowrank_rlhf.training.prompts import encode_prompts, max_prompt_tokens, shuffled_order
from lowrank_rlhf.training.rewards.reward_sum import Scorer, score_responses
from lowrank_rlhf.training.rollout import response_figures, shape_scores
from lowrank_rlhf.training.trl_bridge import TrlBridge
from lowrank_rlhf.training.trl_loop import FiniteGuard


class OnlineTask:
    """`Task` of RLOO or GRPO: K answers to each prompt of a step, scored like PPO's."""

    def __init__(self, roles: Roles, prompts: Sequence[Prompt], config: Config, scorer: Scorer) -> None:
        self.roles, self.config, self.scorer, self.step = roles, config, scorer, 0
        self.prompts = prompts
        align = config.align
        self.steps, self.prompts_per_step = align.steps, align.batch_size // align.answers_per_prompt
        self.claim = f"TRL's KL is 0 in the first step: {align.algorithm.upper()}'s reference is SFT"
        # GRPO compares forwards of different micro-batches, whose bfloat16 differs by some percent of a probability.
        self.tolerance = 5e-3 if align.algorithm == "grpo" else 1e-4
        self.tokens = tokens = encode_prompts(roles.base, prompts, max_prompt_tokens(config))
        self.rows: list[dict[str, Any]] = [
            {"prompt": [message.model_dump() for message in prompts[i].messages], "tokens": tokens[i], "number": i}
            for i in shuffled_order(config.seed, len(prompts), self.steps * self.prompts_per_step)
        ]
        self.width = max(map(len, tokens)) + config.sample.max_new_tokens
        self.sampled: list[Response] = []
        self.scored: dict[str, float] = {}
        self.parts: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def begin(self, step: int) -> None:
        """Seed TRL's shuffle of the step's answers, so that a resumed run repeats it."""
        self.step = step
        torch.manual_seed(derive_seed(self.config.seed, "ppo", "shuffle", step))

    def generate(self, prompts: list[list[int]]) -> list[tuple[int, ...]]:
        """Sample by `sample_answers`: 2.5 times as fast as TRL, with one random stream per answer."""
        start, each = time.monotonic(), self.config.align.answers_per_prompt
        seed = derive_seed(self.config.seed, "ppo", "rollout", self.step)
        groups = sample_answers(
            self.roles, Role.POLICY, prompts[::each], self.config.sample, seed, answers_per_prompt=each
        )
        self.sampled = [response for group in groups for response in group]
        self.seconds["time/sampling"] = time.monotonic() - start
        return [response.tokens for response in self.sampled]

    def trainer(
        self, bridge: TrlBridge, guard: FiniteGuard, settings: dict[str, Any], steps: range, **rest: Any
    ) -> RLOOTrainer | GRPOTrainer:
        """Build the trainer with `scorer` as reward function; one optimizer step per rollout (ratio 1)."""

        def reward(completion_ids: Sequence[Sequence[int]], number: Sequence[int], **_: Any) -> list[float]:
            with bridge.released():
                return self._rewards(completion_ids, number, guard)

        config, sampling, base = self.config.align, self.config.sample, self.roles.base
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
            trainer = RLOOTrainer(model=self.roles.peft, args=RLOOConfig(**settings), **rest)
        else:
            trainer = GRPOTrainer(model=self.roles.peft, args=GRPOConfig(**settings, loss_type="grpo"), **rest)
        trainer.eos_token_ids = [base.eos]  # end of turn; the tokenizer's eos token may differ
        return trainer

    def figures(self, logs: Mapping[str, float]) -> dict[str, float]:
        """Return TRL's figures under PPO's names. TRL's KL is in nats per token; GRPO's is the k3 estimate."""
        responses = response_figures(self.sampled)
        kl = self._kl(logs)
        tokens = sum(len(response.tokens) for response in self.sampled)
        found = {
            "objective/scores": self.scored["mean"],
            "objective/rlhf_reward": self.scored["shaped"] - self.config.align.beta * (kl or 0.0),
            "objective/entropy": logs["entropy"],
            "policy/loss": logs["loss"],
            "policy/grad_norm": logs["grad_norm"],
            "policy/learning_rate": logs["learning_rate"],
            "tokens_per_second": tokens / self.seconds["time/sampling"],
            **self.parts,
            **responses,
            **self.seconds,
        }
        return found if kl is None else found | {"objective/kl": kl}

    def first_error(self, logs: Mapping[str, float]) -> float | None:
        """Return the KL in nats per token; None without a penalty, for which TRL needs no reference."""
        return abs(logs["kl"]) if "kl" in logs else None

    def batch(self) -> Sequences:
        """Return the step's answers with their prompts."""
        each = self.config.align.answers_per_prompt
        rows = self.rows[self.step * self.prompts_per_step :][: self.prompts_per_step]
        prompts = [row["tokens"] for row in rows for _ in range(each)]
        return self._packed(prompts, [response.tokens for response in self.sampled])

    def _kl(self, logs: Mapping[str, float]) -> float | None:
        """Return the KL in nats per answer."""
        return logs["kl"] * logs["completions/mean_length"] if "kl" in logs else None

    def _rewards(self, answers: Sequence[Sequence[int]], numbers: Sequence[int], guard: FiniteGuard) -> list[float]:
        """Return the shaped scores of answers to the numbered prompts.

        A score that is not finite skips the step, where TRL would drop that answer only.
        """
        start, roles = time.monotonic(), self.roles
        responses = [Response(tuple(answer), answer[-1] == roles.base.eos) for answer in answers]
        batch = roles.with_lower_states(self._packed([self.tokens[i] for i in numbers], answers))
        scored = score_responses(self.scorer, roles, [self.prompts[i] for i in numbers], batch, responses)
        scores = scored.total
        finished = torch.tensor([response.finished for response in responses], device=scores.device)
        shaped: Tensor = shape_scores(scores, finished, self.config.ppo)
        self.scored = {"mean": float(scores.mean()), "shaped": float(shaped.mean())}
        self.parts = scored.figures()
        self.seconds["time/scoring"] = time.monotonic() - start
        if not scores.isfinite().all():
            guard.problem = "the reward model's scores are not all finite"
        return shaped.nan_to_num().tolist()

    def _packed(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Sequences:
        return pack(prompts, answers, self.roles.base.pad, self.roles.base.device)
