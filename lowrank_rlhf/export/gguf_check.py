"""Check of a GGUF file: llama.cpp's tokens, greedy answers and log-probabilities against the run's own model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.export.gguf_file import Type
from lowrank_rlhf.export.llama_cpp import LlamaFiles, LlamaServer
from lowrank_rlhf.export.measured_difference import PROMPTS, TOKENS
from lowrank_rlhf.reports.format import Table
from lowrank_rlhf.run.records import Prompt
from lowrank_rlhf.training.prompts import encode_prompts, first_fitting, max_prompt_tokens

if TYPE_CHECKING:
    from lowrank_rlhf.models.roles import Roles

BOUNDS: dict[Type, float] = {"f16": 0.05, "lora": 0.1, "q8_0": 0.15, "q4_k_m": 0.4}
"""Largest mean difference of a token's log-probability, nats, with which a file passes (docs/log/2026-11-29.md)."""


@dataclass(frozen=True)
class GgufCheck:
    """Difference between a GGUF file in llama.cpp and the run's own model, on llama.cpp's greedy answers."""

    prompts: int
    same_prompt_tokens: int
    """Prompts that the file's template and tokenizer turn into the run's own tokens."""
    same_answers: int
    """Prompts with the same greedy answer, its end included."""
    tokens: int
    mean_logprob: float
    """Mean absolute difference of a token's log-probability, nats."""
    max_logprob: float
    same_best: float
    """Share of positions at which both have the same most probable token."""
    computed_in: str
    bound: float
    """Largest `mean_logprob` that passes."""

    @property
    def passed(self) -> bool:
        """True if all prompts have the run's tokens and the mean difference is within the bound."""
        return self.same_prompt_tokens == self.prompts and self.mean_logprob <= self.bound


def check_gguf(
    roles: "Roles", config: Config, prompts: Sequence[Prompt], files: LlamaFiles, kind: Type
) -> GgufCheck | None:
    """Compare the policy role with llama.cpp on the first 16 prompts that fit; None if no prompt fits."""
    import torch

    from lowrank_rlhf.export.reloaded_model import role_logprobs
    from lowrank_rlhf.models.generation import Response
    from lowrank_rlhf.models.roles import Role

    base, limit = roles.base, max_prompt_tokens(config)
    if not (chosen := first_fitting(base, prompts, limit, PROMPTS)):
        return None
    encoded = encode_prompts(base, chosen, limit)
    server = LlamaServer(files, config.model.max_length + TOKENS, torch.get_num_threads())
    read = [server.prompt_tokens([message.model_dump() for message in prompt.messages]) for prompt in chosen]
    answers = [server.greedy(prompt, min(TOKENS, config.sample.max_new_tokens)) for prompt in encoded]
    read_by_run = [Response(answer.tokens, finished=False) for answer in answers]
    expected = role_logprobs(roles, Role.POLICY, encoded, read_by_run)  # (N, V)
    tokens = torch.tensor([token for answer in answers for token in answer.tokens])
    theirs = torch.tensor([logprob for answer in answers for logprob in answer.logprobs])
    gap = (expected.gather(-1, tokens[:, None]).squeeze(-1) - theirs).double().abs()
    alike = (expected.argmax(-1) == tokens).double()
    return GgufCheck(
        prompts=len(chosen),
        same_prompt_tokens=sum(map(list.__eq__, read, encoded)),
        same_answers=sum(bool(part.all()) for part in alike.split([len(answer.tokens) for answer in answers])),
        tokens=len(tokens),
        mean_logprob=float(gap.mean()),
        max_logprob=float(gap.max()),
        same_best=float(alike.mean()),
        computed_in=str(base.compute_dtype).removeprefix("torch."),
        bound=BOUNDS[kind],
    )


def gguf_table(found: GgufCheck) -> Table:
    """Return the card's table."""
    lead = (
        f"Greedy answers of llama.cpp from this file to {found.prompts} prompts, read by the run's own model "
        f"(quantised base with a separate adapter, computed in {found.computed_in}). "
        + ("Within" if found.passed else "NOT within")
        + f" the bound: all prompts as the run's tokens, mean difference at most {found.bound:g} nats."
    )
    rows = (
        ("prompts with the run's tokens", f"{found.same_prompt_tokens} of {found.prompts}"),
        ("same greedy answers", f"{found.same_answers} of {found.prompts}"),
        ("same most probable token", f"{100 * found.same_best:.1f} % of {found.tokens}"),
        ("log-probability of a token, mean difference", f"{found.mean_logprob:.3g} nats"),
        ("log-probability of a token, largest difference", f"{found.max_logprob:.3g} nats"),
    )
    return Table("In llama.cpp, against the run's own model", lead, ("figure", "value"), rows)
