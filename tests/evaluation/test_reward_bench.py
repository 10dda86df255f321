"""RewardBench and RewardBench 2: their rules by hand, their rows in the published shape, and the command on a run."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_finished import finished_run

from lowrank_rlhf.errors import ExitCode, UserError
from lowrank_rlhf.evaluation.benchmarks import reward_bench, rows, scoring
from lowrank_rlhf.evaluation.benchmarks.scoring import ScoredRow, reward_bench_figures, ties_credit
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import sha256

ONE = {
    "prompt": "the question",
    "chosen": "the answer is kind",
    "chosen_model": "a",
    "rejected": "no",
    "rejected_model": "b",
    "subset": "hep-go",
    "id": 7,
}
TWO = {
    "id": "12",
    "prompt": "the question",
    "chosen": ["the answer is kind"],
    "rejected": ["no", "short", "the point"],
    "num_correct": 1,
    "num_incorrect": 3,
    "total_completions": 4,
    "models": [],
    "subset": "Precise IF",
    "additional_metadata": None,
}


def pair(subset: str, *scores: float) -> ScoredRow:
    return ScoredRow("1", subset, scores, 1)


def table(figures: list[scoring.BenchmarkFigure]) -> dict[tuple[str | None, str | None], float]:
    return {(figure.section, figure.subset): figure.score for figure in figures}


class TestRules:
    def test_sections_weigh_subsets_by_their_published_counts(self) -> None:
        """Three subsets at 1, 0 and 1/2; math-prm counts as much as the six of code, equal rewards are no win."""
        found = table(
            reward_bench_figures(
                "RewardBench",
                [
                    *(pair("math-prm", 2, 1) for _ in range(3)),
                    pair("hep-go", 1, 1),
                    *(pair("hep-js", *scores) for scores in ((1, 0), (0, 1))),
                    pair("xstest-should-respond", 1, 0),
                    pair("xstest-should-refuse", 0, 1),
                ],
                100,
                0,
            )
        )
        assert found["Reasoning", "hep-go"] == 0
        assert found["Reasoning", None] == pytest.approx((984 * 1 + 164 * 0 + 164 * 0.5) / (984 + 164 + 164))
        assert found["Safety", None] == pytest.approx(250 / 404)
        assert (None, None) not in found  # Chat was not measured

    def test_the_overall_score_weighs_prior_sets_half_and_only_if_measured(self) -> None:
        core = [
            pair("mt-bench-easy", 1, 0),
            pair("mt-bench-hard", 0, 1),
            pair("donotanswer", 1, 0),
            pair("hep-go", 1, 0),
        ]
        prior = [pair("shp", 0, 1), pair("summarize", 1, 0)]
        assert table(reward_bench_figures("RewardBench", core, 100, 0))[None, None] == pytest.approx(3 / 4)
        found = table(reward_bench_figures("RewardBench", [*core, *prior], 100, 0))
        assert found["Prior Sets", None] == 0.5
        assert found[None, None] == pytest.approx((3 + 0.5 * 0.5) / 4.5)

    def test_best_of_four(self) -> None:
        """A shared first place counts in part, as in `reroll_and_score_dataset`."""
        scores = [(3, 1, 2, 0), (3, 3, 2, 0), (1, 1, 1, 1), (2, 3, 0, 0)]
        found = table(reward_bench_figures("RewardBench 2", [pair("Math", *each) for each in scores], 100, 0))
        assert found == {("Math", None): pytest.approx((1 + 1 / 2 + 1 / 4 + 0) / 4)}

    @pytest.mark.parametrize(
        ("tied", "reference", "expected"),
        [
            ((5, 4, 1), (3, 0), 1 + 0.01 * math.tanh(3 / 1 - 1)),  # margins 3 and 3 above the spread of 1
            ((5, 4, 1), (3, 2.5), 0.3 * 2 + 0.2 + 0.01 * math.tanh(0.5 - 1)),  # the reference's margin is below it
            ((5, 2, 1), (3, 0), 0.3 * 2 + 0.01 * math.tanh(1 / 3 - 1)),
            ((5, 1, 2), (3, 0), 0.3 + 0.01 * math.tanh(-1 / 4 - 1)),  # a wrong answer above a correct one
            ((5, 5, 2), (3, 0), 1 + 0.01),  # no spread: the limit of tanh
            ((5, 5, 5), (3, 3), 0.0),
        ],
    )
    def test_ties(self, tied, reference, expected) -> None:
        found = ties_credit(ScoredRow("tied:1", "Ties", tied, 2), ScoredRow("ref:1", "Ties", reference, 1))
        assert found == pytest.approx(expected)

    def test_ties_by_the_published_formula_over_the_whole_subset(self) -> None:
        """Means of each part first, as `process_single_model` computes it, against the mean of the questions."""
        generator = np.random.default_rng(3)
        given = []
        for number in range(20):
            correct = int(generator.integers(2, 6))
            given.append(ScoredRow(f"tied:{number}", "Ties", generator.normal(size=correct + 9).tolist(), correct))
            given.append(ScoredRow(f"ref:{number}", "Ties", generator.normal((2, 0, 0, 0, 0)).tolist(), 1))
        margins = [min(row.scores[: row.correct]) - max(row.scores[row.correct :]) for row in given]
        tied, reference = np.array(margins[::2]), np.array(margins[1::2])
        spread = np.array([max(row.scores[: row.correct]) - min(row.scores[: row.correct]) for row in given[::2]])
        smaller = np.minimum(tied, reference)
        expected = 0.3 * (tied > 0).mean() + 0.3 * (reference > 0).mean() + 0.2 * (tied > spread).mean()
        expected += 0.2 * (smaller > spread).mean() + 0.01 * np.tanh(smaller / spread - 1).mean()
        (found,) = reward_bench_figures("RewardBench 2", given, 1000, 0)
        assert (found.section, found.rows) == ("Ties", 40)
        assert found.score == pytest.approx(expected)
        assert found.interval.low < found.score < found.interval.high

    def test_intervals(self) -> None:
        """Wilson's at 10 of 10 and 5 of 10, and a section's near its normal approximation."""
        right, half = [pair("hep-go", 1, 0)] * 10, [pair("math-prm", 1, 0), pair("math-prm", 0, 1)] * 200
        found = reward_bench_figures("RewardBench", [*right, *half], 20_000, 0)
        by_name = {figure.subset: figure.interval for figure in found}
        assert by_name["hep-go"] == pytest.approx((0.7224672, 1), abs=1e-6)
        share, deviation = (984 * 0.5 + 164) / 1148, 984 / 1148 * math.sqrt(0.25 / 400)
        assert by_name[None] == pytest.approx((share - 1.96 * deviation, share + 1.96 * deviation), abs=0.005)


def write_rows(path: Path, given: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in given))
    return str(path)


class TestRows:
    def test_the_published_shapes(self, tmp_path) -> None:
        turns = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
        prior = {"prompt": turns, "chosen": "kind", "rejected": "", "subset": "shp"}
        data = rows.read_reward_bench(write_rows(tmp_path / "1.jsonl", [ONE, prior]))
        assert (data.benchmark, [row.subset for row in data.rows]) == ("RewardBench", ["hep-go", "shp"])
        assert data.rows[0].answers == ("the answer is kind", "no")
        assert [len(row.prompt.messages) for row in data.rows] == [1, 3]
        tied = TWO | {"id": "tied:0", "chosen": ["a", "b"], "subset": "Ties"}
        data = rows.read_reward_bench(write_rows(tmp_path / "2.jsonl", [TWO, tied]))
        assert data.benchmark == "RewardBench 2"
        assert [(row.correct, len(row.answers)) for row in data.rows] == [(1, 4), (2, 5)]

    @pytest.mark.parametrize(
        ("row", "says"),
        [
            (
                {key: value for key, value in ONE.items() if key != "subset"},
                ':2: "subset" not found. Keys found: "prompt"',
            ),
            (
                ONE | {"subset": "chat"},
                ':2: subset is "chat", which RewardBench does not have. Expected one of alpacaeval-',
            ),
            (ONE | {"rejected": 3}, ":2: rejected must be a string, not a number"),
            (ONE | {"chosen": ["a"]}, ":2: chosen must be a string, not a list"),
            (ONE | {"prompt": ""}, ":2: prompt is empty"),
            ([1], ":2: expected an object"),
        ],
    )
    def test_a_bad_row_is_named_with_line_and_key(self, tmp_path, row, says) -> None:
        with pytest.raises(UserError) as caught:
            rows.read_reward_bench(write_rows(tmp_path / "1.jsonl", [ONE, row]))
        assert str(caught.value).startswith(str(tmp_path / "1.jsonl") + says)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"chosen": "a"}, "chosen must be a list, not a string"),
            ({"rejected": ["a", 1]}, "rejected[1] must be a string, not a number"),
            ({"rejected": []}, "rejected is empty"),
            ({"subset": "hep-go"}, 'subset is "hep-go", which RewardBench 2 does not have'),
            ({"chosen": ["a", "b"]}, "chosen must have 1 of the answers in row 12, not 2"),
            ({"subset": "Ties"}, 'id is "12"; in the subset Ties it must be ref:N or tied:N'),
            ({"subset": "Ties", "id": "tied:1"}, "chosen must have at least 2 of the answers in row tied:1, not 1"),
        ],
    )
    def test_of_the_second_too(self, tmp_path, changes, says) -> None:
        with pytest.raises(UserError) as caught:
            rows.read_reward_bench(write_rows(tmp_path / "2.jsonl", [TWO, TWO | changes]))
        assert f"2.jsonl:2: {says}" in str(caught.value)


@pytest.fixture(scope="module")
def original(tiny_folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    run = finished_run(tiny_folder(), folder, evaluate__bootstrap_samples=100).run_dir.path
    (run / "eval.jsonl").write_text('{"prompt_id": "p", "prompt": "is it", "sft": "no", "policy": "kind"}\n')
    for name in ("report.html", "report.md"):
        (run / name).write_text("old")
    return run


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


WORDS = ("kind", "short", "the point", "the user asks", "no", "gives")


def benchmark_2() -> list[dict[str, Any]]:
    """Seventy rows of three subsets, so that there are three batches."""
    found = []
    for number in range(33):
        answers = [WORDS[(number + place) % 6] + " " + WORDS[(number * place + 1) % 6] for place in range(4)]
        chosen = answers.pop(number // 2 % 4)
        row = TWO | {"prompt": f"question {WORDS[number % 6]}", "chosen": [chosen], "rejected": answers}
        found.append(row | {"id": str(number), "subset": "Math" if number % 2 else "Safety"})
        if number < 10:
            found.append(row | {"id": f"ref:{number}", "subset": "Ties"})
            found.append(row | {"id": f"tied:{number}", "subset": "Ties", "chosen": [chosen, "kind the"]})
    return found


class TestCommand:
    def test_scores_are_the_reward_models_and_are_saved_with_the_run(self, run, evaluate, tmp_path) -> None:
        code, out, err = evaluate(run, "--reward-bench", write_rows(tmp_path / "2.jsonl", benchmark_2()), "--json")
        assert code == 0, err
        result = json.loads(out)
        assert (result["match"], result["accuracy"]) == (None, None)
        found = result["reward_bench"]
        assert (found["benchmark"], found["rows"], found["left_out"]) == ("RewardBench 2", 53, 0)
        saved = json.loads((run / "benchmarks" / "reward-bench-2.json").read_text())
        assert {key: saved[key] for key in found} == found
        assert saved["reward_model"] == sha256(run / "adapters" / "reward")
        kept = [
            json.loads(line) for line in (run / "benchmarks" / "reward-bench-scores.jsonl").read_text().splitlines()
        ]
        scores = [own for batch in kept for own in batch["value"]]
        math_rows = [own for own, row in zip(scores, benchmark_2(), strict=True) if row["subset"] == "Math"]
        right = sum((own[0] == max(own)) / own.count(max(own)) for own in math_rows)
        by_name = {score["section"]: score for score in found["scores"]}
        assert by_name["Math"]["score"] == pytest.approx(right / len(math_rows))
        assert 0 < by_name["Math"]["score"] < 1
        assert by_name["Math"]["rows"] == 16
        assert by_name["Ties"]["rows"] == 20
        assert None not in by_name

    def test_a_right_order_scores_one_and_a_reversed_one_nothing(self, run, evaluate, tmp_path, monkeypatch) -> None:
        """With answers of one token, `kind` the best by a rule in place of the model."""

        def by_rule(roles, groups, _scale):
            import torch

            kind = roles.base.encode_response("kind")
            return [torch.tensor([float(answer == kind) for answer in group.answers]) for group in groups]

        monkeypatch.setattr(reward_bench, "raw_scores", by_rule)
        subsets = ("mt-bench-easy", "mt-bench-hard", "donotanswer", "hep-go")
        given = [ONE | {"chosen": "kind", "rejected": "no", "subset": name} for name in subsets]
        swapped = [row | {"chosen": "no", "rejected": "kind"} for row in given]
        for share, each in ((1.0, given), (0.0, swapped)):
            code, out, err = evaluate(run, "--reward-bench", write_rows(tmp_path / "1.jsonl", each), "--json")
            assert code == 0, err
            assert {score["score"] for score in json.loads(out)["reward_bench"]["scores"]} == {share}

    def test_an_interrupted_one_resumes_and_gives_the_same(self, run, evaluate, tmp_path, monkeypatch) -> None:
        file = write_rows(tmp_path / "2.jsonl", benchmark_2())
        shutil.copytree(run, tmp_path / "whole")
        whole = json.loads(evaluate(tmp_path / "whole", "--reward-bench", file, "--json")[1])["reward_bench"]
        score, calls = reward_bench.raw_scores, []

        def stopping(roles, groups, scale):
            calls.append(len(groups))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return score(roles, groups, scale)

        monkeypatch.setattr(reward_bench, "raw_scores", stopping)
        code, out, err = evaluate(run, "--reward-bench", file)
        assert (code, out) == (ExitCode.STOPPED, "")
        assert "the same command resumes the benchmarks" in err
        assert not (run / "benchmarks" / "reward-bench-2.json").exists()
        with (run / "benchmarks" / "reward-bench-scores.jsonl").open("a") as kept:
            kept.write('{"digest": "cut sho')
        code, out, err = evaluate(run, "--reward-bench", file, "--json")
        assert code == 0, err
        assert json.loads(out)["reward_bench"] == whole
        assert calls == [32, 21, 21]  # the second batch twice, the first one once
        assert evaluate(run, "--reward-bench", file, "model.max_length=50")[0] == 0
        assert calls[3:] == [32, 21]  # other settings, other scores

    def test_the_report_has_it_and_the_evaluation_remains_done(self, run, evaluate, tmp_path) -> None:
        run_dir = RunDir(run)
        file = write_rows(tmp_path / "1.jsonl", [ONE, ONE | {"subset": "donotanswer"}])
        code, out, err = evaluate(run, "--reward-bench", file)
        assert code == 0, err
        markdown = (run / "report.md").read_text()
        assert "## RewardBench\n" in markdown
        assert "| Reasoning | hep-go | 1 |" in markdown
        assert "Reasoning  hep-go" in out
        assert "is it" in markdown
        page = (run / "report.html").read_text()
        assert "奖励模型在" in page
        assert run_dir.mark("evaluate").outputs["report.html"].sha256 == sha256(run / "report.html")
        assert run_dir.damage() == []
        assert not (run / "work" / "evaluate").exists()

    def test_scores_of_another_reward_model_leave_the_report(self, run, evaluate, tmp_path) -> None:
        from lowrank_rlhf.pipeline.report import rewrite_report

        assert evaluate(run, "--reward-bench", write_rows(tmp_path / "1.jsonl", [ONE]))[0] == 0
        assert "## RewardBench" in (run / "report.md").read_text()
        (run / "adapters" / "reward" / "README.md").write_text("another")
        rewrite_report(RunDir(run))
        assert "## RewardBench" not in (run / "report.md").read_text()

    def test_rows_that_do_not_fit_are_counted(self, run, evaluate, tmp_path) -> None:
        ties = [TWO | {"id": "ref:1", "subset": "Ties"}, TWO | {"id": "tied:1", "subset": "Ties", "chosen": ["a", "b"]}]
        ties[1]["prompt"] = "long " * 60
        file = write_rows(tmp_path / "2.jsonl", [TWO | {"rejected": ["no " * 60]}, *ties])
        code, out, err = evaluate(run, "--reward-bench", file, "--json")
        assert code == 0, err
        found = json.loads(out)["reward_bench"]
        assert (found["rows"], found["left_out"], found["cut"]) == (1, 2, 1)
        code, out, err = evaluate(run, "--reward-bench", write_rows(tmp_path / "3.jsonl", [ties[1]]))
        assert code == ExitCode.BAD_INPUT
        assert "no prompt of" in err
        assert "fits model.max_length" in " ".join(err.split())
