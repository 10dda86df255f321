"""A folder with answers to rank, a run's or one that holds nothing else, and whether there are enough rankings."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import RankConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.queue import AssignmentRules, uncertainties
from lowrank_rlhf.preferences.store import AnnotationStore, Item
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.records import Prompt, Ranking, Score, read_jsonl

STORE = "annotations.sqlite"
COMMAND = "python -m lowrank_rlhf"


class NothingToRank(UserError):
    """A folder has no answers for people to rank. `kind` and `command` are for those who say it in another language."""

    def __init__(self, message: str, kind: str, command: str = "") -> None:
        super().__init__(message)
        self.kind, self.command = kind, command


@dataclass(frozen=True)
class Project:
    """A folder with answers to rank. `settings` are the run's; None where there is no run."""

    folder: Path
    store: AnnotationStore
    settings: RankConfig | None

    @property
    def rankings_changed(self) -> bool:
        """The run's comparisons are of other rankings than there are now, which count once that stage is made again."""
        run_dir = RunDir(self.folder)
        prompts, rankings = run_dir.artifact("prompts.jsonl"), run_dir.artifact("rankings.jsonl")
        if run_dir.done("rank") is None:
            return False
        if not (prompts.is_file() and rankings.is_file()):
            return True
        asked = {prompt.id for prompt in read_jsonl(prompts, Prompt)}
        now = [ranking for ranking in self.store.rankings() if ranking.prompt_id in asked]
        return now != list(read_jsonl(rankings, Ranking))

    @property
    def needed(self) -> int:
        """Prompts that must be ranked, by anyone, before the run can go on; without a run there are none."""
        return min(self.settings.minimum_rankings, self.store.counts("").prompts) if self.settings else 0

    @property
    def next_command(self) -> str:
        """What to do when enough prompts are ranked: go on with the run, or take the rankings back to it."""
        if self.settings is None:
            return f"{COMMAND} annotations export {shlex.quote(str(self.folder))} FILE"
        return f"{run_command(self.folder)}{' --redo rank' if self.rankings_changed else ''}"

    @property
    def enough(self) -> bool:
        """True if the run can go on."""
        return self.store.ranked_prompts() >= self.needed

    def next_item(self, annotator: str) -> Item | None:
        """What this annotator ranks next, by the run's settings and, where there is one, its reward model's doubts."""
        settings, scores = self.settings or RankConfig(), self.folder / "scores.jsonl"
        doubts = uncertainties(read_jsonl(scores, Score)) if scores.is_file() else {}
        return self.store.next_item(annotator, AssignmentRules(settings.shared, settings.repeated, doubts))

    def summary(self) -> str:
        """How many prompts are ranked, and what comes next."""
        count = self.store.ranked_prompts()
        if not self.enough:
            return f"{count} of {counted(self.needed, 'prompt')} ranked, {self.needed - count} more to go."
        if self.settings is None:
            return f"{counted(count, 'prompt')} ranked. To take them to where they came from:\n  {self.next_command}"
        return f"{counted(count, 'prompt')} ranked, enough to go on ({self.needed} needed):\n  {self.next_command}"


def run_command(folder: Path) -> str:
    """The command that goes on with a run."""
    words = ["run", str(folder / "config.yaml")]
    if folder.parent != Path("runs"):
        words += ["--runs", str(folder.parent)]
    return f"{COMMAND} {shlex.join(words)}"


def open_project(folder: Path, new: bool = False) -> Project:
    """The place in this folder; with `new`, an empty one without a run. Raises `NothingToRank` if there is none yet."""
    if not new and not any((folder / name).is_file() for name in ("config.yaml", STORE)):
        raise NothingToRank(f"{folder}: there are no answers to rank here", "here")
    if new or not (folder / "config.yaml").is_file():
        return Project(folder, AnnotationStore(folder / STORE), None)
    config = load_config(folder / "config.yaml")
    if config.rank.source != "human":
        raise NothingToRank(
            f"{folder}: rank.source is {config.rank.source}; a run with rank.source=human asks people", "for people"
        )
    if not (folder / STORE).is_file():
        command = run_command(folder)
        raise NothingToRank(
            f"{folder}: there are no answers to rank yet. This makes them, and stops with exit code 5 when they wait:\n"
            f"  {command}",
            "yet",
            command,
        )
    return Project(folder, AnnotationStore(folder / STORE), config.rank)


def counted(number: int, noun: str) -> str:
    """`1 prompt`, `2 prompts`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
