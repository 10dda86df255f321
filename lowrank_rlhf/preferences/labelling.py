"""Ranking by single keys: what each key does to a half-made order. No terminal in here."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum

from lowrank_rlhf.errors import UserError, visible
from lowrank_rlhf.preferences.store import Item
from lowrank_rlhf.run.records import Ranking

LABELS = "123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The keys of the answers in the order in which they are shown."""

FLAGS = {"1": "unsure", "2": "prompt unclear", "3": "all answers bad", "4": "harmful"}
"""What a ranking can be marked with, under the key that follows `f`."""

SHORT_FLAGS = {"b": "all answers bad", "!": "harmful"}
"""Those of them that have a key of their own. With one of these there need be no order."""

LONGEST_NAME = 100

_TAKE_BACK = ("u", "\b", "\x7f")
_ENTER = ("\r", "\n")


class Command(Enum):
    """What a key can ask for that is more than a change of the order."""

    SAVE = "save"
    SKIP = "skip"
    UNDO_SAVED = "undo saved"
    HELP = "help"
    QUIT = "quit"


_COMMANDS = {"s": Command.SKIP, "h": Command.HELP, "?": Command.HELP, "q": Command.QUIT}


@dataclass(frozen=True)
class Refusal:
    """A key that does nothing here, and why. `kind` and `names` are for those who say it in another language."""

    why: str
    kind: str = field(default="", compare=False)
    names: str = field(default="", compare=False)


@dataclass(frozen=True)
class Draft:
    """A half-made order of `answers` answers, which are named by their place on the screen, from 0.

    `tied`: the next answer joins the last tier. `flagging`: the next key names a flag. `before`: the draft that the
    last key changed. `may_stop`: answers may be left without a place; they stand below the others. `written`: a better
    answer by the annotator; with one there need be no order.
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
        """The answers that have no place yet."""
        placed = {answer for tier in self.tiers for answer in tier}
        return [answer for answer in range(self.answers) if answer not in placed]


def press(draft: Draft, key: str) -> Draft | Command | Refusal:
    """What a key makes of a draft; never an invalid order. Full-width digits and signs count as the plain ones."""
    key = unicodedata.normalize("NFKC", key)
    if not _names_an_answer(draft, key):
        key = key.lower()  # capitals are commands, too
    if key in _TAKE_BACK:
        return draft.before or Command.UNDO_SAVED
    if key in _COMMANDS:
        return _COMMANDS[key]
    if draft.flagging:
        return _flag(draft, key)
    if key == "f":
        return replace(draft, flagging=True, before=draft)
    if key in _ENTER:
        return _finish(draft)
    if key == "=":
        return _tie(draft)
    if key in SHORT_FLAGS:
        return _toggle(draft, SHORT_FLAGS[key])
    return _place(draft, key)


def _flag(draft: Draft, key: str) -> Draft | Refusal:
    if key not in FLAGS:
        return Refusal(f"{flag_keys()}; u takes the f back", "flag")
    return _toggle(draft, FLAGS[key])


def _toggle(draft: Draft, flag: str) -> Draft:
    flags = tuple(other for other in draft.flags if other != flag) if flag in draft.flags else (*draft.flags, flag)
    return replace(draft, flags=flags, flagging=False, before=draft)


def _finish(draft: Draft) -> Command | Refusal:
    if draft.tied:
        return Refusal("= waits for the answer that is just as good; u takes it back", "tie waits")
    no_order_needed = draft.written.strip() or set(draft.flags) & set(SHORT_FLAGS.values())
    if draft.left and not (draft.may_stop if draft.tiers else no_order_needed):
        return Refusal(f"not placed yet: {_names(draft.left)}", "not placed", _names(draft.left))
    return Command.SAVE


def _tie(draft: Draft) -> Draft | Refusal:
    if not draft.tiers:
        return Refusal("= ties an answer to the one before it: place one first", "tie first")
    if draft.tied:
        return Refusal("= is there already", "tie twice")
    if not draft.left:
        return Refusal("every answer has its place: Enter saves, u takes back", "full")
    return replace(draft, tied=True, before=draft)


def _place(draft: Draft, key: str) -> Draft | Refusal:
    if not _names_an_answer(draft, key):
        if key.isdigit():
            last = LABELS[draft.answers - 1]
            return Refusal(f"there is no answer {key}; they are {LABELS[0]} to {last}", "no answer", key)
        name = key if len(key) == 1 and key.isprintable() and not key.isspace() else "that key"
        return Refusal(f"{name} does nothing here; h shows the keys", "no key", key)
    answer = LABELS.index(key)
    if answer not in draft.left:
        return Refusal(f"{key} has its place already; u takes the last key back", "placed", key)
    tiers = (*draft.tiers[:-1], (*draft.tiers[-1], answer)) if draft.tied else (*draft.tiers, (answer,))
    return replace(draft, tiers=tiers, tied=False, before=draft)


def type_all(draft: Draft, keys: Iterable[str]) -> Draft:
    """The draft after these keys. Raises `ValueError` for one that `press` would not take into a draft."""
    for key in keys:
        result = press(draft, key)
        if not isinstance(result, Draft):
            raise ValueError(f"{key!r} is no key for {describe(draft)}")
        draft = result
    return draft


def keys_of(tiers: Iterable[Iterable[int]]) -> list[str]:
    """The keys that place answers, named by their place on the screen, in these tiers."""
    return [key for tier in tiers for key in "=".join(LABELS[answer] for answer in tier)]


def describe(draft: Draft) -> str:
    """One line: `2 > 1 = 3 > _   left: 4   flags: unsure`."""
    order = " > ".join(" = ".join(LABELS[answer] for answer in tier) for tier in draft.tiers)
    open_place = (" = _" if draft.tied else " > _" if draft.tiers else "_") if draft.left else ""
    parts = [f"{order}{open_place}"]
    if draft.left:
        parts.append(f"left: {_names(draft.left)}")
    if draft.flags:
        parts.append(f"flags: {', '.join(visible(flag) for flag in draft.flags)}")
    if draft.flagging:
        parts.append(flag_keys())
    return "   ".join(parts)


def flag_keys() -> str:
    """`flag: 1 unsure, 2 prompt unclear, ...`."""
    return "flag: " + ", ".join(f"{key} {flag}" for key, flag in FLAGS.items())


def _names_an_answer(draft: Draft, key: str) -> bool:
    return len(key) == 1 and key in LABELS[: draft.answers]


def _names(answers: list[int]) -> str:
    return ", ".join(LABELS[answer] for answer in answers)


def ranking_of(draft: Draft, item: Item, annotator: str, seconds: float | None = None) -> Ranking:
    """The ranking that a draft stands for. Raises `ValueError` for one that `press` would not let save.

    Of several answers without a place the ranking says that they are worse than the others; one alone is simply last.
    """
    if not isinstance(_finish(draft), Command) or draft.answers != len(item.answers):
        raise ValueError(f"not a finished order of {len(item.answers)} answers: {describe(draft)}")
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
    )


def draft_of(ranking: Ranking, item: Item, may_stop: bool = False) -> Draft:
    """A draft that stands for a ranking of this item, ready to be taken back key by key.

    The answers keep the order in which `item` shows them, whatever order the ranking was made in.
    """
    draft = Draft(len(item.answers), flags=ranking.flags, may_stop=may_stop, written=ranking.written or "")
    return type_all(draft, keys_of([[item.shown.index(name) for name in tier] for tier in ranking.named_tiers]))


def annotator_name(name: str) -> str:
    """A name to keep rankings under, without spaces around it. Raises `UserError` for one that is none."""
    if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
        raise UserError(f"{visible(name)!r} is no name: it needs letters, {LONGEST_NAME} characters at most")
    return name.strip()
