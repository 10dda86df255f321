"""Annotation project: a folder with answers to rank, a run's or a folder for annotation alone."""

import shlex
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config, RankConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.enough import RankingNeed, needed
from lowrank_rlhf.preferences.queue import AssignmentRules
from lowrank_rlhf.preferences.reward_tests import RewardTest, reward_tests
from lowrank_rlhf.preferences.store import AnnotationCounts, AnnotationStore, Item
from lowrank_rlhf.preferences.store_rows import any_unranked, repeated_rankings
from lowrank_rlhf.preferences.team.doubt import Doubt, doubt
from lowrank_rlhf.preferences.team.exclusion import is_excluded
from lowrank_rlhf.preferences.team.guidelines import Guidelines, version_of
from lowrank_rlhf.preferences.team.pace import DeadlinePace, pace_until
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.records import Prompt, Ranking, Score, read_jsonl
from lowrank_rlhf.run.results.rounds import prefix

STORE = "annotations.sqlite"
COMMAND = "python -m lowrank_rlhf"
_SHARED_PROMPTS, _SHARED_RANKINGS = 200, 3  # with as many rankings each; read with each screen once the run can resume


class NothingToRankReason(StrEnum):
    """Reason for which a folder has no answers for people to rank. The page has a text for each."""

    NO_STORE = "no_store"
    NOT_HUMAN = "not_human"
    NOT_SAMPLED = "not_sampled"
    NO_RUN = "no_run"


class NothingToRank(UserError):
    """A folder has no answers for people to rank; `command` makes those of a run in the folder `run`."""

    def __init__(self, message: str, reason: NothingToRankReason, command: str = "", run: Path | None = None) -> None:
        super().__init__(message)
        self.reason, self.command, self.run = reason, command, run


@dataclass(frozen=True)
class Project:
    """A folder with answers to rank. `config` is the run's; None without a run."""

    folder: Path
    store: AnnotationStore
    config: Config | None
    round: int = 1
    """Round of the run whose answers are ranked."""

    @property
    def _run_dir(self) -> RunDir:
        return RunDir(self.folder, self.round)

    @property
    def rank_stage(self) -> str:
        """Name of the stage that the rankings are for."""
        return f"{prefix(self.round)}rank"

    @property
    def reward_tests(self) -> tuple[RewardTest, ...]:
        """Tests of the reward models of this round, oldest first."""
        return reward_tests(self._run_dir.path)

    @property
    def reward_scores(self) -> tuple[Score, ...]:
        """Scores of the ranked answers by this round's reward model; none before it is trained."""
        path = self._run_dir.artifact("scores.jsonl")
        return tuple(read_jsonl(path, Score)) if path.is_file() else ()

    @property
    def settings(self) -> RankConfig | None:
        """Settings of the run's ranking; None without a run."""
        return self.config.rank if self.config else None

    @property
    def rankings_changed(self) -> bool:
        """True if the stage rank was done with other rankings than the current ones; `--redo rank` uses these."""
        run_dir = self._run_dir
        prompts, rankings = run_dir.artifact("prompts.jsonl"), run_dir.artifact("rankings.jsonl")
        if run_dir.mark("rank") is None:
            return False
        if not (prompts.is_file() and rankings.is_file()):
            return True
        asked = {prompt.id for prompt in read_jsonl(prompts, Prompt)}
        now = [ranking for ranking in self.store.rankings() if ranking.prompt_id in asked]
        return now != list(read_jsonl(rankings, Ranking))

    @property
    def need(self) -> RankingNeed:
        """Number of prompts that must be ranked, with the reason for it."""
        if self.config is None:
            return RankingNeed(0, "setting")
        return needed(self.config, self._run_dir.path, self.store.trainable_prompts())

    @property
    def needed(self) -> int:
        """Number of prompts that must be ranked, by anyone, before the run can resume; 0 without a run."""
        return self.need.prompts

    @property
    def pace(self) -> DeadlinePace | None:
        """Pace until the deadline for all annotators together; None without a deadline or with enough rankings."""
        if self.settings is None or self.settings.deadline is None:
            return None
        return pace_until(self.settings.deadline, self.needed - self.store.ranked_prompts())

    @property
    def next_command(self) -> str:
        """Command for when enough prompts are ranked: resume the run, or export the rankings."""
        if self.settings is None:
            return f"{COMMAND} annotations export {shlex.quote(str(self.folder))} FILE"
        return f"{run_command(self.folder)}{f' --redo {self.rank_stage}' if self.rankings_changed else ''}"

    @property
    def enough(self) -> bool:
        """True if the run can resume."""
        return self.store.ranked_prompts() >= self.needed

    @property
    def has_unranked(self) -> bool:
        """True if there are prompts that nobody has ranked, attention checks aside."""
        with self.store.transaction() as database:
            return any_unranked(database)

    @property
    def refused(self) -> bool:
        """True if the newest reward model failed its test and was trained on the current rankings."""
        return self.need.reason == "weak" and not self.rankings_changed

    @property
    def doubtful(self) -> Doubt | None:
        """Agreement of the annotators if it is not shown to be above chance; None also if it is not measured."""
        with self.store.transaction() as database:
            repeated = repeated_rankings(database, _SHARED_PROMPTS)
        return doubt(self.store.shared_rankings(_SHARED_PROMPTS, _SHARED_RANKINGS), repeated)

    def counts(self, annotator: str) -> AnnotationCounts:
        """Return the progress as an annotator of these settings sees it."""
        return self.store.counts(annotator, checks=(self.settings or RankConfig()).checks > 0)

    def shown_guidelines(self) -> Guidelines | None:
        """Return the guidelines to show, the run's or without a run the newest of its file; None without any.

        The store keeps them, so that a ranking can name them whatever the run's settings are later.
        """
        known = self.store.guidelines()
        if self.settings is None:
            return known[-1] if known else None
        if self.settings.guidelines is None:
            return None
        current = Guidelines(version=version_of(self.settings.guidelines), text=self.settings.guidelines)
        if current not in known:
            self.store.add_guidelines(current)
        return current

    def own_left(self, annotator: str) -> int | None:
        """Return the number of prompts until the annotator's quota; None without one."""
        quota = self.settings.quota if self.settings else None
        return None if quota is None else max(0, quota - self.counts(annotator).ranked)

    def next_item(self, annotator: str) -> Item | None:
        """Return this annotator's next item by the run's settings; None also after the quota and if excluded."""
        settings = self.settings or RankConfig()
        if self.own_left(annotator) == 0 or is_excluded(self.store, annotator):
            self.store.release(annotator)
            return None
        return self.store.next_item(annotator, AssignmentRules(settings.shared, settings.repeated, settings.checks))


def run_command(folder: Path) -> str:
    """Return the command that resumes a run."""
    words = ["run", str(folder / "config.yaml")]
    if folder.parent != Path("runs"):
        words += ["--runs", str(folder.parent)]
    return f"{COMMAND} {shlex.join(words)}"


def open_project(folder: Path, new: bool = False) -> Project:
    """Open the project in a folder, a run's newest round; with `new`, an empty one without a run.

    Raises `NothingToRank` if there is none.
    """
    if not new and not any((folder / name).is_file() for name in ("config.yaml", STORE)):
        raise NothingToRank(f"{folder}: no answers to rank here", NothingToRankReason.NO_STORE)
    if new or not (folder / "config.yaml").is_file():
        return Project(folder, AnnotationStore(folder / STORE), None)
    config = load_config(folder / "config.yaml")
    if config.rank.source != "human":
        raise NothingToRank(
            f"{folder}: people rank runs with rank.source=human; this one has rank.source={config.rank.source}",
            NothingToRankReason.NOT_HUMAN,
        )
    sampled = [each for each in RunDir(folder).rounds if each.number == 1 or each.mark("sample")]  # redone rounds later
    newest = next((each for each in reversed(sampled) if each.artifact(STORE).is_file()), None)
    if newest is None:
        command = run_command(folder)
        raise NothingToRank(
            f"{folder}: no answers to rank yet. Sample them; the run stops with exit code 5 when they are ready:\n"
            f"  {command}",
            NothingToRankReason.NOT_SAMPLED,
            command,
            folder,
        )
    return Project(folder, AnnotationStore(newest.artifact(STORE)), config, newest.number)


def counted(number: int, noun: str) -> str:
    """Return number and noun, such as `1 prompt` or `2 prompts`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
