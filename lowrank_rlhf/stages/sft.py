"""Stage 1: the SFT adapter, trained with TRL on demonstrations, or taken from elsewhere."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.adapters import plain_shape
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.stepping import check_finite
from lowrank_rlhf.models.storage import load_role, save_role
from lowrank_rlhf.progress import Bar
from lowrank_rlhf.stages import checkpoints
from lowrank_rlhf.stages.breakdown import explained
from lowrank_rlhf.stages.claims import base_unchanged, checksums, others_unchanged
from lowrank_rlhf.stages.context import Context

Row = dict[str, list[int]]


def run(context: Context) -> dict[str, Any]:
    """Make `adapters/sft`."""
    config, roles = context.config.sft, context.roles
    before = context.base.checksum()
    others = checksums(context, [Role.POLICY])
    roles.reset(Role.POLICY, torch.Generator().manual_seed(context.seed("sft", "init")))
    figures: dict[str, Any] = {"source": config.source}
    if config.source == "adapter":
        plain_shape(Path(str(config.adapter)), Role.POLICY)  # shapes alone don't show that it needs another base
        load_role(roles, Role.POLICY, Path(str(config.adapter)))
    elif config.source == "train":
        figures |= _train(context)
    save_role(roles, Role.POLICY, context.work("sft") / "adapters" / "sft")
    claims = [base_unchanged(context, "the sft stage", before)]
    if others:  # a run begins with none
        claims.append(others_unchanged(context, "the sft stage", others))
    return {**figures, "claims": claims}


def training_rows(context: Context) -> list[Row]:
    """Tokens and labels of the demonstrations, one after another for all epochs, each epoch in an order of its own."""
    config, base = context.config.sft, context.base
    if not context.fitting.demonstrations:
        raise UserError("data.prompts: no prompt outside the held-out ones has a `response`; or set sft.source: base")
    rows = []
    for demonstration in context.fitting.demonstrations:
        prompt = base.encode_prompt(demonstration.prompt)
        response = base.encode_response(demonstration.response)
        rows.append({"input_ids": prompt + response, "labels": [-100] * len(prompt) + response})
    ordered = []
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(context.seed("sft", "order", epoch))
        ordered += [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
    return ordered


def _train(context: Context) -> dict[str, Any]:
    config, roles = context.config.sft, context.roles
    rows = training_rows(context)
    steps = math.ceil(len(rows) / config.batch_size)
    optimizer = torch.optim.AdamW(roles.parameters(Role.POLICY), lr=config.learning_rate, weight_decay=0.0)
    done = checkpoints.resume(context, "sft", Role.POLICY, optimizer)
    schedule = LambdaLR(optimizer, lambda step: _rate(step + done, steps, config.warmup_fraction))
    with context.progress.track("sft", steps, "steps", done) as bar:
        watcher = _Watcher(context, optimizer, bar, done, step_tokens(rows, config.batch_size))
        if done < steps:
            per_device = _rows_per_pass(context, rows)
            left = rows[done * config.batch_size :]
            with _trainer(context, left, per_device, steps - done, optimizer, schedule, watcher) as trainer:
                trainer.train()
        if bar.count < steps:
            context.stop.check(f"sft is saved at step {bar.count}")
    losses = [row["loss"] for row in context.metrics.read("sft")]
    tail = losses[-max(1, len(losses) // 5) :]
    return {"examples": len(rows) // config.epochs, "steps": steps, "loss": sum(tail) / len(tail)}


def step_tokens(rows: Sequence[Row], batch_size: int) -> list[int]:
    """Tokens that each step learns from, its prompts with their responses, without padding."""
    lengths = [len(row["input_ids"]) for row in rows]
    return [sum(lengths[start : start + batch_size]) for start in range(0, len(lengths), batch_size)]


def _rate(step: int, steps: int, warmup_fraction: float) -> float:
    """Linear warm-up, then a cosine to 0."""
    warmup = warmup_fraction * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))


def _rows_per_pass(context: Context, rows: list[Row]) -> int:
    """Rows in one forward and backward, from all rows: from those left, a resumed run would round differently."""
    batch_size = context.config.sft.batch_size
    width = max(len(row["input_ids"]) for row in rows)
    fitting = [d for d in range(1, batch_size + 1) if batch_size % d == 0]
    return max((d for d in fitting if d * width <= context.base.config.micro_batch_tokens), default=1)


@contextmanager
def _trainer(
    context: Context,
    rows: list[Row],
    per_device: int,
    steps: int,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
    watcher: "_Watcher",
) -> Iterator[SFTTrainer]:
    """TRL's trainer on the shared base, and the base as it was before when the block ends.

    It is built while everything is frozen, so that TRL does not cast the adapter to bfloat16 in place. Rows come in
    the order given: a resumed run drops those already seen, and needs no state of a sampler.
    """
    config, base = context.config.sft, context.base
    arguments = SFTConfig(
        output_dir=str(context.work("sft") / "trl"),
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=config.batch_size // per_device,
        max_steps=steps,
        max_grad_norm=config.max_grad_norm,
        train_sampling_strategy="sequential",
        bf16=False,  # the base is in its number format already, and its layers cast the adapters
        gradient_checkpointing=False,  # where wanted it is on already, without reentrance
        use_cpu=base.device.type == "cpu",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would log earlier steps' mean in place of a NaN
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=context.seed("sft") % 2**32,
    )
    model = base.model
    use_cache = model.config.use_cache
    try:
        trainer = SFTTrainer(
            model=context.roles.peft,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=base.tokenizer,
            optimizers=(optimizer, schedule),
            callbacks=[watcher],
        )
        trainer.remove_callback(PrinterCallback)
        with context.roles.acting_as(Role.POLICY, train=True):
            yield trainer
    finally:
        model.__dict__.pop("forward", None)  # TRL's fused head
        model.config.use_cache = use_cache


class _Watcher(TrainerCallback):
    """Progress, metrics, checkpoints and stopping for TRL's loop."""

    def __init__(
        self, context: Context, optimizer: torch.optim.Optimizer, bar: Bar, done: int, tokens: Sequence[int]
    ) -> None:
        self.context, self.optimizer, self.bar, self.done, self.tokens = context, optimizer, bar, done, tokens
        self.since, self.tokens_per_second = time.monotonic(), 0.0

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
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        with explained("sft", self.done + state.global_step + 1, "sft.learning_rate"):
            check_finite("the gradient's norm", float(torch.nn.utils.get_total_norm(gradients)))

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002 - transformers' signature
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            figures = {name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs}
            step = self.done + state.global_step
            with explained("sft", step, "sft.learning_rate"):
                check_finite("the loss", logs["loss"])
            self.context.metrics.append("sft", step, **figures, tokens_per_second=self.tokens_per_second)
            self.bar.advance(0, loss=logs["loss"])
            self._save(control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        self.tokens_per_second = self.tokens[self.bar.count] / (time.monotonic() - self.since)
        self.bar.advance(1, tokens_per_second=self.tokens_per_second)

    def _save(self, control: TrainerControl) -> None:
        """After the step's row: killed between the two, the run would go on from the checkpoint without that row."""
        stopping = self.context.stop.requested
        if stopping or self.bar.count % self.context.config.sft.save_every == 0:
            checkpoints.save(self.context, "sft", self.bar.count, Role.POLICY, self.optimizer)
        control.should_training_stop |= stopping
