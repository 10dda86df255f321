"""DPO (Rafailov et al. 2023) on the run's comparisons, with TRL's trainer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from lowrank_rlhf.config.align import AlignConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.maths.sequences import Sequences, pack
from lowrank_rlhf.models.roles import Roles
from lowrank_rlhf.training.prompts import shuffled_order
from lowrank_rlhf.training.reward_data import Group
from lowrank_rlhf.training.trl_bridge import TrlBridge
from lowrank_rlhf.training.trl_loop import FiniteGuard

Pair = tuple[list[int], list[int], list[int]]
"""Tokens of a prompt, of the better answer and of the worse one."""


class DpoTask:
    """`Task` of DPO, on the reward model's comparisons: all ordered pairs of the ranked answers, without ties."""

    generate = None
    claim = "DPO's loss is ln 2 in the first step: its reference is SFT"
    tolerance = 1e-4

    def __init__(self, roles: Roles, groups: Sequence[Group], config: AlignConfig, seed: int) -> None:
        self.roles, self.config, self.step = roles, config, 0
        pairs: list[Pair] = [
            (group.prompt, group.answers[better], group.answers[worse])
            for group in groups
            for better, worse, _ in group.pairs
        ]
        if not pairs:
            raise UserError("comparisons.jsonl: DPO requires at least one comparison, got 0. Rank more answers")
        self.steps = math.ceil(len(pairs) * config.epochs / config.batch_size)
        order = shuffled_order(seed, len(pairs), self.steps * config.batch_size)
        self.pairs = [pairs[i] for i in order]
        self.width = 2 * max(len(prompt) + max(len(better), len(worse)) for prompt, better, worse in pairs)

    def begin(self, step: int) -> None:
        """Set the step, which determines the next pairs."""
        self.step = step

    def trainer(
        self,
        bridge: TrlBridge,  # noqa: ARG002 - signature of `Task`
        guard: FiniteGuard,  # noqa: ARG002
        settings: dict[str, Any],
        steps: range,
        **rest: Any,
    ) -> DPOTrainer:
        """Build TRL's trainer. It tokenises texts, so they are empty, and a column `pair` contains the tokens."""
        size = self.config.batch_size
        pairs = self.pairs[steps.start * size : steps.stop * size]
        disable_progress_bars()
        try:
            return DPOTrainer(
                model=self.roles.peft,
                args=DPOConfig(**settings, beta=self.config.beta, max_length=None, remove_unused_columns=False),
                data_collator=self._collate,
                train_dataset=Dataset.from_list(
                    [{"prompt": "", "chosen": "", "rejected": "", "pair": list(pair)} for pair in pairs]
                ),
                processing_class=self.roles.base.tokenizer,
                **rest,
            )
        finally:
            enable_progress_bars()

    def figures(self, logs: Mapping[str, float]) -> dict[str, float]:
        """Return TRL's figures; `dpo/margin` is beta times the policy's preference for the better answer over SFT's."""
        names = {"loss": "policy/loss", "grad_norm": "policy/grad_norm", "learning_rate": "policy/learning_rate"}
        names |= {"rewards/margins": "dpo/margin", "rewards/accuracies": "dpo/accuracy"}
        return {name: logs[trl_name] for trl_name, name in names.items()}

    def first_error(self, logs: Mapping[str, float]) -> float:
        """Return the distance to -log sigmoid(0), which TRL before 1.15 rounds to the model's format."""
        exact = torch.tensor(math.log(2), dtype=torch.float64)
        rounded = exact.to(self.roles.base.compute_dtype)
        return min(abs(logs["loss"] - float(ln2)) for ln2 in (exact, rounded))

    def batch(self) -> Sequences:
        """Return the step's pairs: all better answers, then all worse ones."""
        size = self.config.batch_size
        return self._packed(self.pairs[self.step * size : (self.step + 1) * size])

    def _collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = self._packed([row["pair"] for row in rows])
        return {
            "input_ids": batch.ids,
            "attention_mask": batch.attention.long(),
            "completion_mask": batch.response.long(),
        }

    def _packed(self, pairs: Sequence[Sequence[list[int]]]) -> Sequences:
        answers = [pair[side] for side in (1, 2) for pair in pairs]
        return pack([pair[0] for pair in pairs] * 2, answers, self.roles.base.pad)
