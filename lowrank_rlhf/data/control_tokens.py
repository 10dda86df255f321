"""Find rows that the chat template rejects or renders wrongly: control tokens, turns, thoughts. Imports no torch."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.comparisons import ComparisonData
from lowrank_rlhf.data.loading import Located
from lowrank_rlhf.data.prompts import PromptData
from lowrank_rlhf.data.readers.rows import counted
from lowrank_rlhf.data.turns import Turns
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.records import Demonstration
from lowrank_rlhf.sources.chat_template import ASKED, ChatTemplate, TemplateRefuses
from lowrank_rlhf.sources.control_tokens import ControlTokens

_SHOWN = 5
_FIX = (
    "Such a token would begin or end a turn. Remove it, or set data.control_tokens=escape, which puts a space after "
    "its first character"
)

_EMPTY_THOUGHTS = re.compile(r"<think>\s*</think>\s*\Z")
_THOUGHTS_FIX = (
    "This template ends a prompt with an empty <think></think>, which these responses would follow. Remove the "
    "thoughts from these rows, or set model.chat_template to a template whose prompts end before <think>"
)
_TEMPLATE_FIX = "Change or delete these rows, or set another template as model.chat_template"


def check_control_tokens(
    prompts: PromptData | None, comparisons: ComparisonData | None, tokens: ControlTokens, config: Config
) -> list[str]:
    """Return notes on control tokens in prompts and responses.

    Raises `UserError` with the rows of prompts that contain one, unless `data.control_tokens` is `escape`.
    """
    found = _with_control_tokens(_prompts(prompts, comparisons, config), tokens)
    if found and config.data.control_tokens == "refuse":
        raise UserError(_control_token_text(found))
    notes = [f"Escaped the control tokens in {counted(len(found), 'prompt')}; the first: {found[0]}."] if found else []
    answers = [row.response for row in prompts.demonstrations] if prompts else []
    answers += [answer.text for answer in comparisons.answers] if comparisons else []
    if ended := sum(tokens.response(answer) != answer for answer in answers):
        notes.append(f"Removed {tokens.end} from the end of {counted(ended, 'response')}: it is added to each.")
    inside = sum(tokens.found([{"role": "assistant", "content": answer}]) is not None for answer in answers)
    if inside:
        notes.append(f"Control tokens in {counted(inside, 'response')} are read as text.")
    return notes


def check_rendering(
    prompts: PromptData | None,
    comparisons: ComparisonData | None,
    template: ChatTemplate,
    tokens: ControlTokens,
    config: Config,
) -> None:
    """Raise `UserError` with the rows of prompts that the chat template rejects, such as a tool's result."""
    if problem := _rendering_problem(_prompts(prompts, comparisons, config), template, tokens):
        raise UserError(problem)


def check_thoughts(
    demonstrations: Sequence[Demonstration],
    places: Mapping[str, str],
    comparisons: ComparisonData | None,
    template: ChatTemplate,
    config: Config,
) -> None:
    """Raise `UserError` with the rows whose response has thoughts, if prompts end with an empty think block (Qwen3).

    `places` has file and line of each demonstration's prompt by its id.
    """
    rows = [(places[row.prompt.id], row.response) for row in demonstrations]
    if comparisons:
        rows += [(_place(answer.prompt_id, config), answer.text) for answer in comparisons.answers]
    if problem := _thoughts_problem(rows, template):
        raise UserError(problem)


def refusals(located: Sequence[Located], template: ChatTemplate, tokens: ControlTokens) -> list[str]:
    """Return the error messages with which a run would refuse these rows.

    The template must render every prompt.
    """
    prompts = [(row.where, example.prompt) for row, example in located]
    answers = [
        (row.where, text)
        for row, example in located
        for text in (example.response, *example.answers)
        if text is not None
    ]
    found = _with_control_tokens(prompts, tokens)
    problems = (_control_token_text(found) if found else None, _thoughts_problem(answers, template))
    return [problem for problem in problems if problem]


def _with_control_tokens(prompts: Iterable[tuple[str, Turns]], tokens: ControlTokens) -> list[str]:
    """Return place and first control token of each prompt that contains one."""
    found = ((where, tokens.found([message.model_dump() for message in turns])) for where, turns in prompts)
    return [f"{where}: {token}" for where, token in found if token]


def _control_token_text(found: Sequence[str]) -> str:
    return _listed(f"{counted(len(found), 'prompt')} with a control token of the model:", found, _FIX)


def _rendering_problem(
    prompts: Iterable[tuple[str, Turns]], template: ChatTemplate, tokens: ControlTokens
) -> str | None:
    found = []
    for where, turns in prompts:
        try:
            template.render(tokens.escaped([message.model_dump() for message in turns]))
        except TemplateRefuses as error:
            found.append(f"{where}: {error}")
    title = f"The chat template rejects {counted(len(found), 'prompt')}:"
    return _listed(title, found, _TEMPLATE_FIX) if found else None


def _thoughts_problem(responses: Iterable[tuple[str, str]], template: ChatTemplate) -> str | None:
    if not _EMPTY_THOUGHTS.search(template.render([ASKED])):
        return None
    found = list(dict.fromkeys(where for where, text in responses if text.lstrip().startswith("<think>")))
    title = f"{counted(len(found), 'row')} with a response that begins with <think>:"
    return _listed(title, found, _THOUGHTS_FIX) if found else None


def _listed(title: str, found: Sequence[str], fix: str) -> str:
    more = [f"and {len(found) - _SHOWN:,} more"] if len(found) > _SHOWN else []
    return "\n  ".join([title, *found[:_SHOWN], *more]) + f"\n{fix}"


def _prompts(
    prompts: PromptData | None, comparisons: ComparisonData | None, config: Config
) -> Iterator[tuple[str, Turns]]:
    """Yield the prompts with their places."""
    found = {prompt.id: prompt for prompt in [*prompts.training, *prompts.held_out]} if prompts else {}
    for name, where in prompts.places.items() if prompts else []:  # in the file's order
        yield f"{where} ({name})", found[name].messages
    for prompt in comparisons.prompts if comparisons else []:
        yield _place(prompt.id, config), prompt.messages


def _place(prompt: str, config: Config) -> str:
    """Return the place of a compared prompt by its id."""
    return f"{config.rank.dataset}, row {int(prompt[1:])}"
