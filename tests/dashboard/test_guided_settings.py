"""Settings that the guided path chooses: every combination is a run that `validate` accepts."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from lowrank_rlhf.commands.common import checked_config
from lowrank_rlhf.config.loading import parse_config
from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.dashboard.guided import models
from lowrank_rlhf.dashboard.guided.settings import (
    CHINESE_JUDGE,
    DATASET,
    HUMAN,
    JUDGES,
    LEAST,
    Answers,
    TooFewPrompts,
    guided,
)
from lowrank_rlhf.dashboard.guided.summary import Summary, summarise
from lowrank_rlhf.dashboard.guided.yaml_text import yaml_text
from lowrank_rlhf.data.loading import load
from lowrank_rlhf.data.requirements import check_local_data
from lowrank_rlhf.maths.reward_gate import LEAST_PROMPTS, POWER, expected_passes, held_out_count
from lowrank_rlhf.preferences.judges.loading import load_judge

COUNTS = (LEAST, 40, 200, 3000)


def answers(count: int = 40, ranker: str = HUMAN, model: str = "quickstart", **summary: object) -> Answers:
    found = Summary((30,) * count, compared=count, **summary)
    return Answers("mine", "mine.txt", found, model, ranker, compared=count)


def write(path: Path, count: int, kind: str) -> Path:
    """A file of prompts alone, with responses, or with comparisons, in words of the tiny tokenizer."""
    words = ("the", "user", "asks", "question", "answer", "short", "kind", "point")
    generator = random.Random(0)
    rows = []
    for number in range(count):
        row = {"prompt": f"question {number}: {' '.join(generator.choices(words, k=5))}"}
        if kind == "responses":
            row["response"] = " ".join(generator.choices(words, k=1 + number % 6))
        if kind == "comparisons":
            row |= {"chosen": "the kind answer", "rejected": "the short answer"}
        rows.append(row)
    if kind == "lines":
        path = path.with_suffix(".txt")
        path.write_text("".join(f"{row['prompt']}\n" for row in rows), encoding="utf-8")
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("ranker", [HUMAN, DATASET, "plain-language", CHINESE_JUDGE])
@pytest.mark.parametrize("model", ["quickstart", "gpu_8gb", "Qwen/Qwen3-0.6B"])
def test_every_combination_is_a_config(count, ranker, model) -> None:
    for english in (True, False):
        for demonstrations in (0, 7, count):
            made = guided(answers(count, ranker, model, english=english, demonstrations=demonstrations))
            reasons = {choice.setting: choice.id for choice in made.choices}
            assert parse_config(yaml_text(made.values, reasons), "editor") == made.config
            assert made.config.sft.source == ("train" if demonstrations == count else "base")
            assert made.config.data.held_out < count
            assert made.config.ppo.evaluate_prompts <= made.config.data.validation_prompts
            assert made.config.ppo.batch_size <= count - made.config.data.held_out
            second = made.config.evaluate.second_judge
            assert (second is not None) == english
            assert second is None or second != made.config.ranking_judge


@pytest.mark.parametrize("count", [LEAST, 40, 200])
@pytest.mark.parametrize(
    ("kind", "rankers"),
    [
        ("lines", (HUMAN, "simulated-annotator")),
        ("responses", (HUMAN, "plain-language")),
        ("comparisons", (DATASET, HUMAN)),
    ],
)
def test_real_files_pass_the_checks_of_validate(count, kind, rankers, tiny_folder, tmp_path) -> None:
    file = write(tmp_path / "mine.jsonl", count, kind)
    for ranker in rankers:
        model = str(tiny_folder())
        summary = summarise(load(file, "data.format"), ModelConfig(source=model))
        made = guided(Answers("mine", str(file), summary, model, ranker, compared=summary.compared))
        path = tmp_path / "mine.yaml"
        path.write_text(yaml_text(made.values, {}), encoding="utf-8")
        config = checked_config(str(path), (), tmp_path / "runs")
        assert check_local_data(config).not_read == []
        assert summary.prompts == count


def test_forty_prompts_are_enough_for_the_test_of_the_reward_model() -> None:
    """Six answers to each prompt and half of the prompts to test with: what the simulation asks for."""
    for ranker in (HUMAN, "simulated-annotator"):
        made = guided(answers(40, ranker))
        config = made.config
        ranked = 40 - config.data.held_out
        assert (config.sample.answers_per_prompt, config.reward.held_out) == (6, 0.5)
        passes = expected_passes(ranked, 0.7, config.sample.answers_per_prompt, config.reward.held_out)
        assert passes >= POWER
        assert next(choice.values["passes"] for choice in made.choices if choice.id == "test") == round(100 * passes)


def test_more_prompts_need_fewer_answers_and_a_smaller_test() -> None:
    tests = [guided(answers(count, "sentiment")).config for count in (40, 80, 120, 800)]
    work = [(config.sample.answers_per_prompt, config.reward.held_out) for config in tests]
    assert work == sorted(work, reverse=True)
    assert work[-1] == (4, 0.2)


def test_the_reward_test_of_the_fewest_prompts_can_show_something() -> None:
    config = guided(answers(LEAST)).config
    assert held_out_count(config.reward.held_out, LEAST - config.data.held_out) == LEAST_PROMPTS
    with pytest.raises(TooFewPrompts):
        guided(answers(LEAST - 1))


def test_a_weak_outcome_is_said_before_the_start() -> None:
    made = guided(answers(20))
    (choice,) = [choice for choice in made.choices if choice.id == "test_weak"]
    assert choice.values["passes"] < 100 * POWER
    people = next(choice for choice in made.choices if choice.id == "people")
    assert people.values == {"rankings": 16, "answers": 6}


def test_people_rank_no_more_than_needed() -> None:
    made = guided(answers(2000))
    people = next(choice for choice in made.choices if choice.id == "people")
    assert people.values["rankings"] == 150
    assert made.config.sample.prompts == 180
    assert guided(answers(2000, "sentiment")).config.sample.prompts == 1000


def test_lengths_follow_the_data() -> None:
    made = guided(answers(40))
    assert (made.config.sample.max_new_tokens, made.config.model.max_length) == (128, 160)
    imitating = replace(answers(40).summary, demonstrations=40, longest_response=70, longest_demonstration=300)
    config = guided(replace(answers(40), summary=imitating)).config
    assert (config.sample.max_new_tokens, config.model.max_length) == (80, 304)
    mixed = replace(answers(40).summary, lengths=(30,) * 40 + (5000,) * 3)
    made = guided(replace(answers(40), summary=mixed))
    assert made.config.data.skip_too_long
    assert next(choice.values["count"] for choice in made.choices if choice.id == "too_long") == 3
    assert made.config.data.held_out == 8


def test_comparisons_of_the_prompts_own_file_have_its_columns() -> None:
    own = replace(answers(40, DATASET), columns={"prompt": "question"})
    assert guided(own).config.rank.columns == {"prompt": "question"}
    config = guided(replace(own, comparisons="other.jsonl", compared=300)).config
    assert (config.rank.dataset, config.rank.columns) == ("other.jsonl", {})
    assert config.reward.held_out == 0.5  # of 300 prompts with one comparison each


def test_every_offered_judge_exists() -> None:
    for judge in JUDGES:
        load_judge(judge)


def test_the_summary_counts_prompts_not_rows(tmp_path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [{"prompt": "a"}, {"prompt": "a", "response": "b"}, {"prompt": "早上好，你好吗？今天天气很好"}]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    found = summarise(load(file, "data.format"), ModelConfig(source="owner/unknown"))
    assert (found.prompts, found.demonstrations, found.compared, found.english) == (2, 1, 0, False)
    assert found.lengths == (10, 32)  # twice the estimate of a quarter of the bytes (1 and 42) and five


def test_comments_stand_above_their_settings() -> None:
    text = yaml_text({"name": "x", "data": {"held_out": 8, "prompts": "a.txt"}}, {("data", "held_out"): "Why: 8"})
    assert text == "name: x\ndata:\n  # Why: 8\n  held_out: 8\n  prompts: a.txt\n"


def test_each_model_has_its_memory_on_this_machine() -> None:
    found = models.memory_of_each(answers(40).summary)
    assert [one.model for one in found] == list(models.PRESETS)
    needed = [one.needed for one in found]
    assert None not in needed
    assert needed == sorted(needed)  # from 135M to 32B
    assert all(one.fits == (one.needed <= one.free) for one in found)
    (unknown,) = models.memory_of_each(answers(40).summary, ["owner/unknown"])
    assert (unknown.needed, unknown.fits) == (None, False)
