"""Run the notebooks from top to bottom with short settings: `make notebooks`.

Each runs in a new folder with links to this repository, so that it starts empty and changes none of your runs. The
executed copies are written to `build/notebooks`.
"""

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parent.parent
SHORT = {
    "1_quickstart_tour.ipynb": ("sample.prompts=240", "ppo.steps=6", "ppo.warmup_steps=2", "data.held_out=64"),
    "2_your_own_data.ipynb": (),
    "3_look_inside.ipynb": ("sample.prompts=160", "ppo.steps=10"),
}
"""The notebooks, and the settings that shorten their runs."""


def execute(notebook: Path, folder: Path, settings: Sequence[str]) -> nbformat.NotebookNode:
    """Return the notebook with its outputs, run in `folder` with these settings.

    It gets no input. Raises CellExecutionError with the cell and its traceback if a cell fails.
    """
    for name in ("lowrank_rlhf", "notebooks", "presets"):
        (folder / name).symlink_to(ROOT / name)
    content = nbformat.read(notebook, as_version=4)
    client = NotebookClient(content, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "LOWRANK_RLHF_NOTEBOOK_SETTINGS": shlex.join(settings)})
    return content


def main() -> int:
    """Run all notebooks; return 1 if one failed."""
    target = ROOT / "build" / "notebooks"
    target.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, settings in SHORT.items():
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                nbformat.write(execute(ROOT / "notebooks" / name, Path(folder), settings), target / name)
                print(f"{name}: {time.monotonic() - start:.0f} s, written to {target / name}", flush=True)
            except CellExecutionError as error:
                failed = 1
                print(f"{name}: failed after {time.monotonic() - start:.0f} s\n{error}", file=sys.stderr, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
