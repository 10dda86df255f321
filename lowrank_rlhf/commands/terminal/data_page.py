"""Output of `data inspect`: figures, histograms of lengths, examples."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from lowrank_rlhf.data.inspection import Figures, Leakage, shown_examples
from lowrank_rlhf.data.lengths import Bin, Lengths, OverContext, Words
from lowrank_rlhf.data.loading import Loaded
from lowrank_rlhf.data.readers.rows import counted
from lowrank_rlhf.errors import visible
from lowrank_rlhf.run.records import Message
from lowrank_rlhf.sources.tokenizer import ChatTokenizer

_BAR = 40
_SHOWN_PROBLEMS = 10
_SHOWN_CHARACTERS = 600


@dataclass(frozen=True)
class Shown:
    """One example as the model reads it: the prompt, and each trained text by its kind."""

    where: str
    prompt: str
    trained: dict[str, str]


@dataclass(frozen=True)
class Page:
    """Results of `data inspect`, in the order of its JSON."""

    source: str
    format: str
    why: str
    ignored: list[str]
    prompts_split_off: bool
    """True if every answer began with its prompt, which was split off."""
    figures: Figures
    held_out: Leakage | None
    unit: str
    prompt_lengths: Lengths | None
    answer_lengths: Lengths | None
    over_context: OverContext
    problems: list[str]
    refusals: list[str]
    """Error messages of a run with this tokenizer about rows that are otherwise valid."""
    examples: list[Shown]


def rendered_examples(loaded: Loaded, model: ChatTokenizer | None) -> list[Shown]:
    """Return two examples through the chat template or, without a model, as turns with their roles."""
    shown = []
    for row, example in shown_examples(loaded):
        prompt = model.render(example.prompt) if model else _plain(example.prompt)
        texts = {"response": example.response} if example.response is not None else {}
        if example.pairs:
            texts |= dict(zip(("chosen", "rejected"), example.pairs[0], strict=True))
        trained = {name: _with_end(text, model) for name, text in texts.items() if text is not None}
        shown.append(Shown(row.where, prompt, trained))
    return shown


def _with_end(answer: str, model: ChatTokenizer | None) -> str:
    """Return the answer as it is trained, with the token that ends it once."""
    return model.control_tokens.response(answer) + model.end if model else answer


def print_page(page: Page) -> None:
    """Print the page for people."""
    console = Console(highlight=False)

    def say(line: str | Text = "") -> None:
        console.print(visible(line) if isinstance(line, str) else line, markup=False, soft_wrap=True)

    say(f"{page.source}: {page.format}, because {page.why}")
    if page.ignored:
        say(f"ignored: {', '.join(page.ignored)}")
    if page.prompts_split_off:
        say("every answer began with its prompt, which was split off")
    say()
    rows = list(_rows(page))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        say(f"{name:<{width}}  {text}")
    for title, lengths in (("prompts", page.prompt_lengths), ("responses and answers", page.answer_lengths)):
        if lengths:
            say()
            for line in _histogram(title, page.unit, lengths):
                say(line)
    for shown in page.examples:
        say()
        say(f"{shown.where}, {'trained tokens between [[ and ]]' if shown.trained else 'a prompt without a response'}:")
        say(_marked(shown))
    if page.problems:
        say()
        say(f"{counted(len(page.problems), 'bad row')}:")
        for problem in page.problems[:_SHOWN_PROBLEMS]:
            say(f"  {problem}")
    for refusal in page.refusals:
        say()
        say("A run with this tokenizer would refuse the file:")
        for line in refusal.splitlines():
            say(f"  {line}")


def _rows(page: Page) -> Iterator[tuple[str, str]]:
    found, total = page.figures, max(1, page.figures.rows - page.figures.bad_rows)
    yield "rows", f"{found.rows:,}" + (f", {found.bad_rows:,} of them bad (below)" if found.bad_rows else "")
    yield "prompts", f"{found.prompts:,} different"
    yield "multi-turn", f"{found.multi_turn:,} ({found.multi_turn / total:.0%})"
    yield "duplicates", f"{counted(found.repeated_prompts, 'row')} repeat a prompt, {found.repeated_rows:,} a whole row"
    if page.held_out:
        places = f": {'; '.join(page.held_out.places)}" if page.held_out.places else ""
        yield "held out", f"{counted(page.held_out.prompts, 'prompt')} in both files{places}"
    preferred = " (the preferred answers)" if found.comparisons and found.demonstrations else ""
    yield "demonstrations", f"{found.demonstrations:,}{preferred}"
    undecided = ", ".join(f"{reason}: {count:,}" for reason, count in found.undecided.items())
    ordered = f" from {counted(found.rankings, 'ranking')}" if found.rankings else ""
    yield "comparisons", f"{found.comparisons:,}{ordered}" + (f" (left out: {undecided})" if undecided else "")
    if found.balance:
        yield (
            "first answer wins",
            f"{found.balance.first_wins:.1%} (by chance {found.balance.expected:.1%}), ties {found.balance.ties:.1%}",
        )
    if found.longer_wins:
        low, high = found.longer_wins.interval
        yield (
            "longer answer wins",
            f"{found.longer_wins.share:.1%}, 95 % interval {low:.1%} to {high:.1%}, "
            f"of {counted(found.longer_wins.comparisons, 'comparison')} of unequal length",
        )
    over = page.over_context
    unit = page.unit if page.unit == Words.unit else "tokens"
    yield (
        f"over {over.max_length:,} {unit}",
        f"{counted(over.prompts, 'prompt')}, {counted(over.with_answer, 'row')} with the longest answer",
    )


def _histogram(title: str, unit: str, lengths: Lengths) -> Iterator[str]:
    yield (
        f"{title}, in {unit}: {lengths.smallest:,} to {lengths.largest:,}, median {lengths.median:,.0f}, "
        f"95 % up to {lengths.p95:,.0f}"
    )
    names = [f"{each.low:,}{_up_to(each)}" for each in lengths.bins]
    most = max(each.count for each in lengths.bins)
    for name, each in zip(names, lengths.bins, strict=True):
        bar = "#" * -(-each.count * _BAR // most)
        yield f"  {name:>{max(map(len, names))}}  {bar:<{_BAR}}  {each.count:,}"


def _up_to(each: Bin) -> str:
    if each.high is None:
        return "+"
    return f"-{each.high:,}" if each.high > each.low else ""


def _marked(shown: Shown) -> Text:
    text = Text(visible(_cut(shown.prompt)), style="dim")
    if len(shown.trained) == 1:
        text.append(f"[[{visible(_cut(*shown.trained.values()))}]]", style="not dim bold green")
        return text
    for name, answer in shown.trained.items():
        text.append(f"\n  {name}: ", style="not dim")
        text.append(f"[[{visible(_cut(answer))}]]", style=f"not dim bold {'red' if name == 'rejected' else 'green'}")
    return text


def _cut(text: str) -> str:
    """Return a text with its middle cut out if it is long."""
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    half = _SHOWN_CHARACTERS // 2
    return f"{text[:half]} (... {len(text) - 2 * half:,} characters ...) {text[-half:]}"


def _plain(prompt: tuple[Message, ...]) -> str:
    return "".join(f"{message.role}: {message.content}\n" for message in prompt) + "assistant: "
