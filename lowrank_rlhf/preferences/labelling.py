"""Ranking by single keys: the effect of each key on a draft, for terminal and page; no texts for people."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, StrEnum

from lowrank_rlhf.errors import Fault, UserError, visible
from lowrank_rlhf.preferences.store import Item
from lowrank_rlhf.run.records import Ranking

LABELS = "123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The keys of the answers in the order in which they are shown."""

FLAGS = {"1": "unsure", "2": "prompt unclear", "3": "all answers bad", "4": "harmful"}
"""Flags of a ranking, as they are stored, under the key that follows `f`."""

SHORT_FLAGS = {"b": "all answers bad", "!": "harmful"}
"""Flags that have their own key. A ranking with one of them needs no order."""

LONGEST_NAME = 100


class Action(StrEnum):
    """Action of a key that names neither an answer nor a flag."""

    TIE = "tie"
    SAVE = "save"
    UNDO = "undo"
    SKIP = "skip"
    FLAG = "flag"
    HELP = "help"
    QUIT = "quit"


KEYS = {
    Action.TIE: ("=",),
    Action.SAVE: ("\r", "\n"),
    Action.UNDO: ("u", "\b", "\x7f"),
    Action.SKIP: ("s",),
    Action.FLAG: ("f",),
    Action.HELP: ("h", "?"),
    Action.QUIT: ("q",),
}
"""Keys of each action, for terminal and page. Help texts name the first one."""

_ACTIONS = {key: action for action, keys in KEYS.items() for key in keys}


class Command(Enum):
    """Request of a key that is more than a change of the order."""

    SAVE = "save"
    SKIP = "skip"
    UNDO_SAVED = "undo saved"
    HELP = "help"
    QUIT = "quit"


_COMMANDS = {Action.SKIP: Command.SKIP, Action.HELP: Command.HELP, Action.QUIT: Command.QUIT}


class RefusalKind(StrEnum):
    """Reason for which a key has no effect. Terminal and page have a text for each."""

    NOT_PLACED = "not_placed"
    TIE_OPEN = "tie_open"
    TIE_FIRST = "tie_first"
    TIE_TWICE = "tie_twice"
    ALL_PLACED = "all_placed"
    NO_ANSWER = "no_answer"
    UNKNOWN_KEY = "unknown_key"
    PLACED = "placed"
    NO_FLAG = "no_flag"


@dataclass(frozen=True)
class Refusal:
    """A key without effect; `names`: the answers or the key that the reason is about."""

    kind: RefusalKind
    names: str = ""
    answers: int = 0
    """Number of answers on the screen, for a key that names none of them."""


@dataclass(frozen=True)
class Draft:
    """A partial order of `answers` answers, which are numbered by their position on the screen, from 0.

    `tied`: the next answer joins the last tier. `flagging`: the next key names a flag. `before`: the draft that the
    last key changed. `may_stop`: answers may stay unplaced; they rank below the others. `written`: a better answer by
    the annotator; a ranking with one needs no order.
    """

    answers: int
    tiers: tuple[tuple[int, ...], ...] = ()
    flags: tuple[str, ...] = ()
    tied: bool = False
    flagging: bool = False
    before: "Draft | None" = None
    may_stop: bool = False
    written: str = ""

    @property
    def left(self) -> list[int]:
        """Answers not placed yet."""
        placed = {answer for tier in self.tiers for answer in tier}
        return [answer for answer in range(self.answers) if answer not in placed]


def press(draft: Draft, key: str) -> Draft | Command | Refusal:
    """Apply a key to a draft; never gives an invalid order. Full-width digits and signs count as the plain ones."""
    key = unicodedata.normalize("NFKC", key)
    if not _names_an_answer(draft, key):
        key = key.lower()  # capitals are commands, too
    action = _ACTIONS.get(key)
    if action is Action.UNDO:
        return draft.before or Command.UNDO_SAVED
    if action in _COMMANDS:
        return _COMMANDS[action]
    if draft.flagging:
        return _flag(draft, key)
    if action is Action.FLAG:
        return replace(draft, flagging=True, before=draft)
    if action is Action.SAVE:
        return _finish(draft)
    if action is Action.TIE:
        return _tie(draft)
    if key in SHORT_FLAGS:
        return _toggle(draft, SHORT_FLAGS[key])
    return _place(draft, key)


def _flag(draft: Draft, key: str) -> Draft | Refusal:
    if key not in FLAGS:
        return Refusal(RefusalKind.NO_FLAG)
    return _toggle(draft, FLAGS[key])


def _toggle(draft: Draft, flag: str) -> Draft:
    flags = tuple(other for other in draft.flags if other != flag) if flag in draft.flags else (*draft.flags, flag)
    return replace(draft, flags=flags, flagging=False, before=draft)


def _finish(draft: Draft) -> Command | Refusal:
    if draft.tied:
        return Refusal(RefusalKind.TIE_OPEN)
    no_order_needed = draft.written.strip() or set(draft.flags) & set(SHORT_FLAGS.values())
    if draft.left and not (draft.may_stop if draft.tiers else no_order_needed):
        return Refusal(RefusalKind.NOT_PLACED, labels(draft.left))
    return Command.SAVE


def _tie(draft: Draft) -> Draft | Refusal:
    if not draft.tiers:
        return Refusal(RefusalKind.TIE_FIRST)
    if draft.tied:
        return Refusal(RefusalKind.TIE_TWICE)
    if not draft.left:
        return Refusal(RefusalKind.ALL_PLACED)
    return replace(draft, tied=True, before=draft)


def _place(draft: Draft, key: str) -> Draft | Refusal:
    if not _names_an_answer(draft, key):
        return (
            Refusal(RefusalKind.NO_ANSWER, key, draft.answers)
            if key.isdigit()
            else Refusal(RefusalKind.UNKNOWN_KEY, key)
        )
    answer = LABELS.index(key)
    if answer not in draft.left:
        return Refusal(RefusalKind.PLACED, key)
    tiers = (*draft.tiers[:-1], (*draft.tiers[-1], answer)) if draft.tied else (*draft.tiers, (answer,))
    return replace(draft, tiers=tiers, tied=False, before=draft)


def type_all(draft: Draft, keys: Iterable[str]) -> Draft:
    """Return the draft after these keys. Raises `ValueError` for a key that does not give a draft."""
    for key in keys:
        result = press(draft, key)
        if not isinstance(result, Draft):
            raise ValueError(f"key {key!r} does not change the order {draft.tiers}")
        draft = result
    return draft


def keys_of(tiers: Iterable[Iterable[int]]) -> list[str]:
    """Return the keys that place answers, numbered by their position on the screen, in these tiers."""
    return [key for tier in tiers for key in KEYS[Action.TIE][0].join(LABELS[answer] for answer in tier)]


def _names_an_answer(draft: Draft, key: str) -> bool:
    return len(key) == 1 and key in LABELS[: draft.answers]


def labels(answers: Iterable[int]) -> str:
    """Return the keys of some answers: `1, 2, 3`."""
    return ", ".join(LABELS[answer] for answer in answers)


def ranking_of(
    draft: Draft, item: Item, annotator: str, seconds: float | None = None, guidelines: str | None = None
) -> Ranking:
    """Return the ranking that a draft describes. Raises `ValueError` for one that cannot be saved yet.

    Several unplaced answers are worse than the others and not compared with each other; a single one is simply last.
    """
    if not isinstance(_finish(draft), Command) or draft.answers != len(item.answers):
        raise ValueError(f"not a finished order of {len(item.answers)} answers: {draft.tiers}")
    tiers = (*draft.tiers, tuple(draft.left)) if draft.tiers and draft.left else draft.tiers
    return Ranking(
        prompt_id=item.prompt.id,
        tiers=tuple(tuple(item.shown[answer] for answer in tier) for tier in tiers),
        annotator=annotator,
        seconds=seconds,
        flags=draft.flags,
        shown=item.shown,
        partial=bool(draft.tiers) and len(draft.left) > 1,
        written=draft.written.strip() or None,
        guidelines=guidelines,
    )


def draft_of(ranking: Ranking, item: Item, may_stop: bool = False) -> Draft:
    """Return the draft of a ranking of this item, which can be undone key by key.

    The answers keep the order in which `item` shows them, whatever order they had before.
    """
    draft = Draft(len(item.answers), flags=ranking.flags, may_stop=may_stop, written=ranking.written or "")
    return type_all(draft, keys_of([[item.shown.index(name) for name in tier] for tier in ranking.named_tiers]))


def annotator_name(name: str) -> str:
    """Return an annotator's name without spaces around it. Raises `UserError` for an invalid name."""
    if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
        text = "not a valid name: {name!r}. Use 1 to {longest} printable characters"
        raise UserError(Fault("invalid_name", text, name=visible(name), longest=LONGEST_NAME))
    return name.strip()
