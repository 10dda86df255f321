"""Settings that the guided path chooses: every combination is a run that `validate` accepts."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest

from lowrank_rlhf.commands.common import checked_config
from lowrank_rlhf.config.loading import parse_config
from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.dashboard.guided import form, models
from lowrank_rlhf.dashboard.guided.answers import answers_from, summary_of
from lowrank_rlhf.dashboard.guided.form_html import model_warning
from lowrank_rlhf.dashboard.guided.settings import guided
from lowrank_rlhf.dashboard.guided.sizes import CHINESE_JUDGE, DATASET, HUMAN, JUDGES, LEAST, Answers, Refused
from lowrank_rlhf.dashboard.guided.summary import AnsweredPrompt, Summary, summarise
from lowrank_rlhf.dashboard.guided.yaml_text import yaml_text
from lowrank_rlhf.dashboard.tabs.runs_html import note
from lowrank_rlhf.dashboard.text import LANGUAGES, t
from lowrank_rlhf.data.loading import load
from lowrank_rlhf.data.requirements import check_local_data
from lowrank_rlhf.maths.reward_gate import LEAST_PROMPTS, POWER, expected_passes, held_out_count
from lowrank_rlhf.preferences.judges.loading import load_judge

COUNTS = (LEAST, 40, 200, 3000)


def answers(count: int = 40, ranker: str = HUMAN, model: str = "quickstart", **summary: object) -> Answers:
    compared = (AnsweredPrompt(30, 20),) * count
    found = Summary((30,) * count, compared=compared, **summary)
    return Answers("mine", "mine.txt", found, model, ranker, compared=compared)


def write(path: Path, count: int, kind: str, long: int = 0, prompt: int = 5) -> Path:
    """A file of prompts alone, with responses, or with comparisons, in words of the tiny tokenizer.

    The answers of the first `long` rows have 3,000 words.
    """
    words = ("the", "user", "asks", "question", "answer", "short", "kind", "point")
    generator = random.Random(0)
    rows = []
    for number in range(count):
        row = {"prompt": f"question {number}: {' '.join(generator.choices(words, k=prompt))}"}
        if kind == "responses":
            row["response"] = " ".join(generator.choices(words, k=3000 if number < long else 1 + number % 6))
        if kind == "comparisons":
            row |= {"chosen": "the kind answer", "rejected": "short " * 3000 if number < long else "the short answer"}
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
        if english == (ranker == CHINESE_JUDGE) and ranker not in (HUMAN, DATASET):
            continue
        for demonstrations in (0, 7, count):
            responses = (AnsweredPrompt(30, 20),) * demonstrations
            made = guided(answers(count, ranker, model, english=english, chinese=not english, demonstrations=responses))
            reasons = {choice.setting: choice.id for choice in made.choices}
            assert parse_config(yaml_text(made.values, reasons), "editor") == made.config
            assert made.config.sft.source == ("train" if demonstrations == count else "base")
            assert made.config.data.held_out < count
            assert made.config.ppo.evaluate_prompts <= made.config.data.validation_prompts
            assert made.config.ppo.batch_size <= count - made.config.data.held_out
            second = made.config.evaluate.second_judge
            assert (second is not None) == english
            assert second is None or second != made.config.ranking_judge


def checked(made, folder: Path):
    """The config, after the checks of `validate`."""
    path = folder / "mine.yaml"
    path.write_text(yaml_text(made.values, {}), encoding="utf-8")
    config = checked_config(str(path), (), folder / "runs")
    found = check_local_data(config)
    assert found.not_read == []
    return config, found.notes


@pytest.mark.parametrize(("count", "long"), [(LEAST, 0), (40, 0), (200, 0), (40, 1), (40, 33), (40, 40)])
@pytest.mark.parametrize(
    ("kind", "rankers"),
    [
        ("lines", (HUMAN, "simulated-annotator")),
        ("responses", (HUMAN, "plain-language")),
        ("comparisons", (DATASET, HUMAN)),
    ],
)
def test_real_files_pass_the_checks_of_validate(count, long, kind, rankers, tiny_folder, tmp_path) -> None:
    file = write(tmp_path / "mine.jsonl", count, kind, long)
    loaded, model = load(file, "data.format"), str(tiny_folder())
    for ranker in rankers:
        made = guided(answers_from(file, {}, model, ranker, None))
        config, _ = checked(made, tmp_path)
        if kind == "responses":
            assert config.sft.source == ("base" if long > 32 else "train")
            assert config.data.skip_too_long == (long == 1)
    assert summarise(loaded, ModelConfig(source=model)).prompts == count


@pytest.mark.parametrize(("words", "long"), [(5, 0), (400, 0), (5, 20)])
def test_a_separate_file_of_comparisons_passes_the_checks_of_validate(words, long, tiny_folder, tmp_path) -> None:
    """Its prompts and answers may be longer than the prompts that are trained on."""
    file = write(tmp_path / "mine.jsonl", 40, "lines")
    pairs = write(tmp_path / "pairs.jsonl", 50, "comparisons", long, words)
    made = guided(answers_from(file, {}, str(tiny_folder()), DATASET, str(pairs)))
    config, _ = checked(made, tmp_path)
    least, most = {(5, 0): (160, 200), (400, 0): (400, 2047), (5, 20): (2048, 2048)}[words, long]
    assert least <= config.model.max_length <= most
    assert [choice.values["count"] for choice in made.choices if choice.id == "cut"] == ([long] if long else [])


def test_the_answers_compared_are_read_whole() -> None:
    """Up to the most that a run with these settings reads."""
    for answer, whole in ((700, 736), (3000, 2048)):
        found = replace(answers(40, DATASET), compared=(AnsweredPrompt(30, answer),) * 40)
        assert guided(found).config.model.max_length == whole
        assert guided(replace(found, ranker=HUMAN)).config.model.max_length == 160  # nothing reads them


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"compared": ()}, "no_comparisons"),
        ({"compared": (AnsweredPrompt(30, 20),) * 11}, "few_comparisons"),
        ({"compared": (AnsweredPrompt(3000, 20),) * 30 + (AnsweredPrompt(30, 20),) * 11}, "long_comparisons"),
        ({"summary": Summary((30,) * (LEAST - 1))}, "too_few"),
        ({"summary": Summary((3000,) * 40)}, "too_long"),
        ({"rows": 100, "bad_rows": 21}, "bad_rows"),
        ({"ranker": "sentiment", "summary": Summary((30,) * 40, english=False, chinese=True)}, "english_judge"),
        ({"ranker": CHINESE_JUDGE}, "chinese_judge"),
    ],
)
def test_a_run_that_would_fail_is_refused_with_the_reason(changed, reason) -> None:
    with pytest.raises(Refused) as refused:
        guided(replace(answers(40, DATASET), **changed))
    assert refused.value.reason == reason
    for language in LANGUAGES:
        assert "{" not in t(f"refused.{reason}", language, **refused.value.values)


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
    with pytest.raises(Refused):
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
    imitating = Summary((230,) * 40, demonstrations=(AnsweredPrompt(230, 70),) * 40)
    config = guided(replace(answers(40), summary=imitating)).config
    assert (config.sample.max_new_tokens, config.model.max_length) == (80, 320)
    mixed = replace(answers(40).summary, lengths=(30,) * 40 + (5000,) * 3)
    made = guided(replace(answers(40), summary=mixed))
    assert made.config.data.skip_too_long
    assert next(choice.values["prompts"] for choice in made.choices if choice.id == "too_long") == 3
    assert made.config.data.held_out == 8


def test_comparisons_of_the_prompts_own_file_have_its_columns() -> None:
    own = replace(answers(40, DATASET), columns={"prompt": "question"})
    assert guided(own).config.rank.columns == {"prompt": "question"}
    config = guided(replace(own, comparisons="other.jsonl", compared=(AnsweredPrompt(30, 20),) * 300)).config
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
    assert (found.prompts, len(found.demonstrations), found.compared) == (2, 1, ())
    assert (found.english, found.chinese) == (False, True)
    assert found.lengths == (10, 32)  # twice the estimate of a quarter of the bytes (1 and 42) and five


def chinese_prompts(folder: Path) -> Path:
    """Forty prompts that have more English letters than Chinese characters."""
    file = folder / "mine.txt"
    question = "请解释 Python 的 list comprehension 和 generator expression 有什么区别"
    file.write_text("".join(f"{number} {question}\n" for number in range(40)), encoding="utf-8")
    return file


def test_no_english_judge_reads_chinese_prompts_with_english_terms(tmp_path) -> None:
    file = chinese_prompts(tmp_path)
    made = guided(answers_from(file, {}, "owner/unknown", HUMAN, None))
    assert made.config.evaluate.second_judge is None
    assert made.choices[-1].id == "no_judge"
    with pytest.raises(Refused) as refused:
        guided(answers_from(file, {}, "owner/unknown", "plain-language", None))
    assert refused.value.reason == "english_judge"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_model_that_hardly_knows_the_prompts_language_is_named_by_its_tokenizer(
    language, tiny_folder, tmp_path
) -> None:
    """A byte-level tokenizer of English needs three tokens for a Chinese character, one trained on them few."""
    import tokenizers

    file, knows = chinese_prompts(tmp_path), tmp_path / "knows"
    shutil.copytree(tiny_folder(), knows)
    trained = tokenizers.Tokenizer.from_file(str(knows / "tokenizer.json"))
    special = [token.content for token in trained.get_added_tokens_decoder().values()]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(["请解释的和有什么区别"] * 40, trainer)
    trained.save(str(knows / "tokenizer.json"))
    warnings = {}
    for model in (str(tiny_folder()), str(knows), "owner/unknown"):
        found = summary_of(file, {}, model)
        warnings[found.tokens_per_character] = model_warning(found, language)
    few = 1 / 10  # the ten characters are one token
    assert warnings == {
        3.0: note(t("guided.unfamiliar", language, tokens="3.0"), "bad"),
        few: "",
        None: note(t("guided.unmeasured", language)),
    }
    assert model_warning(Summary((30,) * 40), language) == ""
    assert form._look(str(file), "", "", str(tiny_folder()), language)[2] == warnings[3.0]


def test_the_default_model_follows_the_language_of_the_prompts(tmp_path) -> None:
    file = str(chinese_prompts(tmp_path))
    assert form._default_model(file, "", "", models.ENGLISH) == models.CHINESE
    assert form._default_model(file, "", "", "gpu_8gb") == "gpu_8gb"  # a person's choice
    assert form._default_model(None, "", "", models.ENGLISH) == gr.skip()
    english = str(write(tmp_path / "english", 4, "lines"))
    assert form._default_model(english, "", "", models.CHINESE) == models.ENGLISH
    other = Summary((30,), english=False)  # of neither language
    assert [models.default_for(other, model) for model in (models.ENGLISH, models.CHINESE)] == [
        models.ENGLISH,
        models.CHINESE,
    ]


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
