"""Make `tests/golden`: a run folder of version 0.1, stopped in the middle of PPO, with model and data.

It is made once and kept, for `tests/test_golden.py` to go on from with every later version:

    PYTHONPATH=. python tests/golden.py
"""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import torch
from tiny import COMMON, STYLES, make_tokenizer
from tiny_run import make_config, write_prompts
from transformers import AutoConfig, AutoModelForCausalLM

from lowrank_rlhf.errors import Stopped
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.step_log import StepLog

FOLDER = Path(__file__).parents[1] / "golden"
STOPPED_AT = ("ppo", 2)
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}


def make_model(folder: Path) -> None:
    """A random Llama of 30,000 weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **{**COMMON, **SMALL}), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    make_tokenizer(*STYLES["chatml"]).save_pretrained(folder)


def stop_once(where: tuple[str, int]) -> None:
    """Request a stop, as Ctrl-C does, when the first row of that step is logged."""
    append, pending = StepLog.append, {where}

    def append_and_stop(log: StepLog, stage: str, step: int, **row: Any) -> None:
        append(log, stage, step, **row)
        if (stage, step) in pending:
            pending.clear()
            signal.raise_signal(signal.SIGTERM)

    StepLog.append = append_and_stop  # type: ignore[method-assign]


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    os.chdir(FOLDER)  # the run names its model and its data by relative paths
    make_model(Path("model"))
    config = make_config(Path("model"), write_prompts(Path("prompts.jsonl")), name="golden")
    stop_once(STOPPED_AT)
    try:
        pipeline.run(config, Path("runs"), progress=Progress.silent())
    except Stopped:
        return
    raise SystemExit("the run was not stopped")


if __name__ == "__main__":
    main()
