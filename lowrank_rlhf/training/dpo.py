"""DPO (Rafailov et al. 2023) on the run's comparisons, by TRL's trainer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.maths.sequences import Sequences, pack
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.prompts import shuffled_order
from lowrank_rlhf.training.reward_data import read_groups
from lowrank_rlhf.training.trl_bridge import Loan
from lowrank_rlhf.training.trl_loop import FiniteSteps

Pair = tuple[list[int], list[int], list[int]]
"""Tokens of a prompt, of the better answer and of the worse one."""


class Comparing:
    """All ordered pairs of the ranked answers, ties left out, as the reward model has them: a `Task`."""

    generate = None
    claim = "DPO's loss is ln 2 in the first step: its reference is SFT"
    tolerance = 1e-4

    def __init__(self, session: Session) -> None:
        self.session, self.step = session, 0
        config = session.config.align
        pairs: list[Pair] = [
            (group.prompt, group.answers[better], group.answers[worse])
            for group in read_groups(session)
            for better, worse, _ in group.pairs
        ]
        if not pairs:
            raise UserError("comparisons.jsonl: no comparison is left for DPO; rank more answers")
        self.steps = math.ceil(len(pairs) * config.epochs / config.batch_size)
        order = shuffled_order(session.config.seed, len(pairs), self.steps * config.batch_size)
        self.pairs = [pairs[i] for i in order]
        self.width = 2 * max(len(prompt) + max(len(better), len(worse)) for prompt, better, worse in pairs)

    def begin(self, step: int) -> None:
        """Which pairs are next follows from the step alone."""
        self.step = step

    def trainer(
        self,
        loan: Loan,  # noqa: ARG002 - a Task's
        finite: FiniteSteps,  # noqa: ARG002
        settings: dict[str, Any],
        steps: range,
        **rest: Any,
    ) -> DPOTrainer:
        """TRL wants texts, to tokenise them itself; the pairs travel beside them, with the tokens that were sampled."""
        session, size = self.session, self.session.config.align.batch_size
        pairs = self.pairs[steps.start * size : steps.stop * size]
        disable_progress_bars()
        try:
            return DPOTrainer(
                model=session.roles.peft,
                args=DPOConfig(
                    **settings, beta=session.config.align.beta, max_length=None, remove_unused_columns=False
                ),
                data_collator=self._collate,
                train_dataset=Dataset.from_list(
                    [{"prompt": "", "chosen": "", "rejected": "", "pair": list(pair)} for pair in pairs]
                ),
                processing_class=session.base.tokenizer,
                **rest,
            )
        finally:
            enable_progress_bars()

    def figures(self, logs: Mapping[str, float]) -> dict[str, float]:
        """`dpo/margin` is beta times how much further than SFT the policy prefers the better answer, in nats."""
        names = {"loss": "policy/loss", "grad_norm": "policy/grad_norm", "learning_rate": "policy/learning_rate"}
        names |= {"rewards/margins": "dpo/margin", "rewards/accuracies": "dpo/accuracy"}
        return {ours: logs[theirs] for theirs, ours in names.items()}

    def first(self, logs: Mapping[str, float]) -> float:
        """From -log sigmoid(0), which TRL before 1.15 computes in the model's number format: in bfloat16 .6914."""
        exact = torch.tensor(math.log(2), dtype=torch.float64)
        rounded = exact.to(self.session.base.compute_dtype)
        return min(abs(logs["loss"] - float(ln2)) for ln2 in (exact, rounded))

    def batch(self) -> Sequences:
        """The step's pairs, better answers first."""
        size = self.session.config.align.batch_size
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
        return pack([pair[0] for pair in pairs] * 2, answers, self.session.base.pad)
