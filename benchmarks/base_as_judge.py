"""Compare the replies of SFT model and policy by likelihoods of the bare base, which no part of a run is tuned on.

    python benchmarks/base_as_judge.py runs/quickstart
    python benchmarks/base_as_judge.py runs/quickstart-seed-*

Of each prompt's two sampled replies in `eval.jsonl`, one is better

- in relevance, if the base gives the message a higher log-probability as an answer to the reply, so that one can guess
  the message from it.
- in fluency, if the base gives the reply a higher mean log-probability per token, after the message.

Both use the run's own base and chat template. Prints the policy's share of wins with 95 % bootstrap intervals; a tie is
half a win.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch.nn.functional import cross_entropy

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.maths.statistics import bootstrap_interval, wins
from lowrank_rlhf.models.base import Base, load_base
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Message, Prompt


def main() -> None:
    """Read the runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    print("| run | pairs | relevance | fluency |\n|---|---|---|---|")
    for run in parser.parse_args().runs:
        base = load_base(load_config(run / "config.yaml").model, Progress.silent())
        rows = [json.loads(line) for line in (run / "eval.jsonl").read_text(encoding="utf-8").splitlines()]
        scores = {reply: [judge(base, row["prompt"], row[reply]) for row in rows] for reply in ("policy", "sft")}
        both = zip(zip(*scores["policy"], strict=True), zip(*scores["sft"], strict=True), strict=True)
        relevance, fluency = (share(wins(policy, sft)) for policy, sft in both)
        print(f"| {run.name} | {len(rows)} | {relevance} | {fluency} |", flush=True)


def judge(base: Base, message: str, reply: str) -> tuple[float, float]:
    """Return the relevance of a reply, in nats, and its fluency, in nats per token."""
    total, count = log_probability(base, message, reply)
    return log_probability(base, reply, message)[0], total / count


def log_probability(base: Base, asked: str, answer: str) -> tuple[float, int]:
    """Return the answer's log-probability under the bare base in nats, end of turn included, and its tokens."""
    prompt = base.encode_prompt(Prompt(id="asked", messages=(Message(role="user", content=asked),)))
    ids = torch.tensor([prompt + base.encode_response(answer)], device=base.device)  # (1, T)
    with torch.no_grad():
        logits = base.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return -float(cross_entropy(logits, ids[0, len(prompt) :], reduction="sum")), len(logits)


def share(won: Sequence[float]) -> str:
    """Format a share of wins with its interval."""
    low, high = bootstrap_interval(won, samples=2000, seed=0)
    return f"{sum(won) / len(won):.0%} [{low:.0%}, {high:.0%}]"


if __name__ == "__main__":
    main()
