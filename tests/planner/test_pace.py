"""Tokens per second of sft, reward and ppo: in the bar and in the metrics, counted where the model reads them."""

import io
import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_finished import finished_run
from tiny_run import make_config, make_session, save_sft, separable, write_prompts, write_ranked

from lowrank_rlhf.errors import Stopped
from lowrank_rlhf.models.roles import Roles
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import ppo, reward, sft
from lowrank_rlhf.training import rollout
from lowrank_rlhf.training.rewards import reward_training

SECONDS = 2.0


def clock() -> SimpleNamespace:
    """A module `time` in which two seconds pass between one look at the clock and the next."""
    ticks = itertools.count(step=SECONDS)
    return SimpleNamespace(monotonic=lambda: next(ticks))


def heard(session: Session) -> io.StringIO:
    """Where the session's progress prints its lines from here on."""
    stream = io.StringIO()
    session.progress = Progress(Console(file=stream, width=200, force_terminal=False))
    return stream


def paces(session: Session, stage: str) -> list[float]:
    return [row["tokens_per_second"] for row in session.metrics.read(stage) if "eval/kl" not in row]


def read_by(session: Session) -> Iterator[int]:
    """Counts what the embedding is given, padding left out: since the last time that it was asked."""
    counts = [0]

    def count(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        counts[0] += int((given[0] != session.load_roles().base.pad).sum())

    session.load_roles().base.model.get_input_embeddings().register_forward_pre_hook(count)
    while True:
        found, counts[0] = counts[0], 0
        yield found


def test_sft_tells_the_tokens_that_it_reads(tiny_folder, tmp_path, monkeypatch) -> None:
    """Step by step, and after a stop those of the steps that are left."""
    config = make_config(tiny_folder(), write_prompts(tmp_path / "prompts.jsonl"), quantization="none")
    monkeypatch.setattr(sft, "time", clock())
    read: list[int] = []
    for stop_after in (2, None):
        session = make_session(config, tmp_path)
        stream, counter, append = heard(session), read_by(session), session.metrics.append
        next(counter)

        def note(stage: str, step: int, **figures: Any) -> None:
            append(stage, step, **figures)  # noqa: B023
            read.append(next(counter))  # noqa: B023
            session.stop.requested |= step + 1 == stop_after  # noqa: B023

        monkeypatch.setattr(session.metrics, "append", note)
        if stop_after:
            with pytest.raises(Stopped):
                sft.run(session)
        else:
            sft.run(session)
    assert len(set(read)) > 1
    assert [pace * SECONDS for pace in paces(session, "sft")] == read
    assert f"{read[-1] / SECONDS:.3g} tokens/s" in stream.getvalue().splitlines()[-1]


def test_reward_tells_the_tokens_that_it_reads(tiny_folder, tmp_path, monkeypatch) -> None:
    session = make_session(make_config(tiny_folder(), quantization="none"), tmp_path)
    save_sft(session)
    write_ranked(session, *separable(10))
    read: list[int] = []
    scores, step = Roles.scores, reward_training._step

    def counted(roles: Roles, rows: Any) -> torch.Tensor:
        read[-1] += int(rows.attention.sum())
        return scores(roles, rows)

    def begin(*args: Any) -> tuple[float, float]:
        read.append(0)
        with monkeypatch.context() as inside:
            inside.setattr(Roles, "scores", counted)
            return step(*args)

    monkeypatch.setattr(reward_training, "_step", begin)
    monkeypatch.setattr(reward_training, "time", clock())
    stream = heard(session)
    reward.run(session)
    assert len(set(read)) > 1
    assert [pace * SECONDS for pace in paces(session, "reward")] == read
    assert f"{read[-1] / SECONDS:.3g} tokens/s" in stream.getvalue()


def test_ppo_tells_the_tokens_that_it_samples(tiny_folder, tmp_path, monkeypatch) -> None:
    """Over the time of sampling alone, not of reading and learning."""
    session = finished_run(tiny_folder(), tmp_path, adapters=("sft", "reward"), quantization="none")
    sampled: list[int] = []
    collect = ppo.collect

    def counted(*args: Any) -> rollout.Rollout:
        found = collect(*args)
        sampled.append(int(found.batch.response.sum()))
        return found

    monkeypatch.setattr(ppo, "collect", counted)
    monkeypatch.setattr(rollout, "time", clock())
    stream = heard(session)
    ppo.run(session)
    found = [pace * SECONDS for pace in paces(session, "ppo")]
    assert len(found) == session.config.ppo.steps
    assert found == sampled
    assert f"{sampled[-1] / SECONDS:.3g} tokens/s" in stream.getvalue()
