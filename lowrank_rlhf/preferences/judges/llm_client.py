"""Client of a chat model behind an OpenAI-compatible server: retries, rate limit, errors that never show the key."""

import json
import os
import random
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from lowrank_rlhf.config.endpoint import EndpointConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.judges.first_token import TOKENS, first_token_of
from lowrank_rlhf.run.progress import StopRequest

LONGEST_BACKOFF = 60.0
LONGEST_RETRY_AFTER = 600.0
"""Seconds; a server that asks for more, such as one whose daily quota is spent, ends the stage instead."""
MOST_BYTES = 1_000_000
_RETRIED = (408, 425, 429)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SAVED = "all verdicts so far are saved"
_ANNOUNCED_PAUSE = 5.0  # seconds
_POLL = 0.2  # seconds between two checks of the stop request during a wait


InText = TypeVar("InText")
InTokens = TypeVar("InTokens")


class Reply(NamedTuple):
    """The assistant's message; `cut` if `max_tokens` truncated it."""

    text: str
    cut: bool
    first_token: dict[str, float] | None = None
    """With `verdict: logprobs`: probabilities of the most probable first tokens, by text."""


class _Retryable(Exception):
    """A failed attempt to retry; `retry_after`: the server's Retry-After, in seconds."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class ChatClient:
    """Sends chat completions to `settings.url`, at temperature 0 and at most `requests_per_minute`."""

    def __init__(
        self, settings: EndpointConfig, stop: StopRequest, say: Callable[[str], None], backoff_seconds: float = 1.0
    ) -> None:
        self.settings = settings
        self.requests = 0
        """Requests sent by this process, retries included."""
        self._stop, self._say = stop, say
        self._address = f"{settings.url.rstrip('/')}/chat/completions"
        self._key = _key(settings.api_key_variable)
        self._http = _http_client(settings, self._key)
        self._free_at = 0.0
        self._backoff = wait_exponential(multiplier=backoff_seconds, max=LONGEST_BACKOFF)
        self._retrying = Retrying(
            retry=retry_if_exception_type(_Retryable),
            stop=stop_after_attempt(settings.max_attempts),
            wait=self._pause,
            before_sleep=self._announce,
            sleep=self._wait,
            reraise=True,
        )

    def ask(self, question: str) -> Reply:
        """Return the model's reply to one user message.

        Raises `Stopped` between attempts after a stop request, and `UserError` for an error that no retry can fix or
        after `max_attempts` failures.
        """
        body = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self.settings.max_tokens,
            "stream": False,
        }
        if self.settings.verdict == "logprobs":
            body |= {"max_tokens": 1, "logprobs": True, "top_logprobs": TOKENS}
        try:
            return self._retrying(self._attempt, body)
        except _Retryable as error:
            raise UserError(
                f"{self._address}: {error}, in the last of {self.settings.max_attempts} attempts. Check that the "
                "server is running and that `rank.endpoint.url` is right. "
                f"{_SAVED.capitalize()}; rerun the command to resume."
            ) from None

    def ask_for(
        self,
        question: str,
        of_text: Callable[[str], InText | None],
        of_first_token: Callable[[dict[str, float]], InTokens | None],
    ) -> tuple[InText | InTokens | None, Reply]:
        """Return the verdict, read as `rank.endpoint.verdict` sets, and the reply; ask once more if a text has none.

        Raises the errors of `ask`.
        """
        reply = self.ask(question)
        if self.settings.verdict == "logprobs":
            return of_first_token(reply.first_token or {}), reply
        if (found := of_text(reply.text)) is None:
            reply = self.ask(question)
            found = of_text(reply.text)
        return found, reply

    def clean(self, text: str, most: int = 300) -> str:
        """Return a server's text on one line, truncated, without control characters and with the key masked."""
        if self._key:
            text = text.replace(self._key, "***")
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return line if len(line) <= most else f"{line[: most - 3]}..."

    def _attempt(self, body: dict[str, Any]) -> Reply:
        self._wait(self._free_at - time.monotonic())
        if self.settings.requests_per_minute:
            self._free_at = time.monotonic() + 60 / self.settings.requests_per_minute
        self.requests += 1
        try:
            response, content = self._post(body)
        except httpx.TimeoutException:
            raise _Retryable(f"no response within {self.settings.timeout_seconds:g} s") from None
        except httpx.RequestError as error:
            cause = _system_error(error)
            if isinstance(cause, ssl.SSLError):
                raise UserError(
                    f"{self._address}: cannot verify the certificate, or the server does not speak TLS"
                ) from None
            reason = cause.strerror.lower() if cause and cause.strerror else "connection lost"
            raise _Retryable(f"no connection ({reason})") from None
        except UnicodeError:  # a label of more than 63 characters
            raise _wrong_address(self.settings) from None
        if response.status_code != 200:
            raise self._failure(response, content)
        return self._reply(content)

    def _post(self, body: dict[str, Any]) -> tuple[httpx.Response, bytes]:
        """Return the response and its body. Redirects are not followed: the key is for this host alone."""
        deadline = time.monotonic() + self.settings.timeout_seconds
        with self._http.stream("POST", self._address, json=body) as response:
            content = b""
            for part in response.iter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    raise UserError(
                        f"{self._address}: the response is longer than {MOST_BYTES:,} bytes. "
                        "Check that `rank.endpoint.url` is a chat API"
                    )
                if time.monotonic() > deadline:  # httpx limits each read, not their sum
                    raise httpx.ReadTimeout("")
        return response, content

    def _reply(self, content: bytes) -> Reply:
        answer = _json_object(content)
        try:
            choice = answer["choices"][0]
            # A reasoning model may spend all its tokens on reasoning: then there is no text.
            text, cut = str(choice["message"]["content"] or ""), choice.get("finish_reason") == "length"
            first_token = first_token_of(choice) if self.settings.verdict == "logprobs" else None
        except (LookupError, TypeError, AttributeError, ValueError):
            if answer.get("error"):  # some gateways return 200 with the error of the server behind them
                raise _Retryable(f"the server answered “{self.clean(_server_message(content))}”") from None
            raise UserError(
                f"{self._address}: not a chat completion: “{self.clean(_text(content), 120)}”. "
                "Check `rank.endpoint.url`; it usually ends in /v1"
            ) from None
        if self.settings.verdict == "logprobs" and first_token is None:
            raise UserError(
                f"{self._address}: the reply has no log-probabilities. Use a server that returns them, such as "
                "llama.cpp's or vLLM, or set `rank.endpoint.verdict: text`"
            )
        return Reply(text, cut, first_token)

    def _failure(self, response: httpx.Response, content: bytes) -> UserError | _Retryable:
        status, message = response.status_code, self.clean(_server_message(content))
        failure = f"HTTP {status} {self.clean(response.reason_phrase)}".rstrip() + (f": “{message}”" if message else "")
        if status not in _RETRIED and status < 500:
            return UserError(f"{self._address}: {failure}. {self._advice(response)}")
        pause = _retry_after(response.headers.get("Retry-After"))
        if pause and pause > LONGEST_RETRY_AFTER:
            return UserError(
                f"{self._address}: {failure}. The server asks to wait {pause:.0f} s. "
                f"{_SAVED.capitalize()}: rerun the command later to resume"
            )
        return _Retryable(failure, pause)

    def _advice(self, response: httpx.Response) -> str:
        settings, status = self.settings, response.status_code
        if response.has_redirect_location:
            to = self.clean(response.headers["Location"])
            return f"Redirects are not followed: set `rank.endpoint.url` to the API's own address instead of {to}"
        if status in (401, 403):
            state = "is set" if self._key else "is not set"
            return (
                f"Check the key in the environment variable {settings.api_key_variable} ({state}; "
                "`rank.endpoint.api_key_variable` names another one), and that it may use this model"
            )
        if status in (404, 405):
            return f"Check `rank.endpoint.url` (it usually ends in /v1) and the model's name, {settings.model!r}"
        refused = " If it refuses `logprobs`, set `rank.endpoint.verdict: text`" if settings.verdict != "text" else ""
        return f"Check the model's name, {settings.model!r}, and the server's message.{refused}".removesuffix(".")

    def _pause(self, state: RetryCallState) -> float:
        """Return the server's Retry-After or an exponential backoff, at random between half and all of it."""
        failure = state.outcome and state.outcome.exception()
        if isinstance(failure, _Retryable) and failure.retry_after is not None:
            return failure.retry_after
        return self._backoff(state) * random.uniform(0.5, 1)

    def _announce(self, state: RetryCallState) -> None:
        if state.outcome and state.upcoming_sleep > _ANNOUNCED_PAUSE:
            self._say(f"  {state.outcome.exception()}; retrying in {state.upcoming_sleep:.0f} s")

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._stop.check(_SAVED)
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(_POLL, left))
            self._stop.check(_SAVED)


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the environment variable {variable} contains invalid characters; copy the key again")
    return key


def _http_client(settings: EndpointConfig, key: str) -> httpx.Client:
    try:
        local = httpx.URL(settings.url).host in _LOOPBACK
    except httpx.InvalidURL:
        raise _wrong_address(settings) from None
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:  # a proxy would look for a local server on its own host
        return httpx.Client(headers=headers, timeout=settings.timeout_seconds, trust_env=not local)
    except (ImportError, ValueError, httpx.InvalidURL):  # the message may contain the proxy's password
        raise UserError(
            "cannot use the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names; set an http:// URL or unset them"
        ) from None


def _wrong_address(settings: EndpointConfig) -> UserError:
    return UserError(f"rank.endpoint.url: invalid address: {settings.url}")


def _server_message(content: bytes) -> str:
    """Return the `message` of OpenAI's error object, Ollama's plain `error`, or the whole body."""
    error = _json_object(content).get("error", _text(content))
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _json_object(content: bytes) -> dict[str, Any]:
    """Parse a JSON object; anything else gives an empty one."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(content: bytes) -> str:
    return content.decode("utf-8", errors="replace")


def _retry_after(value: str | None) -> float | None:
    """Return seconds from a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        if value.strip().isdigit():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # TypeError: a date without a time zone
        return None


def _system_error(error: BaseException) -> OSError | None:
    """Return the operating system's error behind the libraries' exceptions."""
    cause: BaseException | None = error
    while cause and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause if isinstance(cause, OSError) else None
