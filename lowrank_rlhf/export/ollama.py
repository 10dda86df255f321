"""An Ollama Modelfile for an exported model: its chat template in Go's language, and the sampling settings of `chat`.

Jinja cannot be translated in general, so the template is made from what it renders: the text before and after each
turn. It is used only where it then renders a longer conversation exactly as the original does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.sources.chat_template import TemplateRefuses

Turn = dict[str, str]
Render = Callable[[Sequence[Turn], bool], str]
"""A conversation as text: up to where the next answer begins, or with True to the end of its last turn."""

_SYSTEM, _ASKED, _ANSWERED, _AGAIN = (
    {"role": role, "content": content}
    for role, content in (
        ("system", "The instruction."),
        ("user", "The first question."),
        ("assistant", "The first answer."),
        ("user", "The second question."),
    )
)


@dataclass(frozen=True)
class _Pieces:
    """Fixed texts that a chat template writes around the turns."""

    head: str
    """Before a conversation without a system turn."""
    turns: dict[str, tuple[str, str]]
    """Texts before and after a turn's content, by role; no `system` if the template takes none."""
    answer: str
    """Text before the next answer."""

    def written(self, messages: Sequence[Turn]) -> str:
        """Render the conversation, up to where the next answer begins."""
        head = "" if messages[0]["role"] == "system" else self.head
        spoken = (self.turns[turn["role"]][0] + turn["content"] + self.turns[turn["role"]][1] for turn in messages)
        return head + "".join(spoken) + self.answer


class _Irregular(ValueError):
    """The template does more than write fixed texts around turns."""


def modelfile(
    render: Render, added: str, eos: str, config: Config, model: str = ".", adapter: str | None = None
) -> str:
    """Return the text of a `Modelfile` for the folder that it is in.

    It has no TEMPLATE if the chat template cannot be written in Go's language: Ollama then looks for one it knows.
    `model` and `adapter` are paths from there: a folder or a GGUF file, and the GGUF file of an adapter.
    `added` is the token that Ollama's tokenizer puts before a text, if any: it is left out once, at the beginning.
    """
    template = _go_template(render, added)
    lines = [
        "# ollama create my-model -f Modelfile",
        f"FROM {model}",
        *([f"ADAPTER {adapter}"] if adapter else []),
        f'TEMPLATE """{template}"""' if template else "# The chat template cannot be written in Ollama's language.",
        f'PARAMETER stop "{eos}"',
        f"PARAMETER num_ctx {config.model.max_length}",
        f"PARAMETER num_predict {config.sample.max_new_tokens}",
        f"PARAMETER temperature {config.chat_temperature:g}",
        f"PARAMETER top_p {config.chat.top_p:g}",
        "# The rest is off, as in the run.",
        "PARAMETER top_k 0",
        "PARAMETER min_p 0",
        "PARAMETER repeat_penalty 1",
    ]
    return "\n".join(lines) + "\n"


def _go_template(render: Render, added: str) -> str | None:
    try:
        pieces = _without_first(_pieces(render), added)
    except (TemplateRefuses, _Irregular):
        return None
    head, turns = pieces.head, pieces.turns
    fixed = [head, pieces.answer, *(text for pair in turns.values() for text in pair)]
    if any("{{" in text or '"""' in text for text in fixed):
        return None
    cases = [
        f'{{{{ {"else if" if index else "if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
        for index, (role, (before, after)) in enumerate(turns.items())
    ]
    begin = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{head}{{{{ end }}}}' if head else ""
    return f"{begin}{{{{ range .Messages }}}}{''.join(cases)}{{{{ end }}}}{{{{ end }}}}{pieces.answer}"


def _without_first(pieces: _Pieces, added: str) -> _Pieces:
    """Return the pieces without the token that the tokenizer adds, which begins the conversation.

    Only the head and a system turn begin it. Raises `_Irregular` if one of them lacks the token: a conversation would
    begin with one token too many.
    """
    if not added:
        return pieces
    turns = dict(pieces.turns)
    if "system" in turns:
        before, after = turns["system"]
        turns["system"] = (_without(added, before), after)
    return _Pieces(_without(added, pieces.head), turns, pieces.answer)


def _pieces(render: Render) -> _Pieces:
    """Find the pieces by rendering a few known conversations. Raises `_Irregular` or the template's own error."""
    _, after_user = _between(render([_ASKED], True), _ASKED)
    *_, after_answer = _between(render([_ASKED, _ANSWERED], True), _ASKED, _ANSWERED)
    conversation = (_ASKED, _ANSWERED, _AGAIN)
    first, middle, second, last = _between(render(conversation, False), *conversation)
    before_user = _without(after_answer, second)
    head = first.removesuffix(before_user)
    turns = {"user": (before_user, after_user), "assistant": (_without(after_user, middle), after_answer)}
    pieces = _Pieces(head, turns, _without(after_user, last))
    longer = [*conversation, _ANSWERED, _ASKED]
    if pieces.written(longer) != render(longer, False):
        raise _Irregular
    return _with_system(pieces, render, longer)


def _with_system(pieces: _Pieces, render: Render, conversation: Sequence[Turn]) -> _Pieces:
    """Add the system turn, if the template takes one and writes it as a separate turn."""
    messages = [_SYSTEM, *conversation]
    try:
        rendered = render(messages, False)
        before, between, _ = _between(rendered, _SYSTEM, _ASKED)[:3]
    except (TemplateRefuses, _Irregular):
        return pieces
    system = (before, between.removesuffix(pieces.turns["user"][0]))
    found = _Pieces(pieces.head, {"system": system, **pieces.turns}, pieces.answer)
    return found if found.written(messages) == rendered else pieces


def _between(text: str, *turns: Turn) -> list[str]:
    """Return the texts before, between and after the contents of the turns."""
    parts = []
    for turn in turns:
        before, found, text = text.partition(turn["content"])
        if not found:
            raise _Irregular
        parts.append(before)
    return [*parts, text]


def _without(prefix: str, text: str) -> str:
    if not text.startswith(prefix):
        raise _Irregular
    return text.removeprefix(prefix)
