"""Every alarm set off alone, and silent at its limit."""

from collections.abc import Mapping
from typing import Any, get_args

import pytest
from synthetic_run import all_summaries, metrics_rows, ppo_rows, results

from lowrank_rlhf.reports.alarms import RULES, AlarmId, find_alarms
from lowrank_rlhf.reports.charts import curve_figures
from lowrank_rlhf.reports.locale import ENGLISH, LANGUAGES, locale
from lowrank_rlhf.run.results import Results

NOTHING = Results()
FALLEN = [0.3 + 0.01 * (prompt % 5) for prompt in range(32)]
"""Scores by prompt, on average 0.2 to 0.3 below those of steps 30 and 40."""
NOISY = [0.55 + 0.2 * (-1) ** prompt for prompt in range(32)]


def ids(metrics: list[dict[str, Any]], found: Results = NOTHING) -> list[str]:
    return [alarm.id for alarm in find_alarms(metrics, found)]


def changed(key: str, values: Mapping[int, float | None]) -> list[dict[str, Any]]:
    """The healthy PPO run with one metric replaced in some steps."""
    rows = ppo_rows()
    for row in rows:
        if row["step"] in values:
            row[key] = values[row["step"]]
    return rows


def last(value: float) -> dict[int, float]:
    return dict.fromkeys(range(46, 51), value)


METRICS = [
    ("objective/kl", dict.fromkeys(range(5, 15), -0.01), dict.fromkeys(range(42, 51), -0.01), "negative_kl"),
    ("objective/kl", dict.fromkeys(range(5, 15), -0.01), dict.fromkeys(range(5, 15), 0.0), "negative_kl"),
    ("policy/first_ratio_error", {7: 0.0011}, {7: 0.001}, "first_ratio"),
    ("policy/clipfrac", {30: 0.21}, {30: 0.2}, "clip_fraction"),
    ("policy/final_approxkl", {30: 0.03}, {30: 0.02, 31: None}, "approximate_kl"),
    ("value/explained_variance", dict.fromkeys(range(26, 51), 0.099), dict.fromkeys(range(26, 51), 0.1), "weak_critic"),
    # Half of the steps are the second half, and half of those do not make a median.
    (
        "value/explained_variance",
        dict.fromkeys(range(1, 39), -9.0),
        dict.fromkeys(range(1, 38), -9.0),
        "weak_critic",
    ),
    ("eval/judge_scores", {50: FALLEN}, {50: NOISY}, "overoptimisation"),
    ("response/length_mean", last(40.0), {49: 60.0}, "length_growth"),
    ("response/eos_rate", last(0.949), last(0.951), "unfinished_answers"),
    ("objective/entropy", last(0.6), last(0.8), "entropy_collapse"),
    ("objective/kl", {50: 30.5}, {50: 30.0}, "far_from_sft"),
    ("eval/kl", {50: 31.0}, {50: 29.0}, "far_from_sft"),
]
TOO_FAR = {"overoptimisation", "entropy_collapse", "far_from_sft"}


def test_a_healthy_run_sets_off_no_alarm() -> None:
    assert ids(metrics_rows(), results()) == []
    assert ids([]) == []


def test_every_rule_has_an_id_a_title_and_a_text_in_every_language() -> None:
    assert {rule.id for rule in RULES} | {"failed_self_check"} == set(get_args(AlarmId))
    for language in LANGUAGES:
        keys = {key.split(".")[1] for key in locale(language).texts if key.startswith("alarm.")}
        assert keys == set(get_args(AlarmId))


@pytest.mark.parametrize(("key", "bad", "fine", "name"), METRICS)
def test_each_alarm_goes_off_alone_and_only_past_its_limit(key, bad, fine, name) -> None:
    assert ids(changed(key, bad)) == [name]
    assert ids(changed(key, fine)) == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "grpo", "dpo"])
def test_the_key_that_keeps_the_policy_near_sft_is_the_algorithms(algorithm: str, language: str) -> None:
    far = [changed(key, bad) for key, bad, _, name in METRICS if name in TOO_FAR]
    repeats = {"id": "distinct_2", "sft": 0.8, "policy": 0.6}
    done = {"ppo": {"algorithm": algorithm}}
    found = [alarm for rows in far for alarm in find_alarms(rows, results(done))]
    found += find_alarms([], results(done | {"evaluate": {"prompts": 1, "table": [repeats]}}))
    found += find_alarms(far[0], NOTHING, algorithm.upper())  # during training
    assert len(found) == len(far) + 2
    for text in (alarm.text(locale(language)) for alarm in found):
        assert ("`ppo.kl_coef`" in text, "`align.beta`" in text) == (algorithm == "ppo", algorithm != "ppo")


def test_the_approximate_kl_of_version_0_1() -> None:
    """It logged the mean before the optimizer steps only; a newer run may exceed the limit there, and end below it."""
    rows = changed("policy/approxkl", {30: 0.03})
    assert ids(rows) == []
    assert ids([{key: value for key, value in row.items() if "final" not in key} for row in rows]) == ["approximate_kl"]


def test_a_critic_is_judged_from_nine_steps_on() -> None:
    rows = [row | {"value/explained_variance": -1.0} for row in ppo_rows()]
    assert (ids(rows[:8]), ids(rows[:9])) == ([], ["weak_critic"])
    assert ids([{key: value for key, value in row.items() if "value/" not in key} for row in rows]) == []


def test_the_second_judges_fall_names_the_second_judge() -> None:
    rows = changed("eval/judge_scores", {50: FALLEN})
    rows = [{key.replace("eval/judge", "eval/second_judge"): value for key, value in row.items()} for row in rows]
    (found,) = find_alarms(rows, NOTHING)
    assert (found.values["first"], found.values["last"]) == ("30", "50")
    assert "the second judge's mean score" in found.text(ENGLISH)
    assert "第二评判的平均分" in found.text(locale("zh"))
    assert (found.seen_in, found.step) == ("frontier", 50)  # the run's only judge


@pytest.mark.parametrize(
    ("judge", "second", "curve"), [(FALLEN, NOISY, "frontier"), (NOISY, FALLEN, "frontier_second")]
)
def test_an_alarm_about_a_fall_leads_to_the_curve_of_the_judge_that_fell(judge, second, curve) -> None:
    rows = changed("eval/judge_scores", {50: judge})
    for row in rows:
        if "eval/judge" in row:
            row |= {"eval/second_judge": 0.5, "eval/second_judge_scores": second if row["step"] == 50 else NOISY}
    (found,) = find_alarms(rows, NOTHING)
    assert (found.seen_in, found.step) == (curve, 50)
    assert curve in [figure.id for figure in curve_figures(rows, ENGLISH)]


def test_where_the_sft_model_is_the_peak_no_earlier_step_is_advised() -> None:
    sft = {"stage": "ppo", "step": 0, "eval/score": 0.0, "eval/judge_scores": [score + 1 for score in NOISY]}
    (found,) = find_alarms([sft, *ppo_rows()], NOTHING)
    (later,) = find_alarms(changed("eval/judge_scores", {50: FALLEN}), NOTHING)
    assert (found.id, found.values["first"], later.values["first"]) == ("overoptimisation", "0", "30")
    for language, stop, keep in (
        ("en", "Stop near step", "an earlier stop gains nothing"),
        ("zh", "步附近停止", "提前停止没有收益"),
    ):
        texts = found.text(locale(language)), later.text(locale(language))
        assert ([stop in text for text in texts], [keep in text for text in texts]) == ([False, True], [True, False])
        assert all("`ppo.kl_coef`" in text for text in texts)
    assert "Stop near step 30, raise" in later.text(ENGLISH)
    assert "`export --role sft`" in found.text(ENGLISH)


def test_gold_may_fall_while_proxy_falls_too() -> None:
    rows = changed("eval/judge_scores", {50: FALLEN})
    for row in rows:
        if "eval/score" in row:
            row["eval/score"] = -row["step"]
    assert ids(rows) == []


def test_overoptimisation_without_scores_by_prompt_or_with_others_is_not_tested() -> None:
    rows = [{key: value for key, value in row.items() if key != "eval/judge_scores"} for row in ppo_rows()]
    for row in rows:
        if row["step"] >= 30 and "eval/judge" in row:
            row["eval/judge"] = 1 - row["step"] / 100  # a run of version 0.1
    assert ids(rows) == []
    assert ids(changed("eval/judge_scores", {50: FALLEN[:8]})) == []
    assert ids(changed("eval/judge_scores", {50: [None, *FALLEN[1:]]})) == []


def test_length_is_compared_with_the_answers_that_sft_gave_to_rank() -> None:
    rows = changed("response/length_mean", dict.fromkeys(range(1, 51), 30.0))
    sample = {"prompts": 50, "answers": 100}
    assert ids(rows, results({"sample": sample | {"tokens": 2000}})) == []  # 1.5 times exactly
    (found,) = find_alarms(rows, results({"sample": sample | {"tokens": 1999}}))
    assert (found.id, found.values["before"], found.values["after"]) == ("length_growth", "20", "30")


@pytest.mark.parametrize(
    ("figure", "sft", "bad", "fine", "name"),
    [("top_opener", 0.02, 0.31, 0.3, "same_openers"), ("distinct_2", 0.8, 0.63, 0.65, "repeated_words")],
)
def test_degenerate_text_of_the_evaluation(figure: str, sft: float, bad: float, fine: float, name: str) -> None:
    def measured(policy: float, **row: Any) -> Results:
        return results({"evaluate": {"prompts": 1, "table": [{"sft": sft, "policy": policy, **row}]}})

    assert ids([], measured(bad, id=figure)) == [name]
    assert ids([], measured(fine, id=figure)) == []
    assert ids([], measured(bad, figure="a label of version 0.1")) == []


def evaluated(**changes: Any) -> Results:
    summaries = all_summaries()
    summaries["evaluate"] |= changes
    return results(summaries)


WORDING = {"words": ["happy", "beautiful", "wonderful"], "before": 0.21, "after": 0.75, "p": 0.01}


@pytest.mark.parametrize(
    ("bad", "fine", "name", "says"),
    [
        (
            {"length_controlled_interval": [0.5, 0.86]},
            {"length_controlled_interval": [0.501, 0.86]},
            "length_explains",
            "83 %, but at equal length 77 % (95 % interval 50 to 86 %)",
        ),
        (
            {"favoured_words": WORDING},
            {"favoured_words": WORDING | {"p": 0.011}},
            "favoured_words",
            "happy, beautiful, wonderful: 21 % of SFT's answers contain one of these words, 75 %",
        ),
        ({"favoured_words": WORDING}, {"favoured_words": WORDING | {"after": 0.459}}, "favoured_words", "75 %"),
        (
            {"variety": {"before": 0.8, "after": 0.75, "p": 0.01}},
            {"variety": {"before": 0.8, "after": 0.75, "p": 0.02}},
            "falling_variety",
            "from 0.80 to 0.75",
        ),
        (
            {"variety": {"before": 0.8, "after": 0.75, "p": 0.01}},
            {"variety": {"before": 0.8, "after": 0.761, "p": 0.01}},
            "falling_variety",
            "",
        ),
    ],
)
def test_alarms_of_the_final_evaluation(bad: Any, fine: Any, name: str, says: str) -> None:
    (found,) = find_alarms([], evaluated(**bad))
    assert found.id == name
    assert says in found.text(ENGLISH)
    assert found.source
    assert ids([], evaluated(**fine)) == []


@pytest.mark.parametrize(("interval", "raised"), [([0.24, 0.4], True), ([0.3, 0.5], False), ([None, None], False)])
def test_a_second_judge_that_reverses(interval: list[float | None], raised: bool) -> None:
    row = {"id": "win_rate", "judge": "plain-language", "sft": 0.68, "policy": 0.32, "interval": interval}
    found = find_alarms([], evaluated(table=[row]))
    assert [alarm.id for alarm in found] == (["second_judge"] if raised else [])
    assert ids([], evaluated(table=[row | {"judge": "another one"}])) == []
    if raised:
        assert "“plain-language”, which nothing was tuned on, prefers the aligned answer on only 32 %" in found[0].text(
            ENGLISH
        )


def test_a_loss_of_the_headline_is_no_length_alarm() -> None:
    for interval in ([0.4, 0.5], [0.5, 0.7], [None, None]):
        unclear = {"win_rate": 0.45, "win_rate_interval": interval, "length_controlled_interval": [0.3, 0.5]}
        assert ids([], evaluated(**unclear)) == []


def test_repeated_words_cover_falling_variety() -> None:
    table = [{"id": "distinct_2", "sft": 0.8, "policy": 0.6}]
    variety = {"before": 0.8, "after": 0.6, "p": 0.005}
    assert ids([], evaluated(table=table, variety=variety)) == ["repeated_words"]


def test_calibration_counts_prompts_and_allows_for_chance() -> None:
    """Bins by hand: at 0.75 with 400 pairs of 100 prompts chance explains 0.0346 + 1.96 * 0.0261 = 0.0857."""
    summaries = all_summaries()

    def raised(accuracy: float, prompts: int) -> bool:
        row = {"low": 0.7, "high": 0.8, "count": 400, "probability": 0.75, "accuracy": accuracy}
        summaries["reward"] |= {"ece": abs(0.75 - accuracy), "reliability": [row], "pairs_held_out": 400}
        summaries["reward"]["prompts_held_out"] = prompts
        return ids([], results(summaries)) == ["miscalibrated"]

    assert raised(0.649, 100)
    assert not raised(0.651, 100)  # below the limit of 10 %
    assert not raised(0.649, 50)  # 0.0489 + 1.96 * 0.0369 = 0.121
    assert raised(0.62, 50)
    # Two such bins of half the pairs: a mean of 0.0489, and a deviation of 0.0261 as the bins are independent; 0.1001.
    half = {"low": 0.7, "high": 0.8, "count": 200, "probability": 0.75, "accuracy": 0.64}
    summaries["reward"] |= {"ece": 0.101, "reliability": [half, half], "prompts_held_out": 100}
    assert ids([], results(summaries)) == ["miscalibrated"]
    summaries["reward"]["ece"] = 0.1
    assert ids([], results(summaries)) == []
    summaries["reward"]["reliability"] = []  # a run of version 0.1
    assert ids([], results(summaries)) == []


@pytest.mark.parametrize("weakness", ["few", "chance", "length", "length_unclear"])
def test_a_weak_reward_model(weakness: str) -> None:
    summaries = all_summaries()
    summaries["reward"]["weakness"] = weakness
    (found,) = find_alarms([], results(summaries))
    assert found.id == "weak_reward"
    assert "奖励模型" in found.text(locale("zh"))


def test_a_weak_reward_model_of_version_0_1_keeps_its_sentence() -> None:
    summaries = all_summaries()
    summaries["reward"]["weak"] = "the reward model is no better than preferring the shorter answer"
    (found,) = find_alarms([], results(summaries))
    assert found.text(ENGLISH).startswith("The reward model is no better than preferring the shorter answer. ")


def test_a_failed_self_check() -> None:
    summaries = all_summaries()
    summaries["ppo"]["claims"][0] |= {"holds": False, "figure": 0.3}
    (found,) = find_alarms([], results(summaries))
    assert (found.id, found.values["stage"], found.values["figure"]) == ("failed_self_check", "ppo", "0.30")
    assert "KL(策略 || SFT)" in found.text(locale("zh"))


def test_a_gain_within_the_members_spread() -> None:
    """At the kept step, and of the reward model's part where it is one of several rewards."""

    def rows(last: float, key: str = "eval/score") -> list[dict[str, Any]]:
        gains = {0: 0.1, 10: 0.1 + last, 20: 9.0}
        return [{"stage": "ppo", "step": step, key: gain, "eval/score_spread": 0.5} for step, gain in gains.items()]

    policy = {"steps": 20, "best_step": 10}
    assert ids(rows(0.49), results({"ppo": policy})) == ["within_spread"]
    assert ids(rows(0.51), results({"ppo": policy})) == []
    assert ids(rows(0.49), results({"ppo": policy | {"best_step": 0}})) == []  # SFT is kept: the last step counts
    assert ids(rows(0.49)) == []  # not finished
    one_head = [{key: value for key, value in row.items() if key != "eval/score_spread"} for row in rows(0.49)]
    assert ids(one_head, results({"ppo": policy})) == []
    summed = policy | {"rewards": [{"name": "judged", "source": "model", "weight": 1.0}]}
    assert ids(rows(0.49, "eval/reward/judged"), results({"ppo": summed})) == ["within_spread"]
    (alarm,) = find_alarms(rows(0.25), results({"ppo": policy}))
    assert "0.25 from step 0 to step 10" in alarm.text(ENGLISH)
