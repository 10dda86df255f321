"""An evaluation as text for a terminal or a file."""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowrank_rlhf.data.readers.rows import counted
from lowrank_rlhf.evaluation.answer_pair import REWARD_MODEL
from lowrank_rlhf.reports.benchmarks import harness_table, reward_bench_table
from lowrank_rlhf.reports.format import Table as ReportTable
from lowrank_rlhf.reports.format import judge_in_words, number, number_interval, percent, percent_interval, points
from lowrank_rlhf.reports.locale import ENGLISH
from lowrank_rlhf.run.results.benchmarks import HarnessResult, RewardBenchResult

WIDTH = 100
SHOWN = 4
"""Number of prompts whose pairs of answers are printed."""
LONGEST_NAME = 12
"""Longest model name in the table's columns; a longer one would leave no room for the figures."""
_RULE = "-" * WIDTH


def evaluation_text(result: Mapping[str, Any]) -> str:
    """Return a match's headline, figures and sample answers, and the reward model's tests, as far as measured."""
    parts = []
    if match := result["match"]:
        parts += [_headline(match), _figures(match), *_warnings(match["notes"]), _answers(match)]
    if accuracy := result["accuracy"]:
        parts += [_accuracy(accuracy)]
    if scores := result["reward_bench"]:
        parts += [_table(reward_bench_table(RewardBenchResult.model_validate(scores), ENGLISH))]
    if figures := result["benchmarks"]:
        parts += [_table(harness_table(HarnessResult.model_validate(figures), ENGLISH))]
    return "\n\n".join(parts) + "\n"


def _headline(match: Mapping[str, Any]) -> str:
    judge = match["decided_by"]
    who = judge_in_words(None if judge == REWARD_MODEL else judge)
    pairs = counted(match["prompts"], "prompt")
    ties = f"{counted(match['ties'], 'tie')} among them, counting half. " if match["ties"] else ""
    if match["answers_per_prompt"] > 1:
        pairs += f" with {match['answers_per_prompt']} pairs of answers each"
    return _folded(
        f"{_plain(match['right'])} against {_plain(match['left'])} on {pairs} ({match['prompts_from']}): "
        f"{who} prefers {_plain(match['right'])} in {percent(match['win_rate'])} of the pairs"
        f"{percent_interval(match['win_rate_interval'])}; "
        f"at equal length, in {percent(match['length_controlled_win_rate'])}"
        f"{percent_interval(match['length_controlled_interval'])}. "
        f"{ties}KL(right || left): {number(match['kl_per_answer'])} nats per answer"
        f"{number_interval(match['kl_interval'])}."
    )


def _figures(match: Mapping[str, Any]) -> str:
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for side in ("left", "right"):
        name = _plain(match[side])
        table.add_column(Text(f"{side}: {name}" if len(name) <= LONGEST_NAME else side), justify="right")
    table.add_column("")
    for row in match["table"]:
        values = [percent(row[side]) if row["share"] else number(row[side]) for side in ("left", "right")]
        table.add_row(Text(_plain(row["figure"])), *values, Text(_plain(row["note"])))
    return _drawn(table)


def _warnings(notes: Sequence[str]) -> list[str]:
    return [_folded(f"Note: {_plain(note)}.") for note in notes]


def _answers(match: Mapping[str, Any]) -> str:
    """Show the first prompts in order, with one answer of each side."""
    rows = match["answers"][:: match["answers_per_prompt"]][:SHOWN]
    lines = ["The first prompts, in order:"]
    for row in rows:
        table = Table(box=None, pad_edge=False, expand=True)
        for side in ("left", "right"):
            table.add_column(Text(f"{side.upper()}: {_plain(match[side])}"), ratio=1)
        table.add_row(*(Text(_plain(row[side])) for side in ("left", "right")))
        table.add_row(*(Text(f"[{_scores(row, side)}]") for side in ("left", "right")))
        lines += [_RULE, _folded(f"Prompt: {_plain(row['prompt'])}"), "", _drawn(table)]
    return "\n".join(lines)


def _scores(row: Mapping[str, Any], side: str) -> str:
    parts = [f"{row[f'tokens_{side}']} tokens"]
    if "judge_prefers" in row:
        parts.append({side: "preferred", "tie": "tie"}.get(row["judge_prefers"], "not preferred"))
    names = {"judge": "judge", "score": REWARD_MODEL}
    parts += [f"{name} {number(row[f'{key}_{side}'])}" for key, name in names.items() if f"{key}_{side}" in row]
    if f"spread_{side}" in row:
        parts.append(f"members differ by {number(row[f'spread_{side}'])}")
    return ", ".join(parts)


def _accuracy(accuracy: Mapping[str, Any]) -> str:
    table = Table("", "right", "95 % interval", box=None, pad_edge=False)
    for key, name in (("accuracy", "the reward model"), ("longer_wins", "the longer answer wins")):
        low, high = (f"{100 * end:.1f}" for end in accuracy[f"{key}_interval"])
        table.add_row(name, f"{100 * accuracy[key]:.1f} %", f"{low} to {high} %")
    low, high = map(points, accuracy["over_length_interval"])
    table.add_row("difference to the better rule by length", points(accuracy["over_length"]), f"{low} to {high}")
    if members := accuracy["member_accuracies"]:
        low, high = (f"{100 * share:.1f}" for share in (min(members), max(members)))
        table.add_row(f"its {len(members)} members alone", f"{low} to {high} %", "")
    left_out = f"{counted(accuracy['ties'], 'tie')} left out"
    if accuracy["too_long"]:
        left_out += f", and {counted(accuracy['too_long'], 'comparison')} too long for model.max_length"
    lines = [
        f"Reward model on {_plain(accuracy['file'])}: {counted(accuracy['comparisons'], 'comparison')} "
        f"of {counted(accuracy['prompts'], 'prompt')}; {left_out}."
    ]
    if accuracy["verdict"]:
        lines.append(f"WARNING: {accuracy['verdict']}.")
    return "\n".join(
        [*map(_folded, lines), "", _drawn(table), "", *(_folded(_plain(note)) for note in accuracy["notes"])]
    )


def _table(found: ReportTable) -> str:
    table = Table(*found.header, box=None, pad_edge=False)
    for row in found.rows:
        table.add_row(*map(Text, row))
    return "\n".join([found.title, "", _folded(_plain(found.lead)), "", _drawn(table)])


def _plain(text: str) -> str:
    """Replace control characters, which could control the terminal, by spaces."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def _folded(text: str) -> str:
    """Wrap into lines of at most `WIDTH`; a number and its % stay together."""
    return _drawn(Text(text.replace(" %", "\N{NO-BREAK SPACE}%"))).replace("\N{NO-BREAK SPACE}", " ")


def _drawn(content: Table | Text) -> str:
    """Render as rich would print it, `WIDTH` columns wide, as plain text without trailing spaces."""
    console = Console(file=StringIO(), width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(content)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
