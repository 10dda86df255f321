"""Load the base, add its first adapter and sample with unsloth (decision 0020).

unsloth has its own kernels for decoder layers with adapters, its own gradient checkpointing and its own decoding. Every
function imports it when called: by then `models.backend` has imported it, before transformers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from lowrank_rlhf.config.schema import ModelConfig


def load_model(folder: Path, config: ModelConfig, device: torch.device, compute_dtype: torch.dtype) -> PreTrainedModel:
    """Load the model in that folder, in NF4 with double quantisation if configured.

    unsloth truncates rows longer than `config.max_length` without an error; the data is limited to it before.
    """
    from unsloth import FastLanguageModel

    model: PreTrainedModel
    model, _ = FastLanguageModel.from_pretrained(
        model_name=str(folder),
        max_seq_length=config.max_length,
        dtype=compute_dtype,
        load_in_4bit=config.quantization == "nf4",
        device_map={"": str(device)},
        use_gradient_checkpointing=_checkpointing(config),
        use_exact_model_name=True,  # otherwise unsloth replaces known names by its own repositories
        fix_tokenizer=False,  # `sources.tokenizer` reads it
        trust_remote_code=False,
    )
    model.generation_config = GenerationConfig.from_model_config(model.config)  # without the checkpoint's penalties
    return model


def first_adapter(model: PreTrainedModel, shape: PeftLoraConfig, config: ModelConfig) -> PeftModel:
    """Return the model with its adapter `default`; PEFT adds the other adapters, to the same modules."""
    from unsloth import FastLanguageModel

    with torch.random.fork_rng(devices=[]):  # unsloth seeds torch
        wrapped: PeftModel = FastLanguageModel.get_peft_model(
            model,
            r=shape.r,
            lora_alpha=shape.lora_alpha,
            use_rslora=shape.use_rslora,
            target_modules=sorted(shape.target_modules or ()),
            lora_dropout=0.0,
            bias="none",
            use_gradient_checkpointing=_checkpointing(config),
        )
    return wrapped


@contextmanager
def sampling(model: PeftModel) -> Iterator[None]:
    """Enable unsloth's decoding inside the block, and restore its gradient checkpointing afterwards."""
    from unsloth import FastLanguageModel

    FastLanguageModel.for_inference(model)
    try:
        yield
    finally:
        FastLanguageModel.for_training(model)


def generate(
    model: PeftModel,
    ids: Tensor,
    attention: Tensor,
    pick: Callable[[Tensor, int], Tensor],
    *,
    longest: int,
    eos: int,
    pad: int,
) -> Tensor:
    """Decode up to `longest` new tokens from left-padded prompts: (N, T) -> (N, L), `pad` after `eos`.

    `pick(logits, step)`, (N, V) float32 -> (N,), chooses the next tokens.
    """
    tokens: Tensor = model.generate(
        input_ids=ids,
        attention_mask=attention,
        logits_processor=LogitsProcessorList([_ForcedTokens(pick, ids.shape[1])]),
        do_sample=False,
        max_new_tokens=longest,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    return tokens[:, ids.shape[1] :]


class _ForcedTokens(LogitsProcessor):
    """Mask all but the picked token of each row, so that greedy decoding returns it."""

    def __init__(self, pick: Callable[[Tensor, int], Tensor], prompt: int):
        self.pick, self.prompt = pick, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        picked = self.pick(scores.float(), input_ids.shape[1] - self.prompt)
        return torch.full_like(scores, -torch.inf).scatter_(1, picked[:, None], 0.0)


def _checkpointing(config: ModelConfig) -> Literal["unsloth", False]:
    return "unsloth" if config.gradient_checkpointing else False
