"""A conversation in the terminal: whose turn it is, what of it still fits, and what the commands do."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from lowrank_rlhf.config.messages import suggestion
from lowrank_rlhf.errors import UserError, visible
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.run.records import Message

if TYPE_CHECKING:
    from lowrank_rlhf.evaluation.chat import ChatAnswer, ChatModels

HELP = """\
/as NAME   who answers: policy, sft, base, or all in turn
/reset     forget the conversation
/undo      forget the last question and its answer
/seed N    sample from this seed on
/help      this list
/quit      leave; so do Ctrl-D, and Ctrl-C twice (once stops an answer)
A question that begins with / is written with //."""
COMMANDS = ("/as", "/reset", "/undo", "/seed", "/help", "/quit")


@dataclass(frozen=True)
class Settings:
    """Who may answer, who does, and how."""

    voices: Sequence[str]
    """Who can: `base`, and `sft` and `policy` as far as the run got, in that order."""
    speaks: str
    """One of them, or `all`."""
    temperature: float
    max_new_tokens: int
    room: int
    """Most tokens of a conversation before its next answer."""
    seed: int

    @property
    def answering(self) -> Sequence[str]:
        """Who answers the next question, in order; the conversation goes on with the last one's answer."""
        return self.voices if self.speaks == "all" else (self.speaks,)


class Conversation:
    """The conversation so far. Answers go to stdout, all that is said about them to stderr."""

    def __init__(self, speakers: "ChatModels", settings: Settings):
        self.settings = settings
        self._speakers = speakers
        self._messages: list[Message] = []
        self._asked = 0  # since the seed was set: each question draws from a stream of its own

    def introduce(self) -> None:
        """Who answers, how, and how to get help."""
        settings = self.settings
        note(
            f"{settings.speaks} answers: temperature {settings.temperature:g}, up to {settings.max_new_tokens} tokens, "
            f"seed {settings.seed}. /help shows the commands."
        )
        note(self._speakers.about_scores)
        self._say_who_goes_on()

    def ask(self, text: str, *, show: bool = True, labels: bool = True) -> "list[ChatAnswer]":
        """The answers to a question, which becomes part of the conversation; none where it is too long to be asked."""
        question = Message(role="user", content=text)
        prompt = self._fitting(question)
        if prompt is None:
            return []
        place, answers = self._asked, list["ChatAnswer"]()
        self._asked += 1
        for voice in self.settings.answering:
            answers.append(self._answer(voice, prompt, place, show, labels))
            if answers[-1].stopped:
                break
        last = answers[-1]
        if last.model == self.settings.answering[-1] and last.text:
            self._messages += [question, Message(role="assistant", content=last.text)]
        elif show:
            note("this question is not part of the conversation: there is no answer to go on with")
        return answers

    def command(self, line: str) -> bool:
        """Obey a line that begins with `/`; False to leave."""
        name, _, rest = line.partition(" ")
        if name == "/quit":
            return False
        if name == "/help":
            note(HELP)
        elif name == "/reset":
            self._messages.clear()
            note("the conversation begins anew")
        elif name == "/undo":
            note("forgot the last question and its answer" if self._messages else "there is nothing to take back")
            del self._messages[-2:]
        elif name == "/as":
            self._switch(rest.strip())
        elif name == "/seed":
            self._reseed(rest.strip())
        else:
            note(f"no command is called {visible(name)}; /help shows them.{suggestion(name, COMMANDS)}")
        return True

    def _answer(self, voice: str, prompt: Sequence[int], place: int, show: bool, labels: bool) -> "ChatAnswer":
        from lowrank_rlhf.evaluation.chat import ChatSampling

        settings = self.settings
        seed = derive_seed(settings.seed, "chat", place)
        if show and labels:
            _write(f"{voice}: ")
        answer = self._speakers.answer(
            voice,
            prompt,
            ChatSampling(settings.max_new_tokens, settings.temperature, seed),
            (lambda piece: _write(visible(piece))) if show else (lambda _: None),
        )
        if show:
            _write("\n")
            note(_about(answer))
        return answer

    def _fitting(self, question: Message) -> list[int] | None:
        """Tokens of the conversation with that question; its oldest turns are dropped until it fits."""
        kept, prompt = fit(self._speakers, [*self._messages, question], self.settings.room)
        dropped = len(self._messages) + 1 - len(kept)
        if prompt is None:
            alone = len(self._speakers.encode([question]))
            note(
                f"the question alone has {alone} tokens, and {self.settings.room} fit: model.max_length less "
                "the longest answer. Ask something shorter, or set --max-new-tokens lower"
            )
        self._messages = kept[:-1]
        if dropped and prompt is not None:
            note(f"dropped the oldest {_counted(dropped // 2)}: the conversation was longer than model.max_length")
        return prompt

    def _switch(self, name: str) -> None:
        names = [*self.settings.voices, "all"]
        if name not in names:
            note(f'nobody here is called "{visible(name)}"; /as takes {", ".join(names)}.{suggestion(name, names)}')
            return
        self.settings = replace(self.settings, speaks=name)
        note(f"{name} answers now")
        self._say_who_goes_on()

    def _say_who_goes_on(self) -> None:
        if self.settings.speaks == "all":
            note(f"the conversation goes on with the answer of {self.settings.voices[-1]}")

    def _reseed(self, number: str) -> None:
        if not (number.isascii() and number.isdigit()):
            note("/seed takes a whole number, such as /seed 7")
            return
        self.settings, self._asked = replace(self.settings, seed=int(number)), 0
        note(f"seed {number} from here on")


def fit(speakers: "ChatModels", messages: Sequence[Message], room: int) -> tuple[list[Message], list[int] | None]:
    """The conversation without its oldest turns, as many as must go for the rest to fit, and its tokens.

    The last question stays; where it alone has more than `room` tokens there are none.
    """
    kept = list(messages)
    while len(prompt := speakers.encode(kept)) > room:
        if len(kept) <= 2:
            return kept[-1:], None
        del kept[:2]
    return kept, prompt


def talk(session: Conversation) -> None:
    """Questions and commands until the end of the input, /quit, or a second Ctrl-C."""
    live = sys.stdin.isatty()
    if live:
        with suppress(ImportError):
            import readline  # noqa: F401 - gives `input` its history and keys
    session.introduce()
    interrupted = False
    while True:
        try:
            line = _read(live)
        except KeyboardInterrupt:
            if interrupted or not live:
                raise
            interrupted = True
            _write("\n")
            note("Ctrl-C again leaves, and so does /quit")
            continue
        if line is None:
            return
        text = line.strip()
        if not text:
            continue
        if text.startswith("/") and not text.startswith("//"):
            interrupted = False
            if not session.command(text):
                return
            continue
        answers = session.ask(text[1:] if text.startswith("//") else text)
        interrupted = any(answer.stopped for answer in answers)


def note(text: str) -> None:
    """A line about the conversation, on stderr and dim."""
    sys.stdout.flush()
    Console(stderr=True).print(Text(text, style="dim"), soft_wrap=True)


def _read(live: bool) -> str | None:
    """The next line; None at the end. Raises `UserError` where it is not text."""
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
        parts.insert(0, f"reward {answer.score:+.2f}")
    if answer.stopped:
        parts.append("stopped")
    elif not answer.finished:
        parts.append("cut at the longest answer allowed")
    return f"  [{', '.join(parts)}]"


def _counted(turns: int) -> str:
    return "question and its answer" if turns == 1 else f"{turns} questions and their answers"
