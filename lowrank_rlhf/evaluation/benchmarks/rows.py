"""Read the rows of RewardBench and RewardBench 2 in their published form.

RewardBench (`allenai/reward-bench`, split `filtered`; prior sets from `allenai/preference-test-sets`): `prompt`,
`chosen`, `rejected` and `subset`, the prompt also as a list of turns. RewardBench 2 (`allenai/reward-bench-2`): `id`,
`prompt`, `subset`, and the lists `chosen` and `rejected`. Their other columns are not needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lowrank_rlhf.data.readers.rows import Row, any_text_field, list_field, listed, text_field
from lowrank_rlhf.data.readers.sources import read_rows
from lowrank_rlhf.data.turns import prompt_turns
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.evaluation.benchmarks.scoring import SECTIONS, SECTIONS_2, TIES, is_reference, question_of
from lowrank_rlhf.run.records import Prompt
from lowrank_rlhf.run.results.benchmarks import Benchmark

_SHOWN_PROBLEMS = 5
_SUBSETS: Mapping[Benchmark, list[str]] = {
    "RewardBench": [subset for subsets in SECTIONS.values() for subset in subsets],
    "RewardBench 2": list(SECTIONS_2),
}


@dataclass(frozen=True)
class BenchmarkRow:
    """Prompt with the answers to score; the first `correct` of them are correct answers."""

    subset: str
    prompt: Prompt
    answers: tuple[str, ...]
    correct: int


@dataclass(frozen=True)
class BenchmarkData:
    """Rows of one of the benchmarks, read from `source`."""

    source: str
    benchmark: Benchmark
    rows: list[BenchmarkRow]


def read_reward_bench(source: str) -> BenchmarkData:
    """Read the rows of either benchmark from a file or a `hub:` data set; lists of chosen answers are RewardBench 2's.

    Raises `UserError` with line and key of the first bad rows.
    """
    read = read_rows(source)
    first = next((row for row in read if isinstance(row, Row)), None)
    several = first is not None and isinstance(first.fields.get("chosen"), list)
    benchmark: Benchmark = "RewardBench 2" if several else "RewardBench"
    rows, problems = [], []
    for row in read:
        if not isinstance(row, Row):
            problems.append(row.problem)
            continue
        try:
            rows.append(_row_of_2(row) if several else _row_of_1(row))
        except UserError as error:
            problems += error.parts
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        raise UserError(*problems[:_SHOWN_PROBLEMS], *([f"and {more} more bad rows"] if more > 0 else []))
    if not rows:
        raise UserError(f"{source}: no rows. Expected those of RewardBench or RewardBench 2")
    return BenchmarkData(source, benchmark, rows)


def _row_of_1(row: Row) -> BenchmarkRow:
    _require(row, "prompt", "chosen", "rejected", "subset")
    name = str(row.fields.get("id", row.number))
    turns = prompt_turns(row, "prompt", row.fields["prompt"])
    answers = tuple(any_text_field(row, key, row.fields[key]) for key in ("chosen", "rejected"))
    return BenchmarkRow(_subset(row, "RewardBench"), Prompt(id=name, messages=turns), answers, 1)


def _row_of_2(row: Row) -> BenchmarkRow:
    _require(row, "id", "prompt", "chosen", "rejected", "subset")
    name, subset = text_field(row, "id", row.fields["id"]), _subset(row, "RewardBench 2")
    turns = prompt_turns(row, "prompt", row.fields["prompt"])
    chosen, rejected = (
        [
            any_text_field(row, f"{key}[{place}]", text)
            for place, text in enumerate(list_field(row, key, row.fields[key]))
        ]
        for key in ("chosen", "rejected")
    )
    if subset == TIES and not (question_of(name) and name.startswith(("ref:", "tied:"))):
        raise UserError(f'{row.where}: id is "{name}"; in the subset {TIES} it must be ref:N or tied:N')
    several = subset == TIES and not is_reference(name)
    if several != (len(chosen) > 1):
        expected = "at least 2" if several else "1"
        raise UserError(f"{row.where}: chosen must have {expected} of the answers in row {name}, not {len(chosen)}")
    return BenchmarkRow(subset, Prompt(id=name, messages=turns), (*chosen, *rejected), len(chosen))


def _require(row: Row, *keys: str) -> None:
    if missing := [key for key in keys if key not in row.fields]:
        raise UserError(f"{row.where}: {listed(missing)} not found. Keys found: {listed(row.fields)}")


def _subset(row: Row, benchmark: Benchmark) -> str:
    """Return the name as `SECTIONS` and `SECTIONS_2` spell it."""
    name = text_field(row, "subset", row.fields["subset"])
    known = {subset.casefold(): subset for subset in _SUBSETS[benchmark]}
    if name.casefold() not in known:
        raise UserError(
            f'{row.where}: subset is "{name}", which {benchmark} does not have. '
            f"Expected one of {', '.join(known.values())}"
        )
    return known[name.casefold()]
