"""Settings of prompts and demonstrations, and the names of the data formats."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from lowrank_rlhf.config.section import Conflict, Fraction, Section

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
    "question",
    "dolly",
    "alpaca-preference",
    "sharegpt-preference",
    "messages-preference",
    "question-preference",
    "argilla",
    "ms-swift",
    "ms-swift-messages",
    "openai",
    "alpaca-ranked",
    "ultrafeedback",
    "rated",
    "winner",
    "arena",
    "arena-lists",
    "auto-j",
    "pku-saferlhf",
    "shp",
    "tldr",
    "helpsteer3",
]
Columns = dict[str, str | None]
"""Column of a data set by the key of a format; None ignores the column of that name."""


class DataConfig(Section):
    """Prompts and demonstrations."""

    prompts: str = "builtin:everyday"
    """`builtin:everyday`, `builtin:replies`, `builtin:replies_zh`, a JSONL, JSON, CSV or Parquet file,
    `hub:OWNER/NAME` or `modelscope:OWNER/NAME/FILE` (formats: docs/data-formats.md)."""
    format: FormatName | None = None
    """Format of `prompts`; detected from the rows by default."""
    columns: Columns = Field(default={})
    """Columns of `prompts` under other names: `{prompt: question}` reads the column `question` as the prompt, and
    `{label: null}` ignores the column `label`."""
    skip_bad_rows: Fraction = 0.0
    """Maximum share of invalid rows to leave out, here and in `rank.dataset`; at 0, an invalid row is an error."""
    skip_too_long: bool = False
    """Leave out prompts without room for an answer of `sample.max_new_tokens` in `model.max_length`, and responses that
    do not fit. Otherwise they are listed and the run does not start."""
    control_tokens: Literal["refuse", "escape"] = "refuse"
    """Prompts, here and in `rank.dataset`, that contain a control token of the model, such as `<|im_end|>`: `refuse`
    lists them and the run does not start, `escape` puts a space after the token's first character."""
    held_out: Annotated[int, Field(ge=0)] = 64
    """Number of prompts kept out of all training, for evaluation. Hold out twice `ppo.evaluate_prompts` if there are
    enough: half of them serve validation."""
    validation: Annotated[int, Field(ge=0)] | None = None
    """Number of held-out prompts for the evaluations during training, which select the policy; half by default. The
    rest are test prompts, for the final evaluation alone. At 0 all serve both, and the report notes it."""

    @property
    def validation_prompts(self) -> int:
        """Number of held-out prompts for validation; 0 if held-out prompts are not divided."""
        return self.held_out // 2 if self.validation is None else self.validation

    def conflicts(self) -> Iterator[Conflict]:
        """Yield a validation set that leaves no test prompt."""
        if self.validation and self.validation >= self.held_out:
            text = f"validation ({self.validation}) must be below held_out ({self.held_out}), which includes it"
            yield Conflict(("validation", "held_out"), text)
