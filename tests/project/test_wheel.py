"""`pip install .` brings everything that the program reads, and the presets inside the package."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip builds it, by the same backend, without fetching one."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the checkout that holds what pip would unpack."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_it_holds_every_file_of_the_package_and_every_preset(installed: Path) -> None:
    files = [path for path in (ROOT / "lowrank_rlhf").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {path.relative_to(ROOT).as_posix() for path in files}
    expected |= {f"lowrank_rlhf/presets/{path.name}" for path in (ROOT / "presets").glob("*.yaml")}
    found = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert {name for name in found if ".dist-info/" not in name} == expected


def test_it_brings_the_command(installed: Path) -> None:
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "lowrank-rlhf = lowrank_rlhf.cli:main" in entry_points.read_text()


def test_the_presets_work_from_another_folder(installed: Path, tmp_path: Path) -> None:
    def call(*arguments: str) -> str:
        program = [sys.executable, "-c", "from lowrank_rlhf.cli import main; main()", *arguments]
        environment = os.environ | {"PYTHONPATH": str(installed)}
        done = subprocess.run(
            program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout

    listed = [line.split()[0] for line in call("presets").splitlines()]
    assert listed == sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
    assert call("validate", "quickstart").startswith("ok: sft, sample, rank, reward, ppo, evaluate")
