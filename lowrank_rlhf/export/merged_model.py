"""A role as a plain transformers folder in 16 bits, written tensor by tensor; and how far its output is from the run's.

Nothing here needs a second model in memory: a weight is dequantised and merged when its file is written.
"""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig, PreTrainedModel

from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.maths.masking import pool
from lowrank_rlhf.maths.sequences import pack
from lowrank_rlhf.models.base import Base
from lowrank_rlhf.models.generation import Response
from lowrank_rlhf.models.layers.merging import merged_weight
from lowrank_rlhf.models.logprobs import CHUNK, vocabulary_logits
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import write_tensors
from lowrank_rlhf.run import fault_points

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SHARD_BYTES = 2 * 2**30
"""Weights above this are cut into files of this size: so much of them is in memory at once."""
SETTINGS = "lowrank_rlhf"
"""Key of a reward model's `config.json` that holds its pooling, and mean and deviation of its scores."""


@dataclass(frozen=True)
class Plan:
    """A folder to be written: its config, and the names and shapes of its weights, without any of them."""

    config: Any
    tensors: dict[str, Tensor]
    """On the meta device, in the number format of the file; of weights that are one and the same only the first."""

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def plan_merged(base: Base, dtype: torch.dtype) -> Plan:
    """The base's own architecture with merged weights."""
    config = _plain_config(base, dtype, type(base.model))
    with torch.device("meta"):
        model: nn.Module = type(base.model)(config)
    return Plan(config, _tensors(model.to(dtype)))


def plan_reward(roles: Roles, dtype: torch.dtype, settings: dict[str, Any]) -> Plan:
    """The sequence classifier of the base's family, with one label and as many layers as the reward model reads.

    Raises `UserError` where transformers has no such class.
    """
    config = _plain_config(roles.base, dtype, type(roles.base.model))
    config.num_labels = 1
    config.id2label, config.label2id = {0: "score"}, {"score": 0}
    config.num_hidden_layers = roles.head_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: roles.head_layers]
    setattr(config, SETTINGS, settings)
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config).to(dtype=dtype)
    except ValueError:
        raise UserError(
            f"transformers has no sequence classifier for {config.model_type} models: "
            "take `--what adapters`, whose folder `reward` PEFT loads"
        ) from None
    config.architectures = [type(model).__name__]
    return Plan(config, _tensors(model))


def write_model(roles: Roles, role: Role, plan: Plan, folder: Path, on_tensor: Callable[[], None]) -> None:
    """Config, tokenizer and weights; in shards where they are large.

    Raises `UserError` where a weight is too large for float16.
    """
    plan.config.save_pretrained(folder)
    roles.base.tokenizer.save_pretrained(folder)
    split = split_torch_state_dict_into_shards(plan.tensors, max_shard_size=SHARD_BYTES)
    for file, names in split.filename_to_tensors.items():
        shard = {}
        for name in names:
            shard[name] = _weight(roles, role, name, plan.tensors[name])
            on_tensor()
        write_tensors(shard, folder / file)
        fault_points.point(f"{file}: written")
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_generation_config(base: Base, sampling: SampleConfig, folder: Path) -> None:
    """What makes a plain `generate` sample as the run did: temperature alone, and the same end of turn."""
    GenerationConfig(
        eos_token_id=base.eos,
        pad_token_id=base.pad,
        bos_token_id=base.tokenizer.bos_token_id,
        do_sample=True,
        temperature=sampling.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=sampling.max_new_tokens,
    ).save_pretrained(folder)


def free_memory(device: torch.device) -> int:
    """Bytes that the device still has."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _plain_config(base: Base, dtype: torch.dtype, kind: type[PreTrainedModel]) -> Any:
    config = copy.deepcopy(base.model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [kind.__name__]
    config.dtype = dtype
    config.eos_token_id, config.pad_token_id = base.eos, base.pad
    return config


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a file of this model holds: tied weights once, under their first name."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            kept[name] = tensor
    return kept


def _weight(roles: Roles, role: Role, name: str, like: Tensor) -> Tensor:
    path, _, leaf = name.rpartition(".")
    if path == "score":
        found = roles.heads[role].weight
    else:
        module: Any = roles.base.model.get_submodule(path)
        if leaf == "weight" and isinstance(module, LoraLayer | nn.Linear):
            found = merged_weight(module, role)
        else:
            found = getattr(module.get_base_layer() if isinstance(module, LoraLayer) else module, leaf)
    weight: Tensor = found.detach().to(like.dtype).cpu().contiguous()
    if weight.shape != like.shape:
        raise RuntimeError(f"{name} is {tuple(weight.shape)}, not {tuple(like.shape)}")
    if not weight.isfinite().all():
        raise UserError(f"{name}: holds numbers too large for {str(like.dtype).removeprefix('torch.')}; take bfloat16")
    return weight.clone() if weight.data_ptr() == found.data_ptr() else weight


# --- The difference


@dataclass(frozen=True)
class Difference:
    """How the exported model differs from the 4-bit base with its adapter, on tokens that the latter sampled."""

    prompts: int
    tokens: int
    max_logprob: float
    """Largest absolute difference of a sampled token's log-probability, nats."""
    mean_logprob: float
    kl_per_token: float
    """KL(run || export), over the whole vocabulary, mean over the tokens, nats."""
    same_best: float
    """Share of positions at which both hold the same token most probable."""
    computed_in: str


def role_logprobs(roles: Roles, role: Role, prompts: Sequence[Sequence[int]], answers: Sequence[Response]) -> Tensor:
    """Log-probabilities of every vocabulary entry at each answer token, as the run computes them: (N, V) float32, CPU.

    Temperature is 1. Rows follow each other in the prompts' order.
    """
    base, found = roles.base, []
    with roles.acting_as(role):
        for prompt, answer in zip(prompts, answers, strict=True):
            batch = pack([prompt], [answer.tokens], base.pad, base.device)
            states = roles.hidden(batch)[0, len(prompt) - 1 : -1]
            found += [vocabulary_logits(part, base.model).log_softmax(-1).cpu() for part in states.split(CHUNK)]
    return torch.cat(found)


def difference(
    expected: Tensor, folder: Path, prompts: Sequence[Sequence[int]], answers: Sequence[Response], base: Base
) -> Difference:
    """The folder, loaded by transformers alone, against the log-probabilities that `role_logprobs` gave."""
    model = _load(AutoModelForCausalLM, folder, base)
    gaps, kls, same, start = [], [], [], 0
    for prompt, answer in zip(prompts, answers, strict=True):
        ours = expected[start : start + len(answer.tokens)]
        start += len(answer.tokens)
        ids = torch.tensor([[*prompt, *answer.tokens]], device=base.device)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        theirs = logits.float().log_softmax(-1).cpu()
        targets = torch.tensor(answer.tokens)[:, None]
        gaps.append((ours.gather(-1, targets) - theirs.gather(-1, targets)).abs().squeeze(-1))
        kls.append((ours.exp() * (ours - theirs)).sum(-1))
        same.append(ours.argmax(-1) == theirs.argmax(-1))
    gap, kl, best = (torch.cat(parts).double() for parts in (gaps, kls, same))
    return Difference(
        prompts=len(prompts),
        tokens=len(gap),
        max_logprob=float(gap.max()),
        mean_logprob=float(gap.mean()),
        kl_per_token=max(0.0, float(kl.mean())),  # rounding takes a KL of nothing below 0
        same_best=float(best.mean()),
        computed_in=str(base.compute_dtype).removeprefix("torch."),
    )


def classifier_scores(
    folder: Path, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pooling: str, base: Base
) -> Iterator[float]:
    """The exported reward model's raw score of each answer, by transformers alone."""
    model = _load(AutoModelForSequenceClassification, folder, base)
    for prompt, answer in zip(prompts, answers, strict=True):
        batch = pack([prompt], [answer], base.pad, base.device)
        with torch.no_grad():
            if pooling == "last":
                yield float(model(input_ids=batch.ids, use_cache=False).logits[0, 0])
            else:
                states = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
                yield float(pool(model.score(states).squeeze(-1).float(), batch.response, pooling)[0])


def _load(kind: Any, folder: Path, base: Base) -> Any:
    """In the number format that the run computed in: what is left is the rounding of the weights."""
    return kind.from_pretrained(folder, dtype=base.compute_dtype, device_map={"": str(base.device)}).eval()
