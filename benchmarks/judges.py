"""Let a language model choose between the kind and the blunt reply of `builtin:replies`, in every way of asking.

    python benchmarks/judges.py http://127.0.0.1:8080/v1 --model qwen2.5:0.5b --pairs 16 --cache /tmp/judged

A pair is decided if the scores differ, and rightly if the kind reply's is higher. The server must return
log-probabilities (llama.cpp's or vLLM's). Verdicts are saved in `--cache`: the same command asks only what is missing.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from lowrank_rlhf.config.endpoint import EndpointConfig
from lowrank_rlhf.config.schema import RankConfig
from lowrank_rlhf.evaluation.run_judges import judge_all, open_judge
from lowrank_rlhf.preferences.judges.loading import ENDPOINT
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.records import Message, Prompt, Sample

REPLIES = ROOT / "lowrank_rlhf" / "preferences" / "judges" / "replies.jsonl"
Group = tuple[Prompt, list[Sample]]


def main() -> None:
    """Judge the pairs and print a Markdown table."""
    given = _parse()
    given.cache.mkdir(parents=True, exist_ok=True)
    groups = kind_and_blunt(given.pairs)
    print("| asked | read | decided | rightly | figures of the judge |\n|---|---|---|---|---|")
    for way in given.ways:
        ask, verdict = way.split("/")
        settings = {"url": given.url, "model": given.model, "ask": ask, "verdict": verdict, "unreadable": "tie"}
        rank = RankConfig(judge=ENDPOINT, endpoint=EndpointConfig(**settings, timeout_seconds=given.timeout))
        judge = open_judge(ENDPOINT, rank, given.cache, Progress.silent(), StopRequest())
        scores = judge_all(judge, way, groups, Progress.silent(), StopRequest())
        decided, right = sum(one != other for one, other in scores), sum(one > other for one, other in scores)
        print(f"| {ask} | {verdict} | {decided} of {len(scores)} | {right} | {judge.summary()} |", flush=True)


def kind_and_blunt(count: int) -> list[Group]:
    """Return the first prompts, each with its kind and its blunt reply."""
    rows = [json.loads(line) for line in REPLIES.read_text(encoding="utf-8").splitlines()[:count]]
    return [
        (
            Prompt(id=f"p{index}", messages=(Message(role="user", content=row["prompt"]),)),
            [Sample(id=f"p{index}-{kind}", prompt_id=f"p{index}", text=row[kind]) for kind in ("kind", "blunt")],
        )
        for index, row in enumerate(rows)
    ]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--model", default="local", help="its name on the server")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the verdicts")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one reply")
    ways = [f"{ask}/{verdict}" for ask in ("pairwise", "pointwise") for verdict in ("text", "logprobs")]
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways)
    return parser.parse_args()


if __name__ == "__main__":
    main()
