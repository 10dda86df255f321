"""The command `compare`: what it prints, the page that it writes, sweeps, and bad input."""

import json
import sys
from pathlib import Path

import pytest
from compared_runs import answers, evaluation, write_run

from lowrank_rlhf import cli


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    """Runs `compare` in a folder of its own, in a terminal of 80 columns: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("one", "two"):
        write_run(Path("runs") / name, rows=answers(["Why?"]))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", "compare", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0), *capsys.readouterr()

    return call


def lines(out: str) -> list[list[str]]:
    return [[cell for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]


def test_two_runs_side_by_side(command) -> None:
    write_run(Path("runs/begun"), results={"sft": {}, "evaluate": evaluation(0.6)}, settings={"seed": 7})
    code, out, err = command("one", "begun")
    assert (code, err) == (0, "")
    assert out.startswith(
        "Note: begun: not finished: sample, rank, reward, ppo. Missing: reward model: held-out accuracy,"
    )
    assert [cell.strip() for line in lines(out) if line and line[0] == "preferred (win rate)" for cell in line] == [
        "preferred (win rate)", "75 % [65, 85]", "60 % [50, 70]",
    ]  # fmt: skip
    assert [cell.strip() for line in lines(out) if line and line[0] == "seed" for cell in line] == ["seed", "1", "7"]
    assert "ppo.kl_coef" not in out
    assert out.endswith("No automatic alarm was raised.\n")


def test_of_several_rounds_the_newest_one_with_a_policy_is_compared(command) -> None:
    """With the time of its own stages and of sft; the third round has no policy yet."""
    newest = {
        "sample": {"prompts": 2, "answers": 8},
        "ppo": {"steps": 50, "best_step": 40},
        "evaluate": evaluation(0.9),
    }
    write_run(Path("runs/one/round-2"), results=newest)
    (Path("runs/one/round-2") / "adapters" / "policy").mkdir(parents=True)
    write_run(Path("runs/one/round-3"), results={"sample": newest["sample"]})
    code, out, _ = command("one", "two")
    assert code == 0
    found = {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines(out) if line}
    assert found["preferred (win rate)"] == ["90 % [80, 100]", "75 % [65, 85]"]
    assert found["time, without copied stages"] == ["2:00", "3:00"]


def test_alarms_are_warnings(command) -> None:
    metrics = [{"stage": "ppo", "step": step, "objective/kl": 31.0} for step in range(3)]
    write_run(Path("runs/two"), metrics=metrics)
    _, out, _ = command("one", "two")
    assert next(line for line in out.splitlines() if line.startswith("WARNING")).startswith(
        "WARNING: two: The KL per answer in training was above 30 nats in 3 of 3 steps"
    )


def test_a_narrow_terminal_continues_the_table_below(command) -> None:
    for number in range(5):
        write_run(Path(f"runs/run-{number}"))
    _, out, _ = command(*(f"run-{number}" for number in range(5)))
    headers = [line.split()[1:] for line in out.splitlines() if line.startswith("figure")]
    assert headers == [["run-0", "run-1"], ["run-2", "run-3"], ["run-4"]]
    assert max(map(len, out.partition("figure ")[2].splitlines())) <= 80


def test_names_and_settings_are_no_markup_and_cannot_control_the_terminal(command) -> None:
    prompts = {"data": {"prompts": "[bold]\x1b[31m.jsonl"}}
    for name in ("[red]a", "b"):
        write_run(Path("runs") / name, settings=prompts if name == "b" else None)
    _, out, _ = command("[red]a", "b")
    assert "[red]a" in out
    assert "\x1b" not in out
    assert r"[bold]\x1b[31m.jsonl" in out


def test_the_page_is_written_with_the_answers_and_the_tables_are_printed_too(command) -> None:
    code, out, _ = command("one", "two", "--html", "deep/page.html")
    assert code == 0
    assert "Final figures" in out
    assert out.endswith("Saved as deep/page.html\n")
    page = Path("deep/page.html").read_text(encoding="utf-8")
    assert page.count("Of course!") == 4
    assert page.startswith("<!doctype html>")


def test_a_sweep_stands_for_its_runs(command) -> None:
    Path("runs/my-sweep").mkdir()
    entries = [{"run": name, "state": "done"} for name in ("one", "two", "not-started")]
    Path("runs/my-sweep/sweep.json").write_text(json.dumps({"schema": 1, "runs": entries}))
    write_run(Path("other"))
    code, out, _ = command("my-sweep", "other")
    assert code == 0
    assert [line.split()[1:] for line in out.splitlines() if line.startswith("figure")] == [["one", "two"], ["other"]]


def test_runs_of_the_same_name_in_different_folders_keep_their_paths(command) -> None:
    write_run(Path("elsewhere/one"))
    code, out, _ = command("one", "elsewhere/one", "two")
    assert code == 0
    assert "elsewhere/one" in out
    assert "elsewhere/two" not in out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["one", "tow"], 'run "tow" not found in runs. Existing runs: one, two. Did you mean "two"?'),
        (["one"], "one: is one run. Name two or more, or a sweep: compare RUN RUN"),
        (["one", "two", "one"], "one: given twice; name each run once"),
        (["one", "runs/one"], "runs/one: given twice; name each run once"),
        (["one", "two", "--html", "page"], "--html page: must be a file whose name ends in .html"),
        (
            ["one", "two", "--html", "runs/one/report.html"],
            "--html runs/one/report.html: is in the folder of a run. Write the page to another folder",
        ),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(command, arguments: list[str], error: str) -> None:
    before = sorted(Path().rglob("*"))
    assert command(*arguments) == (2, "", f"{error}\n")
    assert sorted(Path().rglob("*")) == before


def test_a_damaged_run_or_sweep_is_named(command) -> None:
    Path("runs/two/done/sft.json").write_text("{")
    assert "runs/two/done/sft.json: not a JSON object" in command("one", "two")[2]
    Path("runs/two/config.yaml").write_text("name: two\nmodel: {source: x}\nsed: 1\n")
    Path("runs/two/done/sft.json").unlink()
    assert command("one", "two")[2] == 'runs/two/config.yaml:3:1: sed: unknown key. Did you mean "seed"?\n'
    Path("runs/s").mkdir()
    Path("runs/s/sweep.json").write_text('{"runs": 3}')
    assert "runs/s/sweep.json: runs: " in command("one", "s")[2]
