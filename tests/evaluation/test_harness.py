"""Benchmarks of lm-evaluation-harness on a tiny run: local tasks of a few rows; plain transformers is the oracle."""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import PeftModel
from tiny import load_plain
from tiny_finished import finished_run
from transformers import AutoModelForCausalLM

from lowrank_rlhf.commands.model_tests import parse_tasks
from lowrank_rlhf.errors import ExitCode, UserError
from lowrank_rlhf.evaluation.benchmarks.harness import metric_interval
from lowrank_rlhf.session import Session

ROWS = [
    {"question": "is that kind", "choices": ["kind", "no", "the answer"], "label": 0},
    {"question": "the user asks", "choices": ["short", "the point", "gives"], "label": 2},
    {"question": "that is the point", "choices": ["no", "answer", "user"], "label": 1},
    {"question": "kind", "choices": ["the question", "is", "kinds"], "label": 0},
]
CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: label
num_fewshot: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
WRITTEN = """
task: tiny_written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[label]}}}}"
num_fewshot: 0
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: 8}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


class TestInterval:
    @pytest.mark.parametrize("share", [0, 1, 3])
    def test_of_a_share_of_rows(self, share) -> None:
        """Ten rows: none, 1 or 3 right. The harness's standard error has no part in it."""
        found = metric_interval(share / 10, [1.0] * share + [False] * (10 - share), 0.4)
        assert_wilson(found, share / 10, 10)

    def test_of_other_means(self) -> None:
        """A mean of probabilities, and one of two tasks of 3 rows and 1 that weigh equally."""
        expected = pytest.approx([0.25 - 1.959964 * 0.1, 0.25 + 1.959964 * 0.1])
        assert metric_interval(0.25, [0.2, 0.3], 0.1) == expected
        assert metric_interval(0.25, [1.0, 1.0, 0.0, 0.0], 0.1) == expected

    @pytest.mark.parametrize("error", ["N/A", None, math.nan, 0.0])
    def test_none_without_a_standard_error(self, error) -> None:
        assert metric_interval(0.5, [0.5, 0.5], error) is None
        assert metric_interval(0.5, [[True, False], [True]], error) is None  # IFEval's instructions of each row


class TestNames:
    def test_rows_of_a_task(self) -> None:
        assert parse_tasks("ifeval,mmlu:200, my/task.yaml:5") == {"ifeval": None, "mmlu": 200, "my/task.yaml": 5}

    @pytest.mark.parametrize("text", ["", "ifeval,", "mmlu:", "mmlu:0", "mmlu:few", ":5"])
    def test_others_are_refused(self, text) -> None:
        with pytest.raises(UserError, match="is not a task, or task:N"):
            parse_tasks(text)


@pytest.fixture(scope="module")
def original(tiny_folder, tmp_path_factory: pytest.TempPathFactory) -> Session:
    session = finished_run(tiny_folder(), tmp_path_factory.mktemp("harness"))
    for name in ("eval.jsonl", "report.html", "report.md"):
        (session.run_dir.path / name).write_text("")
    return session


@pytest.fixture
def run(original: Session, tmp_path: Path) -> Path:
    shutil.copytree(original.run_dir.path, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes the YAML file of a local task; the harness's own 14,000 tasks are not indexed."""
    manager = pytest.importorskip("lm_eval.tasks").TaskManager
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: manager(include_defaults=False))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def write(name: str, text: str) -> Path:
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
        (tmp_path / f"{name}.yaml").write_text(text.format(rows=rows))
        return tmp_path / f"{name}.yaml"

    return write


def figures(out: str) -> dict[tuple[str, str], dict[str, Any]]:
    found = json.loads(out)["benchmarks"]["figures"]
    return {(figure["task"], figure["metric"]): figure for figure in found}


def assert_wilson(interval: list[float], share: float, count: int) -> None:
    """Wilson's bounds: the rates from which the share is 1.96 of their standard errors away, or 0 or 1."""
    low, high = interval
    assert 0 <= low < high <= 1
    for bound, end in ((low, 0.0), (high, 1.0)):
        if share != end:
            assert abs(share - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / count), abs=1e-6)
        else:
            assert bound == end


def right(model: Any, tokenizer: Any, row: dict[str, Any]) -> bool:
    """Return True if the plain model gives the labelled choice the highest log-probability."""
    prompt = f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n"
    before = tokenizer(prompt)["input_ids"]
    sums = []
    for choice in row["choices"]:
        ids = torch.tensor([tokenizer(prompt + choice)["input_ids"]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0].double().log_softmax(-1)
        steps = logprobs[len(before) - 1 : -1].gather(-1, ids[0, len(before) :, None])
        sums.append(float(steps.sum()))
    return sums.index(max(sums)) == row["label"]


class TestCommand:
    def test_accuracies_are_those_of_plain_models(self, run, original, task, evaluate) -> None:
        code, out, err = evaluate(run, "--benchmark", task("choice", CHOICE), "--json")
        assert code == 0, err
        found = figures(out)["tiny_choice", "acc"]
        assert found["rows"] == 4
        roles = original.load_roles()
        plain = load_plain(AutoModelForCausalLM, roles, "none")
        tokenizer = roles.base.tokenizer
        expected = {"base": [right(plain, tokenizer, row) for row in ROWS]}
        for name in ("sft", "policy"):
            adapted = PeftModel.from_pretrained(plain, run / "adapters" / name).eval()
            expected[name] = [right(adapted, tokenizer, row) for row in ROWS]
            plain = adapted.unload()
        assert {name: value["value"] for name, value in found["values"].items()} == {
            name: sum(each) / 4 for name, each in expected.items()
        }
        for value in found["values"].values():
            assert_wilson(value["interval"], value["value"], 4)
        assert "| tiny\\_choice | acc | 4 |" in (run / "report.md").read_text()

    def test_an_interrupted_one_resumes_and_other_tasks_are_kept(self, run, task, evaluate, monkeypatch) -> None:
        from lowrank_rlhf.evaluation.benchmarks.harness_model import HarnessModel

        read, answered, calls = HarnessModel._likelihoods, HarnessModel._answers, []

        def stopping(self, rows):
            calls.append("likelihoods")
            if len(calls) == 3:
                raise KeyboardInterrupt
            return read(self, rows)

        def counting(self, rows, sampling):
            calls.append("answers")
            return answered(self, rows, sampling)

        monkeypatch.setattr(HarnessModel, "_likelihoods", stopping)
        monkeypatch.setattr(HarnessModel, "_answers", counting)
        choice, written = task("choice", CHOICE), task("written", WRITTEN)
        code, out, err = evaluate(run, "--benchmark", choice)
        assert (code, out) == (ExitCode.STOPPED, "")
        assert "the same command resumes the benchmarks" in err
        assert evaluate(run, "--benchmark", choice)[0] == 0
        assert calls == ["likelihoods"] * 4  # base and SFT once, the policy twice
        code, out, err = evaluate(run, "--benchmark", f"{written}:2", "--json")
        assert code == 0, err
        assert calls[4:] == ["answers"] * 3
        assert {task for task, _ in figures(out)} == {"tiny_choice", "tiny_written"}
        written = figures(out)["tiny_written", "exact_match"]
        assert written["rows"] == 2
        assert [(value["value"], value["interval"]) for value in written["values"].values()] == [
            (0.0, [0.0, pytest.approx(0.65762, abs=1e-5)])  # z^2 / (2 + z^2): no row right is not certainty
        ] * 3

    def test_ceval_is_the_harness_own_group(self, run, task, evaluate, monkeypatch) -> None:
        """Its 52 tasks as the harness defines them, on one or two rows each of the published form."""
        del task  # its cache
        own, folder = sys.modules["lm_eval.tasks"], Path(sys.modules["lm_eval"].__file__).parent / "tasks/ceval"
        manager = type(own.TaskManager())
        monkeypatch.setattr(own, "TaskManager", lambda: manager(include_path=folder, include_defaults=False))
        row = {"question": "1 + 1 = ?", "A": "2", "B": "3", "C": "4", "D": "5", "answer": "A", "explanation": ""}
        loaded, dev = [], {"dev": datasets.Dataset.from_list([row] * 5)}

        def rows_of(subject: str) -> int:
            return 1 + len(subject) % 2

        def load(path: str, name: str, **_: object) -> datasets.DatasetDict:
            assert path == "ceval/ceval-exam"
            loaded.append(name)
            return datasets.DatasetDict({"val": datasets.Dataset.from_list([row] * rows_of(name))} | dev)

        monkeypatch.setattr(datasets, "load_dataset", load)
        code, out, err = evaluate(run, "--benchmark", "ceval:200", "--json")
        assert code == 0, err
        assert len(set(loaded)) == 52
        found = figures(out)
        assert list(found) == [("ceval-valid", "acc"), ("ceval-valid", "acc_norm")]
        rows = sum(map(rows_of, set(loaded)))
        assert 52 < found["ceval-valid", "acc"]["rows"] == rows < 104
        for value in found["ceval-valid", "acc"]["values"].values():
            assert_wilson(value["interval"], value["value"], rows)

    def test_an_unknown_task_and_too_many_new_tokens(self, run, task, evaluate) -> None:
        written = task("written", WRITTEN.replace("max_gen_toks: 8", "max_gen_toks: 100"))
        code, out, err = evaluate(run, "--benchmark", "mmul")
        assert (code, out) == (ExitCode.BAD_INPUT, "")
        assert "--benchmark mmul: not a task of lm-evaluation-harness" in " ".join(err.split())
        code, out, err = evaluate(run, "--benchmark", written)
        assert (code, out) == (ExitCode.BAD_INPUT, "")
        assert "add model.max_length=200 to the command" in " ".join(err.split())


def test_without_the_package_the_command_names_its_file(run, evaluate, monkeypatch) -> None:
    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = evaluate(run, "--benchmark", "ifeval")
    assert code == ExitCode.BAD_INPUT
    assert "pip install -r requirements-lm-eval.txt" in " ".join(err.split())
