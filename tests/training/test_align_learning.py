"""RLOO and GRPO raise a scripted reward, DPO learns the rule of the comparisons, and flipped signs reverse both."""

from collections.abc import Callable

import pytest
import torch
from tiny_finished import finished_run
from tiny_run import separable, write_ranked
from torch import Tensor

from lowrank_rlhf.maths.masking import masked_sum
from lowrank_rlhf.maths.sequences import pack
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.scoring import score_logprobs
from lowrank_rlhf.run.records import Comparison, read_jsonl, write_jsonl
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import align

GOOD = torch.arange(3, 150)
"""Half of the ordinary tokens: a policy that knows nothing scores about 0."""


@pytest.fixture
def make(tiny_folder, tmp_path) -> Callable[..., Session]:
    def made(**changes) -> Session:
        changes = {"ppo__evaluate_every": 100, "ppo__save_every": 100, **changes}
        return finished_run(tiny_folder(), tmp_path, adapters=("sft", "reward"), **changes)

    return made


def scripted(monkeypatch: pytest.MonkeyPatch, sign: float) -> None:
    """The reward is the share of good tokens in the answer, as -2 to 2."""

    def scores(roles, batch, scale) -> Tensor:  # noqa: ARG001 - reward_scores' signature
        good = torch.isin(batch.ids, GOOD) & batch.response
        return sign * (good.sum(-1) / batch.response.sum(-1) - 0.5) * 4

    monkeypatch.setattr("lowrank_rlhf.training.rollout.reward_scores", scores)


def rise(session: Session) -> Tensor:
    """Mean scores over the steps of the stage, (steps,)."""
    align.run(session)
    scores = [row["objective/scores"] for row in session.metrics.read("ppo") if "objective/scores" in row]
    print([round(score, 2) for score in scores])
    return torch.tensor(scores)


SAMPLES = {"align__steps": 20, "align__batch_size": 32, "align__learning_rate": 0.03, "align__beta": 0.01}


@pytest.mark.parametrize(("algorithm", "quantization"), [("rloo", "nf4"), ("grpo", "none")])
def test_it_raises_a_scripted_reward(make, monkeypatch, algorithm, quantization) -> None:
    scripted(monkeypatch, 1.0)
    scores = rise(make(align__algorithm=algorithm, quantization=quantization, **SAMPLES))
    assert float(scores[-5:].mean() - scores[:5].mean()) > 0.6
    assert float(scores[-5:].mean() - scores[:5].mean()) > 2 * float(scores[:5].std())


def test_with_trl_given_the_opposite_it_falls(make, monkeypatch) -> None:
    """The logged reward is TRL's: it rises while the share of good tokens falls."""
    scripted(monkeypatch, -1.0)
    scores = rise(make(align__algorithm="rloo", quantization="none", **SAMPLES))
    assert float(scores[-5:].mean() - scores[:5].mean()) > 0.6


@pytest.mark.parametrize(("flipped", "quantization"), [(False, "nf4"), (True, "none")])
def test_dpo_learns_the_rule_behind_the_comparisons(make, flipped, quantization) -> None:
    """The rule: answers with a certain token are better. Trained once on 72 prompts, tested on 12 others."""
    session = make(
        align__algorithm="dpo", align__batch_size=16, align__learning_rate=0.01, align__beta=0.1,
        quantization=quantization,
    )  # fmt: skip
    prompts, samples, rankings = separable(84)
    write_ranked(session, prompts[:72], samples[: 4 * 72], rankings[:72])
    path = session.run_dir.artifact("comparisons.jsonl")
    pairs = list(read_jsonl(path, Comparison))
    assert len(pairs) == 72 * 4
    if flipped:
        turned = [pair.model_copy(update={"chosen": pair.rejected, "rejected": pair.chosen}) for pair in pairs]
        write_jsonl(path, turned)
    align.run(session)
    answers = [list(sample.tokens or ()) for sample in samples[4 * 72 :]]
    asked = [session.load_roles().base.encode_prompt(prompt) for prompt in prompts[72:] for _ in range(4)]
    batch = pack(asked, answers, session.load_roles().base.pad)
    policy, sft = (
        masked_sum(score_logprobs(session.load_roles(), role, batch, 1.0).logprobs, batch.response)
        for role in (Role.POLICY, Role.REFERENCE)
    )
    gain = (policy - sft).view(-1, 4)  # two good answers and two others to each prompt
    right = (gain[:, :2, None] > gain[:, None, 2:]).float().mean()
    print(float(right))
    assert right < 0.2 if flipped else right > 0.8
