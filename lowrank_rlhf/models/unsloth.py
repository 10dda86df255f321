"""The base, its first adapter and its sampling through unsloth (decision 0020).

unsloth brings kernels for the decoder's layers with their adapters, a checkpointing and a decoder of its own. Every
function imports it when it is called: `models.backend` has imported it then, before transformers.
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
    """The model in that folder, in NF4 with double quantisation where the config says so.

    Rows longer than `config.max_length` would be cut without an error; the data is held to that length before.
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
        use_exact_model_name=True,  # else a name that it knows becomes another repository's
        fix_tokenizer=False,  # ours is read elsewhere
        trust_remote_code=False,
    )
    model.generation_config = GenerationConfig.from_model_config(model.config)  # no penalties of the checkpoint's own
    return model


def first_adapter(model: PreTrainedModel, shape: PeftLoraConfig, config: ModelConfig) -> PeftModel:
    """The model with its adapter `default`; further ones are plain PEFT, on the same modules."""
    from unsloth import FastLanguageModel

    with torch.random.fork_rng(devices=[]):  # it seeds
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
    """Inside the block unsloth's decoder may be used; afterwards its checkpointing is again what it was."""
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
    """Left-padded prompts (N, T) -> up to `longest` new tokens of each, (N, L), `pad` after `eos`.

    `pick(logits, step)`, (N, V) float32 -> (N,), says which token comes next.
    """
    tokens: Tensor = model.generate(
        input_ids=ids,
        attention_mask=attention,
        logits_processor=LogitsProcessorList([_Picked(pick, ids.shape[1])]),
        do_sample=False,
        max_new_tokens=longest,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    return tokens[:, ids.shape[1] :]


class _Picked(LogitsProcessor):
    """Leaves one token possible in each row, so that taking the most probable one takes it."""

    def __init__(self, pick: Callable[[Tensor, int], Tensor], prompt: int):
        self.pick, self.prompt = pick, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        picked = self.pick(scores.float(), input_ids.shape[1] - self.prompt)
        return torch.full_like(scores, -torch.inf).scatter_(1, picked[:, None], 0.0)


def _checkpointing(config: ModelConfig) -> Literal["unsloth", False]:
    return "unsloth" if config.gradient_checkpointing else False
