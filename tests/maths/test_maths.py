"""Every formula of RLHF against hand values, naive loops or brute force."""

import itertools
import math
import random

import pytest
import torch
from torch import Tensor

from lowrank_rlhf.maths.advantages import gae, token_rewards
from lowrank_rlhf.maths.kl import adapt_kl_coef, k1, k3
from lowrank_rlhf.maths.losses import pairwise_loss, plackett_luce_loss, policy_losses, value_losses
from lowrank_rlhf.maths.masking import last_true, masked_mean, masked_sum, pool, whiten
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.maths.sequences import cut_minibatches, micro_batches, pack

MASK = torch.tensor([[False, True, True, False], [True, True, True, False]])
VALUES = torch.tensor([[9.0, 1.0, 2.0, math.nan], [3.0, 4.0, 5.0, math.inf]])


def close(found: Tensor | float, expected: object, tolerance: float = 1e-6) -> None:
    found = torch.as_tensor(found)
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=tolerance, atol=tolerance)


# --- masking


def test_masked_sum_and_mean_ignore_what_is_masked_nan_too() -> None:
    close(masked_sum(VALUES, MASK), [3.0, 12.0])
    close(masked_mean(VALUES, MASK), 3.0)
    close(masked_mean(VALUES, torch.zeros_like(MASK)), 0.0)


def test_whiten_by_hand() -> None:
    # 1 2 3 4 5: mean 3, unbiased variance 2.5
    unit = 1 / math.sqrt(2.5)
    close(whiten(VALUES, MASK), [[0, -2 * unit, -unit, 0], [0, unit, 2 * unit, 0]])
    kept = [[0, 3 - 2 * unit, 3 - unit, 0], [3, 3 + unit, 3 + 2 * unit, 0]]
    close(whiten(VALUES, MASK, shift_mean=False), kept)


def test_last_true_is_the_last_one() -> None:
    assert last_true(MASK).tolist() == [2, 2]
    assert last_true(torch.tensor([[True, False, False], [True, False, True]])).tolist() == [0, 2]
    assert last_true(torch.tensor([[True, False], [False, False]])).tolist() == [0, -1]


def test_pooling_by_hand() -> None:
    values = torch.where(VALUES.isfinite(), VALUES, 77.0)
    close(pool(values, MASK, "last"), [2.0, 5.0])
    close(pool(values, MASK, "mean"), [1.5, 4.0])
    states = torch.stack([values, -2 * values], -1)  # (B, T, h)
    close(pool(states, MASK, "last"), [[2.0, -4.0], [5.0, -10.0]])
    close(pool(states, MASK, "mean"), [[1.5, -3.0], [4.0, -8.0]])
    with pytest.raises(ValueError, match="median"):
        pool(values, MASK, "median")


# --- Kullback-Leibler divergence


def test_kl_estimators_hand_values() -> None:
    logprob, reference = torch.tensor(-1.0), torch.tensor(-1.5)
    close(k1(logprob, reference), 0.5)
    close(k3(logprob, reference), 0.106531)


def test_kl_estimators_in_expectation() -> None:
    """k1 and k3 are unbiased: their exact mean under p is KL(p || q)."""
    p, q = (torch.tensor(x, dtype=torch.float64) for x in ([0.7, 0.2, 0.1], [0.3, 0.3, 0.4]))
    kl = sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    close((p * k1(p.log(), q.log())).sum(), kl, 1e-12)
    close((p * k3(p.log(), q.log())).sum(), kl, 1e-12)
    assert (k3(p.log(), q.log()) >= 0).all()


def test_adaptive_kl_coefficient() -> None:
    assert adapt_kl_coef(0.2, 6.6, target=6.0, horizon=10_000, responses=64) == pytest.approx(0.2 * (1 + 0.1 * 0.0064))
    assert adapt_kl_coef(0.2, 60.0, target=6.0, horizon=100, responses=50) == pytest.approx(0.2 * 1.1)
    assert adapt_kl_coef(0.2, 0.0, target=6.0, horizon=100, responses=50) == pytest.approx(0.2 * 0.9)
    assert adapt_kl_coef(0.2, 6.0, target=6.0, horizon=100, responses=50) == 0.2


# --- rewards and advantages


def test_token_rewards_by_hand() -> None:
    kl = torch.tensor([[9.0, 1.0, -2.0, math.nan], [0.5, 0.0, 4.0, math.inf]])
    scores = torch.tensor([10.0, -1.0])
    close(token_rewards(scores, kl, MASK, 0.1), [[0, -0.1, 10.2, 0], [-0.05, 0, -1.4, 0]])


def test_gae_hand_value() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.full((1, 3), 0.5)
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 1.0, 0.95)
    close(advantages, [[0.45125, 0.475, 0.5]])
    close(returns, [[0.95125, 0.975, 1.0]])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (0.97, 0.0), (0.9, 1.0)])
def test_gae_against_the_definition(gamma: float, lam: float) -> None:
    """A_t = sum_l (gamma lambda)^l delta_{t+l}, each row's response at a random place; values outside mean nothing."""
    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    rows, width = 12, 9
    rewards = torch.randn(rows, width, generator=generator).double()
    values = torch.randn(rows, width, generator=generator).double()
    mask = torch.zeros(rows, width, dtype=torch.bool)
    expected = torch.zeros(rows, width).double()
    for row in range(rows):
        first = rng.randrange(width)
        end = rng.randrange(first, width) + 1
        mask[row, first:end] = True
        r, v = rewards[row].tolist(), values[row].tolist()
        for t in range(first, end):
            for later in range(t, end):
                after = v[later + 1] if later + 1 < end else 0.0
                expected[row, t] += (gamma * lam) ** (later - t) * (r[later] + gamma * after - v[later])
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    close(advantages, expected, 1e-12)
    close(returns, torch.where(mask, expected + values, 0.0), 1e-12)


# --- losses


def test_policy_losses_hand_values() -> None:
    old = torch.tensor([-2.0, -0.3, -1.0])
    new = old + torch.tensor([0.5, 0.1, -1.0])
    close(policy_losses(new, old, torch.ones(3), 0.2), [-1.2, -1.105171, -0.367879])
    close(policy_losses(new, old, -torch.ones(3), 0.2), [1.648721, 1.105171, 0.8])
    # clip-higher: e^0.5 may count up to 1.28 where it earns, and e^-1 still no less than 0.8 where it costs
    close(policy_losses(new, old, torch.ones(3), 0.2, 0.28), [-1.28, -1.105171, -0.367879])
    close(policy_losses(new, old, -torch.ones(3), 0.2, 0.28), [1.648721, 1.105171, 0.8])


def test_policy_gradient_is_cut_only_where_clipping_helps() -> None:
    new = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)
    policy_losses(new, torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0]), 0.2).sum().backward()
    assert new.grad is not None
    close(new.grad, [0.0, -math.exp(-0.5), math.exp(0.5), 0.0])


def test_value_losses_by_hand() -> None:
    values = torch.tensor([1.0, 0.1, -1.0, 0.5])
    old, returns = torch.zeros(4), torch.tensor([1.0, 1.0, 1.0, -1.0])
    # clipped to .2, .1, -.2, .2: larger errors .8, .9, 2, 1.5
    close(value_losses(values, old, returns, 0.2), [0.32, 0.405, 2.0, 1.125])
    # The range lies around the old value, not around 0: shifting all three changes nothing.
    close(value_losses(values + 2, old + 2, returns + 2, 0.2), [0.32, 0.405, 2.0, 1.125])


def test_pairwise_loss_hand_values() -> None:
    close(pairwise_loss(torch.tensor([2.0]), torch.tensor([1.0])), 0.313262)
    close(pairwise_loss(torch.tensor([2.0]), torch.tensor([2.0])), 0.693147)
    close(pairwise_loss(torch.tensor([1.0]), torch.tensor([2.0])), 1.313262)
    close(pairwise_loss(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 2.0])), (0.313262 + 0.693147) / 2)
    close(pairwise_loss(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])), 0.313262)


def probability_of_ranking(scores: list[float], order: list[int]) -> float:
    """Draw without replacement in proportion to exp(score)."""
    weights = [math.exp(score) for score in scores]
    return math.prod(weights[best] / sum(weights[i] for i in order[k:]) for k, best in enumerate(order))


def test_plackett_luce_is_the_probability_of_the_permutation() -> None:
    scores = [0.3, -1.2, 2.0, 0.7]
    orders = [list(order) for order in itertools.permutations(range(4))]
    losses = [plackett_luce_loss(torch.tensor(scores), [[i] for i in order]) for order in orders]
    found = [loss.mul(-3).exp().item() for loss in losses]  # three choices: the fourth answer is what is left
    assert found == pytest.approx([probability_of_ranking(scores, order) for order in orders], rel=1e-5)
    assert sum(found) == pytest.approx(1.0, rel=1e-5)


def test_plackett_luce_of_two_is_pairwise() -> None:
    scores = torch.tensor([0.4, 1.1])
    close(plackett_luce_loss(scores, [[1], [0]]), pairwise_loss(scores[1:], scores[:1]))


def test_plackett_luce_with_ties() -> None:
    # Answers 0 and 2 tie above 1: each of them against 1 only, not against the other.
    a, b, c = 0.5, -0.3, 1.5
    by_hand = (math.log(1 + math.exp(b - a)) + math.log(1 + math.exp(b - c))) / 2
    close(plackett_luce_loss(torch.tensor([a, b, c]), [[0, 2], [1]]), by_hand)
    below = math.log(1 + math.exp(a - b) + math.exp(c - b))  # 1 alone above the tie
    close(plackett_luce_loss(torch.tensor([a, b, c]), [[1], [2, 0]]), below)
    close(plackett_luce_loss(torch.tensor([a, b, c]), [[0, 1, 2]]), 0.0)


def test_plackett_luce_gradient_against_differences() -> None:
    tiers = [[2], [0, 3], [1]]
    scores = torch.tensor([0.3, -1.2, 2.0, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: plackett_luce_loss(s, tiers), scores)
    loss = plackett_luce_loss(scores, tiers)
    (slope,) = torch.autograd.grad(loss, scores)
    assert slope[2] < 0 < slope[1]
    close(slope.sum(), 0.0, 1e-12)


# --- sequences and seeds


def test_pack_pads_on_the_right() -> None:
    batch = pack([[5, 6], [7]], [[8], [9, 10, 11]], pad=0)
    assert batch.ids.tolist() == [[5, 6, 8, 0], [7, 9, 10, 11]]
    assert batch.attention.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.response.int().tolist() == [[0, 0, 1, 0], [0, 1, 1, 1]]
    assert batch.lengths() == [3, 4]
    assert len(batch) == 2
    with pytest.raises(ValueError, match="zip"):
        pack([[5]], [[6], [7]], pad=0)


def test_rows_are_cut_to_the_longest_of_them() -> None:
    batch = pack([[5, 6], [7], [8]], [[8], [9, 10, 11], [12, 13]], pad=0).rows([2, 0])
    assert batch.ids.tolist() == [[8, 12, 13], [5, 6, 8]]
    assert batch.response.int().tolist() == [[0, 1, 1], [0, 0, 1]]
    assert batch.attention.all()


@pytest.mark.parametrize("budget", [1, 7, 64, 10_000])
def test_micro_batches_cover_every_row_once_within_the_budget(budget: int) -> None:
    rng = random.Random(budget)
    lengths = [rng.randint(1, 30) for _ in range(200)]
    groups = micro_batches(lengths, budget)
    assert sorted(itertools.chain(*groups)) == list(range(200))
    assert all(len(group) == 1 or len(group) * max(lengths[row] for row in group) <= budget for group in groups)
    # Nothing is split without need: the next group's longest row would not have fitted.
    assert all((len(group) + 1) * lengths[group[0]] > budget for group, _ in itertools.pairwise(groups))
    assert [lengths[group[0]] for group in groups] == sorted((lengths[group[0]] for group in groups), reverse=True)
    assert micro_batches([], budget) == []


def test_minibatches_are_neighbouring_rows_and_each_has_its_micro_batches() -> None:
    lengths = [3, 9, 4, 2, 8, 8, 1, 5, 7]
    assert cut_minibatches(lengths[:8], 2, 10) == [[[1], [2, 0], [3]], [[4], [5], [7, 6]]]
    assert cut_minibatches(lengths[:8], 1, 10) == [micro_batches(lengths[:8], 10)]
    assert cut_minibatches(lengths[:6], 3, 100) == [[[1, 0]], [[2, 3]], [[4, 5]]]
    assert cut_minibatches([5], 1, 1) == [[[0]]]


def test_there_is_a_micro_batch_for_each_process() -> None:
    assert micro_batches([5, 7, 7, 5], 1000, at_least=2) == [[1, 2], [0, 3]]
    assert micro_batches([5, 7, 7, 5], 1000, at_least=3) == [[1], [2], [0], [3]]
    assert micro_batches([5, 7], 1000, at_least=3) == [[1], [0]]
    assert micro_batches([5, 7, 7, 5], 7, at_least=2) == [[1], [2], [0], [3]]
    assert all(
        len(micro_batches([3] * rows, 10**6, parts)) >= parts for parts in range(1, 9) for rows in range(parts, 30)
    )
    assert cut_minibatches([3, 9, 4, 2], 2, 1000, at_least=2) == [[[1], [0]], [[2], [3]]]


def test_seeds_depend_on_every_part_of_the_place() -> None:
    places = [(), ("ppo",), ("ppo", 0), ("ppo", 1), ("ppo", "1"), ("ppo1",), ("sample", 1), (1, "ppo")]
    seeds = [derive_seed(seed, *place) for place in places for seed in (0, 1)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "ppo", 1) == derive_seed(0, "ppo", 1) == 6759918595576093096  # sha256sum
