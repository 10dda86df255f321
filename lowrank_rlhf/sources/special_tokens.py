"""Which token ends an answer, and which can fill up rows, told from what a chat template renders. Imports no torch."""

from collections.abc import Collection, Iterable

ASKED = {"role": "user", "content": "What is the capital of France?"}
_ANSWER = "Paris is the capital of France."
ANSWERED = (ASKED, {"role": "assistant", "content": _ANSWER})
"""A conversation for a template to show what it puts after the assistant's words."""


def end_of_turn(rendered: str, tokens: Iterable[str]) -> str | None:
    """The one of the special `tokens` that the template puts right after an answer; None where it puts none.

    `rendered` is `ANSWERED` as the template renders it. White space between the two is the template's own (Llama 2).
    """
    _, found, after = rendered.rpartition(_ANSWER)
    after = after.lstrip()
    following = [token for token in tokens if token and after.startswith(token)] if found else []
    return max(following, key=len, default=None)


def choose_padding(tokens: Collection[str], unknown: str | None, used: str) -> str | None:
    """The one of the special `tokens` that fits best for filling up rows; None where all of them occur in `used`.

    One that was made for it comes first (Llama 3 calls its own <|finetune_right_pad_id|>), then <|endoftext|>, then the
    unknown token, then those that are reserved, then any.
    """

    def rank(token: str) -> int:
        name = token.lower()
        kinds = ("pad" in name, name == "<|endoftext|>", token == unknown, "reserved" in name or "unused" in name)
        return kinds.index(True) if True in kinds else len(kinds)

    return min((token for token in tokens if token and token not in used), key=rank, default=None)
