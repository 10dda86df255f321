"""Memory of TRL's loss on a CPU."""

from pathlib import Path

import pytest
from tiny_run import make_config, write_prompts

from lowrank_rlhf.models import logprobs
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.planner import tensors
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.training import trl_loop


def test_the_logits_of_a_few_tokens_exist_at_once(tmp_path, monkeypatch, tiny_folder) -> None:
    kernels = pytest.importorskip("trl.kernels.chunked_logprob")
    monkeypatch.setattr(kernels, "TOKEN_CHUNK_SIZE", 4096)  # restored after the test
    config = make_config(tiny_folder("llama"), write_prompts(tmp_path / "prompts.jsonl"))
    losses, rows = [], []
    real = kernels._forward_tile

    def count(tile, *others, **flags) -> None:
        rows.append(len(tile))
        real(tile, *others, **flags)

    monkeypatch.setattr(kernels, "_forward_tile", count)
    for tokens in (512, 7):
        monkeypatch.setattr(trl_loop, "LOGITS_TOKENS", tokens)
        rows.clear()
        with Progress.silent() as progress:
            run_dir = pipeline.run(config, Path(tmp_path / str(tokens)), until="sft", progress=progress)
        assert 0 < max(rows) <= tokens
        losses.append([row["loss"] for row in run_dir.metrics.read("sft")])
    assert max(rows) == 7
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_forecast_counts_the_same_tile() -> None:
    assert trl_loop.LOGITS_TOKENS == tensors.TRL_TOKENS
    assert logprobs.CHUNK == tensors.CHUNK
