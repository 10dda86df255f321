"""Chat with a run's models, which share one adapter slot; the reward model scores their answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.evaluation.speakers import check_speaker, speakers
from lowrank_rlhf.maths.sequences import pack
from lowrank_rlhf.models.adapters import fill_role, load_role
from lowrank_rlhf.models.batch_limits import first_line, is_out_of_memory
from lowrank_rlhf.models.generation import generating_as, stream_answer, stream_text
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import require_finite
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import read_record
from lowrank_rlhf.run.records import Message, Prompt
from lowrank_rlhf.training.rollout import RewardScale


@dataclass(frozen=True)
class ChatSampling:
    """Sampling settings of one chat answer."""

    max_new_tokens: int
    temperature: float
    seed: int
    top_p: float = 1.0


@dataclass(frozen=True)
class ChatAnswer:
    """One model's answer."""

    model: str
    """Name in `speakers`."""
    text: str
    tokens: int
    finished: bool
    """True if the model ended the answer itself."""
    stopped: bool
    """True if the user stopped it."""
    score: float | None
    """Normalised reward: mean 0 and deviation 1 over SFT answers; None without a reward model."""
    spread: float | None = None
    """Standard deviation of the reward model's members; None with one."""


class ChatModels:
    """Models of a run that can answer: its `speakers`.

    Args:
        roles: adapters on the loaded base; the role POLICY holds the adapter of the model that answers.
        run_dir: folder of the run's newest round.
    """

    def __init__(self, roles: Roles, run_dir: RunDir):
        self._roles, self._base = roles, roles.base
        self._loaded: str | None = None
        self._folders = speakers(run_dir.run)
        self._scale: RewardScale | None = None
        reward = _existing(run_dir.artifact("adapters/reward"))
        about = read_record(reward / "reward.json") if reward else None
        self.about_scores = "no scores: the run has no reward model yet"
        """Meaning of a score, in a sentence."""
        if reward and about:
            load_role(roles, Role.REWARD, reward)
            self._scale = RewardScale.of(about)
            self.about_scores = "reward: 0 is the average SFT answer, 1 is one standard deviation above it"
            if about.get("weak"):
                self.about_scores += f"; this reward model is weak: {about['weak']}"

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of the conversation, up to where the answer begins."""
        return self._base.encode_prompt(Prompt(id="chat", messages=tuple(messages)))

    def answer(
        self, model: str, prompt: Sequence[int], sampling: ChatSampling, on_text: Callable[[str], None]
    ) -> ChatAnswer:
        """Return one answer; `on_text` gets its text piece by piece. KeyboardInterrupt ends it early."""
        tokens, pieces = list[int](), list[str]()

        def recorded() -> Iterator[int]:
            for token in stream_answer(self._roles, prompt, **asdict(sampling)):
                tokens.append(token)
                yield token

        try:
            self._load(model)
            with generating_as(self._roles, Role.POLICY):
                for piece in stream_text(recorded(), self._base.decode):
                    pieces.append(piece)
                    on_text(piece)
            score, spread = self._score(prompt, tokens)
        except KeyboardInterrupt:
            return ChatAnswer(model, "".join(pieces), len(tokens), finished=False, stopped=True, score=None)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"chat: out of memory after {len(prompt) + len(tokens)} tokens of conversation ({first_line(error)}). "
                "Begin a new conversation, or shorten the question"
            ) from None
        text, finished = self._base.decode(tokens), tokens[-1] == self._base.eos
        return ChatAnswer(model, text, len(tokens), finished, stopped=False, score=score, spread=spread)

    def _load(self, model: str) -> None:
        if model != self._loaded:
            self._loaded = None  # an interrupt may leave the role half filled
            if folder := self._folders[model]:
                check_speaker(folder)
            fill_role(self._roles, Role.POLICY, folder)
            self._loaded = model

    def _score(self, prompt: Sequence[int], tokens: Sequence[int]) -> tuple[float | None, float | None]:
        """Return score and spread."""
        if self._scale is None:
            return None, None
        batch = pack([prompt], [tokens], self._base.pad, self._base.device)  # (1, T)
        scored = self._scale.score(self._roles, self._roles.with_lower_states(batch))  # (1,)
        require_finite(Role.REWARD, "scores", scored.total, ["chat"])
        return float(scored.total[0]), None if scored.spread is None else float(scored.spread[0])


def _existing(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None
