"""Settings of the answers that users get."""

from typing import Annotated

from pydantic import Field

from lowrank_rlhf.config.section import Section, Temperature


class ChatConfig(Section):
    """Sampling settings of `chat`, the page's Talk tab and exported models. No figure of the run depends on them."""

    temperature: Temperature | None = None
    """Divisor of the logits; by default `sample.temperature`, at which the figures are measured."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample only from the fewest tokens that have this probability together (Holtzman et al. 2020); 1 is all tokens,
    with which the figures are measured."""
