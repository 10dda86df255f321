"""The head fitted in closed form, against solvers that share no code with it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lowrank_rlhf.maths import logistic
from lowrank_rlhf.maths.logistic import fit_pair_head


def pairs(seed: int, count: int = 60, size: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Features on unequal scales, noisy preferences, unequal weights."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-1, 1, size)
    first, second = (torch.randn(count, size, generator=generator) * scales + 3 for _ in range(2))
    direction = torch.randn(size, generator=generator) / scales
    noise = torch.randn(count, generator=generator)
    swap = (((first - second) @ direction + 2 * noise) < 0)[:, None]
    weights = torch.rand(count, generator=generator) + 0.1
    return torch.where(swap, second, first), torch.where(swap, first, second), weights


def newton(chosen: Tensor, rejected: Tensor, weights: Tensor, l2: float) -> np.ndarray:
    """Newton's method in numpy on the same objective, written out: its gradient and Hessian by hand."""
    z, x, w = (tensor.double().numpy() for tensor in (chosen, rejected, weights))
    scale = np.concatenate([z, x]).std(0, ddof=1)
    d = (z - x) / scale
    v = np.zeros(d.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(d @ v))  # the probability of the wrong order
        gradient = -(d.T @ (w * p)) + l2 * v
        hessian = (d.T * (w * p * (1 - p))) @ d + l2 * np.eye(len(v))
        v -= np.linalg.solve(hessian, gradient)
    assert np.abs(gradient).max() < 1e-10
    return v / scale


@pytest.mark.parametrize("l2", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_what_newtons_method_finds(l2, seed) -> None:
    data = pairs(seed)
    np.testing.assert_allclose(fit_pair_head(*data, l2).numpy(), newton(*data, l2), rtol=1e-4, atol=1e-6)


def test_one_pair_by_hand() -> None:
    """One feature, z = +1 against -1: deviation sqrt(2), d = sqrt(2), and v solves sqrt(2) sigmoid(-sqrt(2) v) = v."""
    head = fit_pair_head(torch.tensor([[1.0]]), torch.tensor([[-1.0]]), torch.ones(1), 1.0)
    v = float(head) * 2**0.5
    assert v == pytest.approx(2**0.5 / (1 + np.exp(2**0.5 * v)), abs=1e-6)
    assert v == pytest.approx(0.47718, abs=1e-5)


def test_separable_pairs_are_put_in_order_by_a_finite_head() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 40, 8, generator=generator)
    chosen[:, 2], rejected[:, 2] = chosen[:, 2].abs() + 0.5, -rejected[:, 2].abs() - 0.5
    for l2 in (1e-4, 1.0):
        head = fit_pair_head(chosen, rejected, torch.ones(40), l2)
        assert torch.isfinite(head).all()
        assert ((chosen - rejected) @ head > 0).all()
        assert head.abs().argmax() == 2


def test_the_order_of_the_pairs_makes_no_difference() -> None:
    chosen, rejected, weights = pairs(3)
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(1))
    expected = fit_pair_head(chosen, rejected, weights, 1.0)
    torch.testing.assert_close(fit_pair_head(chosen[order], rejected[order], weights[order], 1.0), expected)
    torch.testing.assert_close(fit_pair_head(rejected, chosen, weights, 1.0), -expected)


def test_a_weight_is_a_count() -> None:
    """As long as the scale of the features is the same, weight 2 is the pair twice."""
    chosen, rejected, _ = pairs(4)
    twice = fit_pair_head(chosen.repeat(2, 1), rejected.repeat(2, 1), torch.ones(120), 1.0)
    # The unbiased deviation of the doubled data is smaller by sqrt((2N - 1) / (2N) * N / (N - 1)) with N = 120.
    l2 = (240 - 2) / (240 - 1)
    torch.testing.assert_close(fit_pair_head(chosen, rejected, torch.full((60,), 2.0), l2), twice, rtol=1e-4, atol=1e-6)


def test_scaling_a_feature_scales_its_weight() -> None:
    chosen, rejected, weights = pairs(5)
    scales = torch.tensor([1.0, 10.0, 0.1, 1.0, 100.0, 3.0])
    torch.testing.assert_close(
        fit_pair_head(chosen * scales, rejected * scales, weights, 0.5) * scales,
        fit_pair_head(chosen, rejected, weights, 0.5),
        rtol=1e-3,
        atol=1e-6,
    )


def test_the_ridge_shrinks_it_to_nothing() -> None:
    data = pairs(6)
    norms = [float(fit_pair_head(*data, l2).norm()) for l2 in (0.1, 1.0, 10.0, 1e3, 1e6)]
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 1e-4 * norms[0]


def test_a_constant_feature_gets_no_weight() -> None:
    chosen, rejected, weights = pairs(7)
    chosen[:, 0] = rejected[:, 0] = 4.0
    head = fit_pair_head(chosen, rejected, weights, 1.0)
    assert head[0] == 0
    assert torch.isfinite(head).all()


def test_it_works_where_gradients_are_off() -> None:
    data = pairs(8)
    with torch.no_grad():
        found = fit_pair_head(*data, 1.0)
    assert torch.equal(found, fit_pair_head(*data, 1.0))
    assert not found.requires_grad
    assert found.dtype == torch.float32


def test_a_light_feature_has_its_own_ridge() -> None:
    """Newton's method with a penalty of 1 on the last feature and 50 on the others."""
    chosen, rejected, weights = pairs(9, size=4)
    scale = torch.cat([chosen, rejected]).double().std(0)
    d = ((chosen - rejected).double() / scale).numpy()
    expected = newton_standardised(d, weights.numpy(), np.array([50.0, 50.0, 50.0, 1.0])) / scale.numpy()
    np.testing.assert_allclose(fit_pair_head(chosen, rejected, weights, 50.0, light=1), expected, rtol=1e-4, atol=1e-6)


# --- Ridge by cross-validation


def test_the_loss_of_a_ridge_is_that_of_newtons_heads_on_the_other_folds(monkeypatch) -> None:
    """The oracle standardises all pairs together, then fits and measures fold by fold in numpy."""
    monkeypatch.setattr(logistic, "RIDGES", (0.3, 20.0))
    chosen, rejected, weights = pairs(0, count=30, size=4)
    prompts = [f"p{number // 2}" for number in range(30)]
    scale = torch.cat([chosen, rejected]).double().std(0)
    z, x, w = (chosen / scale).numpy(), (rejected / scale).numpy(), weights.numpy()
    fold_of = logistic.folds(prompts, seed=3)
    member = np.array([fold_of[prompt] for prompt in prompts])
    assert sorted(np.bincount(member)) == [6] * 5
    found = logistic.cross_validate(chosen, rejected, weights, prompts, seed=3)
    for l2, loss in found.items():
        expected = 0.0
        for fold in range(5):
            out = member == fold
            head = newton_standardised((z - x)[~out], w[~out], l2)
            expected += float((w[out] * np.log1p(np.exp(-((z - x)[out] @ head)))).sum())
        assert loss == pytest.approx(expected, rel=1e-5)


def newton_standardised(d: np.ndarray, w: np.ndarray, l2: float | np.ndarray) -> np.ndarray:
    """Newton's method on differences that are scaled already, with one ridge penalty or one for each feature."""
    v = np.zeros(d.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(d @ v))
        hessian = (d.T * (w * p * (1 - p))) @ d + np.diag(l2 * np.ones(len(v)))
        v -= np.linalg.solve(hessian, -(d.T @ (w * p)) + l2 * v)
    return v


def test_noise_gets_the_strongest_ridge_and_a_clear_order_a_weak_one() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 120, 40, generator=generator)
    prompts, ones = [str(number) for number in range(120)], torch.ones(120)
    assert logistic.choose_ridge(first, second, ones, prompts, seed=0) >= 300
    swap = (first[:, :1] < second[:, :1]).expand_as(first)
    clear = torch.where(swap, second, first), torch.where(swap, first, second)
    assert logistic.choose_ridge(*clear, ones, prompts, seed=0) <= 10


def test_folds_are_of_whole_prompts() -> None:
    """Ten copies of each noisy pair: by rows a copy would always be in training and the weakest ridge the best."""
    generator = torch.Generator().manual_seed(1)
    first, second = (side.repeat(10, 1) for side in torch.randn(2, 30, 60, generator=generator))
    ones = torch.ones(300)
    by_prompt = [str(number % 30) for number in range(300)]
    by_row = [str(number) for number in range(300)]
    assert logistic.choose_ridge(first, second, ones, by_prompt, seed=0) == max(logistic.RIDGES)
    assert logistic.choose_ridge(first, second, ones, by_row, seed=0) < max(logistic.RIDGES)


def test_a_single_prompt_gets_the_strongest_ridge_and_two_are_validated() -> None:
    chosen, rejected, weights = pairs(0, count=4)
    assert logistic.choose_ridge(chosen, rejected, weights, ["p"] * 4, seed=0) == max(logistic.RIDGES)
    assert logistic.cross_validate(chosen, rejected, weights, ["p"] * 4, seed=0) == {}
    assert set(logistic.cross_validate(chosen, rejected, weights, [*"ppqq"], seed=0)) == set(logistic.RIDGES)
