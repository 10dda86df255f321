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

from lowrank_rlhf.config.schema import Config, SftConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.maths.batching import rows_per_pass
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.maths.sequences import Sequences, pack
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.base import Base
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import save_role
from lowrank_rlhf.run.directory import RunDir, check_adapter
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.run.progress import Bar, Progress, StopRequest
from lowrank_rlhf.run.records import Demonstration
from lowrank_rlhf.run.results import SftResult
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.nan_recovery import RollBack, SkipReport
from lowrank_rlhf.training.optimizer_step import all_reduce_gradients
from lowrank_rlhf.training.role_checkpoints import RoleCheckpoints
from lowrank_rlhf.training.self_checks import base_unchanged
from lowrank_rlhf.training.trl_bridge import trl_bridge
from lowrank_rlhf.training.trl_loop import AtomicAdamW, FiniteGuard, loop_settings, schedule, train

Row = dict[str, list[int]]


def run(session: Session) -> SftResult:
    """Write `adapters/sft`."""
    config, roles = session.config.sft, session.load_roles()
    before = roles.base.checksum()
    roles.reset(Role.POLICY, torch.Generator().manual_seed(session.seed("sft", "init")))
    figures: dict[str, Any] = {}
    if config.source == "adapter":
        check_adapter(Path(str(config.adapter)))
        load_role(roles, Role.POLICY, Path(str(config.adapter)))
    elif config.source == "train":
        demonstrations = session.filter_lengths().demonstrations
        figures = _train(session.config, roles, demonstrations, session.run_dir, session.progress, session.stop)
        scale_update(roles, session.config.sft.scale)
    save_role(roles, Role.POLICY, session.work("sft") / "adapters" / "sft")
    claim = base_unchanged(roles.base, "the sft stage", before)
    return SftResult(source=config.source, **figures, claims=(claim,))


def scale_update(roles: Roles, factor: float) -> None:
    """Multiply the policy adapter's update of the base, B A, by `factor`; 1 changes no bit."""
    with torch.no_grad():
        for name, weight in roles.named_parameters(Role.POLICY).items():
            if ".lora_B." in name:
                weight.mul_(factor)


def training_rows(demonstrations: Sequence[Demonstration], base: Base, epochs: int, seed: int) -> list[Row]:
    """Return tokens and labels of the demonstrations for all epochs, each in its own order from the run's `seed`."""
    if not demonstrations:
        raise UserError("data.prompts: no training prompt has a `response`. Add responses, or set sft.source: base")
    rows = []
    for demonstration in demonstrations:
        prompt = base.encode_prompt(demonstration.prompt)
        response = base.encode_response(demonstration.response)
        rows.append({"input_ids": prompt + response, "labels": [-100] * len(prompt) + response})
    ordered = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(derive_seed(seed, "sft", "order", epoch))
        ordered += [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
    return ordered


def _train(
    run_config: Config,
    roles: Roles,
    demonstrations: Sequence[Demonstration],
    run_dir: RunDir,
    progress: Progress,
    stop: StopRequest,
) -> dict[str, Any]:
    """Train to the end, from the last checkpoint if there is one; return the figures of `SftResult`."""
    config, seed, work = run_config.sft, run_config.seed, run_dir.work("sft")
    rows = training_rows(demonstrations, roles.base, config.epochs, seed)
    steps = math.ceil(len(rows) / config.batch_size)
    optimizer = AtomicAdamW(roles.parameters(Role.POLICY), lr=config.learning_rate, weight_decay=0.0)
    checkpoints = RoleCheckpoints(work, "sft", roles, Role.POLICY, optimizer, run_dir.metrics)
    report = SkipReport("sft", "sft.learning_rate", run_dir, progress, roles.base)
    done = checkpoints.resume()
    with progress.track("sft", steps, "steps", done) as bar, checkpoints.saved_if_stopped(bar, stop):
        while bar.count < steps:
            try:
                widest = max(len(row["input_ids"]) for row in rows)
                roles.base.limits.retry(
                    lambda: _train_steps(config, seed, work / "trl", checkpoints, report, rows, steps, bar), widest
                )
            except RollBack:
                bar.advance(checkpoints.roll_back() - bar.count)
    losses = [row["loss"] for row in run_dir.metrics.read("sft") if "loss" in row]
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


def _own_rows(group: ProcessGroup, rows: Sequence[Row], batch_size: int) -> list[Row]:
    """Return this process's rows of each step; a row of weight 0 where the last step has none for it."""
    steps = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    return [row for step in steps for row in group.shard(step) or step[:1]]


def _weight(group: ProcessGroup, rows: Sequence[Row]) -> float:
    """Return this process's share of a step's labelled tokens, the weight of its mean loss."""
    tokens = [sum(label != -100 for label in row["labels"]) for row in rows]
    return sum(group.shard(tokens)) / sum(tokens)


def _train_steps(
    config: SftConfig,
    seed: int,
    folder: Path,
    checkpoints: RoleCheckpoints,
    report: SkipReport,
    rows: list[Row],
    steps: int,
    bar: Bar,
) -> None:
    """Train the remaining steps with TRL in `folder`; called again it starts with the interrupted one."""
    optimizer, done, roles = checkpoints.optimizer, bar.count, checkpoints.roles
    base, group, guard = roles.base, roles.group, FiniteGuard(roles)
    rates = schedule(
        optimizer,
        checkpoints.recovery.rate * config.learning_rate,
        lambda step: _rate(step + done, steps, config.warmup_fraction),
    )
    own = config.batch_size // group.world_size
    width = max(
        len(row["input_ids"]) for row in rows
    )  # of all rows: with those left, a resumed run would round differently
    settings = loop_settings(
        base,
        folder,
        derive_seed(seed, "sft"),
        rows=own,
        rows_per_pass=rows_per_pass(own, width, base.limits.tokens),
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
            train_dataset=Dataset.from_list(_own_rows(group, rows[done * config.batch_size :], config.batch_size)),
            processing_class=base.tokenizer,
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
