"""Measured cost of `model.quantization`: perplexity of a base by storage format (benchmarks/base_quality.py)."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.sources.checksums import file_checksum
from lowrank_rlhf.sources.fetch import local_model

ANSWERS = "50 answers of PandaLM's test set"
_MEASURED: Mapping[str, Mapping[str, float]] = {
    # SmolLM2-135M-Instruct, Q4_1
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53": {
        "none": 3.541, "nf4": 4.184, "int8": 3.555, "gguf": 3.544,
    },
    # Qwen2.5-Coder-0.5B-Instruct, Q4_K_M
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32": {
        "none": 2.891, "nf4": 3.026, "int8": 2.892, "gguf": 2.891,
    },
}  # fmt: skip
"""Perplexity in float32 by the SHA-256 of the model's file and storage format."""


@dataclass(frozen=True)
class QuantizationCost:
    """Perplexity of a base as it is stored, next to the other storage formats."""

    quantization: str
    perplexity: float
    others: Mapping[str, float]

    @property
    def text(self) -> str:
        """The figures as a sentence for people."""
        others = ", ".join(f"{name} {value:.2f}" for name, value in self.others.items())
        return f"perplexity {self.perplexity:.2f} with model.quantization {self.quantization} ({others}), on {ANSWERS}"


def quantization_cost(config: ModelConfig) -> QuantizationCost | None:
    """Return the measured cost of the configured storage, or None if the model was not measured."""
    if not config.is_gguf:
        return None
    measured = _MEASURED.get(config.sha256 or _checksum(config))
    if measured is None:
        return None
    others = {name: value for name, value in measured.items() if name != config.quantization}
    return QuantizationCost(config.quantization, measured[config.quantization], others)


def _checksum(config: ModelConfig) -> str:
    """Return the checksum of a local GGUF file; empty for a package's or a missing one."""
    with suppress(UserError):
        local = None if config.source.startswith("pypi:") else local_model(config)
        return file_checksum(local) if local else ""
    return ""
