"""The report from synthetic runs: what it says, what it escapes, and every alarm set off and not."""

import json
import math
import random
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lowrank_rlhf.reports.alarms import named_alarms
from lowrank_rlhf.reports.format import number, percent_interval, series
from lowrank_rlhf.reports.render import alarms, summary_message, write_report
from lowrank_rlhf.reports.tables import headline

STEPS = 50


def ppo_rows() -> list[dict[str, Any]]:
    """A healthy PPO run."""
    noise = random.Random(0)
    rows = []
    for step in range(1, STEPS + 1):
        done = step / STEPS
        row: dict[str, Any] = {
            "stage": "ppo",
            "step": step,
            "objective/kl": 5 * done + noise.gauss(0, 0.15) * done,
            "objective/scores": 1.4 * done + noise.gauss(0, 0.15),
            "objective/entropy": 2.3 - 0.7 * done + noise.gauss(0, 0.05),
            "policy/clipfrac": 0.05 + 0.05 * noise.random(),
            "policy/approxkl": 0.008 * noise.random(),
            "policy/ratio": 1.0 + (0.002 * noise.random() if step > 1 else 0),
            "policy/first_ratio_error": 0.0,
            "value/loss": 0.4 / step,
            "value/explained_variance": None if step == 1 else 0.6 * done,
            "response/length_mean": 24 + 3 * done + noise.gauss(0, 0.8),
            "response/eos_rate": 0.99 - 0.02 * done,
        }
        if step % 10 == 0:
            row |= {"eval/score": 1.3 * done, "eval/judge": 0.35 + 0.3 * done, "eval/kl": 4.6 * done}
        rows.append(row)
    return rows


def metrics_rows() -> list[dict[str, Any]]:
    """A healthy run of all stages."""
    noise = random.Random(1)
    sft = [{"stage": "sft", "step": s, "loss": 1.2 + 1.5 * math.exp(-s / 12) + noise.gauss(0, 0.06)} for s in range(70)]
    reward = [
        {"stage": "reward", "step": s, "loss": 0.69 - 0.004 * s, "accuracy": min(1, 0.5 + 0.006 * s)} for s in range(40)
    ]
    return [*sft, *reward, *ppo_rows()]


def all_summaries() -> dict[str, dict[str, Any]]:
    """The summaries of a finished run."""
    noise = random.Random(2)
    return {
        "sft": {"examples": 506, "steps": 64, "loss": 1.2345},
        "reward": {
            "pairs_train": 2031,
            "pairs_held_out": 511,
            "prompts_held_out": 101,
            "accuracy": 0.71,
            "accuracy_interval": [0.66, 0.76],
            "longer_wins": 0.58,
            "longer_wins_interval": [0.53, 0.63],
            "ece": 0.043,
            "reliability": [
                {"low": 0.5, "high": 0.6, "count": 190, "probability": 0.55, "accuracy": 0.57},
                {"low": 0.6, "high": 0.7, "count": 150, "probability": 0.65, "accuracy": 0.7},
                {"low": 0.7, "high": 0.8, "count": 100, "probability": 0.75, "accuracy": 0.8},
                {"low": 0.8, "high": 0.9, "count": 71, "probability": 0.84, "accuracy": 0.9},
            ],
            "margins": [noise.gauss(0.5, 0.8) for _ in range(511)],
            "length_correlation": 0.22,
            "score_mean": 0.12,
            "score_std": 0.94,
            "verdict": "Better than chance and better than preferring the longer answer.",
            "claims": [{"claim": "a reloaded head gives the same scores", "figure": 0.0, "holds": True}],
        },
        "ppo": {
            "steps": STEPS,
            "best_step": 40,
            "seconds_per_step": 5.7,
            "claims": [
                {"claim": "KL to SFT is 0 at step 0", "figure": 0.0, "holds": True},
                {"claim": "the base's checksum is unchanged", "figure": "9f3a11c2", "holds": True},
            ],
        },
        "evaluate": {
            "prompts": 64,
            "judge": "simulated-annotator",
            "second_judge": "plain-language",
            "table": [
                {"figure": "judge's mean score", "sft": 0.41, "policy": 0.66, "note": "0 to 1, higher is better"},
                {"figure": "second judge's mean score", "sft": 0.52, "policy": 0.55, "note": "nothing was tuned on it"},
                {"figure": "length, tokens", "sft": 24.1, "policy": 26.9, "note": ""},
                {"figure": "commonest opener", "sft": "you can (6 %)", "policy": "of course (14 %)", "note": "share"},
            ],
            "win_rate": 0.828,
            "win_rate_interval": [0.742, 0.906],
            "mean_shift": 1.31,
            "kl_per_answer": 4.62,
            "kl_mean_interval": [4.1, 5.2],
        },
    }


def eval_rows(count: int = 8) -> list[dict[str, Any]]:
    """Rows of eval.jsonl."""
    return [
        {
            "prompt_id": f"p{index}",
            "prompt": f"How do I keep {'basil, mint and thyme'} alive through a dark winter? ({index})",
            "sft": "Put it somewhere and water it. " * (1 + index % 3),
            "policy": "Of course! Keep the basil by your brightest window and water it when the soil feels dry.\n"
            "Mint and thyme are glad of a cool place.",
            "judge_sft": 0.35,
            "judge_policy": 0.8,
            "second_sft": 0.5,
            "second_policy": None,
            "score_sft": -0.21,
            "score_policy": 1.402,
            "kl": 4.4,
        }
        for index in range(count)
    ]


def build(
    folder: Path, metrics: list[dict[str, Any]], summaries: dict[str, dict[str, Any]], rows: list[dict[str, Any]]
) -> tuple[str, str]:
    """Write a report and read both files back."""
    run, out = folder / "my-run", folder / "out"
    for made in (run, out):
        made.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    write_report(run, summaries, rows, out)
    return (out / "report.html").read_text("utf-8").replace("&nbsp;", " "), (out / "report.md").read_text("utf-8")


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
    assert tags.seen.count("svg") == 12
    ids = [value for name, value in tags.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for name, value in tags.attributes:
        assert not name.startswith("on")
        if name in ("href", "xlink:href"):
            assert value is not None
            assert value[1:] in ids
    assert all(ref in ids for ref in re.findall(r"url\(#(\w+)\)", page))
    assert len(page) < 400_000


def test_full_report_draws_every_plot_in_the_page_colours(full: tuple[str, str]) -> None:
    page, _ = full
    titles = (
        "Fine-tuning: loss", "Reward model: loss", "Reward model: training accuracy", "Reward model: accuracy",
        "Reward model: calibration", "Reward model: margins", "Policy: score", "Policy: distance from SFT",
        "Policy: entropy", "Policy: answer length", "Policy: clipped share", "Proxy and gold over distance",
    )  # fmt: skip
    for title in titles:
        assert f"<b>{title}</b>" in page
    assert not re.search(r"#0[1234]0[1234]0[1234]", page)
    for label in ("reward model (proxy)", "judge (gold)", "√KL"):
        assert label in page
    assert "prefers-color-scheme: dark" in page


def test_both_files_carry_the_same_figures(full: tuple[str, str]) -> None:
    for text in full:
        for figure in ("83 %", "74 to 91 %", "simulated annotator", "4.62", "71 %", "58 %", "24.1", "of course (14 %)"):
            assert figure in text
        assert "KL to SFT is 0 at step 0" in text
        assert text.count("Mint and thyme") == 8
    assert "None of the automatic alarms went off" in full[0]


def test_report_is_deterministic(full: tuple[str, str], tmp_path: Path) -> None:
    assert build(tmp_path, metrics_rows(), all_summaries(), eval_rows()) == full


def test_whatever_a_model_or_person_wrote_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    summaries = all_summaries()
    summaries["evaluate"]["judge"] = evil
    summaries["evaluate"]["table"][0] |= {"figure": evil, "sft": evil, "note": evil}
    summaries["reward"]["verdict"] = evil
    summaries["ppo"]["claims"] = [{"claim": evil, "figure": evil, "holds": False}]
    row = eval_rows(1)[0] | {"prompt": evil, "sft": evil + "\n| a | b |", "policy": f"![i](http://x.test/a.png) {evil}"}
    page, markdown = build(tmp_path, metrics_rows(), summaries, [row])
    assert "script" not in parse(page).seen
    for text in (page, markdown):
        assert "<script" not in text
        assert "&lt;script&gt;" in text
    assert "![" not in markdown
    assert "\\| a \\| b \\|" in markdown
    table = markdown[markdown.index("## Answers side by side") :].strip().splitlines()
    assert len(table) == 5  # heading, blank, header, rule and one row: a line break in an answer starts no new row


@pytest.mark.parametrize("stages", [(), ("sft",), ("reward",), ("sft", "reward"), ("ppo",), ("evaluate",)])
def test_missing_stages_are_left_out(stages: tuple[str, ...], tmp_path: Path) -> None:
    summaries = {stage: all_summaries()[stage] for stage in stages}
    metrics = [row for row in metrics_rows() if row["stage"] in stages]
    page, markdown = build(tmp_path, metrics, summaries, [])
    parse(page)
    assert ("Before and after" in page) == ("evaluate" in stages)
    assert ("Policy: score" in page) == ("ppo" in stages)
    assert "Answers side by side" not in page + markdown
    assert summary_message(tmp_path, summaries, [], tmp_path / "report.html").endswith("report.html")


def test_report_without_metrics_has_no_plots(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_report(tmp_path / "run", {"sft": all_summaries()["sft"]}, [], tmp_path)
    assert "<svg" not in (tmp_path / "report.html").read_text("utf-8")


def test_headline_speaks_plainly_and_says_simulated() -> None:
    summaries = all_summaries()
    assert headline(summaries) == (
        "On 64 new prompts the simulated annotator preferred the aligned model's answer in 83 % of cases "
        "(95 % interval 74 to 91 %). That is more than chance explains."
    )
    summaries["evaluate"] |= {"judge": "sentiment", "win_rate": 0.55, "win_rate_interval": [0.43, 0.67]}
    assert "simulated" not in headline(summaries)
    assert "not clearly different from tossing a coin" in headline(summaries)
    summaries["evaluate"] |= {"win_rate": 0.2, "win_rate_interval": [0.1, 0.3]}
    assert "worse" in headline(summaries)
    del summaries["evaluate"]
    assert headline(summaries).startswith("On 511 pairs of answers that it had not seen, the reward model picked")
    assert headline({"sft": summaries["sft"]}) == "The model was fine-tuned on 506 example answers in 64 steps."
    assert headline({}) == "No stage of this run has results yet."


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


def test_healthy_run_sets_off_no_alarm() -> None:
    assert alarms(metrics_rows(), all_summaries()) == []
    assert alarms([], {}) == []


def changed(key: str, values: dict[int, float | None]) -> list[dict[str, Any]]:
    """The healthy PPO run with one metric replaced in some steps."""
    rows = ppo_rows()
    for row in rows:
        if row["step"] in values:
            row[key] = values[row["step"]]
    return rows


ALARMS = [
    ("objective/kl", dict.fromkeys(range(5, 15), -0.01), dict.fromkeys(range(42, 51), -0.01), "negative in ten steps"),
    ("policy/first_ratio_error", {7: 0.0011}, {7: 0.001}, "first probability ratio"),
    ("policy/clipfrac", {30: 0.21}, {30: 0.2}, "clipped share"),
    ("policy/approxkl", {30: 0.03}, {30: 0.02, 31: None}, "approximate KL"),
    ("eval/judge", {30: 0.45, 40: 0.4, 50: 0.35}, {30: 0.45, 40: 0.4, 50: 0.41}, "exploits the reward model"),
    ("response/length_mean", dict.fromkeys(range(46, 51), 40.0), {49: 60.0}, "more than 1.5 times"),
    (
        "response/eos_rate",
        dict.fromkeys(range(46, 51), 0.949),
        dict.fromkeys(range(46, 51), 0.951),
        "end by themselves",
    ),
    ("objective/entropy", dict.fromkeys(range(46, 51), 0.6), dict.fromkeys(range(46, 51), 0.8), "entropy fell"),
    ("objective/kl", {50: 30.5}, {50: 30.0}, "KL per answer in training"),
    ("eval/kl", {50: 31.0}, {50: 29.0}, "KL per answer in evaluation"),
]

TOO_FAR = {"exploits the reward model", "entropy fell", "KL per answer in training", "KL per answer in evaluation"}


@pytest.mark.parametrize(("key", "bad", "fine", "text"), ALARMS, ids=[entry[3] for entry in ALARMS])
def test_each_alarm_goes_off_alone_and_only_past_its_limit(
    key: str, bad: dict[int, float | None], fine: dict[int, float | None], text: str
) -> None:
    (found,) = alarms(changed(key, bad), {})
    assert text in found
    assert alarms(changed(key, fine), {}) == []


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "grpo", "dpo"])
def test_the_key_that_keeps_the_policy_near_sft_is_the_algorithms(algorithm: str) -> None:
    far = [changed(key, bad) for key, bad, _, text in ALARMS if text in TOO_FAR]
    repeats = {"figure": "distinct-2", "sft": 0.8, "policy": 0.6, "note": ""}
    done = {"ppo": {"algorithm": algorithm}}
    texts = [text for rows in far for text in alarms(rows, done)]
    texts += alarms([], done | {"evaluate": {"table": [repeats]}})
    texts += [text for _, text in named_alarms(far[0], {}, algorithm.upper())]  # while it trains
    assert len(texts) == len(TOO_FAR) + 2
    for text in texts:
        assert ("`ppo.kl_coef`" in text, "`align.beta`" in text) == (algorithm == "ppo", algorithm != "ppo")


def test_the_second_judges_fall_is_told_as_the_second_judges() -> None:
    rows = changed("eval/judge", {30: 0.45, 40: 0.4, 50: 0.35})
    rows = [{key.replace("eval/judge", "eval/second_judge"): value for key, value in row.items()} for row in rows]
    (found,) = alarms(rows, {})
    assert "From step 20 to 50 the second judge's score fell three times running" in found


def test_gold_may_fall_while_proxy_falls_too() -> None:
    rows = changed("eval/judge", {20: 0.5, 30: 0.45, 40: 0.4, 50: 0.35})
    for row in rows:
        if "eval/score" in row:
            row["eval/score"] = -row["step"]
    assert alarms(rows, {}) == []


def test_length_is_compared_with_the_answers_that_sft_gave_to_rank() -> None:
    rows = changed("response/length_mean", dict.fromkeys(range(1, 51), 30.0))
    assert alarms(rows, {"sample": {"answers": 100, "tokens": 2000}}) == []  # 1.5 times exactly
    (found,) = alarms(rows, {"sample": {"answers": 100, "tokens": 1999}})
    assert "from 20 to 30 tokens" in found


@pytest.mark.parametrize(
    ("figure", "sft", "bad", "fine", "text"),
    [
        ("commonest opener's share", 0.02, 0.31, 0.3, "31 % of the aligned model's answers open"),
        ("distinct-2", 0.8, 0.63, 0.65, "from 0.80 to 0.63"),
    ],
)
def test_degenerate_text_of_the_evaluation(figure: str, sft: float, bad: float, fine: float, text: str) -> None:
    def table(policy: float) -> dict[str, Any]:
        return {"evaluate": {"table": [{"figure": figure, "sft": sft, "policy": policy, "note": "“a” / “b”"}]}}

    (found,) = alarms([], table(bad))
    assert text in found
    assert alarms([], table(fine)) == []


def test_the_terminal_hears_the_alarms_of_the_metrics(tmp_path: Path) -> None:
    rows = changed("objective/kl", {50: 30.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = summary_message(tmp_path, all_summaries(), [], "report.html")
    assert "WARNING: The KL per answer in training was above 30" in message.replace("\n", " ")


def test_alarms_from_summaries() -> None:
    summaries = all_summaries()
    summaries["reward"]["weak"] = "the reward model is no better than preferring the shorter answer"
    assert alarms([], summaries) == [
        "The reward model is no better than preferring the shorter answer. "
        "Rank more answers, or answers that differ more."
    ]
    summaries = all_summaries()
    summaries["ppo"]["claims"][0] |= {"holds": False, "figure": 0.3}
    assert alarms([], summaries) == [
        "Stage ppo: “KL to SFT is 0 at step 0” did not hold (0.3). Don't rely on this run: report a bug."
    ]


def test_summary_message_fits_the_terminal_and_is_plain(tmp_path: Path) -> None:
    rows = eval_rows()
    rows[0] |= {"policy": "\x1b[31mred\x07 " + "unbreakable" * 30, "prompt": "Why? " * 60}
    message = summary_message(tmp_path, all_summaries(), rows, "/runs/my-run/report.html")
    lines = message.splitlines()
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in message
    assert "\x07" not in message
    assert "unbreakable" * 30 in "".join(line[51:] for line in lines)
    assert not any(line.lstrip().startswith("%") for line in lines)
    assert lines[0].startswith("On 64 new prompts the simulated annotator preferred")
    assert lines[-1] == "  /runs/my-run/report.html"
    assert message.count("BEFORE (SFT)") == 3
    assert any(re.match(r"judge's mean score +0\.41 +0\.66 +0 to 1, higher is better$", line) for line in lines)
    beside = next(line for line in lines if "Put it somewhere" in line and "Of course" in line)
    assert beside.index("Of course!") == 51


def cells(text: str) -> int:
    """Columns of a terminal, by Unicode's own table (UAX 11)."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def test_summary_message_in_chinese_keeps_its_columns(tmp_path: Path) -> None:
    rows = eval_rows()
    mine, theirs = "今天的天气很好，我们可以去公园散步。" * 5, "当然可以！很高兴帮助你，GPT-2 也行。" * 5
    rows[0] |= {"prompt": "请介绍一下你自己，" * 12, "sft": mine, "policy": theirs}
    lines = summary_message(tmp_path, all_summaries(), rows, "x").splitlines()
    assert max(map(cells, lines)) <= 100
    start = next(number for number, line in enumerate(lines) if line.startswith("今天"))
    left, right = "", ""
    for line in lines[start : start + 4]:
        assert line[0] not in "，。"
        cut = next((size for size in range(len(line)) if cells(line[:size]) == 51), len(line))  # 49 and two spaces
        assert len(line) == cut or (line[:cut].endswith("  ") and line[cut] not in "，。！ ")
        left, right = left + line[:cut].rstrip(), right + line[cut:]
    assert left == mine
    assert right.replace(" ", "") == theirs.replace(" ", "")
    assert sum(line.count("GPT-2") for line in lines) == theirs.count("GPT-2")  # no word is cut
    asked = next(number for number, line in enumerate(lines) if line.startswith("Prompt: 请"))
    assert "".join(lines[asked : asked + 3]) == f"Prompt: {'请介绍一下你自己，' * 12}"
