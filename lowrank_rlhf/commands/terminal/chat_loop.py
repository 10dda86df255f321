"""Chat in the terminal: the conversation, its length limit, and the commands."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from lowrank_rlhf.config.messages import suggestion
from lowrank_rlhf.errors import UserError, visible
from lowrank_rlhf.evaluation.speakers import MAIN
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.run.records import Message

if TYPE_CHECKING:
    from lowrank_rlhf.evaluation.chat import ChatAnswer, ChatModels

HELP = """\
/as NAME   model that answers, such as policy; several with commas, or all in turn
/reset     start a new conversation
/undo      remove the last question and its answer
/seed N    set the seed of the next answers
/help      show this list
/quit      quit, like Ctrl-D, or Ctrl-C twice (once stops an answer)
Begin a question that starts with / with //."""
COMMANDS = ("/as", "/reset", "/undo", "/seed", "/help", "/quit")


@dataclass(frozen=True)
class Settings:
    """Models of a chat and their sampling settings."""

    voices: Sequence[str]
    """Models that can answer: the run's `speakers`."""
    speaks: str
    """One of them, several with commas, or `all`: those of `MAIN`."""
    temperature: float
    max_new_tokens: int
    max_prompt_tokens: int
    """Maximum tokens of a conversation before its next answer."""
    seed: int
    top_p: float = 1.0

    @property
    def answering(self) -> Sequence[str]:
        """Models that answer the next question, in order; the last one's answer joins the conversation."""
        return [name for name in self.voices if name in MAIN] if self.speaks == "all" else self.speaks.split(",")


class Conversation:
    """Conversation so far; answers go to stdout, notes to stderr."""

    def __init__(self, models: "ChatModels", settings: Settings):
        self.settings = settings
        self._models = models
        self._messages: list[Message] = []
        self._asked = 0  # questions since the seed was set: each has its own random stream

    def introduce(self) -> None:
        """Show the model, its settings, and how to get help."""
        settings = self.settings
        note(
            f"{settings.speaks} answers: temperature {settings.temperature:g}, "
            f"{f'top-p {settings.top_p:g}, ' if settings.top_p < 1 else ''}up to {settings.max_new_tokens} tokens, "
            f"seed {settings.seed}. /help shows the commands."
        )
        note(self._models.about_scores)
        self._note_continuation()

    def ask(self, text: str, *, show: bool = True, labels: bool = True) -> "list[ChatAnswer]":
        """Return the answers to a question, which joins the conversation; none if the question is too long."""
        question = Message(role="user", content=text)
        prompt = self._fitting(question)
        if prompt is None:
            return []
        index, answers = self._asked, list["ChatAnswer"]()
        self._asked += 1
        for voice in self.settings.answering:
            answers.append(self._answer(voice, prompt, index, show, labels))
            if answers[-1].stopped:
                break
        last = answers[-1]
        if last.model == self.settings.answering[-1] and last.text:
            self._messages += [question, Message(role="assistant", content=last.text)]
        elif show:
            note("this question is not part of the conversation: no answer was completed")
        return answers

    def command(self, line: str) -> bool:
        """Run a command line that begins with `/`; return False to quit."""
        name, _, rest = line.partition(" ")
        if name == "/quit":
            return False
        if name == "/help":
            note(HELP)
        elif name == "/reset":
            self._messages.clear()
            note("new conversation")
        elif name == "/undo":
            note("removed the last question and its answer" if self._messages else "nothing to undo")
            del self._messages[-2:]
        elif name == "/as":
            self._switch(rest.strip())
        elif name == "/seed":
            self._reseed(rest.strip())
        else:
            note(f"unknown command {visible(name)}; /help lists the commands.{suggestion(name, COMMANDS)}")
        return True

    def _answer(self, voice: str, prompt: Sequence[int], index: int, show: bool, labels: bool) -> "ChatAnswer":
        from lowrank_rlhf.evaluation.chat import ChatSampling

        settings = self.settings
        seed = derive_seed(settings.seed, "chat", index)
        if show and labels:
            _write(f"{voice}: ")
        answer = self._models.answer(
            voice,
            prompt,
            ChatSampling(settings.max_new_tokens, settings.temperature, seed, settings.top_p),
            (lambda piece: _write(visible(piece))) if show else (lambda _: None),
        )
        if show:
            _write("\n")
            note(_about(answer))
        return answer

    def _fitting(self, question: Message) -> list[int] | None:
        """Return the tokens of the conversation with that question, its oldest turns dropped until it fits."""
        kept, prompt = fit(self._models, [*self._messages, question], self.settings.max_prompt_tokens)
        dropped = len(self._messages) + 1 - len(kept)
        if prompt is None:
            alone = len(self._models.encode([question]))
            note(
                f"the question has {alone} tokens, but only {self.settings.max_prompt_tokens} fit (the model's context "
                "minus --max-new-tokens). Shorten the question or lower --max-new-tokens"
            )
        self._messages = kept[:-1]
        if dropped and prompt is not None:
            note(f"dropped the oldest {_counted(dropped // 2)}: the conversation was longer than the model's context")
        return prompt

    def _switch(self, name: str) -> None:
        names = [*self.settings.voices, "all"]
        if name != "all" and not set(name.split(",")) <= set(self.settings.voices):
            note(f'unknown model "{visible(name)}"; expected {", ".join(names)}.{suggestion(name, names)}')
            return
        self.settings = replace(self.settings, speaks=name)
        note(f"{name} answers now")
        self._note_continuation()

    def _note_continuation(self) -> None:
        if len(self.settings.answering) > 1:
            note(f"the conversation continues with the answer of {self.settings.answering[-1]}")

    def _reseed(self, number: str) -> None:
        if not (number.isascii() and number.isdigit()):
            note("/seed expects a whole number, such as /seed 7")
            return
        self.settings, self._asked = replace(self.settings, seed=int(number)), 0
        note(f"seed is now {number}")


def fit(models: "ChatModels", messages: Sequence[Message], max_tokens: int) -> tuple[list[Message], list[int] | None]:
    """Drop the oldest turns until the conversation fits; return it with its tokens.

    A system prompt and the last question stay; the tokens are None if these have more than `max_tokens` tokens.
    """
    kept = list(messages)
    first = int(kept[0].role == "system")
    while len(prompt := models.encode(kept)) > max_tokens:
        if len(kept) <= first + 2:
            return [*kept[:first], *kept[-1:]], None
        del kept[first : first + 2]
    return kept, prompt


def talk(conversation: Conversation) -> None:
    """Read questions and commands until the end of the input, /quit, or a second Ctrl-C."""
    live = sys.stdin.isatty()
    if live:
        with suppress(ImportError):
            import readline  # noqa: F401 - gives `input` its history and keys
    conversation.introduce()
    interrupted = False
    while True:
        try:
            line = _read(live)
        except KeyboardInterrupt:
            if interrupted or not live:
                raise
            interrupted = True
            _write("\n")
            note("press Ctrl-C again to quit, or type /quit")
            continue
        if line is None:
            return
        text = line.strip()
        if not text:
            continue
        if text.startswith("/") and not text.startswith("//"):
            interrupted = False
            if not conversation.command(text):
                return
            continue
        answers = conversation.ask(text[1:] if text.startswith("//") else text)
        interrupted = any(answer.stopped for answer in answers)


def note(text: str) -> None:
    """Print a dim line on stderr."""
    sys.stdout.flush()
    Console(stderr=True).print(Text(text, style="dim"), soft_wrap=True)


def _read(live: bool) -> str | None:
    """Return the next line; None at the end. Raises `UserError` for input that is not text."""
    try:
        line = f"{input('you: ')}\n" if live else sys.stdin.readline()
        line.encode()
    except EOFError:
        _write("\n")
        return None
    except UnicodeError:
        raise UserError("stdin: not UTF-8 text") from None
    return line or None


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _about(answer: "ChatAnswer") -> str:
    parts = [f"{answer.tokens} tokens"]
    if answer.score is not None:
        spread = "" if answer.spread is None else f" (members differ by {answer.spread:.2f})"
        parts.insert(0, f"reward {answer.score:+.2f}{spread}")
    if answer.stopped:
        parts.append("stopped")
    elif not answer.finished:
        parts.append("cut off at --max-new-tokens")
    return f"  [{', '.join(parts)}]"


def _counted(turns: int) -> str:
    return "question and its answer" if turns == 1 else f"{turns} questions and their answers"
