"""Conversations kept in the browser over a reload, one for each run, and as files."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from lowrank_rlhf.dashboard.browser.storage import with_storage
from lowrank_rlhf.dashboard.talk.chat_session import ChatSession, system_message
from lowrank_rlhf.dashboard.talk.votes import stored_votes
from lowrank_rlhf.evaluation.speakers import speaker_name
from lowrank_rlhf.preferences.export_file import comparisons_to_jsonl

_MAX_CHARACTERS = 200_000
"""Of a kept conversation; its oldest questions go first."""
_KEPT_RUNS = 8
_MOST = 10**9
"""Of a number in it."""
# In memory only what the storage refused, blocked or full: another tab may have changed the rest.
_CONVERSATIONS = """const kept = {
    ...stored((storage) => JSON.parse(storage.getItem('lowrank-talks'))), ...window.talkKept};"""
KEEP = with_storage(f"""(text) => {{
  if (!text) return;
  {_CONVERSATIONS}
  const {{run, turns}} = JSON.parse(text);
  delete kept[run];
  if (turns.length) kept[run] = text;
  for (const old of Object.keys(kept).slice(0, -{_KEPT_RUNS})) delete kept[old];
  const refused = stored((storage) => storage.setItem('lowrank-talks', JSON.stringify(kept))) === null;
  window.talkKept = refused ? kept : null;
}}""")
"""Script that keeps a conversation, the text of `kept`, as the one of its run."""
FETCH = with_storage(f"""(run, language) => {{
  {_CONVERSATIONS}
  const same = window.talkRun === run, translated = same && window.talkLanguage !== language;
  const voting = translated && Boolean(document.querySelector('#votes button'));
  if (!same) window.talkSettings = {{}};
  [window.talkRun, window.talkLanguage] = [run, language];
  const text = Object.hasOwn(kept, run) ? kept[run] : '';
  return [JSON.stringify({{run, text, voting, settings: window.talkSettings}}), language];
}}""")
"""Script that replaces a run's name by JSON: the name, the kept text, `voting`, True if a vote is asked for and only
the language is another one, and `settings`, the values of `KEEP_SETTING`."""
KEEP_SETTING = "(value) => { (window.talkSettings ||= {})['%s'] = value; }"
"""Script that keeps a person's value of a field until another run is chosen."""
DOWNLOAD = """(given) => {
  if (!given) return;
  const {name, text} = JSON.parse(given), link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/jsonl'}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}"""
"""Script that saves the file of `conversation_file` or `votes_file`."""


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore")

    text: str
    tokens: int = Field(0, ge=0, le=_MOST)
    """Of an answer that a reload interrupted none are known."""
    finished: bool = False
    stopped: bool = True
    score: FiniteFloat | None = None
    spread: FiniteFloat | None = None
    dropped: int = Field(0, ge=0, le=_MOST)


class _Failed(BaseModel):
    model_config = ConfigDict(extra="ignore")

    text: str
    error: str
    kind: str


class _Kept(BaseModel):
    run: str
    identity: str
    turns: list[tuple[str, dict[str, _Failed | _Answer]]]
    system: str
    attempt: int = Field(ge=0, le=_MOST)
    editing: bool


def kept(session: ChatSession, run: Path) -> str:
    """Return the text that the browser keeps of a conversation; not that it is a blind vote, which a reload ends."""
    fields = asdict(session) | {"identity": _identity(run)}
    del fields["asked_at"], fields["hidden"]
    while len(text := json.dumps(fields)) > _MAX_CHARACTERS and fields["turns"]:
        del fields["turns"][0]
    return text


def restored(text: str, run: Path) -> ChatSession:
    """Return a kept conversation; an empty one for another run's, and for a text that is not one."""
    empty = ChatSession(run=run.name)
    if not 0 < len(text) <= _MAX_CHARACTERS:
        return empty
    try:
        found = _Kept.model_validate_json(text)
        for voice in (voice for _, said in found.turns for voice in said):
            speaker_name(voice)
    except (ValidationError, KeyError):
        return empty
    if (found.run, found.identity) != (run.name, _identity(run)) or not found.turns:
        return empty
    turns = [
        (question, {voice: answer.model_dump() for voice, answer in said.items()}) for question, said in found.turns
    ]
    return ChatSession(found.run, turns, (), found.system, found.attempt, found.editing)


def conversation_file(session: ChatSession) -> str:
    """Return a file of the conversation: a row of `messages` for each model. Empty without an answer."""
    begin = system_message(session.system)
    said = [(voice, session.messages(voice)) for voice in session.voices]
    rows = [{"messages": [*begin, *turns], "model": voice, "run": session.run} for voice, turns in said if turns]
    return _file(f"{session.run}-talk.jsonl", rows)


def votes_file(run: Path) -> str:
    """Return a file of the run's blind votes as comparisons; ties are not in it. Empty without one."""
    votes = stored_votes(run)
    text = comparisons_to_jsonl(votes) if votes else ""
    return _file(f"{run.name}-votes.jsonl", [json.loads(line) for line in text.splitlines()])


def _file(name: str, rows: Sequence[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return json.dumps({"name": name, "text": text}) if rows else ""


def _identity(run: Path) -> str:
    """Return a text that differs from that of another run of the same name: its folder, and when it was started."""
    try:
        with (run / "events.jsonl").open("rb") as file:
            first = file.readline(1000)
    except OSError:
        first = b""
    return hashlib.sha256(str(run.resolve()).encode() + b"\n" + first).hexdigest()[:16]
