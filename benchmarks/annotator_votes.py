"""Compare a simulated annotator's preferences with those of the blind readers of earlier runs.

    python benchmarks/annotator_votes.py

Reads the pairs and votes of docs/performance/blind-reading.json and rankings-reading.json. Prints the share of pairs
that the annotator orders as the readers' majority does, without pairs on which they tie; equal scores are half right.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from lowrank_rlhf.maths.statistics import bootstrap_interval
from lowrank_rlhf.models.encoders import minilm, multilingual
from lowrank_rlhf.preferences.judges.annotator import CHINESE, ENGLISH, SimulatedAnnotator
from lowrank_rlhf.run.records import Message, Prompt, Sample

_FILES = Path(__file__).parent.parent / "docs/performance"
_POINTS = {"a": 1, "b": -1, "t": 0}


class Pair(NamedTuple):
    """Two replies to a message, and the readers' votes: positive for the first."""

    message: str
    replies: tuple[str, str]
    votes: int


def main() -> None:
    """Print the table."""
    english = SimulatedAnnotator(minilm.embed_sentences, ENGLISH)
    chinese = SimulatedAnnotator(multilingual.embed_sentences, CHINESE)
    groups: dict[str, list[Pair]] = defaultdict(list)
    for name, pair in read_pairs():
        if pair.votes:
            groups[name].append(pair)
    print("| pairs | count | ordered as by the readers |\n|---|---|---|")
    for name, pairs in groups.items():
        judge = chinese if "Chinese" in name else english
        right = [agrees(judge, pair) for pair in pairs]
        low, high = bootstrap_interval(right, 2000, seed=0)
        print(f"| {name} | {len(pairs)} | {sum(right) / len(right):.1%} [{low:.0%}, {high:.0%}] |", flush=True)


def read_pairs() -> Iterator[tuple[str, Pair]]:
    """Yield each pair with the name of its group; votes from after decision 0033 chose nothing of the annotator."""
    for reading in json.loads((_FILES / "blind-reading.json").read_text(encoding="utf-8")):
        language = "Chinese" if "chinese" in reading["run"] else "English"
        name = f"policy and SFT model, {language}{_after(reading['run'])}"
        yield from ((name, pair_of(row)) for row in reading["pairs"])
    for reading in json.loads((_FILES / "rankings-reading.json").read_text(encoding="utf-8")):
        compared = "policy and SFT model" if reading["against"] == "SFT model" else "two policies"
        name = f"{compared}, English{_after(reading['replies_of'])}"
        yield from ((name, pair_of(row)) for row in reading["pairs"])


def _after(run: str) -> str:
    return ", after decision 0033" if "decision 0033" in run else ""


def pair_of(row: dict) -> Pair:
    """Return a row of either file."""
    return Pair(row["message"], (row["a"], row["b"]), sum(_POINTS[vote] for vote in row["votes"]))


def agrees(judge: Callable[..., list[float]], pair: Pair) -> float:
    """Return 1 if the judge prefers what the readers prefer, .5 if its scores tie, else 0."""
    prompt = Prompt(id="asked", messages=(Message(role="user", content=pair.message),))
    first, second = judge(
        prompt, [Sample(id=text, prompt_id="asked", text=text, finished=True) for text in pair.replies]
    )
    return 0.5 if first == second else float((first > second) == (pair.votes > 0))


if __name__ == "__main__":
    main()
