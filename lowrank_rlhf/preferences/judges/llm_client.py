"""A chat model behind an OpenAI-compatible server, asked one question at a time, patiently, and its key kept secret."""

import json
import os
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests

from lowrank_rlhf.config.endpoint import EndpointConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.progress import StopRequest

LONGEST_BACKOFF = 60.0
LONGEST_RETRY_AFTER = 600.0
"""Seconds; a server that asks for more, such as one whose daily quota is spent, ends the stage instead."""
MOST_BYTES = 1_000_000
_RETRIED = (408, 425, 429)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SAVED = "every verdict so far is saved"
_WORTH_TELLING = 5.0  # seconds
_SLICE = 0.2  # seconds between looks at the stop request while waiting


class Reply(NamedTuple):
    """The assistant's message, and whether `max_tokens` cut it short."""

    text: str
    cut: bool


class _Failure(NamedTuple):
    """Why an attempt gave no answer, and for how many seconds the server asked to be left alone."""

    reason: str
    retry_after: float | None = None


class ChatClient:
    """Sends chat completions to `settings.url`, at temperature 0, and no faster than `requests_per_minute`."""

    def __init__(
        self, settings: EndpointConfig, stop: StopRequest, say: Callable[[str], None], backoff_seconds: float = 1.0
    ) -> None:
        self.settings = settings
        self.requests = 0
        """Sent by this process, the repeated ones included."""
        self._stop, self._say, self._backoff = stop, say, backoff_seconds
        self._address = f"{settings.url.rstrip('/')}/chat/completions"
        self._key = _key(settings.api_key_variable)
        self._session = requests.Session()
        self._session.trust_env = urlsplit(settings.url).hostname not in _LOOPBACK  # a proxy would look on its own host
        self._free_at = 0.0

    def ask(self, question: str) -> Reply:
        """The model's reply to one user message.

        Raises `Stopped` between attempts when a stop was requested, and `UserError` for an answer that no repetition
        will mend, or when `max_attempts` have failed.
        """
        body = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self.settings.max_tokens,
            "stream": False,
        }
        attempt = 1
        while True:
            self._take_turn()
            found = self._attempt(body)
            if isinstance(found, Reply):
                return found
            if attempt == self.settings.max_attempts:
                raise UserError(
                    f"{self._address}: {found.reason}, in the last of {attempt} attempts. Is the server up, and "
                    f"`rank.endpoint.url` right? {_SAVED.capitalize()}; the same command goes on from there."
                )
            pause = self._pause(attempt, found.retry_after)
            if pause > _WORTH_TELLING:
                self._say(f"  {found.reason}; asking again in {pause:.0f} s")
            self._wait(pause)
            attempt += 1

    def clean(self, text: str, most: int = 300) -> str:
        """What a server said, fit to be shown: one line, no control characters, not too long, and never the key."""
        if self._key:
            text = text.replace(self._key, "***")
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return line if len(line) <= most else f"{line[: most - 3]}..."

    def _attempt(self, body: dict[str, Any]) -> Reply | _Failure:
        self.requests += 1
        try:
            response, content = self._post(body)
        except requests.exceptions.SSLError:
            raise UserError(f"{self._address}: its certificate cannot be verified, or it speaks no TLS") from None
        except requests.Timeout:
            return _Failure(f"no answer within {self.settings.timeout_seconds:g} s")
        except requests.RequestException as error:
            return _Failure(f"no connection ({_system_reason(error)})")
        status = response.status_code
        if status == 200:
            return self._reply(content)
        said = self.clean(_server_message(content))
        failure = f"HTTP {status} {self.clean(response.reason or '')}".rstrip() + (f": “{said}”" if said else "")
        if status in _RETRIED or status >= 500:
            return _Failure(failure, _retry_after(response.headers.get("Retry-After")))
        raise UserError(f"{self._address}: {failure}. {self._what_to_check(response)}")

    def _post(self, body: dict[str, Any]) -> tuple[requests.Response, bytes]:
        """The response and its body. Redirects are not followed: the key is for this host alone."""
        give_up = time.monotonic() + self.settings.timeout_seconds
        with self._session.post(
            self._address,
            json=body,
            auth=self._authorise,
            timeout=self.settings.timeout_seconds,
            allow_redirects=False,
            stream=True,
        ) as response:
            content = b""
            for part in response.iter_content(1024):
                content += part
                if len(content) > MOST_BYTES:
                    raise UserError(
                        f"{self._address}: the answer is longer than {MOST_BYTES:,} bytes; is it a chat API?"
                    )
                if time.monotonic() > give_up:
                    raise requests.Timeout
        return response, content

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """As an `auth` of its own it also keeps requests from sending a password out of ~/.netrc."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _reply(self, content: bytes) -> Reply | _Failure:
        answer = _json_object(content)
        try:
            choice = answer["choices"][0]
            # A model that thinks first may have spent all its tokens on that: then there is no text at all.
            return Reply(str(choice["message"]["content"] or ""), choice.get("finish_reason") == "length")
        except (LookupError, TypeError, AttributeError):
            if answer.get("error"):  # some gateways say 200 and pass on the failure of the server behind them
                return _Failure(f"the server answered “{self.clean(_server_message(content))}”")
            raise UserError(
                f"{self._address}: the answer is no chat completion: “{self.clean(_text(content), 120)}”. "
                "Check `rank.endpoint.url`; it usually ends in /v1"
            ) from None

    def _what_to_check(self, response: requests.Response) -> str:
        settings, status = self.settings, response.status_code
        if response.is_redirect:
            to = self.clean(response.headers["Location"])
            return f"It redirects to {to}, which is not followed: set `rank.endpoint.url` to where the API is"
        if status in (401, 403):
            held = "is set" if self._key else "is not set"
            return (
                f"Check the key in the environment variable {settings.api_key_variable} (it {held}; another variable "
                "can be named in `rank.endpoint.api_key_variable`), and that it may use this model"
            )
        if status in (404, 405):
            return f"Check `rank.endpoint.url` (it usually ends in /v1) and the model's name, {settings.model!r}"
        return f"Check the model's name, {settings.model!r}, and what the server says about the request"

    def _take_turn(self) -> None:
        self._wait(self._free_at - time.monotonic())
        if self.settings.requests_per_minute:
            self._free_at = time.monotonic() + 60 / self.settings.requests_per_minute

    def _pause(self, attempt: int, retry_after: float | None) -> float:
        """Twice as long after each failure, at random between half and all of it, or what the server asks for."""
        if retry_after is None:
            return min(LONGEST_BACKOFF, self._backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
        if retry_after > LONGEST_RETRY_AFTER:
            raise UserError(
                f"{self._address}: the server asks to wait {retry_after:.0f} s. "
                f"{_SAVED.capitalize()}: give the same command again later"
            )
        return retry_after

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._stop.check(_SAVED)
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(_SLICE, left))
            self._stop.check(_SAVED)


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the environment variable {variable} holds characters that no key has; copy the key again")
    return key


def _server_message(content: bytes) -> str:
    """The `message` of OpenAI's error object, Ollama's plain `error`, or else whatever was sent."""
    error = _json_object(content).get("error", _text(content))
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _json_object(content: bytes) -> dict[str, Any]:
    """Empty if it is anything else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(content: bytes) -> str:
    return content.decode("utf-8", errors="replace")


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        if value.strip().isdigit():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # TypeError: a date without a time zone
        return None


def _system_reason(error: BaseException) -> str:
    """The operating system's words at the bottom of the libraries' exceptions."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    return "it broke off"
