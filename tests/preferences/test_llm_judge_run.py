"""Runs with a language model as judge, from end to end: what they make, how they go on, and where the key is not."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import Answer, ChatServer, completion, serving, texts
from marks import done

from lowrank_rlhf import cli
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.records import Ranking, Sample, read_jsonl, write_jsonl

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as running:
        yield running


class TestARun:
    """The rank stage through the command, in a process of its own."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path, monkeypatch, server) -> None:
        monkeypatch.chdir(tmp_path)
        self.server, self.folder = server, Path("runs/judged")
        prompts = [{"id": f"p{number}", "prompt": f"Question {number}?"} for number in range(6)]
        Path("prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in prompts))
        self.write_config("requests_per_minute: 60000")
        self.folder.mkdir(parents=True)
        samples = [
            Sample(id=f"{row['id']}-{k}", prompt_id=row["id"], text=f"{row['id']} says " + "so " * k)
            for row in prompts
            for k in range(3)
        ]
        write_jsonl(self.folder / "samples.jsonl", samples)

    def write_config(self, *more: str) -> None:
        lines = [
            "name: judged",
            "model: {source: nowhere}",
            "stages: [rank]",
            "data: {prompts: prompts.jsonl, held_out: 0}",
            "rank:",
            "  judge: endpoint",
            "  endpoint:",
            f"    url: {self.server.url}",
            "    model: judge-1",
            *(f"    {line}" for line in more),
        ]
        Path("my.yaml").write_text("\n".join(lines) + "\n")

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
        return subprocess.run(
            [sys.executable, "-m", "lowrank_rlhf", "run", "my.yaml", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=environment,
        )

    def rankings(self) -> dict[str, Ranking]:
        return {ranking.prompt_id: ranking for ranking in read_jsonl(self.folder / "rankings.jsonl", Ranking)}

    def test_from_end_to_end(self) -> None:
        finished = self.run()
        assert finished.returncode == 0, finished.stderr
        found = self.rankings()
        assert {name: ranking.tiers for name, ranking in found.items()} == {
            f"p{n}": ((f"p{n}-2",), (f"p{n}-1",), (f"p{n}-0",)) for n in range(6)
        }
        assert {ranking.annotator for ranking in found.values()} == {"endpoint:judge-1"}
        assert len((self.folder / "comparisons.jsonl").read_text().splitlines()) == 18
        assert "36/36 verdicts  100%  requests 36  cached 0" in finished.stdout
        assert "  requests 36, pairs 18, changed with the order 0, unreadable replies 0\n" in finished.stdout
        mark = done(RunDir(self.folder), "rank")
        assert mark["summary"]["judge"]["pairs"] == 18
        self.server.asked.clear()
        assert self.run("--redo", "rank").returncode == 0
        assert self.server.asked == []

    def test_a_failure_a_changed_pace_and_the_rest(self) -> None:
        good = [Answer(body=completion("A" if n % 2 else "B")) for n in range(7)]
        echo = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}."}})
        self.server.script += [*good, Answer(500, echo), Answer(401, echo)]
        failed = self.run("rank.endpoint.max_attempts=2")
        assert failed.returncode == 2
        assert "HTTP 401 Unauthorized: “Incorrect API key provided: ***.”. Check the key in the" in failed.stderr
        assert len((self.folder / "verdicts.jsonl").read_text().splitlines()) == 7
        self.server.asked.clear()
        resumed = self.run("rank.endpoint.max_attempts=3", "rank.endpoint.timeout_seconds=5")  # not another result
        assert resumed.returncode == 0, resumed.stderr
        assert len(self.server.asked) == 36 - 7
        assert "7/36 verdicts   19%" in resumed.stdout
        assert self.rankings()["p0"].tiers[0] == ("p0-2",)
        stale = self.run("rank.endpoint.model=judge-2")
        assert stale.returncode == 3
        assert 'rank.endpoint.model: "judge-1" -> "judge-2"' in stale.stderr
        self.nowhere_the_key(failed, resumed, stale)

    def nowhere_the_key(self, *processes: subprocess.CompletedProcess) -> None:
        assert {headers["Authorization"] for headers in self.server.headers} == {
            f"Bearer {KEY}"
        }  # it was there to leak
        files = [path for path in Path().rglob("*") if path.is_file()]
        assert len(files) > 8
        for path in files:
            assert KEY.encode() not in path.read_bytes(), path
        for process in processes:
            assert KEY not in process.stdout + process.stderr

    def test_probabilities_and_then_grades(self) -> None:
        def by_length(question: str) -> dict[str, float]:
            """A preference for the longer answer, or its grade, under a preference for the first."""
            lengths = [len(text.split()) for text in texts(question)[1:]]
            if len(lengths) == 1:
                return {str(lengths[0]): 0.9, "The": 0.1}
            return {"A": 0.9, "B": 0.1} if lengths[0] > lengths[1] else {"A": 0.7, "B": 0.3}

        self.server.decide = by_length
        self.write_config("verdict: logprobs")
        finished = self.run()
        assert finished.returncode == 0, finished.stderr
        longest_first = {f"p{n}": ((f"p{n}-2",), (f"p{n}-1",), (f"p{n}-0",)) for n in range(6)}
        assert {name: ranking.tiers for name, ranking in self.rankings().items()} == longest_first
        assert "requests 36, pairs 18, changed with the order 18, unreadable replies 0\n" in finished.stdout
        stale = self.run("rank.endpoint.ask=pointwise")
        assert stale.returncode == 3
        assert 'rank.endpoint.ask: "pairwise" -> "pointwise"' in stale.stderr
        graded = self.run("rank.endpoint.ask=pointwise", "--redo", "rank")
        assert graded.returncode == 0, graded.stderr
        assert {name: ranking.tiers for name, ranking in self.rankings().items()} == longest_first
        assert "18/18 grades  100%  requests 18  cached 0" in graded.stdout
        assert "  requests 18, answers 18, unreadable replies 0\n" in graded.stdout
        assert len(self.server.asked) == 36 + 18

    def test_a_biased_judge_leaves_nothing_to_learn_from(self) -> None:
        self.server.decide = lambda _: "A"
        done = self.run()
        assert done.returncode == 2
        assert "pairs 18, changed with the order 18, unreadable replies 0" in done.stdout
        assert "no answer was preferred to another" in done.stderr


def test_all_six_stages(server, tiny_folder, tmp_path) -> None:
    """Ppo asks nothing; the report has a win rate, and no score that a judge of pairs does not give."""
    from tiny_run import make_config, write_prompts

    from lowrank_rlhf.pipeline.pipeline import run
    from lowrank_rlhf.run.progress import Progress

    endpoint = {"url": server.url, "model": "judge-1"}
    config = make_config(
        tiny_folder(),
        write_prompts(tmp_path / "prompts.jsonl"),
        rank__judge="endpoint",
        rank__endpoint=endpoint,
        evaluate__second_judge="endpoint",
        evaluate__yardstick_prompts=0,
    )
    run(config, tmp_path, until="rank", progress=Progress.silent())
    ranked = len(server.asked)
    assert 0 < ranked <= 8 * 3 * 2
    run(config, tmp_path, until="ppo", progress=Progress.silent())
    assert len(server.asked) == ranked
    run_dir = run(config, tmp_path, progress=Progress.silent())
    rows = [json.loads(line) for line in run_dir.artifact("eval.jsonl").read_text().splitlines()]
    expected = []
    for row in rows:
        ours, theirs = len(row["policy"]), len(row["sft"])
        expected.append("tie" if ours == theirs else "policy" if ours > theirs else "sft")
    assert [row["judge_prefers"] for row in rows] == [row["second_prefers"] for row in rows] == expected
    assert {tuple(sorted(texts(question)[1:])) for question in server.asked[ranked:]} == {
        tuple(sorted((row["sft"], row["policy"]))) for row in rows if row["sft"] != row["policy"]
    }
    assert len(server.asked) - ranked == 2 * sum(row["sft"] != row["policy"] for row in rows)
    summary = done(run_dir, "evaluate")["summary"]
    assert summary["win_rate"] == sum({"policy": 1, "tie": 0.5, "sft": 0}[name] for name in expected) / len(expected)
    assert (summary["judge"], summary["second_judge"]) == ("endpoint:judge-1", "endpoint:judge-1")
    assert summary["mean_shift"] is None
    figures = [row["figure"] for row in summary["table"]]
    assert "endpoint:judge-1: win rate" in figures
    assert [figure for figure in figures if figure.endswith("mean score")] == ["reward model: mean score"]
    assert "the language model “judge-1” preferred the aligned model's answer in" in summary["message"].replace(
        "\n", " "
    )
    compared = len(server.asked)
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"yardstick_prompts": 1})})
    run_dir = run(config, tmp_path, progress=Progress.silent(), redo=["evaluate"])
    again = [json.loads(line) for line in run_dir.artifact("eval.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in rows[0]} for row in again] == rows
    asked = [set(texts(question)[1:]) for question in server.asked[compared:]]
    assert 0 < len(asked) <= 2 * 4  # four yardsticks, both orders; the endpoint remembers the other verdicts
    assert all(again[0]["sft"] in both for both in asked)
    assert "A language model judged the answers" in summary["message"]
    report = run_dir.artifact("report.md").read_text()
    assert "shift of the mean" not in report
    assert f"judge: {'tie' if expected[0] == 'tie' else 'preferred'}" in report
    metrics = [json.loads(line) for line in (run_dir.path / "metrics.jsonl").read_text().splitlines()]
    assert any("eval/score" in row for row in metrics)
    assert not any("eval/judge" in row or "eval/win_rate" in row for row in metrics)
    for path in run_dir.path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
