"""Server side of the ranking page: applies the annotator's steps and returns the next screen; the page only draws.

A draft is kept in the browser alone, as the keys that made it, and is sent with every request: the server keeps no
state between requests, so it may be restarted at any moment.
"""

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lowrank_rlhf.dashboard import wording
from lowrank_rlhf.dashboard.ranking.disputes import decided_words, disputes_words, undecided_words
from lowrank_rlhf.dashboard.ranking.figures import figures_words
from lowrank_rlhf.dashboard.ranking.markdown import tree
from lowrank_rlhf.dashboard.ranking.request import OF_OWNER, RankingRequest
from lowrank_rlhf.dashboard.ranking.screen import Reply, draft_words, item_words, progress_words
from lowrank_rlhf.dashboard.ranking.team import team_words
from lowrank_rlhf.dashboard.ranking.text import nothing_to_rank_text, say
from lowrank_rlhf.errors import Fault, UserError
from lowrank_rlhf.preferences.labelling import (
    KEYS,
    LABELS,
    Action,
    Command,
    Draft,
    Refusal,
    draft_of,
    keys_of,
    press,
    ranking_of,
    type_all,
)
from lowrank_rlhf.preferences.overview import overview
from lowrank_rlhf.preferences.project import NothingToRank, NothingToRankReason, Project, open_project
from lowrank_rlhf.preferences.store import Item
from lowrank_rlhf.preferences.team.exclusion import exclude, is_excluded
from lowrank_rlhf.run.records import Ranking


def sign(secret: bytes, run: str, annotator: str) -> dict[str, str]:
    """Return a signed badge for an annotator's page."""
    return {"run": run, "annotator": annotator, "signature": _signature(secret, run, annotator)}


def _signature(secret: bytes, run: str, annotator: str) -> str:
    return hmac.new(secret, json.dumps([run, annotator]).encode(), hashlib.sha256).hexdigest()


def ranking_handler(runs: Path, secret: bytes, owner: bool = False) -> Callable[..., Reply]:
    """Return the function that applies a step of the page; `owner`: for the page of the run's owner.

    Its second argument is the name of the visitor's login, if there is one: only this annotator's badge is accepted.
    """

    def rank(sent: Any, user: str = "") -> Reply:
        try:
            request = RankingRequest.model_validate(sent)
        except ValidationError:
            return {"error": "invalid request; reload the page"}
        badge = request.badge
        if not hmac.compare_digest(badge.signature, _signature(secret, badge.run, badge.annotator)):
            return {"error": say("error.badge", request.language)}
        if user and user.casefold() != badge.annotator.casefold():  # as `AnnotationStore.spelling` compares names
            return {"error": say("error.login", request.language, name=user)}
        try:
            return RankingSession(open_project(run_folder(runs, badge.run)), request, owner).answer()
        except UserError as error:
            return {"error": error_text(error, request.language, owner)}

    return rank


def error_text(error: UserError, language: str, owner: bool) -> str:
    """Return the message of an error; annotators get none that may name files and commands of the server."""
    if isinstance(error, RefusedStep):
        return str(error)
    if not owner:
        return say("error.store", language)
    return (
        nothing_to_rank_text(error, language)
        if isinstance(error, NothingToRank)
        else wording.error_text(error, language)
    )


def run_folder(runs: Path, name: str) -> Path:
    """Return the folder of a run. Raises `UserError` for a name that leads out of the runs' folder."""
    if not name:
        raise NothingToRank("Choose a run first", NothingToRankReason.NO_RUN)
    if name in (".", "..") or Path(name).name != name:
        raise UserError(Fault("invalid_run", "invalid run name: {name}", name=repr(name)))
    if not (runs / name).is_dir():
        raise NothingToRank(f"{runs / name}: run not found", NothingToRankReason.NO_RUN)
    return runs / name


class RefusedStep(UserError):
    """A step that contradicts the screen; the message is in the annotator's language."""


class RankingSession:
    """State of one request: project, annotator, language."""

    def __init__(self, project: Project, request: RankingRequest, owner: bool) -> None:
        self._project, self._store, self._request, self._owner = project, project.store, request, owner
        self._annotator, self._language = request.badge.annotator, request.language

    def answer(self) -> Reply:
        """Apply the step and return the content to draw."""
        request = self._request
        if request.do == "figures":
            found = overview(self._project, self._owner)
            return {"figures": figures_words(found, self._project, self._language, self._owner)}
        if request.do in OF_OWNER:
            return self._for_owner()
        if is_excluded(self._store, self._annotator):
            return self._screen(None)
        if request.do == "renew":
            if request.prompt_id is not None:
                self._store.renew(self._annotator, request.prompt_id, request.done)
            return {}
        if request.do == "open":
            return self._open()
        if request.prompt_id is None:
            return self._nothing_on_the_screen()
        item = self._store.item(self._annotator, request.prompt_id)
        if item.done != request.done:  # ranked in another window meanwhile
            return self._next(say("notice.elsewhere", self._language))
        draft = self._draft(item)
        if request.do == "arrange":
            return self._arranged(item)
        return self._pressed(item, draft)

    def _for_owner(self) -> Reply:
        request = self._request
        if not self._owner:
            raise RefusedStep(say("error.keys", self._language))
        if request.do == "team":
            return team_words(self._project, request.team, self._annotator, self._language)
        if request.do in ("exclude", "restore"):
            exclude(self._store, request.annotator, request.do == "exclude")
            return {}
        if request.do == "decide":
            return decided_words(self._project, request.prompt_id or "", request.key, self._annotator, self._language)
        if request.do == "undecide":
            return undecided_words(self._project, request.prompt_id or "", self._language)
        return disputes_words(self._project, self._language)

    def _open(self) -> Reply:
        """Return the item on the screen if it has a draft or a better answer, else the next one."""
        request = self._request
        has_draft = request.keys or request.flags or request.written.strip()
        if request.prompt_id is not None and has_draft:
            item = self._store.item(self._annotator, request.prompt_id)
            if item.done == request.done:  # if another annotator has leased it meanwhile, both rankings count
                self._store.renew(self._annotator, request.prompt_id, request.done)
                return self._screen(item, self._draft(item), request.keys)
        return self._screen(self._project.next_item(self._annotator))

    def _draft(self, item: Item) -> Draft:
        request = self._request
        start = Draft(len(item.answers), flags=tuple(request.flags), may_stop=True, written=request.written)
        try:
            return type_all(start, request.keys)
        except ValueError:
            raise RefusedStep(say("error.keys", self._language)) from None

    def _arranged(self, item: Item) -> Reply:
        """Turn moved or clicked cards into the keys that give the same order."""
        request = self._request
        named = [answer for tier in request.tiers for answer in tier]
        if len(set(named)) != len(named) or not all(0 <= answer < len(item.answers) for answer in named):
            raise RefusedStep(say("error.keys", self._language))
        flags = self._draft(item).flags
        start = Draft(len(item.answers), flags=flags, may_stop=True, written=request.written)
        keys = keys_of(tier for tier in request.tiers if tier)
        return {"flags": list(flags)} | self._drawn(type_all(start, keys), keys)

    def _pressed(self, item: Item, draft: Draft) -> Reply:
        result = press(draft, self._request.key)
        if isinstance(result, Refusal):
            return self._drawn(draft, self._request.keys) | {"refused": self._why(result)}
        if isinstance(result, Draft):
            undone = result == draft.before and len(self._request.keys) > 0 and self._request.key not in LABELS
            keys = self._request.keys[:-1] if undone else [*self._request.keys, self._request.key]
            return self._drawn(result, keys)
        match result:
            case Command.SAVE:
                seconds = round(self._request.seconds, 1)
                ranking = ranking_of(draft, item, self._annotator, seconds, self._seen_guidelines())
                ranking = ranking.model_copy(update={"unread": self._unread(item)})
                saved = self._store.save(ranking, item.done)
                return self._next(say("notice.saved" if saved else "notice.elsewhere", self._language))
            case Command.SKIP:
                self._store.skip(self._annotator, item.prompt.id)
                return self._next(say("notice.skipped", self._language))
            case Command.UNDO_SAVED if draft.written.strip():
                return self._drawn(draft, self._request.keys) | {"refused": say("refused.written", self._language)}
            case Command.UNDO_SAVED:
                return self._undo(draft)
        return self._drawn(draft, self._request.keys)

    def _undo(self, draft: Draft | None) -> Reply:
        step = self._store.undo(self._annotator)
        if step is None:
            refused = {"refused": say("refused.nothing_to_undo", self._language)}
            return (self._drawn(draft, self._request.keys) if draft else self._screen(None)) | refused
        back = self._store.item(self._annotator, step.prompt_id)
        if not isinstance(step, Ranking):
            return self._screen(back) | {"notice": say("notice.unskipped", self._language)}
        old = draft_of(step, back, may_stop=True)
        keys = keys_of(old.tiers)
        read = [place for place, name in enumerate(back.shown) if name not in step.unread]
        return self._screen(back, old, keys) | {"notice": say("notice.undone", self._language), "read": read}

    def _nothing_on_the_screen(self) -> Reply:
        if self._request.key.lower() in KEYS[Action.UNDO]:
            return self._undo(None)
        if self._request.key.lower() in KEYS[Action.SKIP]:
            self._store.unskip(self._annotator)
            return self._next(say("notice.all_unskipped", self._language))
        return self._screen(None)

    def _next(self, notice: str) -> Reply:
        return self._screen(self._project.next_item(self._annotator)) | {"notice": notice}

    def _screen(self, item: Item | None, draft: Draft | None = None, keys: list[str] | None = None) -> Reply:
        """Return a whole screen: an item with its draft, and the progress."""
        if item and len(item.answers) > len(LABELS):
            text = "prompt {prompt!r} has {count} answers; the maximum is {most}"
            fault = Fault("many_answers", text, prompt=item.prompt.id, count=len(item.answers), most=len(LABELS))
            raise UserError(fault)
        draft = draft or replace(Draft(len(item.answers) if item else 0), may_stop=True)
        return {
            "item": item_words(item) if item else None,
            "flags": list(draft.flags) if not keys or keys is not self._request.keys else self._request.flags,
            "written": draft.written,
            "excluded": say("end.excluded", self._language) if is_excluded(self._store, self._annotator) else "",
            "progress": progress_words(self._project, self._annotator, self._language, self._owner),
            **self._guidelines(),
            **self._drawn(draft, keys or []),
        }

    def _guidelines(self) -> Reply:
        """Return the guidelines if the page does not show the current ones."""
        current = self._project.shown_guidelines()
        if current is None:
            return {"guidelines": None}
        if current.version == self._request.guidelines:
            return {}
        return {"guidelines": {"version": current.version, "text": tree(current.text)}}

    def _seen_guidelines(self) -> str | None:
        """Return the version on the annotator's screen, which may be older than the current one."""
        version = self._request.guidelines
        if version and version not in {known.version for known in self._store.guidelines()}:
            raise RefusedStep(say("error.keys", self._language))
        return version or None

    def _unread(self, item: Item) -> tuple[str, ...]:
        """Return the ids of the answers whose end the annotator has not seen."""
        places = sorted(set(self._request.unread))
        if places and not 0 <= places[0] <= places[-1] < len(item.answers):
            raise RefusedStep(say("error.keys", self._language))
        return tuple(item.shown[place] for place in places)

    def _drawn(self, draft: Draft, keys: list[str]) -> Reply:
        return {"keys": keys, "draft": draft_words(draft, self._language)}

    def _why(self, refusal: Refusal) -> str:
        return say(f"refused.{refusal.kind}", self._language, names=refusal.names, answers=refusal.answers)
