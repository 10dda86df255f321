"""Several reward members on one adapter: bootstrap, fit, loss, scale and combination, by hand and on a tiny model."""

import contextlib
import io
import json
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from exports import export_reward, usage_code
from tiny import LORA, make_batch
from tiny_finished import finished_run
from tiny_ppo import PROMPTS, SAMPLING, make_ppo_config, start
from tiny_run import make_config, make_session, save_sft, separable, write_ranked

from lowrank_rlhf import cli
from lowrank_rlhf.commands.terminal.chat_lines import answer_json
from lowrank_rlhf.config.schema import RewardConfig, SampleConfig
from lowrank_rlhf.evaluation.chat import ChatModels, ChatSampling
from lowrank_rlhf.evaluation.reward_metrics import load_reward_model, raw_scores
from lowrank_rlhf.maths.masking import pool
from lowrank_rlhf.maths.sequences import pack
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import score_tokens
from lowrank_rlhf.run.records import Message, Prompt, Score, read_jsonl
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import ppo, reward
from lowrank_rlhf.training.reward_data import Group, bootstrapped, group_loss, members_loss, read_groups
from lowrank_rlhf.training.rewards.ensemble import Ensemble, common_scale
from lowrank_rlhf.training.rewards.reward_head import fit_head
from lowrank_rlhf.training.rollout import RewardScale, collect

SCORES = torch.tensor([[1.0, 2.0, 6.0], [3.0, 2.0, 4.0]])
"""Two reference answers' scores by three members, whose means are 2, 2 and 5."""


def group(name: str, pairs: list[tuple[int, int, int]], answers: int = 2) -> Group:
    return Group(name, [5], [f"{name}-{k}" for k in range(answers)], [[7, k] for k in range(answers)], [1] * answers,
                 pairs, [])  # fmt: skip


def test_each_member_draws_as_many_prompts_as_there_are_with_replacement() -> None:
    groups = [group(f"p{i}", [(0, 1, 1)]) for i in range(50)]
    drawn = bootstrapped(groups, 3, seed=7)
    columns = list(zip(*(own.counts for own in drawn), strict=True))
    assert [sum(column) for column in columns] == [50, 50, 50]
    assert all(max(column) > 1 and 0 in column for column in columns)
    assert len(set(columns)) == 3
    assert bootstrapped(groups, 3, seed=7) == drawn != bootstrapped(groups, 3, seed=8)
    assert bootstrapped(groups, 1, seed=7) == groups
    assert [replace(own, counts=(1,)) for own in drawn] == groups


def test_the_fit_of_a_member_weighs_each_prompt_by_its_count() -> None:
    """Against Newton's method with the counts as weights."""
    groups = [replace(group(f"p{i}", [(i % 2, 1 - i % 2, 1)]), counts=(i % 3, 1 + i // 4)) for i in range(8)]
    generator = torch.Generator().manual_seed(4)
    features = [torch.randn(2, 5, generator=generator) for _ in groups]
    heads, _ = fit_head(groups, features, RewardConfig(head_l2=0.5), seed=0)
    assert heads.shape == (2, 5)
    scale = torch.cat(features).double().std(0)
    z = torch.stack([own[i % 2] - own[1 - i % 2] for i, own in enumerate(features)]).double() / scale
    for member, head in enumerate(heads):
        weights = torch.tensor([own.counts[member] for own in groups], dtype=torch.float64)
        expected = torch.zeros(5, dtype=torch.float64)
        for _ in range(30):
            p = torch.sigmoid(-(z @ expected))
            slope = -(weights * p) @ z + 0.5 * expected
            expected -= torch.linalg.solve((z.T * (weights * p * (1 - p))) @ z + 0.5 * torch.eye(5), slope)
        torch.testing.assert_close(head.double(), expected / scale, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_over_members_of_the_counted_losses() -> None:
    own = replace(group("p", [(0, 1, 1)]), counts=(2, 0, 1))
    losses = [float(group_loss(scores, own, "pairwise", 0.0)) for scores in SCORES.unbind(-1)]
    found = float(members_loss(SCORES, own, "pairwise", 0.0))
    assert found == pytest.approx((2 * losses[0] + losses[2]) / 3)
    assert float(members_loss(SCORES[:, 0], own, "pairwise", 0.0)) == losses[0]


def test_combinations_by_hand() -> None:
    """With all means at 3, the mean of the members, the scores are 2 3 4 and 4 3 2."""
    expected = {"mean": ([3.0, 3.0], 0.0), "min": ([2.0, 2.0], 1.0), "mean_minus_std": ([2.5, 2.5], 0.5)}
    for how, (scores, penalty) in expected.items():
        ensemble = Ensemble.on(SCORES, how, 0.5)
        assert ensemble.combined(SCORES).tolist() == pytest.approx(scores)
        assert ensemble.spread(SCORES).tolist() == pytest.approx([1.0, 1.0])
        assert ensemble == Ensemble((2.0, 2.0, 5.0), how, 0.5, pytest.approx(penalty))
        saved = json.loads(json.dumps(vars(ensemble)))
        assert Ensemble.of(saved) == ensemble
    assert Ensemble.on(SCORES, "min", 0.5).combined(torch.tensor([9.0, 0.0, 9.0])).tolist() == 1.0


def test_members_get_a_common_scale() -> None:
    scores = torch.tensor([[1.0, 10.0], [3.0, 30.0]])  # deviations 1.41 and 14.1, 7.78 on average
    assert (scores * common_scale(scores)).std(0).tolist() == pytest.approx([7.778, 7.778], rel=1e-3)


@pytest.fixture
def roles(tiny_base) -> Roles:
    roles = Roles(tiny_base("none"), LORA, members=3)
    for role in Role:
        roles.reset(role, torch.Generator().manual_seed(0))
    return roles


def test_each_member_scores_as_its_head_alone_and_the_critic_starts_as_their_mean(roles) -> None:
    batch = make_batch()
    heads = roles.heads[Role.REWARD].weight
    assert heads.shape == (3, heads.shape[1])
    scores = score_tokens(roles, Role.REWARD, batch)  # (B, T, 3)
    with roles.acting_as(Role.REWARD):
        hidden = roles.hidden(batch)
    for member in range(3):
        expected = torch.where(batch.attention, hidden @ heads[member], 0.0)
        torch.testing.assert_close(scores[..., member], expected, rtol=1e-4, atol=1e-5)
    roles.copy(Role.REWARD, Role.CRITIC)
    torch.testing.assert_close(roles.heads[Role.CRITIC].weight, heads.mean(0, keepdim=True))


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_score_is_that_of_the_combined_members_and_its_spread_theirs(roles, pooling) -> None:
    batch = make_batch()
    members = pool(score_tokens(roles, Role.REWARD, batch), batch.response, pooling)  # (B, 3)
    ensemble = Ensemble((0.1, 0.2, 0.3), "min", 1.0)
    found = RewardScale(pooling, 0.5, 2.0, ensemble=ensemble).score(roles, batch)
    aligned = members - torch.tensor([-0.1, 0.0, 0.1])
    torch.testing.assert_close(found.total, (aligned.min(-1).values - 0.5) / 2)
    torch.testing.assert_close(found.spread, aligned.std(-1) / 2)
    assert found.figures() == {"score_spread": pytest.approx(float(found.spread.mean()))}


@pytest.mark.parametrize("combine", ["mean", "min", "mean_minus_std"])
def test_the_critic_starts_without_bias(combine) -> None:
    """Its value of whole reference answers is 0 on average, as their scores are, although its head knows no spread."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, 5, 3, generator=generator)
    response = torch.ones(40, 5, dtype=torch.bool)
    members = pool(values, response, "last")
    ensemble = Ensemble.on(members, combine, 1.0)
    combined = ensemble.combined(members)
    scale = RewardScale("last", float(combined.mean()), float(combined.std()), ensemble=ensemble)
    assert float(((combined - scale.mean) / scale.std).mean()) == pytest.approx(0, abs=1e-6)
    found = scale.unfinished(values.mean(-1), response, torch.zeros(40))
    assert float(found[:, -1].mean()) == pytest.approx(0, abs=1e-6)


def test_a_rollout_has_the_spread_of_its_answers(roles) -> None:
    config = make_ppo_config()
    start(roles)
    scale = RewardScale("mean", 0.0, 1.0, ensemble=Ensemble((0.0, 0.0, 0.0), "mean", 1.0))
    rollout = collect(roles, PROMPTS, config, SAMPLING, scale, config.kl_coef, 1)
    found = scale.score(roles, rollout.batch)
    torch.testing.assert_close(rollout.scores, found.total)
    assert rollout.figures["score_spread"] == pytest.approx(float(found.spread.mean()), rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0, "fit_head_first": True, "combine": "min"},
        {"epochs": 3, "learning_rate": 1e-2, "combine": "mean_minus_std", "spread_weight": 0.5},
        {"epochs": 1, "fit_head_first": True, "loss": "plackett_luce"},
    ],
    ids=["heads alone", "trained together", "heads first, listwise"],
)
def test_the_stage_trains_members_that_agree_on_separable_pairs(tiny_folder, tmp_path, settings) -> None:
    settings = {"reward__members": 3, **{f"reward__{key}": value for key, value in settings.items()}}
    session = make_session(make_config(tiny_folder(), quantization="none", **settings), tmp_path)
    save_sft(session)
    write_ranked(session, *separable(80))
    summary = reward.run(session)
    assert summary.accuracy > 0.75
    assert len(summary.member_accuracies) == 3
    assert summary.score_spread > 0
    assert min(summary.member_accuracies) > 0.6
    assert all(claim.holds for claim in summary.claims)
    folder = session.work("reward") / "adapters" / "reward"
    about = json.loads((folder / "reward.json").read_text())
    assert about["members"]["combine"] == settings.get("reward__combine", "mean")
    assert (about["members"]["penalty"] > 0) == (about["members"]["combine"] != "mean")

    roles = session.load_roles()
    scale = load_reward_model(roles, folder)
    groups = read_groups(roles.base, session.run_dir, session.config.model.max_length)[0]
    members = torch.cat(raw_scores(roles, groups, RewardScale(scale.pooling, 0.0, 1.0)))  # (N, 3), SFT's answers
    assert members.std(0).tolist() == pytest.approx([float(members[:, 0].std())] * 3, rel=1e-4)
    assert members.mean(0).tolist() == pytest.approx(about["members"]["means"], rel=1e-4, abs=1e-5)
    combined = torch.cat(raw_scores(roles, groups, scale))
    assert float(combined.mean()) == pytest.approx(summary.score_mean, rel=1e-4, abs=1e-5)
    assert float(combined.std()) == pytest.approx(summary.score_std, rel=1e-4)
    spread = scale.ensemble.spread(members).mean() / scale.std
    assert summary.score_spread == pytest.approx(float(spread), rel=1e-4)
    written = {row.sample_id: row.score for row in read_jsonl(session.work("reward") / "scores.jsonl", Score)}
    ids = [name for own in groups for name in own.samples]
    assert written == pytest.approx(dict(zip(ids, combined.tolist(), strict=True)), rel=1e-3, abs=1e-4)

    for name in ("adapters/reward", "scores.jsonl"):
        (session.work("reward") / name).rename(session.run_dir.artifact(name))
    assert ppo._load_roles(roles, session.run_dir, session.config) == scale
    heads = roles.heads[Role.REWARD].weight
    torch.testing.assert_close(roles.heads[Role.CRITIC].weight, heads.mean(0, keepdim=True))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"combine": "min"}, "`combine: min` requires members of at least 2"),
        ({"members": 2, "length": "debias", "fit_head_first": True}, r"members \(2\) requires `length: ignore`"),
        ({"annotator_weights": "reliability", "loss": "plackett_luce"}, "requires `loss: pairwise`"),
    ],
)
def test_settings_that_do_not_go_together(tiny_folder, settings, text) -> None:
    with pytest.raises(ValueError, match=text):
        make_config(tiny_folder(), **{f"reward__{key}": value for key, value in settings.items()})


# --- Where scores are shown


@pytest.fixture
def finished(tiny_folder, tmp_path, request) -> Session:
    """A finished run whose reward model has three random members, with SFT means of 0.1, 0.2 and 0.3."""
    combine = getattr(request, "param", "mean_minus_std")
    session = finished_run(
        tiny_folder(), tmp_path, pooling="mean", reward__members=3, reward__combine=combine, reward__spread_weight=0.5
    )
    notes = session.run_dir.artifact("adapters/reward") / "reward.json"
    ensemble = Ensemble((0.1, 0.2, 0.3), combine, 0.5, 0.1)
    notes.write_text(json.dumps(json.loads(notes.read_text()) | {"members": vars(ensemble)}))
    return session


def scored(session: Session, prompt: list[int], answer: list[int]) -> tuple[float, float]:
    """Score and spread of an answer, by hand: mean 0.4 and deviation 1.7 are those of `finished_run`."""
    batch = pack([prompt], [answer], session.load_roles().base.pad)
    members = pool(score_tokens(session.load_roles(), Role.REWARD, batch), batch.response, "mean")[0]
    members = members - torch.tensor([-0.1, 0.0, 0.1])
    how = session.config.reward.combine
    spread = float(members.std())
    raw = float(members.min()) if how == "min" else float(members.mean()) - (how != "mean") * 0.5 * spread
    return (raw - 0.4) / 1.7, spread / 1.7


def test_chat_shows_score_and_spread(finished) -> None:
    models = ChatModels(finished.load_roles(), finished.run_dir)
    prompt = models.encode([Message(role="user", content="what is short")])
    answer = models.answer("sft", prompt, ChatSampling(9, 0.8, 2), lambda _: None)
    sampling = SampleConfig(max_new_tokens=9, temperature=0.8)
    ((response,),) = sample_answers(finished.load_roles(), Role.POLICY, [prompt], sampling, seed=2)
    assert (answer.score, answer.spread) == pytest.approx(scored(finished, prompt, list(response.tokens)), abs=1e-4)
    assert answer_json(answer)["spread"] == answer.spread


@pytest.mark.parametrize("finished", ["mean", "min", "mean_minus_std"], indirect=True)
def test_the_exported_model_gives_score_and_spread(finished, tmp_path, monkeypatch) -> None:
    summary = export_reward(finished, "bfloat16", tmp_path / "my-reward")
    assert summary["max_score_difference"] < 0.05
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(usage_code(tmp_path / "my-reward"), names)  # noqa: S102 - the card's own lines
    assert names["model"].config.num_labels == 3
    assert names["model"].config.lowrank_rlhf["members"]["combine"] == finished.config.reward.combine
    base, text, message = finished.load_roles().base, "the answer is short", Message(role="user", content="what is")
    prompt = base.encode_prompt(Prompt(id="p", messages=(message,)))
    found = names["score"]([message.model_dump()], text)
    assert found == pytest.approx(scored(finished, prompt, base.encode_response(text)), abs=0.05)


def test_evaluate_shows_the_spread_and_the_members_accuracies(finished, tmp_path, capsys, monkeypatch) -> None:
    folder, file = finished.run_dir.path, tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"question {i}", "chosen": "short answer", "rejected": "the user asks"} for i in range(4)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    out = tmp_path / "out.json"
    arguments = [str(folder), "--limit", "2", "--comparisons", str(file), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", "evaluate", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert not exited.value.code
    found = json.loads(out.read_text())
    assert len(found["accuracy"]["member_accuracies"]) == 3
    for row in found["match"]["answers"]:
        assert row["spread_left"] > 0 < row["spread_right"]
    text = capsys.readouterr().out
    assert "its 3 members alone" in text
    assert "members differ by" in text
