"""Checks of a chat template before any work: it renders each turn, and answers follow its generation prompt."""

import json
import re
from collections.abc import Mapping, Sequence

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.sources.chat_template import ANSWERED, ASKED, ChatTemplate, LeavesOut, TemplateRefuses

_ANSWER = str(ANSWERED[1]["content"])
_SYSTEM = {"role": "system", "content": "Be brief."}
_SECOND = {"role": "user", "content": "And which river flows through it?"}
_MORE = (("several rounds", "several", (*ANSWERED, _SECOND)), ("system messages", "one", (_SYSTEM, ASKED)))
_NO_THOUGHTS = re.compile(r"\s*(<think>\s*</think>\s*)?")
_FIX = "Set another in the config"
_SHOWN = 60


class BadTemplate(UserError):
    """Error of a chat template that is missing, or that cannot be used."""

    def __init__(self, problem: str):
        super().__init__(f"model.chat_template: {problem}")
        self.problem = problem


def check_template(template: ChatTemplate, whose: str, first: str) -> tuple[ChatTemplate, list[str]]:
    """Return the template with a complete generation prompt, and notes on it.

    `whose` names the template in messages. `first` is the token that has to begin a text, such as `<bos>`; empty if
    there is none. Raises `BadTemplate` for one that fails, leaves out a turn, or does not write the first token
    exactly once.
    """
    asked = _rendered(template, whose, "a user's question", [ASKED])
    found, notes = _completed(template, whose, asked), []
    for what, which, messages in _MORE:
        try:
            _check_generation_prompt(found, whose, messages)
        except LeavesOut as error:
            raise BadTemplate(f"{whose} {error} of a conversation with {what}. {_FIX}") from None
        except TemplateRefuses as error:
            notes.append(f"{whose} rejects {what} ({error}): prompts with {which} are an error")
    bos = template.named.get("bos_token")
    if bos and asked.startswith(bos * 2):
        raise BadTemplate(f"{whose} begins with {bos} twice. {_FIX}")
    if not asked.startswith(first):
        raise BadTemplate(
            f"{whose} does not begin with {first}, the first token of every text of this model. "
            "Begin it with {{ bos_token }}"
        )
    return found, notes


def named_template(config: ModelConfig) -> str:
    """Return the name of the config's template in messages."""
    return "this template" if config.chat_template else f"the template of {config.source}"


def missing_template(config: ModelConfig) -> str:
    """Return the message for a model without a template."""
    return f"{config.source} has no chat template. Set one in the config, as presets/quickstart.yaml does"


def first_token(own: ChatTemplate | None, bos: str | None, added: str) -> str:
    """Return `bos` if it has to begin a text: the model's own template, or without one its tokenizer, writes it.

    `added` is the token that the tokenizer puts before a text.
    """
    if not bos:
        return ""
    if own is None:
        return bos if added == bos else ""
    try:
        return bos if own.render([ASKED]).startswith(bos) else ""
    except TemplateRefuses:
        return ""


def _rendered(
    template: ChatTemplate, whose: str, what: str, messages: Sequence[Mapping[str, str]], answered: bool = False
) -> str:
    try:
        return template.render(messages, answered)
    except LeavesOut as error:
        raise BadTemplate(f"{whose} {error}. {_FIX}") from None
    except TemplateRefuses as error:
        raise BadTemplate(f"{whose} cannot render {what} ({error}). {_FIX}") from None


def _completed(template: ChatTemplate, whose: str, asked: str) -> ChatTemplate:
    """Return a template whose generation prompt is all that it writes between a question and an answer.

    Some write none, and some only a part: Qwen3's own writes an empty think block before a recorded answer. Without it
    an answer would be trained after another text than in the template's own conversations.
    """
    before, _, _ = _rendered(template, whose, "an answer", ANSWERED, answered=True).rpartition(_ANSWER)
    missing = before.removeprefix(asked) if before.startswith(asked) else ""
    if not missing.strip():  # Llama 2's space before an answer is no part of the prompt
        _check_same(asked, before, whose)
        return template
    # A variable, not a block: transformers trims white space around blocks. Jinja drops one line end at the very end.
    added = f"{{{{ {json.dumps(missing, ensure_ascii=False)} if add_generation_prompt else '' }}}}"
    return ChatTemplate(template.text.removesuffix("\n") + added, template.named)


def _check_generation_prompt(template: ChatTemplate, whose: str, asked: Sequence[Mapping[str, str]]) -> None:
    answer = {"role": "assistant", "content": "It is the Seine."}
    before, _, _ = template.render([*asked, answer], answered=True).rpartition(answer["content"])
    _check_same(template.render(asked), before, whose)


def _check_same(asked: str, before: str, whose: str) -> None:
    """Raise `BadTemplate` if the prompt is not the text before a recorded answer, or that with an empty think block."""
    start = before.rstrip()
    if asked.startswith(start) and _NO_THOUGHTS.fullmatch(asked.removeprefix(start)):
        return
    pairs = enumerate(zip(asked, before, strict=False))
    same = next((i for i, (one, other) in pairs if one != other), min(len(asked), len(before)))
    raise BadTemplate(
        f"{whose} writes {asked[same:][:_SHOWN]!r} before an answer to generate, but "
        f"{before[same:][:_SHOWN]!r} before a recorded one, so answers would be trained in the wrong place. {_FIX}"
    )
