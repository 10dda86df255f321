"""Settings of the reward model."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from lowrank_rlhf.config.section import Conflict, Count, NonNegative, Rate, Section


class RewardConfig(Section):
    """Stage 2b: training of the reward adapter and its scalar head on the comparisons."""

    loss: Literal["pairwise", "plackett_luce"] = "pairwise"
    """`pairwise` (InstructGPT: all pairs of a prompt as one element, divided by their number) or listwise
    `plackett_luce`, divided by its number of choices."""
    margin: NonNegative = 0.0
    """With `pairwise`: margin in score per tier between the two answers (Llama 2)."""
    pooling: Literal["last", "mean"] = "mean"
    """`mean` averages over the response, which is more accurate with few comparisons; `last` scores at the last
    response token, so that the exported model loads anywhere as a sequence classifier."""
    layers: Count | None = None
    """Number of decoder layers of reward model and critic, from the bottom; all by default. Fewer cost less, and middle
    layers often describe a text better than the last ones, which predict the next token."""
    fit_head_first: bool = False
    """Fit the head alone by regularised logistic regression before training the adapter."""
    head_l2: Annotated[float, Field(gt=0)] | None = None
    """Ridge penalty of that fit, on features scaled to unit variance; null chooses it by cross-validation over the
    training prompts."""
    length: Literal["ignore", "use", "debias"] = "ignore"
    """Logarithm of an answer's tokens as one more input of the fitted head. `use` scores with it, and the model cannot
    be exported; `debias` fits with it and scores with a constant instead, so that length itself earns nothing."""
    members: Annotated[int, Field(ge=1, le=16)] = 1
    """Number of heads on the one reward adapter, each fitted to its own bootstrap sample of the ranked prompts. Their
    spread on an answer measures how little the rankings determine its score."""
    combine: Literal["mean", "min", "mean_minus_std"] = "mean"
    """Score of several members: their mean, the lowest one, or the mean less `spread_weight` standard deviations."""
    spread_weight: NonNegative = 1.0
    """With `combine: mean_minus_std`: weight of the members' standard deviation."""
    epochs: Annotated[int, Field(ge=0)] = 1
    """Passes over the ranked prompts; 0 keeps the SFT adapter and trains only the head."""
    annotator_weights: Literal["equal", "reliability"] = "equal"
    """Weight of each annotator's comparisons in the loss. `reliability` estimates how often an annotator orders a pair
    rightly from prompts that several ranked; it requires three of them and the package crowd-kit."""
    batch_size: Count = 8
    """Ranked prompts per optimiser step."""
    learning_rate: Rate = 1e-4
    """Peak learning rate, with linear decay to 0."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the ranked prompts kept out of training to measure accuracy."""
    save_every: Count = 20
    """Steps between checkpoints."""

    def conflicts(self) -> Iterator[Conflict]:
        """Yield settings that others make meaningless: margin, length input, and the combination of members."""
        if self.margin and self.loss != "pairwise":
            text = f"margin ({self.margin:g}) requires `loss: pairwise`; {self.loss} ignores it"
            yield Conflict(("margin", "loss"), text)
        if self.annotator_weights != "equal" and self.loss != "pairwise":
            text = f"`annotator_weights: {self.annotator_weights}` requires `loss: pairwise`, not {self.loss}"
            yield Conflict(("annotator_weights", "loss"), text)
        if self.length != "ignore" and not self.fit_head_first:
            text = f"`length: {self.length}` is an input of the fitted head and requires `fit_head_first: true`"
            yield Conflict(("length", "fit_head_first"), text)
        if self.members > 1 and self.length != "ignore":
            text = f"members ({self.members}) requires `length: ignore`, not {self.length}"
            yield Conflict(("members", "length"), text)
        if self.members == 1 and self.combine != "mean":
            text = f"`combine: {self.combine}` requires members of at least 2"
            yield Conflict(("combine", "members"), text)
