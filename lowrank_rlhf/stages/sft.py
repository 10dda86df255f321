"""Stage 1: train the SFT adapter with TRL on demonstrations, or load an existing one."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig as TrlSftConfig
from trl import SFTTrainer

from lowrank_rlhf.config.schema import SftConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.maths.batching import rows_per_pass
from lowrank_rlhf.maths.sequences import Sequences, pack
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.base import Base
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.storage import save_role
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.run.progress import Bar
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.nan_recovery import RollBack, SkipReport
from lowrank_rlhf.training.optimizer_step import all_reduce_gradients
from lowrank_rlhf.training.role_checkpoints import RoleCheckpoints
from lowrank_rlhf.training.self_checks import base_unchanged, checksums, others_unchanged
from lowrank_rlhf.training.trl_bridge import trl_bridge
from lowrank_rlhf.training.trl_loop import AtomicAdamW, FiniteGuard, loop_settings, schedule, train

Row = dict[str, list[int]]


def run(session: Session) -> dict[str, Any]:
    """Write `adapters/sft`."""
    config, roles = session.config.sft, session.roles
    before = session.base.checksum()
    others = checksums(roles, [Role.POLICY])
    roles.reset(Role.POLICY, torch.Generator().manual_seed(session.seed("sft", "init")))
    figures: dict[str, Any] = {"source": config.source}
    if config.source == "adapter":
        load_role(roles, Role.POLICY, Path(str(config.adapter)))
    elif config.source == "train":
        figures |= _train(session)
    save_role(roles, Role.POLICY, session.work("sft") / "adapters" / "sft")
    claims = [base_unchanged(session.base, "the sft stage", before)]
    if others:  # empty in a new process
        claims.append(others_unchanged(roles, "the sft stage", others))
    return {**figures, "claims": [claim.model_dump() for claim in claims]}


def training_rows(session: Session) -> list[Row]:
    """Return tokens and labels of the demonstrations for all epochs, each in its own seeded order."""
    config, base = session.config.sft, session.base
    if not session.fitting.demonstrations:
        raise UserError("data.prompts: no training prompt has a `response`. Add responses, or set sft.source: base")
    rows = []
    for demonstration in session.fitting.demonstrations:
        prompt = base.encode_prompt(demonstration.prompt)
        response = base.encode_response(demonstration.response)
        rows.append({"input_ids": prompt + response, "labels": [-100] * len(prompt) + response})
    ordered = []
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(session.seed("sft", "order", epoch))
        ordered += [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
    return ordered


def _train(session: Session) -> dict[str, Any]:
    config, roles = session.config.sft, session.roles
    rows = training_rows(session)
    steps = math.ceil(len(rows) / config.batch_size)
    optimizer = AtomicAdamW(roles.parameters(Role.POLICY), lr=config.learning_rate, weight_decay=0.0)
    checkpoints = RoleCheckpoints(session.work("sft"), "sft", roles, Role.POLICY, optimizer, session.metrics)
    done = checkpoints.resume()
    with session.progress.track("sft", steps, "steps", done) as bar, checkpoints.saved_if_stopped(bar, session.stop):
        while bar.count < steps:
            try:
                widest = max(len(row["input_ids"]) for row in rows)
                session.base.limits.retry(lambda: _train_steps(session, checkpoints, rows, steps, bar), widest)
            except RollBack:
                bar.advance(checkpoints.roll_back() - bar.count)
    losses = [row["loss"] for row in session.metrics.read("sft") if "loss" in row]
    tail = losses[-max(1, len(losses) // 5) :]
    return {"examples": len(rows) // config.epochs, "steps": steps, "loss": sum(tail) / max(1, len(tail))}


def step_tokens(rows: Sequence[Row], batch_size: int) -> list[int]:
    """Return the tokens of each step, prompts with responses, without padding."""
    lengths = [len(row["input_ids"]) for row in rows]
    return [sum(lengths[start : start + batch_size]) for start in range(0, len(lengths), batch_size)]


def _rate(step: int, steps: int, warmup_fraction: float) -> float:
    """Return the share of the learning rate: linear warm-up, then a cosine to 0."""
    warmup = warmup_fraction * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))


def _rows_per_pass(session: Session, rows: list[Row]) -> int:
    """Return the rows of one pass, from all rows: from those left, a resumed run would round differently."""
    width = max(len(row["input_ids"]) for row in rows)
    return rows_per_pass(session.config.sft.batch_size // session.group.world_size, width, session.base.limits.tokens)


def _own_rows(group: ProcessGroup, rows: Sequence[Row], batch_size: int) -> list[Row]:
    """Return this process's rows of each step; a row of weight 0 where the last step has none for it."""
    steps = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    return [row for step in steps for row in group.shard(step) or step[:1]]


def _weight(group: ProcessGroup, rows: Sequence[Row]) -> float:
    """Return this process's share of a step's labelled tokens, the weight of its mean loss."""
    tokens = [sum(label != -100 for label in row["labels"]) for row in rows]
    return sum(group.shard(tokens)) / sum(tokens)


def _train_steps(session: Session, checkpoints: RoleCheckpoints, rows: list[Row], steps: int, bar: Bar) -> None:
    """Train the remaining steps; called again it starts with the interrupted one."""
    optimizer, done = checkpoints.optimizer, bar.count
    config, roles = session.config.sft, session.roles
    guard = FiniteGuard(roles)
    report = SkipReport("sft", "sft.learning_rate", session.run_dir, session.progress, session.base)
    rates = schedule(
        optimizer,
        checkpoints.recovery.rate * config.learning_rate,
        lambda step: _rate(step + done, steps, config.warmup_fraction),
    )
    own = config.batch_size // session.group.world_size
    settings = loop_settings(
        session.base,
        session.work("sft") / "trl",
        session.seed("sft"),
        rows=own,
        rows_per_pass=_rows_per_pass(session, rows),
        steps=steps - done,
    )
    with trl_bridge(roles) as bridge:
        trainer = SFTTrainer(
            model=roles.peft,
            args=TrlSftConfig(
                **settings,
                max_grad_norm=0.0,  # `_SftCallback` clips, after the all-reduce
                dataset_kwargs={"skip_prepare_dataset": True},
                max_length=None,
            ),
            train_dataset=Dataset.from_list(
                _own_rows(session.group, rows[done * config.batch_size :], config.batch_size)
            ),
            processing_class=session.base.tokenizer,
            optimizers=(optimizer, rates),
            # The guard comes second: it checks the gradients that the first callback has summed.
            callbacks=[_SftCallback(config, checkpoints, report, bar, rows, guard), guard],
        )
        train(roles, bridge, trainer, guard)


class _SftCallback(TrainerCallback):
    """Callback for progress, metrics, checkpoints, skipped steps, and the all-reduce of the gradients."""

    def __init__(
        self,
        config: SftConfig,
        checkpoints: RoleCheckpoints,
        report: SkipReport,
        bar: Bar,
        rows: list[Row],
        guard: FiniteGuard,
    ) -> None:
        self.config, self.checkpoints, self.report = config, checkpoints, report
        self.bar, self.rows, self.guard = bar, rows, guard
        self.group = checkpoints.roles.group
        self.tokens = step_tokens(rows, config.batch_size)
        self.since, self.tokens_per_second = time.monotonic(), 0.0
        self.weight, self.norm = 1.0, 0.0

    def on_step_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - transformers' signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        self.since = time.monotonic()

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,  # noqa: ARG002 - transformers' signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        optimizer, config = self.checkpoints.optimizer, self.config
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.weight = _weight(self.group, self.rows[self.bar.count * config.batch_size :][: config.batch_size])
        for gradient in (p.grad for p in parameters if p.grad is not None and self.weight != 1):
            gradient.mul_(self.weight)
        losses = torch.stack(self.guard.losses).sum()
        all_reduce_gradients(self.group, optimizer, losses)
        self.guard.losses = [losses]
        self.norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        self.tokens_per_second = self.tokens[self.bar.count] / (time.monotonic() - self.since)
        self.bar.advance(1, tokens_per_second=self.tokens_per_second)

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002 - transformers' signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        metrics, recovery, step = self.checkpoints.metrics, self.checkpoints.recovery, self.bar.count
        if self.guard.problem is not None:
            metrics.append("sft", step, skipped=1.0)
            size = self.config.batch_size
            batch = _packed(self.rows[(step - 1) * size : step * size], self.checkpoints.roles.base)
            recovery.skip(self.report, step, self.guard.problem, batch)
            return
        recovery.complete()
        loss = torch.tensor(self.weight * logs["loss"], dtype=torch.float64)
        self.group.all_reduce([loss], barrier=False)  # the step is made
        figures = {"loss": float(loss), "learning_rate": logs["learning_rate"], "grad_norm": self.norm}
        metrics.append("sft", step, **figures, skipped=0.0, tokens_per_second=self.tokens_per_second)
        self.bar.advance(0, loss=float(loss))
        if step % self.config.save_every == 0:
            self.checkpoints.save(step)


def _packed(rows: Sequence[Row], base: Base) -> Sequences:
    begins = [row["labels"].count(-100) for row in rows]
    prompts = [row["input_ids"][:begin] for row, begin in zip(rows, begins, strict=True)]
    return pack(prompts, [row["input_ids"][begin:] for row, begin in zip(rows, begins, strict=True)], base.pad)
