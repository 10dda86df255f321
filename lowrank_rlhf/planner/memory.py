"""Peak memory of each stage as a sum of named terms, from the model's shape and the config alone.

The formulas, the measured constants and the measured errors are in docs/planning.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.maths.batching import rows_per_pass
from lowrank_rlhf.maths.best_of_n import MOST
from lowrank_rlhf.planner import tensors
from lowrank_rlhf.planner.compute_cost import Amounts
from lowrank_rlhf.run.results.rounds import split
from lowrank_rlhf.sources.model_shape import NF4_BITS, Shape
from lowrank_rlhf.stages import SCALE_PROMPTS

LIBRARIES = 516 * 10**6
"""Python with torch, transformers, peft and bitsandbytes, loaded and used once on a CPU."""
TOKENIZER_ENTRY = 405
"""Bytes of the tokenizer for each entry of its vocabulary and each merge: 125 MB for Qwen2.5, 315 MB for Gemma 3."""
TRAINER = 100 * 10**6
"""Memory added by importing TRL and datasets."""
CUDA_CONTEXT, CONTEXT = 700 * 2**20, "CUDA context"
NF4_SCALE_BITS = 0.5
"""Bits per weight of NF4's scales in float32, dequantised once for all passes, one for 64 weights."""
HEAP, HEAP_IN_TRAINING, GAPS = 100 * 10**6, 230 * 10**6, 0.27
"""Fragmentation: on a CPU bytes, more in a stage that trains, and a share of the largest phase, whose tensors do not
fit the holes that tensors of other lengths left. On a GPU the same share, not measured yet. Chosen by hand on stages of
SmolLM2-135M, the bytes in training on a whole run of the quickstart (docs/planning.md)."""


@dataclass(frozen=True)
class Term:
    """Part of the memory, in bytes."""

    name: str
    size: float
    detail: str
    """Description for people."""


Phases = dict[str, tuple[Term, ...]]
"""Memory of each phase of a stage, such as sampling and training, freed before the next one."""


@dataclass(frozen=True)
class Need:
    """Memory of a stage: a fixed part, and the largest of its phases."""

    stage: str
    fixed: tuple[Term, ...]
    phases: Phases
    gaps: float = 0.0
    """Fragmentation: idle bytes between blocks in use."""
    mapped: float = 0.0
    """Bytes of the weights file that stay mapped while memory is free; the system can reclaim them."""

    @property
    def largest_phase(self) -> str:
        """Name of the phase that determines the peak."""
        return max(self.phases, key=lambda name: _total(self.phases[name]))

    @property
    def peak(self) -> float:
        """Peak bytes, without those that the system can reclaim."""
        return _total(self.terms())

    @property
    def shown(self) -> float:
        """Peak bytes as measured in done marks: with reclaimable ones, without the CUDA context."""
        return self.peak + self.mapped - sum(term.size for term in self.fixed if term.name == CONTEXT)

    def terms(self) -> list[Term]:
        """Return the terms of the peak."""
        gaps = Term("gaps", self.gaps, f"fragmentation while {self.largest_phase}")
        return [*self.fixed, *self.phases[self.largest_phase], gaps]


@dataclass(frozen=True)
class Device:
    """Device of the tensors, the bytes of a number in the compute format, and the processes that share the work."""

    cuda: bool
    width: int
    processes: int = 1


def need(stage: str, config: Config, shape: Shape, counts: Amounts, device: Device) -> Need | None:
    """Return the stage's memory; None for a stage that loads no model."""
    number, kind = split(stage)
    phases = _phases(kind, config, shape, counts, device, number)
    if not phases:
        return None
    trained = _trained(kind, config, shape)
    policy = 2 + (config.align.algorithm == "ppo") + config.ppo.uses_reward_model
    roles = {"sft": 1, "sample": 2, "reward": 3}.get(kind, policy)
    each = shape.adapter(config.lora)
    fixed = [
        _runtime(device),
        *([] if device.cuda else [_tokenizer(shape)]),
        _base(config, shape, device),
        # The acting role's weights are in the layers' slots, in the compute format (models/layers/lora_linear.py).
        Term("adapters", (4 * roles + device.width) * each, f"{roles} x {each:,} weights, 4 bytes each, and one copy"),
    ]
    if trained:
        fixed.append(Term("optimiser", 12 * trained, f"gradient and Adam of {trained:,} weights, 12 bytes each"))
    largest = max(map(_total, phases.values()))
    gaps = GAPS * largest + (0 if device.cuda else HEAP_IN_TRAINING if trained else HEAP)
    return Need(stage, tuple(fixed), phases, gaps, _mapped(config, shape, device))


def _phases(stage: str, config: Config, shape: Shape, counts: Amounts, device: Device, number: int) -> Phases:
    width = device.width
    sampling, below, most = config.sample, shape.first_adapted(config.lora), config.model.micro_batch_tokens
    heads = config.reward.layers or shape.layers
    drawn = min(config.model.max_length, counts.longest_prompt + sampling.max_new_tokens)
    others = config.rank.source == "dataset" and stage == "reward"  # answers that no model of the run gave
    row = config.model.max_length if others else drawn

    def tokens_per_pass(rows: int, group: int = 1) -> float:
        """Return the tokens of one pass over `rows` rows, with at least one whole group in it."""
        return max(group * row, min(most, rows * row))

    def sampled(rows: int) -> tuple[Term, ...]:
        return _sampling(config, shape, min(rows, sampling.batch_size), drawn, width)

    def by_trl(batch_size: int, longest: float) -> tuple[Term, ...]:
        tokens = rows_per_pass(batch_size, longest, most) * longest
        return (_activations(config, shape, below, shape.layers, tokens, width), _trl_logits(shape, tokens, device))

    if stage == "sft" and config.sft.source == "train":
        return {"training": by_trl(config.sft.batch_size, counts.longest_demonstration)}
    if stage == "sample":
        return {"sampling": sampled(counts.answers)}
    if stage == "reward":
        group = 1 if others else number * sampling.answers_per_prompt
        phases: Phases = {"reading": (_reading(shape, tokens_per_pass(counts.answers), width),)}
        if others or number > 1:  # SFT then answers prompts, for the scale of the scores
            phases["sampling"] = sampled(min(counts.training, SCALE_PROMPTS))
        if config.reward.epochs:
            tokens = tokens_per_pass(config.reward.batch_size * group, group)
            phases["training"] = (_activations(config, shape, below, heads, tokens, width),)
        return phases
    if stage == "ppo" and config.align.algorithm == "dpo":
        return {"sampling": sampled(config.ppo.evaluate_prompts), "training": by_trl(config.align.batch_size, 2 * row)}
    if stage == "ppo" and config.align.algorithm != "ppo":
        return {"sampling": sampled(config.align.batch_size), "training": by_trl(config.align.batch_size, row)}
    if stage == "ppo":
        tokens = tokens_per_pass(config.ppo.batch_size // config.ppo.minibatches)
        trained = _activations(config, shape, below, shape.layers, tokens, width)
        logits = _logits(shape, tokens * counts.answer_tokens / counts.tokens)
        return {"sampling": sampled(config.ppo.batch_size), "training": (trained, logits)}
    if stage == "evaluate":
        tokens = tokens_per_pass(counts.test)
        read = (_reading(shape, tokens, width), _logits(shape, tokens))
        best_of_n = MOST * min(config.evaluate.yardstick_prompts, counts.test)
        rows = max(counts.test * config.evaluate.answers_per_prompt, best_of_n)
        return {"sampling": sampled(rows), "reading": read}
    return {}


def _trained(stage: str, config: Config, shape: Shape) -> int:
    """Return the number of LoRA weights with gradients and optimiser state."""
    policy, headed = shape.adapter(config.lora), shape.adapter(config.lora, config.reward.layers)
    if stage == "sft":
        return policy if config.sft.source == "train" else 0
    critic = headed if config.align.algorithm == "ppo" else 0
    return {"reward": headed if config.reward.epochs else 0, "ppo": policy + critic}.get(stage, 0)


def _runtime(device: Device) -> Term:
    if device.cuda:
        return Term(CONTEXT, CUDA_CONTEXT, "libraries and kernels on the device")
    # A run is one process: TRL stays loaded after the sft stage.
    return Term("libraries", LIBRARIES + TRAINER, "Python, torch, transformers, peft, bitsandbytes, TRL, datasets")


def _tokenizer(shape: Shape) -> Term:
    merges = 2 if shape.architecture.startswith("gemma") else 1  # for each entry; its file lists most pairs twice
    return Term("tokenizer", TOKENIZER_ENTRY * (1 + merges) * shape.vocabulary, "vocabulary and merges")


def _base(config: Config, shape: Shape, device: Device) -> Term:
    embeddings = (shape.embeddings + shape.expert_weights) * device.width
    linear, detail = _linear(config, shape, device.width)
    if config.model.shard:  # each process holds its part, and gathers one layer at a time
        linear = linear / device.processes + linear / shape.layers
        detail += f"; 1/{device.processes} of the linear layers, and one decoder layer"
    return Term("base", linear + embeddings, detail)


def _linear(config: Config, shape: Shape, width: int) -> tuple[float, str]:
    """Return the bytes of all linear layers, and what the base's term consists of."""
    if config.model.quantization == "none":
        return shape.linear_weights * width, f"all weights, {width} bytes each"
    if config.model.quantization == "gguf":
        layers = shape.block_bytes + (shape.linear_weights - shape.block_weights) * width
        return layers, f"linear layers in GGUF blocks, embeddings in {width} bytes"
    nf4 = (0 if config.model.backend == "unsloth" else NF4_SCALE_BITS) + (4 if config.model.shard else NF4_BITS)
    bits, stored = (8, "one byte") if config.model.quantization == "int8" else (nf4, "4 bits")
    return shape.linear_weights * bits / 8, f"linear layers in {stored}, embeddings in {width} bytes"


def _mapped(config: Config, shape: Shape, device: Device) -> float:
    """Return the bytes of the mapped file: weights that need no conversion are views into it and keep all of it."""
    if device.cuda or device.width != shape.file_width or config.model.quantization in ("none", "gguf"):
        return 0.0
    return shape.linear_weights * device.width


def _activations(config: Config, shape: Shape, first: int, last: int, tokens: float, width: int) -> Term:
    """Return the activations that a forward saves for its backward, and one layer's worth for that backward itself."""
    layer, count = tensors.saved(shape, config.lora, width), last - first
    if config.model.gradient_checkpointing:
        kept = count * shape.hidden * width + 2 * layer
        return Term("activations", tokens * kept, f"inputs of {count} layers, one layer at a time, {tokens:.0f} tokens")
    return Term("activations", tokens * (count + 1) * layer, f"{count} layers of {tokens:.0f} tokens")


def _reading(shape: Shape, tokens: float, width: int) -> Term:
    return Term("activations", tokens * (8 * shape.hidden + 4 * shape.mlp) * width, f"one layer of {tokens:.0f} tokens")


def _logits(shape: Shape, tokens: float) -> Term:
    about = f"{tensors.CHUNK} tokens at a time x {shape.vocabulary:,} entries"
    return Term("logits", tensors.logits(tokens, shape.vocabulary), about)


def _trl_logits(shape: Shape, tokens: float, device: Device) -> Term:
    size = tensors.trl_logits(tokens, shape.hidden, shape.vocabulary, device.width, cuda=device.cuda)
    return Term("logits", size, f"of TRL, {tokens:.0f} tokens x {shape.vocabulary:,} entries, in tiles")


def _sampling(config: Config, shape: Shape, rows: int, length: float, width: int) -> tuple[Term, ...]:
    cache = 2 * shape.layers * shape.key_value * width * rows * length
    terms = (
        Term("KV cache", cache, f"{rows} answers of {length:.0f} tokens with their prompts"),
        Term("logits", 18 * rows * shape.vocabulary, f"{rows} answers x {shape.vocabulary:,} entries, several copies"),
    )
    if not config.model.merged_rollouts or config.model.backend == "unsloth":
        return terms
    plain = config.model.quantization == "none"  # then a layer without an adapter is not copied
    weights = shape.under_adapter(config.lora) if plain else shape.linear_weights
    return (Term("merged copy", weights * width, "the policy's weights in the compute format"), *terms)


def _total(terms: Sequence[Term]) -> float:
    return sum(term.size for term in terms)
