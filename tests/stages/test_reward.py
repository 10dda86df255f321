"""The reward stage's pieces by hand, and the whole of it on pairs that can be told apart."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import DEVICE
from tiny_run import limit_tokens, make_config, make_session, save_sft, separable, write_prompts, write_ranked

from lowrank_rlhf.config.schema import RewardConfig
from lowrank_rlhf.errors import ExitCode, ModelNotFinite, StageFailed, UserError
from lowrank_rlhf.evaluation import reward_metrics
from lowrank_rlhf.evaluation.reward_metrics import (
    HeldOutAccuracy,
    accuracy_in_words,
    held_out_accuracy,
    raw_scores,
    weakness,
)
from lowrank_rlhf.maths.statistics import Interval
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.preferences.reward_tests import reward_tests
from lowrank_rlhf.run.records import Message, Prompt, Ranking, Sample, Score, read_jsonl
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import ppo, reward
from lowrank_rlhf.training.reward_data import (
    Group,
    group_batches,
    group_loss,
    read_groups,
    rows_of,
    split_groups,
    split_scores,
)
from lowrank_rlhf.training.rewards import reward_training
from lowrank_rlhf.training.rewards.reward_head import HeadFit, fit_head
from lowrank_rlhf.training.rollout import RewardScale


def groups_of(session: Session) -> list[Group]:
    return read_groups(session.load_roles().base, session.run_dir, session.config.model.max_length)[0]


def raw_scale(session: Session) -> RewardScale:
    return RewardScale(session.config.reward.pooling, 0.0, 1.0)


@pytest.fixture
def session(tiny_folder, tmp_path) -> Session:
    """No checkpoint, no data yet; the model is loaded only where it is asked for."""
    return make_session(make_config(tiny_folder()), tmp_path)


def group(name: str = "p", answers: int = 3, width: int = 4, **fields) -> Group:
    plain = {
        "prompt": [5, 6],
        "samples": [f"{name}-{k}" for k in range(answers)],
        "answers": [[7] * (width - 2) for _ in range(answers)],
        "lengths": [1] * answers,
        "pairs": [(0, 1, 1)],
        "rankings": [],
    }
    return Group(prompt_id=name, **(plain | fields))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


# --- Data


def ask(name: str, text: str = "question") -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content=text),))


def test_groups_from_records(session) -> None:
    """Two annotators; an answer that nobody ranked, one without tokens, a prompt without comparisons."""
    samples = [
        Sample(id="a-0", prompt_id="a", text="one", tokens=(9, 10, 2)),
        Sample(id="a-1", prompt_id="a", text="three", tokens=(11,)),
        Sample(id="a-2", prompt_id="a", text="", tokens=(12, 2)),
        Sample(id="a-3", prompt_id="a", text="nobody ranked this", tokens=(13,)),
        Sample(id="b-0", prompt_id="b", text="kind"),
        Sample(id="b-1", prompt_id="b", text="short"),
        Sample(id="c-0", prompt_id="c", text="tied"),
        Sample(id="c-1", prompt_id="c", text="tied too"),
    ]
    rankings = [
        Ranking(prompt_id="a", tiers=(("a-2",), ("a-0",), ("a-1",)), annotator="one"),
        Ranking(prompt_id="b", tiers=(("b-1",), ("b-0",)), annotator="one"),
        Ranking(prompt_id="c", tiers=(("c-0", "c-1"),), annotator="one"),
        Ranking(prompt_id="a", tiers=(("a-0", "a-2"), ("a-1",)), annotator="two"),
    ]
    write_ranked(session, [ask("a"), ask("b"), ask("c")], samples, rankings)
    first, second = groups_of(session)
    assert (first.prompt_id, second.prompt_id) == ("a", "b")
    assert first.prompt == session.load_roles().base.encode_prompt(ask("a"))
    assert first.answers == [[9, 10, 2], [11], [12, 2]]
    assert first.lengths == [3, 5, 0]
    assert first.pairs == [(2, 0, 1), (2, 1, 2), (0, 1, 1), (0, 1, 1), (2, 1, 1)]
    assert first.rankings == [[[2], [0], [1]], [[0, 2], [1]]]
    assert first.weights == ()
    base, limit = session.load_roles().base, session.config.model.max_length
    weighted, _ = read_groups(base, session.run_dir, limit, {"one": 0.5, "two": 2.0})
    assert [own.weights for own in weighted] == [(0.5, 0.5, 0.5, 2.0, 2.0), (0.5,)]
    assert second.answers == [
        session.load_roles().base.encode_response("kind"),
        session.load_roles().base.encode_response("short"),
    ]
    assert second.answers[0][-1] == session.load_roles().base.eos
    assert second.pairs == [(1, 0, 1)]
    assert first.width == len(first.prompt) + 3


def test_long_answers_are_cut_and_long_prompts_left_out(tiny_folder, tmp_path) -> None:
    session = make_session(make_config(tiny_folder(), model__max_length=40), tmp_path)
    prompts = [ask("a"), ask("b", "zzzz " * 20)]
    length = len(session.load_roles().base.encode_prompt(prompts[0]))
    samples = [
        Sample(id=f"{name}-{k}", prompt_id=name, text="x", tokens=tuple(range(9, 59 if k else 12)))
        for name in "ab"
        for k in range(2)
    ]
    rankings = [Ranking(prompt_id=name, tiers=((f"{name}-0",), (f"{name}-1",)), annotator="x") for name in "ab"]
    write_ranked(session, prompts, samples, rankings)
    (only,) = groups_of(session)
    assert only.prompt_id == "a"
    assert only.answers == [[9, 10, 11], list(range(9, 9 + 40 - length))]  # their beginnings
    assert only.width == 40


def test_answers_that_are_equal_after_the_cut_are_not_compared(tiny_folder, tmp_path) -> None:
    """All of prompt a, one pair of prompt b; the characters are those of the tokens that are read."""
    session = make_session(make_config(tiny_folder(), model__max_length=40), tmp_path)
    base = session.load_roles().base
    room = 40 - len(base.encode_prompt(ask("a")))
    texts = {name: f"{'the user asks ' * room}{name}" for name in ("good", "bad")} | {"other": "kind " * 2 * room}
    samples = [Sample(id=f"{p}-{name}", prompt_id=p, text=text) for p in "ab" for name, text in texts.items()]
    rankings = [
        Ranking(prompt_id="a", tiers=(("a-good",), ("a-bad",)), annotator="x"),
        Ranking(prompt_id="b", tiers=(("b-good",), ("b-bad",), ("b-other",)), annotator="x"),
    ]
    write_ranked(session, [ask("a"), ask("b")], samples, rankings)
    groups, note = read_groups(base, session.run_dir, 40)
    assert note == (
        "model.max_length 40: 0 prompts skipped as too long, 5 answers cut, "
        "2 comparisons left out whose answers are then equal"
    )
    (only,) = groups
    assert only.prompt_id == "b"
    bad, good, other = (only.samples.index(f"b-{name}") for name in ("bad", "good", "other"))
    assert {pair[:2] for pair in only.pairs} == {(good, other), (bad, other)}
    assert only.rankings == [[[good], [other]]]
    assert only.lengths == [len(base.tokenizer.decode(answer)) for answer in only.answers]
    assert max(only.lengths) < min(len(text) for text in texts.values())


def test_the_split_is_by_prompt_and_never_leaks() -> None:
    groups = [group(f"p{number}") for number in range(20)]
    splits = [split_groups(groups, 0.3, seed) for seed in range(5)]
    for train, held_out in splits:
        assert (len(train), len(held_out)) == (14, 6)
        assert sorted(g.prompt_id for g in [*train, *held_out]) == sorted(g.prompt_id for g in groups)
    assert splits[0] == split_groups(groups, 0.3, 0)
    assert len({tuple(g.prompt_id for g in held_out) for _, held_out in splits}) == 5
    for count, share, expected in ((2, 0.01, (1, 1)), (2, 0.99, (1, 1)), (10, 0.999, (1, 9))):
        assert tuple(map(len, split_groups(groups[:count], share, 0))) == expected
    with pytest.raises(UserError, match="1 prompts have comparisons"):
        split_groups(groups[:1], 0.5, 0)


def test_rows_and_scores_of_groups_fit_together(session) -> None:
    groups = [group("a", 2, 6), group("b", 3, 4)]
    rows = rows_of(groups, session.load_roles().base)
    assert rows.ids.shape == (5, 6)
    assert rows.lengths() == [6, 6, 4, 4, 4]
    parts = split_scores(torch.arange(5.0), groups)
    assert [part.tolist() for part in parts] == [[0, 1], [2, 3, 4]]


def test_micro_batches_keep_groups_whole() -> None:
    groups = [group(f"p{i}", answers, width) for i, (answers, width) in enumerate([(4, 10), (3, 20), (4, 5), (2, 10)])]
    for tokens, expected in ((80, "p1 | p0 p3 | p2"), (1, "p1 | p0 | p3 | p2"), (10_000, "p1 p0 p3 p2")):
        parts = group_batches(groups, tokens)
        assert " | ".join(" ".join(g.prompt_id for g in part) for part in parts) == expected


# --- Losses


def test_pairs_share_one_element_and_margins_count_tiers() -> None:
    scores, pairs = torch.tensor([2.0, 0.0, 1.0]), [(0, 1, 2), (0, 2, 1), (1, 2, 1)]
    expected = -(log_sigmoid(2) + log_sigmoid(1) + log_sigmoid(-1)) / 3
    assert float(group_loss(scores, group(pairs=pairs), "pairwise", 0.0)) == pytest.approx(expected)
    expected = -(log_sigmoid(2 - 1) + log_sigmoid(1 - 0.5) + log_sigmoid(-1 - 0.5)) / 3
    assert float(group_loss(scores, group(pairs=pairs), "pairwise", 0.5)) == pytest.approx(expected)


def test_several_annotators() -> None:
    """Each pair of each annotator counts once in `pairwise`; Plackett-Luce is the mean over their rankings."""
    scores = torch.tensor([2.0, 0.0])
    disagree = group(answers=2, pairs=[(0, 1, 1), (0, 1, 1), (1, 0, 1)], rankings=[[[0], [1]], [[0], [1]], [[1], [0]]])
    expected = -(2 * log_sigmoid(2) + log_sigmoid(-2)) / 3
    for loss in ("pairwise", "plackett_luce"):
        assert float(group_loss(scores, disagree, loss, 0.0)) == pytest.approx(expected)
    three = group(rankings=[[[0], [2], [1]]])
    scores = torch.tensor([2.0, 0.0, 1.0])
    e = math.exp
    expected = (-math.log(e(2) / (e(2) + e(1) + e(0))) - math.log(e(1) / (e(1) + e(0)))) / 2  # two choices
    assert float(group_loss(scores, three, "plackett_luce", 0.0)) == pytest.approx(expected)


def test_a_step_does_not_depend_on_the_micro_batches(tiny_folder, tmp_path) -> None:
    session = make_session(make_config(tiny_folder(), reward__max_grad_norm=1e9), tmp_path)
    save_sft(session)
    write_ranked(session, *separable(4))
    groups = groups_of(session)
    roles = session.load_roles()
    roles.copy(Role.POLICY, Role.REWARD)
    roles.new_head(Role.REWARD, torch.Generator().manual_seed(0))
    optimizer, found = torch.optim.SGD(roles.parameters(Role.REWARD), lr=0.0), []
    for tokens in (10_000, 200, 1):
        limit_tokens(session.load_roles().base, tokens)
        loss, accuracy = reward_training._step(
            session.load_roles(), optimizer, groups, session.config.reward, raw_scale(session)
        )
        found.append((loss, accuracy, [parameter.grad.clone() for parameter in roles.parameters(Role.REWARD)]))
    for loss, accuracy, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert accuracy == found[0][1]
        for part, whole in zip(gradient, found[0][2], strict=True):
            torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)
    scores = raw_scores(session.load_roles(), groups, raw_scale(session))
    assert found[0][0] == pytest.approx(
        sum(float(group_loss(s, g, "pairwise", 0.0)) for s, g in zip(scores, groups, strict=True)) / 4, rel=1e-5
    )
    right = [bool(s[i] > s[j]) for s, g in zip(scores, groups, strict=True) for i, j, _ in g.pairs]
    assert found[0][1] == sum(right) / len(right) != 0.5


def test_each_epoch_has_an_order_of_its_own_and_the_rate_falls_to_zero_after_the_last_step(
    tiny_folder, tmp_path, monkeypatch
) -> None:
    settings = {"reward__epochs": 3, "reward__batch_size": 2, "reward__learning_rate": 0.006}
    session = make_session(make_config(tiny_folder(), **settings), tmp_path)
    save_sft(session)
    write_ranked(session, *separable(8))
    seen: list[tuple[float, list[str]]] = []
    step = reward_training._step

    def look(roles, optimizer, groups, *rest) -> tuple[float, float]:
        seen.append((optimizer.param_groups[0]["lr"], [group.prompt_id for group in groups]))
        return step(roles, optimizer, groups, *rest)

    monkeypatch.setattr(reward_training, "_step", look)
    reward.run(session)
    assert len(seen) == 9  # three epochs of six training prompts
    assert [rate for rate, _ in seen] == pytest.approx([0.006 * (9 - done) / 9 for done in range(9)])
    epochs = [[prompt for _, batch in seen[start : start + 3] for prompt in batch] for start in (0, 3, 6)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_every_prompt_counts_once_in_the_fit_of_the_head() -> None:
    """One prompt with six pairs, six with one: against Newton's method with a weight of 1 per prompt."""
    all_pairs = [(better, worse, 1) for better in range(4) for worse in range(better + 1, 4)]
    groups = [group("many", 4, pairs=all_pairs), *(group(f"p{i}", 2) for i in range(6))]
    width, generator = 64, torch.Generator().manual_seed(4)
    features = [torch.randn(len(g.answers), width, generator=generator) for g in groups]
    fitted, fit = fit_head(groups, features, RewardConfig(head_l2=0.5), seed=0)
    assert fit == HeadFit(0.5, 0.0)

    apart = [f[better] - f[worse] for g, f in zip(groups, features, strict=True) for better, worse, _ in g.pairs]
    read = [f[i] for g, f in zip(groups, features, strict=True) for pair in g.pairs for i in pair[:2]]
    scale = torch.stack(read).double().std(0)
    z = torch.stack(apart).double() / scale
    weights = torch.tensor([1 / 6] * 6 + [1.0] * 6, dtype=torch.float64)
    head = torch.zeros(width, dtype=torch.float64)
    for _ in range(30):
        p = torch.sigmoid(-(z @ head))
        slope = -(weights * p) @ z + 0.5 * head
        head -= torch.linalg.solve((z.T * (weights * p * (1 - p))) @ z + 0.5 * torch.eye(width), slope)
    torch.testing.assert_close(fitted[0].double(), head / scale, rtol=1e-4, atol=1e-5)


# --- Figures


def test_figures_by_hand() -> None:
    groups = [
        group("a", 3, pairs=[(0, 1, 1), (0, 2, 2), (1, 2, 1)], lengths=[30, 20, 20]),
        group("b", 2, pairs=[(1, 0, 1)], lengths=[5, 2]),
    ]
    scores = [torch.tensor([3.0, 1.0, 1.0]), torch.tensor([0.5, 0.0])]
    figures = held_out_accuracy(groups, scores, samples=200, seed=0)
    assert figures.margins == (2.0, 2.0, 0.0, -0.5)
    assert figures.accuracy == (1 + 1 + 0.5 + 0) / 4
    assert figures.longer_wins == (1 + 1 + 0.5 + 0) / 4
    assert (figures.pairs_held_out, figures.prompts_held_out) == (4, 2)
    sure, unsure = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-0.5))
    # Bins: 0.5 (a tie, half right), 0.62 (wrong), 0.88 twice (right).
    assert figures.ece == pytest.approx((abs(0.5 - 0.5) + abs(0 - unsure) + 2 * (1 - sure)) / 4)
    assert [bar.count for bar in figures.reliability] == [1, 1, 2]
    x, y = torch.tensor([3, 1, 1, 0.5, 0]), torch.tensor([30.0, 20, 20, 5, 2])
    assert figures.length_correlation == pytest.approx(float(torch.corrcoef(torch.stack([x, y]))[0, 1]), abs=1e-6)
    low, high = figures.accuracy_interval
    assert low == 0  # both draws are b
    assert high == pytest.approx(2.5 / 3)  # both are a
    assert (figures.over_length, figures.over_length_interval) == (0, (0, 0))  # right on the same pairs


def test_the_difference_to_length_is_paired_and_goes_by_the_better_rule() -> None:
    """Three prompts, one pair each: the reward model is right on all, the shorter answer on two."""
    lengths = {"a": [1, 2], "b": [3, 4], "c": [6, 5]}
    groups = [group(name, 2, pairs=[(0, 1, 1)], lengths=of) for name, of in lengths.items()]
    figures = held_out_accuracy(groups, [torch.tensor([1.0, 0.0])] * 3, samples=500, seed=0)
    assert figures.length_rule[0] == "shorter"
    assert figures.over_length == pytest.approx(1 - 2 / 3)
    # c is drawn never with probability 8/27 and each time with 1/27: both are beyond 2.5 %.
    assert figures.over_length_interval == (0.0, 1.0)
    assert weakness(figures) == "few"
    assert weakness(replace(figures, prompts_held_out=6)) == "length_unclear"


@pytest.mark.parametrize(
    ("interval", "longer", "over_length", "expected"),
    [
        ((0.5, 0.9), 0.4, (0.01, 0.2), "chance"),
        ((0.3, 0.4), 0.2, (-0.5, -0.4), "chance"),
        ((0.6, 0.8), 0.7, (-0.2, 0.0), "length"),
        ((0.6, 0.8), 0.75, (-0.2, 0.001), "length_unclear"),
        ((0.51, 0.8), 0.69, (0.0, 0.02), "length_unclear"),
        ((0.51, 0.7), 0.25, (-0.3, -0.01), "length"),
        ((0.51, 0.9), 0.25, (-0.01, 0.2), "length_unclear"),
        ((0.51, 0.9), 0.25, (0.001, 0.02), None),
    ],
)
def test_weakness(interval, longer, over_length, expected) -> None:
    figures = HeldOutAccuracy(
        pairs_held_out=9,
        prompts_held_out=6,
        accuracy=0.7,
        accuracy_interval=Interval(*interval),
        longer_wins=longer,
        longer_wins_interval=Interval(longer - 0.1, longer + 0.2),
        over_length=sum(over_length) / 2,
        over_length_interval=Interval(*over_length),
        ece=0.0,
        reliability=(),
        margins=(),
        length_correlation=0.0,
    )
    assert weakness(figures) == expected
    rule, share, _ = figures.length_rule
    assert (rule, share) == (("shorter", 1 - longer) if longer < 0.5 else ("longer", longer))
    shown = "answer 75.0 % (95 % interval 55.0 to 85.0 %), a difference" in accuracy_in_words(figures)
    assert shown == (longer == 0.25)


# --- The whole stage


@pytest.mark.parametrize(
    ("settings", "count", "least"),
    [
        ({"pooling": "last", "epochs": 4, "learning_rate": 1e-2, "batch_size": 4}, 60, 0.9),
        ({"pooling": "mean", "epochs": 3, "learning_rate": 1e-2, "loss": "plackett_luce"}, 60, 0.9),
        ({"pooling": "mean", "epochs": 2, "fit_head_first": True, "learning_rate": 1e-3}, 100, 0.9),
        ({"pooling": "mean", "epochs": 0, "fit_head_first": True}, 150, 0.75),  # a random model's features at that
        ({"pooling": "mean", "epochs": 0, "fit_head_first": True, "annotator_weights": "reliability"}, 150, 0.75),
        ({"pooling": "mean", "epochs": 0, "fit_head_first": True, "length": "use", "head_l2": 1}, 150, 0.75),
        ({"pooling": "last", "epochs": 2, "fit_head_first": True, "learning_rate": 1e-3, "length": "use"}, 100, 0.7),
        ({"pooling": "mean", "epochs": 1, "fit_head_first": True, "learning_rate": 1e-3, "length": "debias"}, 100, 0.7),
    ],
    ids=[
        "last",
        "mean and plackett-luce",
        "the head first",
        "the head alone",
        "the head alone, annotators by reliability",
        "the head and the length",
        "the head and the length first",
        "the head first, without the length when scoring",
    ],
)
def test_separable_pairs_are_learnt(tiny_folder, tmp_path, monkeypatch, settings, count, least) -> None:
    weighted = settings.get("annotator_weights")
    changes = {f"reward__{key}": value for key, value in settings.items()} | {
        "rank__source": "human" if weighted else "judge"
    }
    session = make_session(make_config(tiny_folder(), **changes), tmp_path)
    save_sft(session)
    write_ranked(session, *separable(count))
    adapter = {name: p.clone() for name, p in session.load_roles().named_parameters(Role.POLICY).items()}
    said: list[str] = []
    monkeypatch.setattr(session.progress, "say", said.append)
    summary = reward.run(session)
    assert summary.accuracy > least
    assert summary.weak is None
    assert summary.annotator_weights is None  # of one annotator they are not estimated
    assert any("not estimated: 0 of 3 annotators with common prompts" in line for line in said) == bool(weighted)
    audit = summary.prompt_audit
    assert (audit.prompts, audit.pairs) == (summary.prompts_held_out, summary.pairs_held_out)
    assert audit.accuracy == summary.accuracy
    assert min(audit.emptied.accuracy, audit.shuffled.accuracy) > 0.6  # the answers alone decide in this data
    assert (summary.head_l2 is not None) == settings.get("fit_head_first", False)
    curve = reward_tests(session.run_dir.path)[-1].curve
    measured = curve.points[-1].prompts if curve else None
    assert measured == (summary.prompts_train if summary.head_l2 else None)
    assert summary.prompts_held_out == 0.3 * (summary.prompts_train + summary.prompts_held_out)
    assert [claim.holds for claim in summary.claims] == [True, True, True]
    folder = session.work("reward") / "adapters" / "reward"
    about = json.loads((folder / "reward.json").read_text())
    assert about["pooling"] == settings["pooling"]
    assert (about["score_mean"], about["score_std"]) == (summary.score_mean, summary.score_std)
    assert about["scores_of"] == summary.scores_of == "SFT answers"
    after = session.load_roles().named_parameters(Role.REWARD)
    same = [torch.equal(after[name], weight) for name, weight in adapter.items()]
    assert all(same) if settings["epochs"] == 0 else not any(same)
    assert all(torch.equal(p, adapter[name]) for name, p in session.load_roles().named_parameters(Role.POLICY).items())
    # The scores' mean and deviation are those of all ranked answers, as the saved adapter gives them.
    assert ("length_weight" in about) == (settings.get("length") == "use")
    scale = replace(raw_scale(session), length=about.get("length_weight", 0.0))
    load_role(session.load_roles(), Role.REWARD, folder)
    held_out = split_groups(groups_of(session), 0.3, session.seed("reward", "split"))[1]
    scores = torch.cat(raw_scores(session.load_roles(), groups_of(session), scale))
    assert len(scores) == 4 * count
    assert float(scores.mean()) == pytest.approx(about["score_mean"], rel=1e-5, abs=1e-6)
    assert float(scores.std()) == pytest.approx(about["score_std"], rel=1e-5)
    every = list(read_jsonl(session.work("reward") / "scores.jsonl", Score))
    groups = groups_of(session)
    again = dict(
        zip(
            [s for g in groups for s in g.samples],
            torch.cat(raw_scores(session.load_roles(), groups, scale)),
            strict=True,
        )
    )
    assert {score.sample_id: score.score for score in every} == pytest.approx(
        {name: float(score) for name, score in again.items()}, rel=1e-4, abs=1e-5
    )
    assert {score.prompt_id for score in every if score.held_out} == {group.prompt_id for group in held_out}


def test_a_resumed_stage_keeps_the_learning_curve(tiny_folder, tmp_path) -> None:
    settings = {"reward__epochs": 1, "reward__fit_head_first": True, "reward__save_every": 1}
    session = make_session(make_config(tiny_folder(), **settings), tmp_path)
    save_sft(session)
    write_ranked(session, *separable(24))
    reward.run(session)
    reward.run(session)  # from the last checkpoint of the first
    first, second = reward_tests(session.run_dir.path)
    assert first.curve is not None
    assert second.curve == first.curve


def compared_by_others(tiny_folder, tmp_path, **changes) -> Session:
    """Ranked answers that a data set brought: some tokens that the tiny model all but never samples."""
    data = write_prompts(tmp_path / "prompts.jsonl")
    changes = {"rank__source": "dataset", "rank__dataset": "pairs.jsonl", "sample__temperature": 0.7} | changes
    session = make_session(make_config(tiny_folder(), data, **changes), tmp_path)
    save_sft(session)
    write_ranked(session, *separable(10))
    return session


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_scale_is_that_of_sfts_answers_where_others_wrote_the_compared_ones(tiny_folder, tmp_path, pooling) -> None:
    """SFT's answers sampled once more, and read one by one with the head by hand."""
    session = compared_by_others(tiny_folder, tmp_path, reward__pooling=pooling)
    summary = reward.run(session)
    prompts, roles = session.prompts[0], session.load_roles()
    assert len(prompts) == 15
    encoded = [session.load_roles().base.encode_prompt(prompt) for prompt in prompts]
    seed, sampling = session.seed("reward", "scale"), session.config.sample
    answers = sample_answers(roles, Role.POLICY, encoded, sampling.model_copy(update={"temperature": 0.7}), seed)
    scores = []
    for prompt, (response,) in zip(encoded, answers, strict=True):
        with roles.acting_as(Role.REWARD):
            ids = torch.tensor([[*prompt, *response.tokens]], device=DEVICE)
            states = roles.decoder(input_ids=ids).last_hidden_state[0, len(prompt) :]
        of_tokens = states @ roles.heads[Role.REWARD].weight[0]
        scores.append(float(of_tokens[-1] if pooling == "last" else of_tokens.mean()))
    about = json.loads((session.work("reward") / "adapters" / "reward" / "reward.json").read_text())
    assert about["score_mean"] == pytest.approx(sum(scores) / 15, abs=1e-4)
    assert about["score_std"] == pytest.approx(float(torch.tensor(scores).std()), rel=1e-3)
    assert about["scores_of"] == summary.scores_of == "SFT answers"
    ranked = [score.score for score in read_jsonl(session.work("reward") / "scores.jsonl", Score)]
    assert abs(sum(ranked) / len(ranked) - about["score_mean"]) > 0.01  # those would not have done


def test_where_no_prompt_leaves_sft_room_the_statistics_are_called_what_they_are(tiny_folder, tmp_path) -> None:
    session = compared_by_others(tiny_folder, tmp_path, sample__max_new_tokens=55)
    summary = reward.run(session)
    scores = [score.score for score in read_jsonl(session.work("reward") / "scores.jsonl", Score)]
    assert summary.score_mean == pytest.approx(sum(scores) / len(scores), abs=1e-5)
    assert summary.scores_of == "the compared answers"


def test_labels_of_chance_are_called_weak_and_ppo_refuses(tiny_folder, tmp_path) -> None:
    config = make_config(tiny_folder(), reward__epochs=1, ppo__accept_weak_reward=False)
    session = make_session(config, tmp_path)
    save_sft(session)
    prompts, samples, rankings = separable(30)
    turned = [
        ranking.model_copy(update={"tiers": ranking.tiers[::-1]}) if number % 2 else ranking
        for number, ranking in enumerate(rankings)
    ]
    write_ranked(session, prompts, samples, turned)
    summary = reward.run(session)
    assert "better than chance" in summary.weak
    made: Path = session.work("reward") / "adapters" / "reward"
    made.rename(session.run_dir.artifact("adapters/reward"))
    with pytest.raises(StageFailed, match=r"not shown to be better than chance.*accept_weak_reward: true"):
        ppo.run(session)
    ppo_config = config.ppo.model_copy(update={"accept_weak_reward": True})
    told = replace(session, config=config.model_copy(update={"ppo": ppo_config}))
    scale = ppo._load_roles(told.load_roles(), told.run_dir, told.config)
    assert (scale.mean, scale.std) == (summary.score_mean, summary.score_std)


@pytest.mark.parametrize(("value", "first"), [(math.nan, False), (math.inf, False), (math.nan, True)])
def test_a_score_that_is_not_finite_orders_nothing(tiny_folder, tmp_path, monkeypatch, value, first) -> None:
    """As a NaN it was the lower score of every pair, and counted in the accuracy."""
    session = make_session(make_config(tiny_folder(), reward__epochs=1, reward__fit_head_first=first), tmp_path)
    save_sft(session)
    write_ranked(session, *separable(4))
    scored, read = reward_metrics.score_tokens, reward.answer_features

    def spoilt_scores(roles, role, batch):
        found = scored(roles, role, batch)
        found[1] = value
        return found

    def spoilt_features(*args):
        found = read(*args)
        found[1, 3] = value
        return found

    monkeypatch.setattr(reward_metrics, "score_tokens", spoilt_scores)
    if first:
        monkeypatch.setattr(reward, "answer_features", spoilt_features)
    what = "hidden states" if first else "scores"
    with pytest.raises(
        ModelNotFinite, match=rf"the reward model's {what} of 1 of 16 answers are NaN or infinite \(prompts \S+\)\. Set"
    ) as raised:
        reward.run(session)
    assert raised.value.exit_code == ExitCode.NOT_FINITE
    assert not (session.work("reward") / "adapters").exists()
