"""Measure seconds and memory of one update of TRL 1.12's PPOTrainer, in the environment of the requirements.txt here.

The policy is the 4-bit base with LoRA r 16 on all linear layers; reward and value model are separate bfloat16
models, as in its examples (optionally float32). The prompts come from the other side of the comparison, as token ids.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from statistics import median

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


class _Clock(TrainerCallback):
    """Record the time at the end of each update."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    """Measure and print one JSON object."""
    settings, clock = _arguments(), _Clock()
    dtype = getattr(torch, settings.dtype)
    trainer = _trainer(settings, dtype, clock)
    # It makes the norms of a 4-bit policy float32, and outside of autocast its generation then ends in an error.
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        trainer.train()
    seconds = [later - earlier for earlier, later in zip(clock.ends, clock.ends[1:], strict=False)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"seconds_per_update": seconds, "median": median(seconds), "peak_rss_mb": peak}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "prompts", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("batch", "micro-batch", "new-tokens", "epochs", "updates"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
    return parser.parse_args()


def _policy(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load the base in NF4 with double quantisation."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=quantization)
    for module in policy.modules():  # without this its gradients are wrong on CPUs with AVX512-BF16
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return policy


def _trainer(settings: argparse.Namespace, dtype: torch.dtype, clock: _Clock) -> PPOTrainer:
    """Build TRL's trainer with the benchmark's settings."""
    prompts = json.loads(settings.prompts.read_text())
    tokenizer = AutoTokenizer.from_pretrained(settings.model, padding_side="left")
    tokenizer.pad_token_id = 0
    policy = _policy(settings.model, dtype)
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(settings.model, num_labels=1, dtype=dtype) for _ in range(2)
    )
    return PPOTrainer(
        args=_config(settings, dtype),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_list([{"input_ids": row} for row in prompts]),
        eval_dataset=Dataset.from_list([{"input_ids": row} for row in prompts[: settings.batch]]),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock],
    )


def _config(settings: argparse.Namespace, dtype: torch.dtype) -> PPOConfig:
    return PPOConfig(
        output_dir=str(settings.output),
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.batch // settings.micro_batch,
        local_rollout_forward_batch_size=settings.batch,
        num_mini_batches=1,
        num_ppo_epochs=settings.epochs,
        total_episodes=settings.batch * (settings.updates + 1),
        response_length=settings.new_tokens,
        temperature=0.7,
        stop_token=None,
        num_sample_generations=0,
        learning_rate=1e-5,
        gradient_checkpointing=False,
        bf16=dtype == torch.bfloat16,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )


if __name__ == "__main__":
    main()
