"""`chat --lines`: a run's models for another program, as JSON lines on stdin and stdout.

First comes `{"ready": true, "voices": [...], ...}`. A request is one line:

    {"as": "policy", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_new_tokens": 9, "seed": 1}

All keys but `messages` are optional, `top_p` too; a system prompt is the first message. The reply is
`{"piece": "Hel"}` as the text grows and, at the end,
`{"answer": {"as", "text", "tokens", "finished", "stopped", "score"}, "dropped": 0}`, where `dropped` counts the oldest
turns that did not fit; or `{"error": "...", "kind": "too_long"}` with a message for people and a kind for programs
(`ErrorKind`). The answers of a reward model with several members have a `spread`. `{"stop": true}` stops the current
answer. At the end of stdin the program exits after the last answer.
"""

import json
import queue
import sys
import threading
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lowrank_rlhf.commands.terminal.chat_loop import Settings, fit
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.records import Message

if TYPE_CHECKING:
    from lowrank_rlhf.evaluation.chat import ChatAnswer, ChatModels


ErrorKind = Literal["invalid_request", "no_model", "too_long", "failed"]


class ChatRefused(UserError):
    """Request that cannot be answered."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class ChatRequest(BaseModel):
    """One line of stdin."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    speaks: str | None = Field(None, alias="as")
    messages: list[Message] = Field(min_length=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    max_new_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0)


def serve(models: "ChatModels", settings: Settings) -> None:
    """Answer requests until the end of stdin."""
    stop, requests = threading.Event(), queue.Queue[str | None]()
    threading.Thread(target=_listen, args=(sys.stdin, requests, stop), daemon=True).start()
    about = {key: getattr(settings, key) for key in ("temperature", "top_p", "max_new_tokens", "seed")}
    _say(ready=True, voices=list(settings.voices), about_scores=models.about_scores, **about)
    for line in iter(requests.get, None):
        stop.clear()
        try:
            request = ChatRequest.model_validate_json(line)
            answer, dropped = _answer(models, settings, request, stop)
        except ValidationError as error:
            first = error.errors()[0]
            message = f"{'.'.join(map(str, first['loc'])) or 'request'}: {first['msg']}"
            _say_error("invalid_request", message)
        except ChatRefused as error:
            _say_error(error.kind, str(error))
        except UserError as error:
            _say_error("failed", str(error))
        else:
            _say(answer=answer_json(answer) | {"stopped": answer.stopped}, dropped=dropped)


def answer_json(answer: "ChatAnswer") -> dict[str, Any]:
    """Return an answer as JSON."""
    return {
        "as": answer.model,
        "text": answer.text,
        "tokens": answer.tokens,
        "finished": answer.finished,
        "score": answer.score,
        **({} if answer.spread is None else {"spread": answer.spread}),
    }


def _answer(
    models: "ChatModels", settings: Settings, request: ChatRequest, stop: threading.Event
) -> "tuple[ChatAnswer, int]":
    from lowrank_rlhf.evaluation.chat import ChatSampling

    voice = request.speaks or settings.speaks
    if voice not in settings.voices:
        raise ChatRefused("no_model", f"as: this run has no {voice}; it has {', '.join(settings.voices)}")
    most = request.max_new_tokens or settings.max_new_tokens
    limit = settings.max_prompt_tokens + settings.max_new_tokens - most
    kept, prompt = fit(models, request.messages, limit)
    if prompt is None:
        message = f"messages: too long; {max(limit, 0)} tokens fit with an answer of {most}"
        raise ChatRefused("too_long", message)

    def on_text(piece: str) -> None:
        _say(piece=piece)
        if stop.is_set():
            raise KeyboardInterrupt  # ends the answer, as in the terminal

    temperature = settings.temperature if request.temperature is None else request.temperature
    seed = settings.seed if request.seed is None else request.seed
    sampling = ChatSampling(most, temperature, seed, request.top_p or settings.top_p)
    answer = models.answer(voice, prompt, sampling, on_text)
    return answer, len(request.messages) - len(kept)


def _listen(lines: IO[str], requests: "queue.Queue[str | None]", stop: threading.Event) -> None:
    for line in _lines(lines):
        if line.strip() == '{"stop": true}':
            stop.set()
        elif line.strip():
            requests.put(line)
    requests.put(None)


def _lines(lines: IO[str]) -> Iterator[str]:
    try:
        yield from lines
    except (UnicodeError, ValueError):
        return


def _say_error(kind: ErrorKind, message: str) -> None:
    _say(error=message, kind=kind)


def _say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()
