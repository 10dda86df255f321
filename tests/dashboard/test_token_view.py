"""Token view of tab Watch: colours, figures and texts of tokens, as HTML and in a real Chromium."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, go_to, page_server, wait_for
from dashboard_runs import NASTY, make_run, page_of
from html_tags import tags

from lowrank_rlhf.dashboard.tabs import tokens as view
from lowrank_rlhf.dashboard.text import LANGUAGES, html, t, table
from lowrank_rlhf.run.files import append_line
from lowrank_rlhf.run.records import RolloutAnswer


def answer(*pieces: str, logprobs: tuple[float, ...] = (), prompt: str = "ask", **figures: Any) -> RolloutAnswer:
    """An answer whose log-ratios are `logprobs` plus 1, and whose other figures are 0 unless given."""
    zeros = (0.0,) * len(pieces)
    plain = {"values": zeros, "advantages": zeros, "rewards": zeros, "ref_logprobs": (-1.0,) * len(pieces)}
    own = logprobs or plain["ref_logprobs"]
    row = plain | {"prompt_id": "a", "prompt": prompt, "finished": True, "score": 1.5} | figures
    return RolloutAnswer(pieces=pieces, logprobs=own, **row)


def write(run: Path, step: int, *answers: RolloutAnswer) -> None:
    for each in answers:
        append_line(run / "rollouts.jsonl", {"stage": "ppo", "step": step, **each.model_dump()})
