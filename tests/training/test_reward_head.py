"""The fitted reward head with the length of an answer as an input, by hand and against planted preferences."""

import math

import pytest
import torch

from lowrank_rlhf.config.schema import RewardConfig
from lowrank_rlhf.training.reward_data import Group
from lowrank_rlhf.training.rewards.reward_head import HeadFit, fit_head, with_length
from lowrank_rlhf.training.rollout import RewardScale


def group(name: str, lengths: list[int], pairs: list[tuple[int, int, int]]) -> Group:
    answers = [[7] * length for length in lengths]
    return Group(name, [5], [f"{name}-{k}" for k in range(len(lengths))], answers, lengths, pairs, [])


def planted(count: int = 150) -> tuple[list[Group], list[torch.Tensor]]:
    """Pairs of which feature 0 and the log length decide equally; feature 2 is a noisy copy of the log length."""
    generator = torch.Generator().manual_seed(0)
    groups, features = [], []
    for number in range(count):
        lengths = torch.randint(2, 60, (2,), generator=generator).tolist()
        logs = torch.tensor(lengths).log()
        own = torch.randn(2, 3, generator=generator)
        own[:, 2] = logs + 0.5 * own[:, 2]
        utility = own[:, 0] + 1.2 * logs
        better = int(utility[1] > utility[0])
        groups.append(group(f"p{number}", lengths, [(better, 1 - better, 1)]))
        features.append(own)
    return groups, features


def test_the_length_is_the_logarithm_of_the_tokens() -> None:
    found = with_length(group("p", [1, 10], []), torch.tensor([[0.5], [2.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.0], [2.0, math.log(10)]]))


def test_with_the_length_no_other_weight_learns_it() -> None:
    groups, features = planted()
    ignoring, fit = fit_head(groups, features, RewardConfig(head_l2=1), seed=0)
    assert (fit.length, ignoring.shape) == (0.0, (1, 3))
    knowing, fit = fit_head(groups, features, RewardConfig(head_l2=1, length="use", fit_head_first=True), seed=0)
    assert knowing.shape == (1, 3)
    assert fit.length > float(knowing[0, 0]) > 0
    assert float(ignoring[0, 2]) > 0.3 * float(ignoring[0, 0])
    assert abs(float(knowing[0, 2])) < 0.4 * float(ignoring[0, 2])


def test_a_strong_ridge_leaves_the_length_its_weight() -> None:
    """Penalised like the features, the length's weight would vanish with theirs, and they would keep its share."""
    groups, features = planted()
    weight, fit = fit_head(groups, features, RewardConfig(head_l2=1000, length="debias", fit_head_first=True), seed=0)
    assert fit.length > 1
    assert float(weight.abs().max()) < 0.1


def test_null_chooses_the_ridge_on_the_groups_given_and_writes_it_down(tmp_path) -> None:
    groups, features = planted()
    _, fit = fit_head(groups, features, RewardConfig(fit_head_first=True), seed=0)
    assert fit.l2 == 1  # noiseless
    noise = [torch.randn(2, 3, generator=torch.Generator().manual_seed(n)) for n in range(len(groups))]
    assert fit_head(groups, noise, RewardConfig(), seed=0)[1].l2 > 10
    assert HeadFit.saved(tmp_path) == HeadFit(None, 0.0)
    HeadFit(30.0, -0.25).save(tmp_path)
    assert HeadFit.saved(tmp_path) == HeadFit(30.0, -0.25)


@pytest.mark.parametrize(("length", "weight"), [("ignore", 0.0), ("use", 0.7), ("debias", 0.0)])
def test_training_scores_with_the_length_and_use_only_where_asked_for(length, weight) -> None:
    fit = HeadFit(1.0, 0.0 if length == "ignore" else 0.7)
    config = RewardConfig(length=length, fit_head_first=True, pooling="mean")
    assert fit.scale(config) == RewardScale("mean", 0.0, 1.0, weight)
    assert fit.training_scale("mean").length == fit.length


def test_a_raw_score_by_hand() -> None:
    values = torch.tensor([[9.0, 1.0, 2.0, 3.0], [9.0, 4.0, 0.0, 0.0]])
    response = torch.tensor([[False, True, True, True], [False, True, False, False]])
    found = RewardScale("mean", 5.0, 2.0, 0.5).raw(values, response)
    torch.testing.assert_close(found, torch.tensor([2 + 0.5 * math.log(3), 4.0]))
    torch.testing.assert_close(RewardScale("last", 5.0, 2.0).raw(values, response), torch.tensor([3.0, 4.0]))


def test_the_notes_on_an_adapter_give_the_scale() -> None:
    about = {"pooling": "mean", "score_mean": 0.4, "score_std": 1.7}
    assert RewardScale.of(about) == RewardScale("mean", 0.4, 1.7, 0.0)  # of a version before the length
    assert RewardScale.of(about | {"length_weight": 0.3}, normalize=False) == RewardScale("mean", 0.0, 1.0, 0.3)
