"""Weights by reliability: careless annotators lose theirs, equal ones keep theirs; by hand and in a simulated team."""

import random
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from tiny_run import make_config, make_session, separable, write_ranked

from lowrank_rlhf.config.schema import Config, RewardConfig
from lowrank_rlhf.evaluation.round_accuracy import _of_round
from lowrank_rlhf.maths.losses import pairwise_loss
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.preferences.team import reliability
from lowrank_rlhf.preferences.team.reliability import annotator_weights, reliability_problem, weight_of
from lowrank_rlhf.run.records import Comparison, Ranking, read_jsonl, write_jsonl
from lowrank_rlhf.stages import rank
from lowrank_rlhf.training.reward_data import Group, read_groups, without_equal_answers
from lowrank_rlhf.training.rewards.reward_head import fit_head

CAREFUL, FEATURES = 2.5, 20


def team(names: dict[str, float | None], prompts: int, seed: int = 0) -> tuple[list[Ranking], dict, torch.Tensor]:
    """Rankings of four answers with features, shuffled for each annotator, by annotators with noise of these sizes.

    One without a size types 1 2 3 4. A fifth of the prompts has two annotators, as with `rank.shared`.
    """
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    taste = torch.randn(FEATURES, generator=generator)
    rankings, features = [], {}
    for prompt in range(prompts):
        ids = [f"p{prompt}-{k}" for k in range(4)]
        features[f"p{prompt}"] = torch.randn(4, FEATURES, generator=generator)
        value = dict(zip(ids, (features[f"p{prompt}"] @ taste).tolist(), strict=True))
        for name in chance.sample(list(names), 2 if chance.random() < 0.2 else 1):
            shown, noise = chance.sample(ids, 4), names[name]
            felt = {one: value[one] + chance.gauss(0, noise or 0) for one in ids}
            order = shown if noise is None else sorted(ids, key=lambda one: -felt[one])
            tiers = tuple((one,) for one in order)
            rankings.append(Ranking(prompt_id=f"p{prompt}", tiers=tiers, annotator=name, shown=tuple(shown)))
    return rankings, features, taste


def held_out_accuracy(rankings: list[Ranking], features: dict, taste: torch.Tensor, weights: dict[str, float]) -> float:
    """Share of pairs of new answers that a head fitted to the comparisons orders by the taste."""
    pairs = [(pair, weights[pair.annotator]) for ranking in rankings for pair in compare(ranking)]
    groups, read = [], []
    for prompt, own in features.items():
        index = {f"{prompt}-{k}": k for k in range(4)}
        here = [(pair, weight) for pair, weight in pairs if pair.prompt_id == prompt]
        indices = [(index[pair.chosen], index[pair.rejected], 1) for pair, _ in here]
        group = Group(prompt, [5], list(index), [[7]] * 4, [1] * 4, indices, [], tuple(weight for _, weight in here))
        groups.append(group)
        read.append(own)
    head = fit_head(groups, read, RewardConfig(head_l2=1), seed=0)[0][0]
    answers = torch.randn(2000, 2, FEATURES, generator=torch.Generator().manual_seed(9))
    right = ((answers @ head).diff(dim=1) > 0) == ((answers @ taste).diff(dim=1) > 0)
    return float(right.double().mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_who_types_1_2_3_4_loses_the_weight_and_the_reward_model_gains(seed: int) -> None:
    rankings, features, taste = team({"ann": CAREFUL, "bob": CAREFUL, "lazy": None}, 200, seed)
    comparisons = [pair for ranking in rankings for pair in compare(ranking)]
    weights = annotator_weights(comparisons).weights
    assert weights["lazy"] < 0.5 * min(weights["ann"], weights["bob"])
    assert sum(weights[pair.annotator] for pair in comparisons) == pytest.approx(len(comparisons))
    equal = held_out_accuracy(rankings, features, taste, dict.fromkeys(weights, 1.0))
    assert held_out_accuracy(rankings, features, taste, weights) > equal + 0.01


def decided(rankings: list[Ranking], features: dict, taste: torch.Tensor) -> list[Comparison]:
    """Comparisons once the owner has decided each prompt with two annotators by the taste."""
    by_prompt: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        by_prompt.setdefault(ranking.prompt_id, []).append(ranking)
    several = {prompt for prompt, given in by_prompt.items() if len(given) > 1}
    orders = [
        Ranking(
            prompt_id=prompt,
            tiers=tuple((f"{prompt}-{k}",) for k in (features[prompt] @ taste).argsort(descending=True).tolist()),
            annotator="owner",
        )
        for prompt in sorted(several)
    ]
    return rank._comparisons([one for one in rankings if one.prompt_id not in several] + orders, rankings, several)


@pytest.mark.parametrize("names", [("ann", "bob"), ("ann",)])
def test_decisions_reveal_the_careless_and_weigh_as_the_best(names: tuple[str, ...]) -> None:
    """Decisions on all common prompts leave no own ranking of them to learn from; with them two people are enough."""
    careless: dict[str, float | None] = {**dict.fromkeys(names, CAREFUL), "lazy": None}
    comparisons = decided(*team(careless, 200))
    weights, common = annotator_weights(comparisons)
    assert common == len(names) + 2
    assert weights.keys() == {*names, "lazy"}
    assert weights["lazy"] < 0.5 * min(weights[name] for name in names)
    learned = [weight_of(one, weights) for one in comparisons if not one.replaced]
    assert sum(learned) == pytest.approx(len(learned))
    assert {weight_of(one, weights) for one in comparisons if one.decision} == {max(weights.values())}


def test_replaced_comparisons_are_not_learned_from(tiny_folder, tmp_path: Path) -> None:
    session = make_session(make_config(tiny_folder()), tmp_path)
    prompts, samples, rankings = separable(2)
    write_ranked(session, prompts, samples, rankings)
    base, path = session.load_roles().base, session.run_dir.artifact("comparisons.jsonl")
    before = read_groups(base, session.run_dir, 128)
    kept = list(read_jsonl(path, Comparison))
    write_jsonl(path, [*kept, *(one.model_copy(update={"replaced": True, "annotator": "ann"}) for one in kept)])
    assert read_groups(base, session.run_dir, 128) == before
    decisions = [one.model_copy(update={"decision": True, "annotator": "owner"}) for one in kept[:1]]
    write_jsonl(path, [*decisions, *kept[1:]])
    groups, _ = read_groups(base, session.run_dir, 128, {"rule": 0.5, "ann": 2.0})
    assert groups[0].weights == (2.0, *[0.5] * (len(groups[0].pairs) - 1))


def test_weights_stay_in_step_with_the_pairs_of_a_round() -> None:
    group = Group("p", [5], ["a", "b", "c"], [[7]] * 3, [1] * 3, [(0, 1, 1), (2, 1, 1)], [], (2.0, 0.5))
    (found,) = _of_round([group], {"c", "b"})
    assert (found.pairs, found.weights) == ([(2, 1, 1)], (0.5,))


def test_weights_require_several_annotators() -> None:
    with pytest.raises(ValueError, match=r"reward.annotator_weights: reliability requires several annotators"):
        Config(name="x", model={"source": "x"}, rank={"source": "judge"}, reward={"annotator_weights": "reliability"})


def test_equal_annotators_keep_near_equal_weights() -> None:
    rankings, _, _ = team({"ann": CAREFUL, "bob": CAREFUL, "cam": CAREFUL, "new": CAREFUL}, prompts=300)
    weights, common = annotator_weights(pair for ranking in rankings for pair in compare(ranking))
    assert common == 4
    assert all(0.75 < weight < 1.25 for weight in weights.values())


def test_the_reliability_of_two_annotators_is_not_estimated() -> None:
    """Where they differ either may be wrong; an annotator alone with a prompt has the mean."""
    rankings, _, _ = team({"ann": CAREFUL, "lazy": None}, prompts=60)
    comparisons = [pair for ranking in rankings for pair in compare(ranking)]
    assert annotator_weights(comparisons) == ({}, 2)
    three, _, _ = team({"ann": 0.1, "bob": 0.1, "cam": 0.1}, prompts=60)
    comparisons = [pair for ranking in three for pair in compare(ranking)]
    new = [Comparison(prompt_id="p9", chosen="p9-x", rejected="p9-y", annotator="new")]
    assert annotator_weights([*comparisons, *new]).weights["new"] == pytest.approx(1, abs=0.05)


def test_no_weight_comes_from_the_ids_of_the_answers() -> None:
    """In a data set the first annotator's chosen answer has the smaller id; that must not make it the right one."""
    rankings, _, _ = team({"ann": CAREFUL, "bob": CAREFUL, "cam": CAREFUL}, prompts=150)
    comparisons = [pair for ranking in rankings for pair in compare(ranking)]
    by_ann = {
        ranking.prompt_id: [one for (one,) in ranking.tiers] for ranking in rankings if ranking.annotator == "ann"
    }

    def renamed(pair: Comparison, name: str) -> str:
        order = by_ann.get(pair.prompt_id, [])
        return f"{pair.prompt_id}-{order.index(name)}" if order else name

    changed = [
        pair.model_copy(update={"chosen": renamed(pair, pair.chosen), "rejected": renamed(pair, pair.rejected)})
        for pair in comparisons
    ]
    assert annotator_weights(changed).weights == pytest.approx(annotator_weights(comparisons).weights, abs=0.15)


def test_a_run_without_the_package_is_refused_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    people = {"source": "human"}
    config = Config(name="x", model={"source": "x"}, rank=people, reward={"annotator_weights": "reliability"})
    assert reliability_problem(config) is None
    monkeypatch.setattr(reliability, "version", missing)
    assert 'Run `pip install "crowd-kit>=1.4"`' in (reliability_problem(config) or "")
    assert reliability_problem(config.model_copy(update={"reward": RewardConfig()})) is None


def test_weights_multiply_the_losses_of_their_pairs() -> None:
    """By hand: pairs at margins 1 and 0 with weights 2 and 0.5. A dropped pair takes its weight along."""
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])
    loss = pairwise_loss(chosen, rejected, 0.0, torch.tensor([2.0, 0.5]))
    assert float(loss) == pytest.approx((2 * 0.3132617 + 0.5 * 0.6931472) / 2, abs=1e-6)
    group = Group("p", [5], ["a", "b", "c"], [[7], [7], [8]], [1] * 3, [(0, 1, 1), (2, 0, 1)], [], (2.0, 0.5))
    assert without_equal_answers(group, 9)[0].weights == (0.5,)
