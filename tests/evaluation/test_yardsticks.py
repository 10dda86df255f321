"""Yardsticks of the evaluate stage; plain transformers and PEFT, and loops in Python, are the oracles."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny import DEVICE, load_plain
from tiny_finished import finished_run
from transformers import AutoModelForCausalLM

from lowrank_rlhf.config.ppo import PpoConfig
from lowrank_rlhf.errors import ModelNotFinite
from lowrank_rlhf.evaluation import yardsticks
from lowrank_rlhf.evaluation.match import score_answers
from lowrank_rlhf.evaluation.sampling import answer_greedily, answer_prompts
from lowrank_rlhf.evaluation.yardsticks import choose_best
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.preferences.judges.loading import load_judge
from lowrank_rlhf.run.records import Prompt, Sample
from lowrank_rlhf.run.results import EvaluateResult
from lowrank_rlhf.run.results.yardsticks import Yardstick
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import evaluate
from lowrank_rlhf.training import rollout
from lowrank_rlhf.training.rollout import RewardScale

LENGTH = 6
"""`sample.max_new_tokens` of the tiny config."""


@pytest.fixture
def session(tiny_folder, tmp_path) -> Session:
    """A run with different random adapters and two answers to each of two test prompts."""
    return finished_run(
        tiny_folder(), tmp_path, quantization="none", sample__temperature=0.7, evaluate__answers_per_prompt=2
    )


def generated(session: Session, adapter: str | None, prompts: list[Prompt]) -> list[str]:
    """Answers by transformers' own `generate`, one prompt at a time."""
    roles = session.load_roles()
    model: Any = load_plain(AutoModelForCausalLM, roles, "none")
    if adapter:
        model = PeftModel.from_pretrained(model, session.run_dir.artifact(f"adapters/{adapter}"))
    texts = []
    for prompt in prompts:
        ids = torch.tensor([roles.base.encode_prompt(prompt)], device=DEVICE)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=LENGTH,
            eos_token_id=roles.base.eos,
            pad_token_id=roles.base.pad,
        )
        texts.append(roles.base.decode(out[0, ids.shape[1] :].tolist()))
    return texts


def with_sampling(session: Session, **settings: Any) -> Any:
    return session.config.sample.model_copy(update=settings)


@pytest.mark.parametrize(("role", "adapter"), [(Role.REFERENCE, "sft"), (Role.POLICY, "policy")])
def test_greedy_answers_are_those_of_transformers_at_any_temperature(session, role, adapter) -> None:
    prompts = session.prompts.training[:7]
    expected = generated(session, adapter, prompts)
    for settings in ({"temperature": 0.01}, {"temperature": 5.0}, {"batch_size": 2}):
        found = answer_greedily(session.load_roles(), role, prompts, with_sampling(session, **settings))
        assert [sample.text for sample in found] == expected
        assert [sample.prompt_id for sample in found] == [prompt.id for prompt in prompts]
    assert len(set(expected)) > 1


def sample(name: str, finished: bool) -> Sample:
    return Sample(id=name, prompt_id="p", text=name, finished=finished)


class TestChoice:
    GROUP = (sample("endless", False), sample("good", True), sample("better", True), sample("equal", True))

    @pytest.mark.parametrize(
        ("settings", "best"),
        [
            ({"missing_eos": "keep", "score_clip": None}, "endless"),
            ({"missing_eos": "penalty", "missing_eos_score": -1.0, "score_clip": None}, "endless"),
            ({"missing_eos": "penalty", "missing_eos_score": -5.0, "score_clip": None}, "better"),
            ({"missing_eos": "replace", "missing_eos_score": -1.0, "score_clip": None}, "better"),
            ({"missing_eos": "replace", "missing_eos_score": 9.0, "score_clip": None}, "endless"),
            ({"missing_eos": "replace", "missing_eos_score": -1.0, "score_clip": 1.0}, "better"),  # a tie, by the score
        ],
    )
    def test_by_hand(self, settings, best) -> None:
        (chosen,) = choose_best([self.GROUP], [[6.0, 1.5, 2.5, 2.5]], PpoConfig(**settings))
        assert chosen.text == best

    def test_against_a_loop(self) -> None:
        """All scores differ, so the best one is the first of a sorted list."""
        generator = random.Random(0)
        config = PpoConfig(missing_eos="penalty", missing_eos_score=-0.7, score_clip=None)
        groups = [[sample(f"{i}-{k}", generator.random() < 0.6) for k in range(5)] for i in range(50)]
        scores = [[generator.gauss(0, 1) for _ in group] for group in groups]
        expected = []
        for group, row in zip(groups, scores, strict=True):
            shaped = {s.id: x - 0.7 * (not s.finished) for s, x in zip(group, row, strict=True)}
            expected.append(sorted(shaped, key=lambda name: -shaped[name])[0])
        assert [chosen.id for chosen in choose_best(groups, scores, config)] == expected
        assert len({name.partition("-")[2] for name in expected}) == 5


def reward(session: Session, prompt: Prompt, answer: Sample) -> float:
    """The score of one answer alone, in a batch of one row."""
    about = json.loads((session.run_dir.artifact("adapters/reward") / "reward.json").read_text())
    scale = RewardScale(about["pooling"], about["score_mean"], about["score_std"])
    return score_answers(session.load_roles(), [prompt], [answer], LENGTH, scale)[0]


def rows_of(session: Session) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (session.work("evaluate") / "eval.jsonl").read_text().splitlines()]


def check(row: Yardstick, prompts: list[Prompt], texts: list[str], sampled: list[str]) -> None:
    """The judges' columns of a row, from the judges themselves."""
    for score, name in zip(row.scores, ("simulated-annotator", "plain-language"), strict=False):
        judge = load_judge(name)
        assert score.judge == judge.name
        answers = [
            [Sample(id=str(i), prompt_id=prompt.id, text=text) for i, text in enumerate(both)]
            for prompt, *both in zip(prompts, sampled, texts, strict=True)
        ]
        pairs = [judge.score(prompt, two) for prompt, two in zip(prompts, answers, strict=True)]
        assert score.mean_score == pytest.approx(sum(theirs for _, theirs in pairs) / len(pairs))
        wins = [0.5 if own == theirs else float(theirs > own) for own, theirs in pairs]
        assert score.win_rate == sum(wins) / len(wins)
        assert score.win_rate_interval is not None
        assert min(wins) <= score.win_rate_interval[0] <= score.win_rate <= score.win_rate_interval[1] <= max(wins)


def test_a_score_that_is_not_finite_chooses_no_best_answer(session, monkeypatch) -> None:
    """The yardsticks' scores: a NaN was the best of n, or never."""
    scored = rollout.reward_scores
    calls: list[int] = []

    def spoilt(*args: Any) -> Any:
        calls.append(len(calls))
        found = scored(*args)
        found[0] = math.nan if len(calls) > 2 else found[0]
        return found

    monkeypatch.setattr(rollout, "reward_scores", spoilt)
    with pytest.raises(ModelNotFinite, match=r"the reward model's scores of 1 of \d answers are NaN or infinite"):
        evaluate.run(session)
    assert len(calls) == 3
    assert not (session.work("evaluate") / "eval.jsonl").exists()


def test_the_stage_measures_every_yardstick(session) -> None:
    result, prompts = evaluate.run(session), session.prompts.test
    found, rows = result.yardsticks, rows_of(session)
    assert found is not None
    assert result.kl_per_answer > 1.3  # random adapters are far from each other
    assert (found.prompts, found.n, found.capped) == (len(prompts), 8, True)
    assert found.best_of_n_kl == pytest.approx(math.log(8) - 7 / 8)
    first = rows[::2]
    assert [row["prompt_id"] for row in first] == [prompt.id for prompt in prompts]
    sampled = [row["sft"] for row in first]
    texts = {
        "sft_sampled": sampled,
        "sft_greedy": generated(session, "sft", prompts),
        "policy_sampled": [row["policy"] for row in first],
        "policy_greedy": generated(session, "policy", prompts),
        "base_greedy": generated(session, None, prompts),
    }
    roles, sampling = session.load_roles(), session.config.sample
    seed = derive_seed(session.config.seed, "best of n")
    # The role REFERENCE is SFT again after the stage, or these would be other answers.
    groups = answer_prompts(roles, Role.REFERENCE, prompts, sampling, seed, answers_per_prompt=8)
    best, highest = [], []
    for prompt, group in zip(prompts, groups, strict=True):
        scores = [reward(session, prompt, answer) for answer in group]  # `missing_eos: keep`, without clipping below 5
        best.append(group[scores.index(max(scores))].text)
        highest.append(max(scores))
    texts["best_of_n"] = best
    order = ("sft_sampled", "sft_greedy", "best_of_n", "policy_sampled", "policy_greedy", "base_greedy")
    assert tuple(row.id for row in found.rows) == order
    for row in found.rows[1:]:
        check(row, prompts, texts[row.id], sampled)
        assert row.scores[2].judge == "reward model"
    assert [score.win_rate for score in found.rows[0].scores] == [None] * 3
    assert found.rows[0].scores[2].mean_score == pytest.approx(sum(row["score_sft"] for row in first) / len(first))
    by_reward = {row.id: row.scores[2].mean_score for row in found.rows}
    assert by_reward["policy_sampled"] == pytest.approx(sum(row["score_policy"] for row in first) / len(first))
    assert by_reward["best_of_n"] == pytest.approx(sum(highest) / len(prompts), abs=1e-5)
    for row, sft, policy in zip(first, texts["sft_greedy"], texts["policy_greedy"], strict=True):
        assert (row["greedy_sft"], row["greedy_policy"]) == (sft, policy)
        assert {"judge_greedy_sft", "second_greedy_policy", "score_greedy_sft"} <= row.keys()
    assert not any("greedy_sft" in row for row in rows[1::2])


def test_yardsticks_change_no_other_figure_and_may_be_few_or_none(session) -> None:
    def run(count: int) -> tuple[EvaluateResult, list[dict[str, Any]]]:
        settings = session.config.evaluate.model_copy(update={"yardstick_prompts": count})
        session.config = session.config.model_copy(update={"evaluate": settings})
        return evaluate.run(session), rows_of(session)

    (without, plain), (one, some) = run(0), run(1)
    assert without.yardsticks is None
    assert one.yardsticks is not None
    assert one.yardsticks.prompts == 1
    ignored = {"yardsticks", "message"}
    assert without.model_dump(exclude=ignored) == one.model_dump(exclude=ignored)
    assert [{key: x for key, x in row.items() if "greedy" not in key} for row in some] == plain
    assert ["greedy_sft" in row for row in some] == [True, *[False] * (len(some) - 1)]


def test_the_answers_to_choose_from_are_no_test_answers() -> None:
    keys = (yardsticks.SEED_KEY, evaluate.SEED_KEY)
    assert len({derive_seed(42, key) for key in keys}) == 2


def test_a_judge_that_only_compares_gives_no_scores_to_greedy_answers(session, monkeypatch) -> None:
    class Comparing:
        name, absolute, unit = "comparing", False, "pairs"

        def __getattr__(self, name: str) -> Any:
            return getattr(load_judge("plain-language"), name)

    monkeypatch.setattr(evaluate, "open_judge", lambda *_: Comparing())
    found = evaluate.run(session).yardsticks
    assert found is not None
    assert [score.mean_score for row in found.rows for score in row.scores if score.judge == "comparing"] == [None] * 12
    assert all(score.win_rate is not None for row in found.rows[1:] for score in row.scores)
    assert not any("judge_greedy_sft" in row for row in rows_of(session))
    page = (Path(session.work("evaluate")) / "report.html").read_text()
    assert "comparing" in page
