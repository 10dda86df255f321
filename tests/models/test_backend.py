"""Choice between transformers and unsloth, on machines without CUDA and mostly without the package."""

import json
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from marks import done
from pydantic import ValidationError
from tiny_run import make_config, make_session, write_prompts

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import StaleRun, UserError
from lowrank_rlhf.models import backend
from lowrank_rlhf.models.backend import FAMILIES, choose, take_backend
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.pipeline.fingerprint import differences, fingerprint
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.results import Fingerprint

ROOT = Path(__file__).parents[2]
NO_UNSLOTH = "the package unsloth is not installed (python -m pip install -r requirements-unsloth.txt)"


def config(asked: str, **changes: object) -> Config:
    return make_config(Path("somewhere"), model__backend=asked, model__device="auto", **changes)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with CUDA and the package, in a process that has imported nothing; tests remove some of it."""
    monkeypatch.setattr(backend, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(backend, "_cuda", lambda: True)
    for name in ("transformers", "peft", "trl"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return monkeypatch


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("architecture", FAMILIES)
def test_auto_takes_unsloth_where_cuda_and_the_package_are(architecture: str) -> None:
    assert choose(config("auto"), architecture) == ("unsloth", "CUDA and the package are available")
    assert choose(config("unsloth"), architecture) == ("unsloth", "set in the config")
    assert choose(config("transformers"), architecture) == ("transformers", "set in the config")


def take_away_package(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(backend, "find_spec", lambda _: None)


def take_away_cuda(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(backend, "_cuda", lambda: False)


def import_too_early(machine: pytest.MonkeyPatch) -> None:
    machine.delitem(sys.modules, "unsloth", raising=False)
    machine.setitem(sys.modules, "peft", ModuleType("peft"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (take_away_package, NO_UNSLOTH),
        (take_away_cuda, "PyTorch finds no CUDA device"),
        (import_too_early, "unsloth must be imported before peft, which this process has already imported"),
    ],
)
def test_what_a_machine_lacks_is_said_by_auto_and_refused_by_name(machine, change, reason: str) -> None:
    change(machine)
    found = choose(config("auto"), "llama")
    assert found.backend == "transformers"
    assert found.reason.startswith(reason)
    with pytest.raises(
        UserError, match=r"^model\.backend: unsloth cannot be used: .*set model\.backend=transformers$"
    ) as e:
        choose(config("unsloth"), "llama")
    assert reason in str(e.value)


def test_once_imported_unsloth_is_not_too_late(machine) -> None:
    machine.setitem(sys.modules, "peft", ModuleType("peft"))
    machine.setitem(sys.modules, "unsloth", ModuleType("unsloth"))
    assert choose(config("unsloth"), "llama").backend == "unsloth"


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("architecture", ["gemma2", "phi3", None])
def test_other_families_are_left_to_transformers(architecture: str | None) -> None:
    assert choose(config("auto"), architecture).backend == "transformers"
    with pytest.raises(UserError, match=f"type is {architecture or 'unknown'}, .*llama, mistral, qwen2, qwen3"):
        choose(config("unsloth"), architecture)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("model__device", "cpu", "model.device is cpu"),
        ("model__quantization", "int8", "model.quantization is int8"),
        ("model__quantization", "gguf", "model.quantization is gguf"),
        ("lora__last_layers", 1, "lora.last_layers is 1"),
        ("reward__layers", 2, "reward.layers is 2"),
    ],
)
def test_settings_that_it_cannot_run_are_conflicts_by_name_and_reasons_for_auto(key, value, reason) -> None:
    changes = {"model__device": "auto", key: value}
    if key == "model__quantization":
        changes["quantization"] = changes.pop(key)
    with pytest.raises(ValidationError, match=f"model.backend is unsloth, but {reason}"):
        make_config(Path("some.gguf"), model__backend="unsloth", **changes)
    found = choose(make_config(Path("some.gguf"), model__backend="auto", **changes), "llama")
    assert found.backend == "transformers"
    assert found.reason.startswith(reason)


def test_auto_keeps_to_what_a_run_began_with(tiny_folder, tmp_path: Path, machine, capsys) -> None:
    """A machine without the package starts, one with it resumes; then the reverse, which prints a note."""
    auto = make_config(tiny_folder(), model__backend="auto", model__device="auto")
    machine.setattr(backend, "_start_unsloth", lambda: "2026.1.1")
    for first, second, expected in (
        (False, True, [("transformers", NO_UNSLOTH), ("transformers", "this run started with it")]),
        (True, False, [("unsloth 2026.1.1", "CUDA and the package are available"), ("transformers", NO_UNSLOTH)]),
    ):
        run = tmp_path / expected[0][0]
        run.mkdir()
        for here, (name, why) in zip((first, second), expected, strict=True):
            machine.setattr(backend, "find_spec", lambda name, here=here: ModuleSpec(name, None) if here else None)
            assert take_backend(auto, run, Progress()) == name.split()[0]
            out = " ".join(capsys.readouterr().out.split())
            assert f"model.backend: {name}: {why}" in out
            assert ("NOTE: this run started with unsloth" in out) == (name == "transformers" and first)
            kept = json.loads((run / "backend.json").read_text())
            assert kept == {"schema": 1, "backend": expected[0][0].split()[0]}


def test_by_name_nothing_is_kept_and_transformers_is_not_worth_a_word(
    tiny_folder, tmp_path: Path, machine, capsys
) -> None:
    machine.setattr(backend, "_start_unsloth", lambda: "2026.1.1")
    for name, printed in (("transformers", ""), ("unsloth", "model.backend: unsloth 2026.1.1: set in the config\n")):
        by_name = make_config(tiny_folder(), model__backend=name, model__device="auto")
        assert take_backend(by_name, tmp_path, Progress()) == name
        assert list(tmp_path.iterdir()) == []
        assert capsys.readouterr().out == printed


def test_one_that_does_not_start_is_an_error_with_its_words(tiny_folder, tmp_path: Path, machine) -> None:
    broken = tmp_path / "unsloth"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('torchvision claims to match')")
    machine.syspath_prepend(tmp_path)
    machine.delitem(sys.modules, "unsloth", raising=False)
    by_name = make_config(tiny_folder(), model__backend="unsloth", model__device="auto")
    with pytest.raises(UserError, match=r"does not start: torchvision claims to match\. Reinstall it .*=transformers"):
        take_backend(by_name, tmp_path, Progress.silent())


def test_a_run_tells_its_context_and_the_base_is_loaded_by_it(tiny_folder, tmp_path: Path) -> None:
    session = make_session(make_config(tiny_folder(), model__backend="auto"), tmp_path)
    assert not session.load_roles().base.by_unsloth
    assert session.load_roles().base.config.backend == "transformers"


def test_a_run_without_cuda_says_so_and_goes_on_as_ever(tiny_folder, tmp_path: Path, capsys) -> None:
    data = write_prompts(tmp_path / "prompts.jsonl")
    auto = make_config(tiny_folder(), data, model__backend="auto", stages=["sft"])
    run_dir = pipeline.run(auto, tmp_path, progress=Progress())
    assert "model.backend: transformers: model.device is cpu, and unsloth requires CUDA" in capsys.readouterr().out
    assert done(run_dir, "sft")
    other = make_config(tiny_folder(), data, model__backend="transformers", stages=["sft"])
    with pytest.raises(StaleRun, match=r'model\.backend: "auto" -> "transformers"'):
        pipeline.run(other, tmp_path, progress=Progress.silent())


def test_runs_of_versions_without_the_setting_are_transformers_own() -> None:
    stage = pipeline.stages.stage("sft")
    now = fingerprint(stage, config("transformers"), {})
    known = {key: value for key, value in now.settings.items() if key != "model.backend"}
    before = Fingerprint(settings=known, inputs={})
    assert differences(before, now) == ()
    asked = fingerprint(stage, config("auto"), {})
    assert differences(before, asked) == ('model.backend: (not set) -> "auto"',)


def test_nothing_of_unsloth_is_imported_unless_asked_for() -> None:
    """The choice imports neither torch nor a library that unsloth must precede."""
    script = (
        "import sys, lowrank_rlhf.pipeline.pipeline, lowrank_rlhf.models.backend\n"
        "print(sorted({'torch', 'transformers', 'peft', 'trl'} & set(sys.modules)))\n"
        "import lowrank_rlhf.models.unsloth, lowrank_rlhf.models.roles, lowrank_rlhf.models.generation\n"
        "print(sorted(name for name in sys.modules if name.startswith('unsloth')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_a_run_asks_before_anything_imports_transformers(tiny_folder, tmp_path: Path) -> None:
    """In a new process, with a fake package `unsloth` that records the modules imported before it."""
    package = tmp_path / "unsloth"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import sys\n"
        "print('BEFORE', sorted({'transformers', 'peft', 'trl'} & set(sys.modules)), file=sys.stderr)\n"
        "raise ImportError('seen enough')\n"
    )
    data = write_prompts(tmp_path / "prompts.jsonl")
    asked = make_config(tiny_folder(), data, model__backend="unsloth", model__device="auto")
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pathlib import Path\n"
        "from lowrank_rlhf.pipeline import pipeline\n"
        "from lowrank_rlhf.config.schema import Config\n"
        "from lowrank_rlhf.models import backend\n"
        "from lowrank_rlhf.run.progress import Progress\n"
        "backend._cuda = lambda: True\n"
        f"config = Config.model_validate_json({asked.model_dump_json()!r})\n"
        f"pipeline.run(config, Path({str(tmp_path)!r}), progress=Progress())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "BEFORE []" in done.stderr, done.stderr
    assert "UserError: model.backend: unsloth is installed but does not start: seen enough" in done.stderr
