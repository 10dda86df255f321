"""Talk with a run's models: bare base, SFT and policy in turn in one slot of one loaded base, and the reward model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrank_rlhf.maths.sequences import pack
from lowrank_rlhf.models.adapters import fill_role
from lowrank_rlhf.models.generation import generating_as, stream_answer, stream_text
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.storage import load_role
from lowrank_rlhf.run.directory import RunDir, read_record
from lowrank_rlhf.run.records import Message, Prompt
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.rollout import RewardScale, reward_scores


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn."""

    max_new_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Answer:
    """What one of the models said."""

    voice: str
    text: str
    tokens: int
    finished: bool
    """True if the model ended the answer itself."""
    stopped: bool
    """True if a person cut it short."""
    score: float | None
    """The reward model's, 0 on average and 1 in deviation over the run's held-out answers; None without one."""


class Speakers:
    """The models of a run that can answer: `base`, and `sft` and `policy` as far as the run got."""

    def __init__(self, session: Session):
        self._context, self._roles = session, session.roles
        self._speaking: str | None = None
        self._folders = {name: _adapter(session.run_dir, name) for name in ("sft", "policy")}
        self._scale: RewardScale | None = None
        reward = _adapter(session.run_dir, "reward")
        about = read_record(reward / "reward.json") if reward else None
        self.about_scores = "no scores: the run has no reward model yet"
        """What a score means here, in a sentence."""
        if reward and about:
            load_role(self._roles, Role.REWARD, reward)
            self._scale = RewardScale(about["pooling"], about["score_mean"], about["score_std"])
            self.about_scores = "reward: 0 is the average answer of SFT, 1 a deviation better"
            if about.get("weak"):
                self.about_scores += f"; this reward model is weak: {about['weak']}"

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the conversation up to where the answer begins."""
        return self._context.base.encode_prompt(Prompt(id="chat", messages=tuple(messages)))

    def answer(self, voice: str, prompt: Sequence[int], sampling: Sampling, on_text: Callable[[str], None]) -> Answer:
        """One answer; `on_text` gets its text piece by piece. Ctrl-C ends it where it is."""
        base, tokens, pieces = self._context.base, list[int](), list[str]()

        def drawn() -> Iterator[int]:
            for token in stream_answer(self._roles, prompt, **vars(sampling)):
                tokens.append(token)
                yield token

        try:
            self._fill(voice)
            with generating_as(self._roles, Role.POLICY):
                for piece in stream_text(drawn(), base.decode):
                    pieces.append(piece)
                    on_text(piece)
            score = self._score(prompt, tokens)
        except KeyboardInterrupt:
            return Answer(voice, "".join(pieces), len(tokens), finished=False, stopped=True, score=None)
        return Answer(voice, base.decode(tokens), len(tokens), tokens[-1] == base.eos, stopped=False, score=score)

    def _fill(self, voice: str) -> None:
        if voice != self._speaking:
            self._speaking = None  # until all of it is in place
            fill_role(self._roles, Role.POLICY, self._folders.get(voice))
            self._speaking = voice

    def _score(self, prompt: Sequence[int], tokens: Sequence[int]) -> float | None:
        if self._scale is None:
            return None
        batch = pack([prompt], [tokens], self._context.base.pad, self._context.base.device)
        return float(reward_scores(self._roles, self._roles.with_trunk(batch), self._scale)[0])


def _adapter(run_dir: RunDir, name: str) -> Path | None:
    path = run_dir.artifact(f"adapters/{name}")
    return path if path.is_dir() else None
