"""Settings of a run with defaults and descriptions: the single source of help, schema and docs."""

from collections.abc import Iterator
from datetime import date
from typing import Annotated, Literal

from pydantic import Field

from lowrank_rlhf.config.align import AlignConfig
from lowrank_rlhf.config.chat import ChatConfig
from lowrank_rlhf.config.data import Columns, DataConfig, FormatName
from lowrank_rlhf.config.endpoint import EndpointConfig
from lowrank_rlhf.config.evaluate import EvaluateConfig
from lowrank_rlhf.config.model import ModelConfig
from lowrank_rlhf.config.ppo import PpoConfig
from lowrank_rlhf.config.reward import RewardConfig
from lowrank_rlhf.config.section import Conflict, Count, Fraction, NonNegative, Rate, Section, Temperature

StageName = Literal["sft", "sample", "rank", "reward", "ppo", "evaluate"]
STAGES: tuple[StageName, ...] = ("sft", "sample", "rank", "reward", "ppo", "evaluate")
OF_REWARD_MODEL: tuple[StageName, ...] = ("sample", "rank", "reward")
"""Stages that serve the reward model alone."""


class LoraConfig(Section):
    """LoRA adapters; all roles use the same shape."""

    rank: Count = 16
    """Rank of the low-rank update."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """Scale of the update: it is multiplied by alpha / rank."""
    use_rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, so that updates do not shrink with the rank (Kalajdzievski 2023); for
    large ranks."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Linear layers with an adapter: `all-linear`, or a list of names."""
    last_layers: Count | None = None
    """Number of decoder layers to adapt, from the top; all by default. Those below run once for all roles."""


class SftConfig(Section):
    """Stage 1: supervised fine-tuning on demonstrations (TRL's SFTTrainer), with the loss on the response only."""

    source: Literal["train", "adapter", "base"] = "train"
    """`train` on demonstrations, or start from an existing PEFT `adapter` or the bare `base`."""
    adapter: str | None = None
    """Folder of the PEFT adapter, for `source: adapter`."""
    examples: Count | None = None
    """Maximum number of demonstrations; all by default."""
    epochs: Count = 2
    """Passes over the demonstrations."""
    batch_size: Count = 16
    """Demonstrations per optimiser step."""
    learning_rate: Rate = 2e-4
    """Peak learning rate."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps for learning-rate warm-up, followed by cosine decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""
    save_every: Count = 50
    """Steps between checkpoints."""
    scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the trained update W + scale B A: below 1 the SFT model lies between base and demonstrations, and loses
    less of what the base can do (WiSE-FT, arXiv 2109.01903)."""

    def conflicts(self) -> Iterator[Conflict]:
        """Yield `adapter` without `source: adapter`, or the reverse, and `scale` without training."""
        if (self.source == "adapter") != (self.adapter is not None):
            yield Conflict(("adapter", "source"), "`adapter` and `source: adapter` must be set together")
        if self.scale != 1 and self.source != "train":
            yield Conflict(("scale", "source"), f"`scale` has no effect with `source: {self.source}`; remove it")


class SampleConfig(Section):
    """Sampling settings, shared by the answers to rank, rollouts and evaluations."""

    prompts: Count | None = None
    """Maximum number of training prompts with answers to rank; all by default. Each further round takes the next
    ones, and begins again after the last."""
    answers_per_prompt: Annotated[int, Field(ge=2)] = 4
    """Answers per prompt (K)."""
    max_new_tokens: Count = 128
    """Maximum length of a response, in tokens. If it cuts most answers, PPO learns `ppo.missing_eos_score` only."""
    temperature: Temperature = 1.0
    """Divisor of the logits, in sampling and in every log-probability; no top-k, top-p or penalties."""
    batch_size: Count = 64
    """Answers sampled at once."""
    sft_share: Fraction = 0.25
    """With `rounds` above 1: share of each prompt's answers that the SFT model gives in the second and later rounds,
    rounded to whole answers. The rest are from the last round's policy."""

    @property
    def sft_answers(self) -> int:
        """Number of each prompt's answers that the SFT model gives in a later round."""
        return round(self.sft_share * self.answers_per_prompt)


GuidelinesText = Annotated[str, Field(min_length=1, max_length=20_000)]
"""Markdown for annotators."""


class RankConfig(Section):
    """Stage 2a: ranking of the answers."""

    source: Literal["judge", "dataset", "human"] = "judge"
    """A `judge` program, a `dataset` of comparisons (sampling is skipped), or `human` annotators."""
    judge: str = "simulated-annotator"
    """`simulated-kind-annotator`, `simulated-kind-annotator-zh`, `simulated-annotator`, `sentiment`, `plain-language`,
    `module:function` that scores the answers to a prompt, or `endpoint`, a language model that compares them in
    pairs or grades each."""
    endpoint: EndpointConfig | None = None
    """Server of that model, for `judge: endpoint` or `evaluate.second_judge: endpoint`."""
    tie_margin: NonNegative = 0.0
    """Answers whose judge scores differ by at most this much are tied."""
    dataset: str | None = None
    """File of comparisons (JSONL, JSON, CSV or Parquet) or `hub:OWNER/NAME`, for `source: dataset`."""
    format: FormatName | None = None
    """Format of `dataset`; detected from the rows by default."""
    columns: Columns = Field(default={})
    """Columns of `dataset` under other names, as in `data.columns`."""
    minimum_rankings: Count | None = None
    """With `source: human`, number of ranked prompts that the run waits for. The default is the number with which a
    reward model of 70 % accuracy passes its test in 80 % of simulations; after a failed test it is higher."""
    shared: Fraction = 0.2
    """Share of prompts that a second annotator, if there is one, ranks too, to measure agreement."""
    repeated: Fraction = 0.05
    """Share of prompts shown to the same annotator again later, to measure self-agreement."""
    checks: Fraction = 0.1
    """Share of attention checks among the prompts that an annotator is shown, if `annotations checks` added any."""
    guidelines: GuidelinesText | None = None
    """With `source: human`, guidelines for annotators in Markdown, shown beside the prompts. Each ranking names the
    version that its annotator was shown."""
    quota: Count | None = None
    """With `source: human`, number of prompts for each annotator in each round; an annotator who has ranked this many
    gets no more prompts."""
    deadline: date | None = None
    """With `source: human`, last day for ranking, as YYYY-MM-DD: page and terminal show the pace until then."""

    def conflicts(self) -> Iterator[Conflict]:
        """Yield `dataset` without `source: dataset`, or the reverse, and settings that only people need."""
        if (self.source == "dataset") != (self.dataset is not None):
            yield Conflict(("dataset", "source"), "`dataset` and `source: dataset` must be set together")
        for name in ("guidelines", "quota", "deadline"):
            if getattr(self, name) is not None and self.source != "human":
                yield Conflict((name, "source"), f"`{name}` has no effect without `source: human`; remove it")


class Config(Section):
    """Settings of one run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Name of the run and its folder."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Seed of every random choice."""
    stages: tuple[StageName, ...] = STAGES
    """Stages to run, in their fixed order. Without the reward model in `ppo.rewards`, sample, rank and reward never
    run."""
    rounds: Annotated[int, Field(ge=1, le=99)] = 1
    """Times that answers are sampled, ranked and trained on. From the second on they are the last policy's, the reward
    model learns from the rankings of all rounds, and the policy is trained further, with its KL still measured from
    the SFT model. Raise the number in a finished run to add a round."""
    tracking: Literal["none", "tensorboard", "wandb", "trackio", "swanlab"] = "none"
    """Tracker that also receives the figures of `metrics.jsonl`. Install its package, and log in if it requires an
    account. TensorBoard's files are written to the run folder."""
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
    chat: ChatConfig = ChatConfig()

    @property
    def active_stages(self) -> tuple[StageName, ...]:
        """Stages that run: not those of a reward model that no stage uses."""
        skipped = () if self.ppo.uses_reward_model else OF_REWARD_MODEL
        return tuple(stage for stage in self.stages if stage not in skipped)

    @property
    def ranking_judge(self) -> str | None:
        """Judge that ranks for the reward model; None if people or a data set do, or no stage uses a reward model."""
        return self.rank.judge if self.rank.source == "judge" and self.ppo.uses_reward_model else None

    @property
    def chat_temperature(self) -> float:
        """Sampling temperature of `chat` and exports."""
        return self.sample.temperature if self.chat.temperature is None else self.chat.temperature

    @property
    def trains_on_demonstrations(self) -> bool:
        """True if stage sft imitates the responses of `data.prompts`."""
        return "sft" in self.stages and self.sft.source == "train"

    def unsloth_obstacles(self) -> Iterator[Conflict]:
        """Yield the settings that unsloth does not support on any machine."""
        if self.model.device in ("cpu", "mps"):
            yield Conflict(("model.device",), f"model.device is {self.model.device}, and unsloth requires CUDA")
        if self.model.quantization in ("int8", "gguf"):
            text = f"model.quantization is {self.model.quantization}, which unsloth does not support; set nf4 or none"
            yield Conflict(("model.quantization",), text)
        for key, layers in {"lora.last_layers": self.lora.last_layers, "reward.layers": self.reward.layers}.items():
            if layers is not None:
                text = f"{key} is {layers}, and unsloth runs all layers for every role; set it to null"
                yield Conflict((key,), text)

    def conflicts(self) -> Iterator[Conflict]:
        """Yield contradictions between sections."""
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
        yield from self._round_conflicts()
        yield from self._contrastive_conflicts()
        if self.align.algorithm == "dpo" and self.ppo.rewards:
            text = "align.algorithm is dpo, which learns from comparisons and not from ppo.rewards; remove them"
            yield Conflict(("align.algorithm", "ppo.rewards"), text)
        yield from self._judge_conflicts()
        if self.reward.annotator_weights != "equal" and self.rank.source == "judge":
            text = f"reward.annotator_weights: {self.reward.annotator_weights} requires several annotators, and "
            text += "rank.source: judge has one; remove it"
            yield Conflict(("reward.annotator_weights", "rank.source"), text)

    def _stage_conflicts(self) -> Iterator[Conflict]:
        if [stage for stage in STAGES if stage in self.stages] != list(self.stages):
            text = f"stages must be a subset of {', '.join(STAGES)}, in this order"
            yield Conflict(("stages",), text)
        needed = set(self.active_stages) - ({"sample"} if self.rank.source == "dataset" else set())
        if not needed:
            unused = "" if self.ppo.uses_reward_model else "; without the reward model in ppo.rewards none trains it"
            why = unused or ("; rank.source: dataset needs no stage sample" if self.stages else "")
            text = f"stages must name at least one stage that runs{why}. Remove the key to run all stages"
            yield Conflict(("stages", "rank.source"), text)
        if not self.data.held_out and {"ppo", "evaluate"} & set(self.stages):
            text = "data.held_out must be above 0: stages ppo and evaluate use held-out prompts"
            yield Conflict(("data.held_out", "stages"), text)

    def _round_conflicts(self) -> Iterator[Conflict]:
        if self.rounds == 1:
            return
        if self.rank.source == "dataset":
            text = f"rounds ({self.rounds}) requires rank.source: judge or human: a data set cannot rank new answers"
            yield Conflict(("rounds", "rank.source"), text)
        elif missing := {*OF_REWARD_MODEL, "ppo"} - set(self.active_stages):
            named = ", ".join(stage for stage in STAGES if stage in missing)
            how = "add them to `stages`"
            if not self.ppo.uses_reward_model:
                how = "without the reward model in ppo.rewards they do not run"
            text = f"rounds ({self.rounds}) requires the stages {named}: {how}"
            yield Conflict(("rounds", "stages", "ppo.rewards"), text)
        if self.sample.sft_answers == self.sample.answers_per_prompt:
            share, count = self.sample.sft_share, self.sample.answers_per_prompt
            text = f"sample.sft_share ({share:g}) of {count} answers leaves none for the policy; lower it"
            yield Conflict(("sample.sft_share", "sample.answers_per_prompt", "rounds"), text)

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
        used += [f"ppo.rewards.{name}.source" for name in self.ppo.asking_endpoint]
        if used and not self.rank.endpoint:
            text = f"{used[0]} is endpoint, which requires a section rank.endpoint with url and model"
            yield Conflict((used[0], "rank.endpoint"), text)
        if self.rank.endpoint and not used:
            text = "rank.endpoint requires rank.judge: endpoint or evaluate.second_judge: endpoint, or such a reward"
            yield Conflict(("rank.endpoint", *judges), text)
