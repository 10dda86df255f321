"""Language model as a reward: it grades each answer by the reward's rubric, within a budget."""

from collections.abc import Sequence
from pathlib import Path

from lowrank_rlhf.config.rewards import RewardTerm
from lowrank_rlhf.errors import RewardFailed, Stopped, UserError
from lowrank_rlhf.preferences.judges.grading import Grader
from lowrank_rlhf.preferences.judges.llm_client import ChatClient
from lowrank_rlhf.run.records import Prompt, Sample


class EndpointReward:
    """Reward by the model at `rank.endpoint`."""

    def __init__(self, key: str, term: RewardTerm, client: ChatClient, grades: Path) -> None:
        self._key, self._budget = key, term.max_requests
        self._grader = Grader(client, term.rubric, key, grades)

    def score(self, prompts: Sequence[Prompt], samples: Sequence[Sample]) -> list[float]:
        """Return the grade of each answer, 0 to 1.

        Raises `RewardFailed` for an unreadable reply, a spent budget, and the errors of `ChatClient.ask`.
        """
        return [self._grade(prompt, sample) for prompt, sample in zip(prompts, samples, strict=True)]

    def _grade(self, prompt: Prompt, sample: Sample) -> float:
        try:
            if not self._grader.is_known(prompt, sample):
                self._within_budget()
            return self._grader.grade(prompt, sample)
        except Stopped:
            raise
        except UserError as error:
            raise RewardFailed(f"{self._key}, prompt {prompt.id!r}: {error}") from error

    def _within_budget(self) -> None:
        asked = self._grader.asked  # rows of this reward: others and their budgets share the file
        if self._budget is not None and asked >= self._budget:
            raise UserError(
                f"the budget is spent: {asked} answers are graded. Raise {self._key}.max_requests; all "
                "grades so far are saved, and the same command resumes the run"
            )
