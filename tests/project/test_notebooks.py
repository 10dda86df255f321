"""The notebooks run from top to bottom on a tiny model, and what they promise shows in their outputs."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nbformat
import pytest
from people import a_run, tiers_as_shown

from notebooks.execute import SHORT, execute

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
NAMES = sorted(SHORT)
TINY = shlex.split(
    "model.sha256=null model.chat_template=null model.max_length=300 model.device=cpu model.threads=1 "
    "model.compute_dtype=float32 lora.rank=4 lora.last_layers=null lora.target_modules=all-linear data.held_out=8 "
    "sft.examples=8 sft.epochs=1 sample.prompts=8 sample.max_new_tokens=8 reward.layers=null rank.minimum_rankings=5 "
    "ppo.steps=2 ppo.batch_size=4 ppo.warmup_steps=0 ppo.evaluate_every=1 ppo.evaluate_prompts=4 ppo.missing_eos=keep "
    "ppo.accept_weak_reward=true evaluate.bootstrap_samples=100"
)

every = pytest.mark.parametrize("name", NAMES)


def read(name: str) -> Any:
    return nbformat.read(FOLDER / name, as_version=4)


def cells(name: str, kind: str) -> list[str]:
    return [cell.source for cell in read(name).cells if cell.cell_type == kind]


def cell_with(mark: str) -> str:
    """The one code cell of the second notebook that holds these words."""
    (text,) = [text for text in cells("2_your_own_data.ipynb", "code") if mark in text]
    return text


def shown(notebook: Any) -> tuple[str, int]:
    """All text that the cells' outputs show, tables included, and the number of pictures."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    data = [output.get("data", {}) for output in outputs]
    printed = "".join(output.get("text", "") for output in outputs)  # a busy kernel sends a line in several parts
    text = [printed, *(one.get(kind, "") for one in data for kind in ("text/html", "text/markdown"))]
    return "\n".join(text), sum("image/png" in one for one in data)


def found(text: str, before: str) -> float:
    """The one number that stands after these words."""
    (number,) = re.findall(rf"{re.escape(before)}([-+.\de]+)", text)
    return float(number)


@pytest.fixture
def executed(tiny_folder: Callable[..., Path], tmp_path: Path) -> Callable[[str], tuple[str, int]]:
    def run(name: str) -> tuple[str, int]:
        return shown(execute(FOLDER / name, tmp_path, [f"model.source={tiny_folder()}", *TINY]))

    return run


def test_the_tour_runs_and_shows_plots_answers_and_report(executed) -> None:
    text, pictures = executed("1_quickstart_tour.ipynb")
    assert pictures == 1
    assert "\x1b" not in text  # progress comes as plain lines
    assert "[6/6] evaluate: compare SFT and policy on held-out prompts" in text
    assert "# Report of run “quickstart”" in text
    assert "## Answers side by side" not in text
    tables = re.findall(r"<table>.*?</table>", text, re.S)
    assert [one.count("<tr>") for one in tables] == [1 + 4, 1 + 3]
    assert re.findall(r"<td[^>]*>(base|sft|policy)</td>", tables[1]) == ["base", "sft", "policy"]


def test_where_nobody_types_a_simulated_annotator_ranks_and_is_named(executed, tmp_path) -> None:
    text, _ = executed("2_your_own_data.ipynb")
    assert "Nobody types here: from now on a SIMULATED annotator ranks" in text
    assert "ranked by: SIMULATED\n" in text
    rankings = [json.loads(line) for line in (tmp_path / "runs/household/rankings.jsonl").read_text().splitlines()]
    assert {row["annotator"] for row in rankings} == {"SIMULATED"}
    assert len({row["prompt_id"] for row in rankings}) == 5
    answers = [json.loads(line) for line in (tmp_path / "runs/household/answers.jsonl").read_text().splitlines()]
    cost = {row["id"]: (not row["finished"], len(row["text"].split())) for row in answers}
    for row in rankings:  # the lines that were typed mean the answers that were shown
        tiers = [{cost[sample] for sample in tier} for tier in row["tiers"]]
        assert all(len(tier) == 1 for tier in tiers)
        assert tiers == sorted(tiers, key=min)


@pytest.fixture
def rank_here(monkeypatch, tmp_path) -> Callable[..., tuple[Any, list[str]]]:
    """Types these lines into the second notebook: the store of its run, and the lines that nothing asked for."""
    (tmp_path / "lowrank_rlhf").symlink_to(ROOT / "lowrank_rlhf")
    monkeypatch.chdir(tmp_path)

    def rank(*lines: str, **settings: int) -> tuple[Any, list[str]]:
        store, typed = a_run("household", **settings), iter(lines)
        monkeypatch.setattr("builtins.input", lambda _: next(typed))
        scope: dict[str, Any] = {"Path": Path, "ranked_already": False}
        for mark in ("from notebooks.helpers import", "INTERACTIVE = True", "open_project(RUN)"):
            exec(cell_with(mark), scope)  # noqa: S102 - our own cell
        return store, list(typed)

    return rank


def test_what_a_person_types_is_ranked_and_a_wrong_line_is_asked_again(rank_here, capsys) -> None:
    store, unasked = rank_here("9", "2 1 = 3", "s", "3 2 1", minimum=2)
    assert unasked == []
    assert tiers_as_shown(store) == [[["2"], ["1", "3"]], [["3"], ["2"], ["1"]]]
    assert {ranking.annotator for ranking in store.rankings()} == {"me"}
    printed = capsys.readouterr().out
    assert "no answer 9" in printed
    assert "SIMULATED" not in printed
    assert "2 prompts ranked (2 needed)" in printed


def test_skipped_prompts_come_back_while_rankings_are_wanting(rank_here, capsys) -> None:
    store, unasked = rank_here("s", "2 1 = 3", "s", "3 2 1", minimum=2, prompts=2)
    assert unasked == []
    assert tiers_as_shown(store) == [[["2"], ["1", "3"]], [["3"], ["2"], ["1"]]]
    printed = capsys.readouterr().out
    assert printed.count("Only skipped prompts are left") == 2
    assert "2 prompts ranked (2 needed)" in printed


def test_where_no_prompt_got_an_order_it_ends_and_says_how_to_go_on(rank_here, capsys) -> None:
    rank_here("b", minimum=1, prompts=1)
    assert "  python -m lowrank_rlhf label runs/household --annotator me\n" in capsys.readouterr().out


def test_run_from_the_top_after_ranking_the_run_may_go_through(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    expected: list[set[int]] = []
    scope = {
        "RUN": Path("runs/household"),
        "RUN_COMMAND": ("run",),
        "cli": lambda *_, expect=(0,): expected.append(set(expect)),
    }
    exec(cell_with("ranked_already = "), scope)  # noqa: S102 - our own cell
    assert expected == [{0, 5}]


def test_a_look_inside_finds_what_it_says(executed) -> None:
    text, pictures = executed("3_look_inside.ipynb")
    assert pictures == 2
    assert found(text, "policy and SFT: ") < 1e-5
    assert "KL(policy || SFT)  0.000 nats" in text
    assert "KL(policy || base) 0.000 nats" not in text
    assert "by hand: k1 = 0.500000 (0.5), k3 = 0.106531 " in text
    assert "lambda .95: [0.45125, 0.475, 0.5]" in text
    assert found(text, "largest difference: ") < 1e-5
    assert "the rollout's: True" in text
    assert found(text, "on the first minibatch: ") < 1e-5
    assert "the reference is unchanged: True" in text
    assert "the base is unchanged: True" in text
    assert found(text, "times change: ") > 0


@every
def test_a_notebook_is_kept_without_outputs(name) -> None:
    kept = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert [cell for cell in kept if cell.outputs or cell.execution_count] == []


@every
def test_a_notebook_has_a_chinese_note_under_every_heading(name) -> None:
    headings = [text for text in cells(name, "markdown") if text.startswith("#")]
    assert len(headings) > 5
    assert [text for text in headings if not re.search(r"\n\*[^*]*[\u4e00-\u9fff]", text)] == []


@every
def test_no_line_of_a_notebook_is_a_shell_command(name) -> None:
    assert [line for text in cells(name, "code") for line in text.splitlines() if line.lstrip()[:1] in ("!", "%")] == []


def test_all_notebooks_are_run_and_are_set_up_alike() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.ipynb")) == NAMES
    assert len({cells(name, "code")[0] for name in NAMES}) == 1


@every
def test_badge_and_address_name_one_repository(name) -> None:
    owners = set(re.findall(r"(?:github\.com|colab\.research\.google\.com/github)/([\w.-]+/[\w.-]+)", str(read(name))))
    assert owners == {"OWNER/lowrank_rlhf"} or (len(owners) == 1 and "OWNER" not in str(owners))
    assert f"/blob/main/notebooks/{name})" in cells(name, "markdown")[0]


def test_on_colab_everything_is_installed_but_torch_and_numpy(monkeypatch, tmp_path) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        commands.append(command)
        if command[0] == "git":
            (tmp_path / "lowrank_rlhf").symlink_to(ROOT)
        return SimpleNamespace()

    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    setup = compile(cells(NAMES[0], "code")[0], NAMES[0], "exec")
    exec(setup, {})  # noqa: S102 - our own cell
    assert Path.cwd() == ROOT
    exec(setup, {})  # noqa: S102
    assert [command[0] for command in commands] == ["git", sys.executable, sys.executable]
    pins = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line]
    assert [pin for pin in pins if pin not in commands[1]] == [
        pin for pin in pins if pin.startswith(("torch==", "numpy=="))
    ]
    assert commands[1] == commands[2]


def test_on_colab_an_uploaded_release_is_unpacked_instead(monkeypatch, tmp_path) -> None:
    release = tmp_path / "made" / "lowrank_rlhf-1.0"
    for name in ("presets/quickstart.yaml", "requirements.txt"):
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, release / name)
    (colab := tmp_path / "content").mkdir()
    shutil.make_archive(str(colab / release.name), "zip", release.parent, release.name)
    commands: list[str] = []
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command[0]))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(colab)
    exec(compile(cells(NAMES[0], "code")[0], NAMES[0], "exec"), {})  # noqa: S102 - our own cell
    assert Path.cwd() == colab / release.name
    assert commands == [sys.executable]
