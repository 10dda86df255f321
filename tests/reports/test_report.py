"""The report of synthetic runs: its contents in both languages, and escaping."""

import json
import math
import re
import shutil
import string
from pathlib import Path
from typing import Any

import pytest
from html_tags import parse
from synthetic_run import all_summaries, eval_rows, metrics_rows, results, with_greedy, yardsticks

from lowrank_rlhf.config.loading import load_config, preset_names, preset_path
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.reports.alarms import find_alarms
from lowrank_rlhf.reports.benchmarks import yardstick_table
from lowrank_rlhf.reports.charts import CURVES, curve_figures
from lowrank_rlhf.reports.format import judge_in_words, number, percent, percent_interval, series
from lowrank_rlhf.reports.locale import ENGLISH, LANGUAGES, locale
from lowrank_rlhf.reports.render import write_report
from lowrank_rlhf.reports.story import about_run, caveats, headline, rewarded
from lowrank_rlhf.reports.tables import comparison, details
from lowrank_rlhf.reports.templating import code_span, markdown_text
from lowrank_rlhf.reports.terminal import summary_message
from lowrank_rlhf.run.directory import RunDir

CHINESE = locale("zh")


def build(
    folder: Path, metrics: list[dict[str, Any]], summaries: dict[str, dict[str, Any]], rows: list[dict[str, Any]]
) -> tuple[str, str]:
    """Write a report and read both files back."""
    run, out = folder / "my-run", folder / "out"
    for made in (run, out):
        made.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    write_report(RunDir(run), results(summaries), rows, out)
    return (out / "report.html").read_text("utf-8").replace("\N{NO-BREAK SPACE}%", " %"), (out / "report.md").read_text(
        "utf-8"
    )


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return build(tmp_path_factory.mktemp("report"), metrics_rows(), all_summaries(), eval_rows())


def test_full_report_is_one_well_formed_file_that_needs_nothing(full: tuple[str, str]) -> None:
    page, _ = full
    tags = parse(page)
    assert "http" not in page
    assert "//" not in page
    assert not {"script", "link", "img", "iframe", "object"} & set(tags.seen)
    assert tags.seen.count("svg") == 12 * len(LANGUAGES)
    ids = [value for name, value in tags.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for name, value in tags.attributes:
        assert not name.startswith("on")
        if name in ("href", "xlink:href"):
            assert value is not None
            assert value[1:] in ids or value.startswith("data:text/csv;charset=utf-8,")
    assert all(ref in ids for ref in re.findall(r"url\(#(\w+)\)", page))
    assert len(page) < 400_000


WITHOUT = {"dpo_accuracy", "score_spread"}
"""Curves of other runs than the synthetic one."""
CHARTS = {curve.id for curve in CURVES} - WITHOUT | {"frontier", "held_out_accuracy", "calibration", "margins"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_full_report_draws_every_chart_in_both_languages(full: tuple[str, str], language: str) -> None:
    page, texts = full[0], locale(language)
    for chart in CHARTS:
        assert f"<b>{texts(f'chart.{chart}.title')}</b>" in page
    for label in ("chart.proxy", "chart.gold.judge", "chart.distance", "chart.best"):
        assert texts(label) in page
    assert "prefers-color-scheme: dark" in page


def test_the_language_switch_is_a_link_to_an_article(full: tuple[str, str]) -> None:
    page = full[0]
    assert re.findall(r'<article id="(\w+)" lang="(\w+)">', page) == [("zh", "zh"), ("en", "en")]
    assert page.count('href="#zh"') == page.count('href="#en"') == 2
    assert "article:target ~ article:last-child" in page


def test_both_languages_have_the_same_texts_and_placeholders() -> None:
    assert list(ENGLISH.texts) == list(CHINESE.texts)
    for key, text in ENGLISH.texts.items():
        fields = [sorted(f for _, f, _, _ in string.Formatter().parse(t) if f) for t in (text, CHINESE.texts[key])]
        assert fields[0] == fields[1], key
    same = {key for key, text in ENGLISH.texts.items() if text == CHINESE.texts[key]}
    assert same == {"figure.distinct_2", "note.top_opener", "scores.value"}


def test_both_files_carry_the_same_figures(full: tuple[str, str]) -> None:
    for text in full:
        for figure in ("83 %", "74 to 91 %", "simulated annotator", "4.62", "71 %", "58 %", "24.1", "of course"):
            assert figure in text
        assert ENGLISH("check.kl_is_zero").replace("|", "\\|") in text.replace("||", "\\|\\|")
        assert ENGLISH("report.no_alarms") in text
    assert full[0].count("Mint and thyme") == 8 * len(LANGUAGES)
    assert full[1].count("Mint and thyme") == 8
    for figure in ("74 到 91 %", "模拟标注者", CHINESE("check.kl_is_zero"), CHINESE("report.no_alarms")):
        assert figure in full[0]


def test_report_is_deterministic(full: tuple[str, str], tmp_path: Path) -> None:
    assert build(tmp_path, metrics_rows(), all_summaries(), eval_rows()) == full


def test_whatever_a_model_or_person_wrote_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    summaries = all_summaries()
    summaries["evaluate"]["judge"] = evil
    summaries["evaluate"]["table"][0] = {"figure": evil, "sft": 0.1, "policy": 0.2, "note": evil}
    summaries["evaluate"]["table"][1]["judge"] = evil
    summaries["evaluate"]["table"][4] |= {"policy": 0.9, "openers": [evil, evil]}
    summaries["reward"]["weak"] = evil
    summaries["ppo"]["claims"] = [{"claim": evil, "figure": evil, "holds": False}]
    row = eval_rows(1)[0] | {"prompt": evil, "sft": evil + "\n| a | b |", "policy": f"![i](http://x.test/a.png) {evil}"}
    page, markdown = build(tmp_path, metrics_rows(), summaries, [row])
    assert "script" not in parse(page).seen
    for text in (page, markdown):
        assert "<script" not in text
        assert "&lt;script&gt;" in text
    assert "![" not in markdown
    assert "\\| a \\| b \\|" in markdown
    table = markdown[markdown.index(f"## {ENGLISH('report.samples')}") :].strip().splitlines()
    assert len(table) == 5  # heading, blank, header, rule and one row: a line break in an answer starts no new row


@pytest.mark.parametrize("stages", [(), ("sft",), ("reward",), ("sft", "reward"), ("ppo",), ("evaluate",)])
def test_missing_stages_are_left_out(stages: tuple[str, ...], tmp_path: Path) -> None:
    summaries = {stage: all_summaries()[stage] for stage in stages}
    metrics = [row for row in metrics_rows() if row["stage"] in stages]
    page, markdown = build(tmp_path, metrics, summaries, [])
    parse(page)
    for texts in (ENGLISH, CHINESE):
        assert (texts("comparison.title") in page) == ("evaluate" in stages)
        assert (texts("chart.scores.title") in page) == ("ppo" in stages)
        assert texts("report.samples") not in page + markdown
    assert summary_message(RunDir(tmp_path), results(summaries), [], tmp_path / "report.html").endswith("report.html")


def test_report_without_metrics_has_no_plots(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_report(RunDir(tmp_path / "run"), results({"sft": all_summaries()["sft"]}), [], tmp_path)
    assert "<svg" not in (tmp_path / "report.html").read_text("utf-8")


def test_headline_and_verdict() -> None:
    summaries = all_summaries()
    summaries["evaluate"]["second_judge"] = None

    def lines() -> tuple[str, str]:
        found = results(summaries)
        return headline(found, ENGLISH), headline(found, CHINESE)

    assert lines() == (
        "On 64 new prompts the simulated annotator preferred the aligned model's answer in 83 % of cases "
        "(95 % interval 74 to 91 %), at equal length in 77 % (95 % interval 68 to 86 %). "
        "That is more than chance explains.",
        "在 64 个新提示词上，模拟标注者有 83 % 的情况偏好对齐后模型的回答（95 % 区间：74 到 91 %），"
        "等长时为 77 %（95 % 区间：68 到 86 %）。这超出了偶然所能解释的范围。",
    )
    summaries["evaluate"] |= {"judge": "sentiment", "win_rate": 0.55, "win_rate_interval": [0.43, 0.67]}
    for line, texts in zip(lines(), (ENGLISH, CHINESE), strict=True):
        assert "simulat" not in line
        assert line.endswith(texts("verdict.unclear"))
    summaries["evaluate"] |= {"win_rate": 0.2, "win_rate_interval": [0.1, 0.3]}
    assert lines()[0].endswith(ENGLISH("verdict.worse"))
    del summaries["evaluate"]
    assert lines()[0].startswith("On 511 pairs of answers")
    summaries = {"sft": summaries["sft"]}
    assert lines()[0] == ENGLISH("headline.sft", examples=506, steps=64)
    summaries = {}
    assert lines()[1] == CHINESE("headline.none")


@pytest.mark.parametrize(("judge", "shown"), [(None, True), ("rewards", True), ("plain-language", False)])
def test_a_win_rate_by_what_the_policy_was_trained_on_is_no_verdict(judge, shown) -> None:
    summaries = all_summaries()
    summaries["evaluate"] |= {"judge": judge}
    assert (ENGLISH("caveat.trained_against") in caveats(results(summaries), ENGLISH)) == shown
    summaries["evaluate"]["second_judge"] = None
    advice = ENGLISH("caveat.trained_against") + ENGLISH("caveat.second_judge")
    assert (advice in caveats(results(summaries), ENGLISH)) == shown


def test_the_headline_follows_the_alarms() -> None:
    summaries = all_summaries()
    summaries["evaluate"]["second_judge"] = None
    rows = metrics_rows()
    rows[-1] |= {"objective/kl": 31.0, "policy/clipfrac": 0.9}
    summaries["evaluate"] |= {"favoured_words": {"words": ["glad"], "before": 0.1, "after": 0.8, "p": 0.001}}
    summaries["reward"]["ece"] = 0.3
    found = results(summaries)
    alarms = find_alarms(rows, found)
    assert [alarm.id for alarm in alarms] == ["clip_fraction", "far_from_sft", "favoured_words", "miscalibrated"]
    assert headline(found, ENGLISH, alarms).endswith(
        " That is more than chance explains, but read the alarms before you rely on it: Updates are too large. Lower "
        "the learning rate. The policy is far from SFT: the score means little there. A few words appear in far more "
        "answers. And 1 more."
    )
    assert headline(found, ENGLISH, alarms[:3]).endswith("A few words appear in far more answers.")
    assert "，但在采信之前请先看警报：更新幅度过大。" in headline(found, CHINESE, alarms)
    summaries["evaluate"]["win_rate_interval"] = [0.4, 0.9]
    assert headline(results(summaries), ENGLISH, alarms).endswith(ENGLISH("verdict.unclear"))


def test_shares_are_per_cent_and_other_figures_numbers_everywhere() -> None:
    table = comparison(results(), ENGLISH)
    assert table is not None
    values = {row[0]: row[1:3] for row in table.rows}
    assert values["plain-language: win rate"] == ("48 %", "52 %")
    assert values["commonest opener's share"] == ("6 %", "14 %")
    assert values["preferred (win rate)"] == ("17 %", "83 %")
    assert values["preferred at equal length"] == ("23 %", "77 %")
    assert values["distinct-2"] == ("0.71", "0.66")
    assert values["distance from SFT"] == ("0", "4.62")
    assert values["distance at temperature 1"] == ("0", "3.51")
    summaries = all_summaries()
    summaries["evaluate"]["temperature"] = 1.0  # the same figure twice
    table = comparison(results(summaries), ENGLISH)
    assert table is not None
    assert "distance at temperature 1" not in [row[0] for row in table.rows]


def test_the_reward_model_s_table_shows_the_paired_difference_and_one_scale() -> None:
    rows = {row[0]: row[1] for row in details(results(), ENGLISH)[0].rows}
    assert rows["difference to length"] == "+13.0 (95 % interval +6.0 to +20.0)"
    assert rows["scale of the scores"] == "(raw - 0.12) / 0.94"
    summaries = all_summaries()
    del summaries["reward"]["over_length"]
    old = details(results(summaries), ENGLISH)[0]
    assert "difference to length" not in [row[0] for row in old.rows]
    assert old.lead == ""  # two point estimates show nothing


def test_the_audit_without_prompts_is_in_the_report_in_both_languages(tmp_path: Path) -> None:
    rows = {row[0]: row[1:] for row in details(results(), ENGLISH)[0].rows}
    value, note = rows["accuracy, prompt emptied"]
    assert value == "64 % (95 % interval 60 to 69 %)"
    assert "on 505 of these pairs" in note
    assert "own prompt 70 %, a difference of +6.0 (95 % interval +1.0 to +11.0) points" in note
    assert rows["accuracy, another prompt"][0] == "66 % (95 % interval 60 to 70 %)"
    page = build(tmp_path, [], all_summaries(), [])[0]
    assert "准确率：清空提示词" in page
    assert "accuracy, prompt emptied" in page
    summaries = all_summaries()
    summaries["reward"]["prompt_audit"]["shuffled"] = None  # a single held-out prompt has no other
    assert len(details(results(summaries), ENGLISH)[0].rows) == len(rows) - 1
    del summaries["reward"]["prompt_audit"]  # runs of earlier versions
    assert len(details(results(summaries), ENGLISH)[0].rows) == len(rows) - 2


def test_rows_of_version_0_1_keep_their_label(tmp_path: Path) -> None:
    summaries = {
        "evaluate": {"prompts": 3, "table": [{"figure": "an old label", "sft": 1.0, "policy": 2.0, "note": ""}]}
    }
    page, markdown = build(tmp_path, [], summaries, [])
    assert page.count("an old label") == len(LANGUAGES)
    assert "| an old label | 1.00 | 2.00 |" in markdown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a | b\n# c", "a \\| b \\# c"),
        ("[x](javascript:1) ![i](y) `z` *b* _u_", "\\[x\\](javascript:1) !\\[i\\](y) \\`z\\` \\*b\\* \\_u\\_"),
        ("<b>\u202e\x1b", "&lt;b&gt;\\\\u202e\\\\x1b"),
    ],
)
def test_markdown_shows_text_as_text(text: str, shown: str) -> None:
    assert markdown_text(text) == shown


def test_a_code_span_cannot_be_closed_by_its_text() -> None:
    assert code_span("a`b``c\nd") == "``` a`b``c d ```"


def test_numbers_for_people() -> None:
    shown = [number(value) for value in (None, math.nan, True, 7, 1.0, 0.666, 12.34, -0.00123, 1234.5, "text")]
    assert shown == ["–", "–", "yes", "7", "1.00", "0.67", "12.3", "-0.0012", "1234", "text"]
    assert percent_interval([None, 0.5]) == ""


def test_series_sorts_keeps_the_last_and_turns_null_into_a_gap() -> None:
    rows = [
        {"stage": "ppo", "step": 2, "a": 1.0},
        {"stage": "ppo", "step": 1, "a": None},
        {"stage": "sft", "step": 3, "a": 9.0},
        {"stage": "ppo", "step": 2, "a": 5},
        {"stage": "ppo", "step": 4},
    ]
    steps, values = series(rows, "ppo", "a")
    assert steps == [1, 2]
    assert math.isnan(values[0])
    assert values[1] == 5.0


class TestYardsticks:
    @pytest.fixture
    def measured(self) -> dict[str, dict[str, Any]]:
        summaries = all_summaries()
        summaries["evaluate"]["yardsticks"] = yardsticks()
        return summaries

    def test_each_row_has_score_win_rate_and_note(self, measured) -> None:
        table = yardstick_table(results(measured), ENGLISH)
        assert table is not None
        assert table.header == ("answers", "plain-language", "reward model", "meaning")
        rows = {row[0]: row[1:] for row in table.rows}
        assert rows["SFT, sampled"][:2] == ("–", "0.01")
        assert rows["SFT, greedy"][:2] == ("61 % [51, 71]", "0.22 · 61 % [51, 71]")
        assert rows["SFT, best of 8"][:2] == ("77 % [67, 87]", "0.93 · 77 % [67, 87]")
        assert rows["SFT, best of 8"][2].startswith("the highest reward among 8 sampled answers; KL 1.20 nats. ")
        assert "4.62 nats need a larger n, which is capped at 8" in rows["SFT, best of 8"][2]
        assert list(rows)[3:] == ["aligned, sampled", "aligned, greedy", "base, greedy"]
        assert table.lead.startswith("On the first 32 test prompts: ")

    def test_an_n_that_matches_the_policy_is_not_called_capped(self, measured) -> None:
        measured["evaluate"]["yardsticks"] |= {"n": 4, "best_of_n_kl": 0.636, "capped": False}
        measured["evaluate"]["kl_per_answer"] = 0.61
        table = yardstick_table(results(measured), ENGLISH)
        assert table is not None
        assert table.rows[2][0] == "SFT, best of 4"
        assert table.rows[2][3].endswith("KL 0.64 nats, as near to the policy's 0.61 as a whole n gets")

    def test_both_files_have_them_after_the_comparison(self, measured, tmp_path, full) -> None:
        page, markdown = build(tmp_path, metrics_rows(), measured, eval_rows())
        parse(page)
        for text, end, titles in ((page, "</h2>", [ENGLISH, CHINESE]), (markdown, "\n", [ENGLISH])):
            for texts in titles:
                order = [text.index(texts(f"{key}.title") + end) for key in ("comparison", "yardsticks", "reward")]
                assert order == sorted(order)
            assert "0.93 · 77 % [67, 87]" in text.replace("\\", "")
        assert CHINESE("yardstick.best_of_n", n=8) in page
        for text in full:  # a run without yardsticks
            for texts in (ENGLISH, CHINESE):
                assert texts("yardsticks.title") not in text
                assert texts("yardstick.base_greedy") not in text


class TestGreedyAnswers:
    ROWS = (with_greedy(eval_rows(2)[0]), eval_rows(2)[1])

    @pytest.fixture
    def files(self, tmp_path) -> tuple[str, str]:
        return build(tmp_path, metrics_rows(), all_summaries(), list(self.ROWS))

    @pytest.mark.parametrize("texts", [ENGLISH, CHINESE], ids=LANGUAGES)
    def test_come_first_in_the_page(self, files, texts) -> None:
        article = files[0][files[0].index(f'<article id="{texts.language}"') :].partition("</article>")[0]
        first, second = article.split('<div class="sample">')[1:3]
        shown = re.findall(r'<div class="(?:decoding|answer|soft|soft distance)"[^>]*>([^<]*)', first)
        greedy, sampled = texts("decoding.greedy"), texts("decoding.sampled")
        assert shown[:2] == [greedy, "Most likely before."]
        assert shown[3] == sampled
        assert shown[4].startswith("Put it somewhere")
        assert shown[6:8] == [greedy, "Most likely after."]
        assert shown[8].endswith("1.77")
        assert shown[9] == sampled
        assert shown[10].startswith("Of course!")
        assert shown[-1] == texts("report.kl.sampled", kl="4.40")
        assert 'class="decoding"' not in second  # this prompt has sampled answers only
        assert texts("report.kl", kl="4.40") in second
        assert texts("report.samples.greedy", count=1) in article

    def test_come_first_in_markdown(self, files) -> None:
        cells = files[1].strip().splitlines()[-2].split(" | ")
        assert cells[1].startswith("greedy:<br>Most likely before.<br>(judge 0.45)<br>sampled:<br>Put it somewhere")
        assert cells[2].startswith("greedy:<br>Most likely after.<br>(reward 1.77)<br>sampled:<br>Of course!")

    def test_runs_without_them_name_no_decoding(self, full) -> None:
        for text in full:
            assert "decoding" not in text.replace(".decoding", "")
            assert "Greedy" not in text
            assert "greedy" not in text


@pytest.mark.parametrize("language", LANGUAGES)
def test_several_reward_members_have_two_rows_and_a_curve(language: str) -> None:
    texts, members = locale(language), {"member_accuracies": [0.71, 0.68, 0.74], "score_spread": 0.19}
    plain = details(results(), texts)[0].rows
    added = details(results({"reward": all_summaries()["reward"] | members}), texts)[0].rows
    values = [row[1] for row in added if row not in plain]
    assert len(added) == len(plain) + 2
    assert values == [texts("reward.members.value", count=3, low="68 %", high="74 %"), "0.19"]
    rows = [{"stage": "ppo", "step": step, "score_spread": 0.2, "eval/score_spread": 0.3} for step in range(3)]
    assert [figure.id for figure in curve_figures(rows, texts)] == ["score_spread"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_story_comes_first(tmp_path: Path, language: str) -> None:
    """What the run was, its verdict, whether to trust it, four pairs; then figures and curves."""
    golden = Path(__file__).parents[1] / "golden" / "runs" / "golden"
    run = shutil.copytree(golden, tmp_path / "run")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics_rows()))
    write_report(RunDir(run), results(all_summaries()), eval_rows(), tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    article = page[page.index(f'<article id="{language}"') :].partition("</article>")[0]
    texts = locale(language)
    config, machine = load_config(run / "config.yaml"), json.loads((run / "env.json").read_text())
    about = article.partition('<p class="soft">')[2].partition("</p>")[0]
    known = (config.model.source, config.data.prompts, machine["platform"], "ppo.kl_coef", "2026-")
    assert [part for part in known if part not in about] == []
    places = [article.index(text) for text in (about, 'class="hero"', texts("report.no_alarms"), 'class="sample"',
                                               texts("comparison.title"), "<svg")]  # fmt: skip
    assert places == sorted(places)
    assert article.partition("<details>")[0].count('class="sample"') == 4
    assert config.model.source in (tmp_path / "report.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("share", "interval", "says"),
    [
        (0.35, [0.25, 0.46], "sft"),
        (0.45, [0.33, 0.56], "unclear"),
        (0.52, [0.45, 0.59], "unclear"),
        (0.62, None, "unclear"),
        (0.62, [0.55, 0.69], "aligned"),
        (None, None, None),
    ],
)
def test_the_headline_has_the_second_judges_verdict(
    share: float | None, interval: list[float] | None, says: str | None
) -> None:
    summaries = all_summaries()
    row = next(row for row in summaries["evaluate"]["table"] if row["id"] == "win_rate")
    row |= {"policy": share, "interval": interval}
    for language in LANGUAGES:
        texts = locale(language)
        judge = judge_in_words("plain-language", texts)
        values = {"judge": judge, "share": percent(share), "interval": percent_interval(interval, texts)}
        sentence = texts(f"headline.second_judge.{says}", **values) if says else ""
        line = headline(results(summaries), texts)
        assert line.endswith(sentence)
        assert ("plain-language" in line) is (says is not None)


@pytest.mark.parametrize(
    ("accuracy", "most_lost", "limited"), [(0.8, 0.1, True), (0.8, 0.2, False), (0.52, 0.02, False), (0.8, None, False)]
)
def test_a_reward_model_that_needs_no_prompt_limits_the_headline(
    accuracy: float, most_lost: float | None, limited: bool
) -> None:
    summaries = all_summaries()
    emptied = {"accuracy": 0.78, "interval": [0.7, 0.8], "lost": 0.02, "lost_interval": [-0.06, most_lost]}
    summaries["reward"]["prompt_audit"] = {"prompts": 50, "pairs": 300, "accuracy": accuracy, "emptied": emptied}
    for language in LANGUAGES:
        texts = locale(language)
        caveat = texts("caveat.without_prompt", emptied=percent(0.78), own=percent(accuracy))
        assert (caveat in caveats(results(summaries), texts)) is limited


@pytest.mark.parametrize(
    ("settings", "english", "chinese"),
    [
        ({"ppo": {"steps": 7}}, "steps 7 · seed 3", "训练 7 步 · 随机种子 3"),
        ({"align": {"algorithm": "rloo", "steps": 8}}, "steps 8 · seed 3", "训练 8 步 · 随机种子 3"),
        ({"align": {"algorithm": "dpo", "epochs": 2}}, "epochs 2 · seed 3", "训练 2 遍 · 随机种子 3"),
    ],
)
def test_the_report_names_the_length_of_the_training_and_the_seed(
    tmp_path: Path, settings: dict, english: str, chinese: str
) -> None:
    config = Config.model_validate({**MINIMAL, **settings, "seed": 3})
    for language, part in (("en", english), ("zh", chinese)):
        assert about_run(RunDir(tmp_path), config, locale(language)).endswith(part)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("preset", preset_names())
def test_the_report_of_every_preset_says_what_it_learns_from(tmp_path: Path, preset: str, language: str) -> None:
    texts, config = locale(language), load_config(preset_path(preset))
    words = {
        "judge": config.ranking_judge and texts("about.judge", judge=judge_in_words(config.ranking_judge, texts)),
        "human": texts("about.human", source=""),
        "dataset": texts("about.dataset", source=config.rank.dataset),
    }
    expected = words[config.rank.source] if config.ppo.uses_reward_model else ", ".join(config.ppo.rewards)
    about = about_run(RunDir(tmp_path), config, texts)
    assert expected in about
    assert texts("about.seed", seed=config.seed) in about
    assert rewarded(config, texts)[-1] in ".。"


MINIMAL = {"name": "a", "model": {"source": "m"}, "data": {"prompts": "p.jsonl"}}
BRIEF = {"source": "length", "maximum": 50, "weight": 0.5}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({}, ["scores", "clipped"]),
        ({"ppo": {"score_clip": None}}, ["scores"]),
        ({"ppo": {"normalize_score": False}}, ["raw", "clipped"]),
        ({"align": {"algorithm": "rloo"}}, ["scores", "clipped"]),
        ({"align": {"algorithm": "grpo"}}, ["scores", "clipped"]),
        ({"align": {"algorithm": "dpo"}}, ["scores"]),
        ({"ppo": {"rewards": {"model": {"source": "model"}, "brief": BRIEF}}}, ["scores", "terms", "clipped"]),
        ({"ppo": {"rewards": {"model": BRIEF, "brief": BRIEF}}}, ["terms", "clipped"]),
    ],
    ids=["ppo", "unclipped", "raw", "rloo", "grpo", "dpo", "sum", "sum without the reward model"],
)
def test_the_report_says_what_training_does_with_the_scores(language: str, settings: dict, keys: list[str]) -> None:
    texts, config = locale(language), {**MINIMAL, "rank": {"judge": "sentiment"}, **settings}
    terms = "model + 0.5 brief" if "scores" in keys else "0.5 model + 0.5 brief"
    sentences = [texts(f"rewarded.{key}", clip="5", terms=terms) for key in keys]
    ranked = [] if keys[0] == "terms" else [texts("rewarded.sentiment")]
    assert rewarded(Config.model_validate(config), texts) == "".join([*ranked, *sentences]).strip()


@pytest.mark.parametrize(
    ("changes", "english", "chinese"),
    [
        ({"judge": "sentiment"}, "VADER's sentiment, from -1 to 1", "范围 -1 到 1"),
        ({"judge": "simulated-annotator"}, "warm words (85 %)", "温暖的词（85 %）"),
        ({"judge": "simulated-kind-annotator-zh"}, "fewer than 12 or more than 42 words", "少于 12 或多于 42 个词"),
        ({"judge": "my:own"}, "the function my:own", "函数 my:own"),
        ({"judge": "endpoint", "endpoint": {}}, "correct, helpful, clear", "正确、有帮助、清楚"),
        (
            {"judge": "endpoint", "endpoint": {"ask": "pointwise", "rubric": "Is\n{answer} polite to {prompt}?"}},
            "(“Is {answer} polite to {prompt}?”)",
            "每个回答打分，范围 0 到 1",
        ),
        ({"source": "human"}, "what people preferred", "人们更喜欢"),
    ],
)
def test_the_report_says_what_the_ranking_rewards(changes: dict, english: str, chinese: str) -> None:
    if "endpoint" in changes:
        changes["endpoint"] = {"url": "http://127.0.0.1:1/v1", "model": "small", **changes["endpoint"]}
    config = Config.model_validate({**MINIMAL, "rank": {"source": "judge", **changes}})
    for language, part in (("en", english), ("zh", chinese)):
        sentence = rewarded(config, locale(language))
        assert part in sentence
        assert "±5" in sentence
