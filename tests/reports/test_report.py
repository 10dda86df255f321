"""The report of synthetic runs: its contents in both languages, and escaping."""

import json
import math
import re
import string
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import all_summaries, eval_rows, metrics_rows, results

from lowrank_rlhf.reports.alarms import find_alarms
from lowrank_rlhf.reports.charts import CURVES
from lowrank_rlhf.reports.format import number, percent_interval, series
from lowrank_rlhf.reports.locale import ENGLISH, LANGUAGES, locale
from lowrank_rlhf.reports.render import write_report
from lowrank_rlhf.reports.tables import comparison, details, headline
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


class Tags(HTMLParser):
    """Collects tags, attributes and ids, and checks that elements nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    return tags


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
            assert value[1:] in ids
    assert all(ref in ids for ref in re.findall(r"url\(#(\w+)\)", page))
    assert len(page) < 400_000


CHARTS = {curve.id for curve in CURVES} - {"dpo_accuracy"} | {"frontier", "held_out_accuracy", "calibration", "margins"}


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


def test_the_headline_follows_the_alarms() -> None:
    summaries = all_summaries()
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
