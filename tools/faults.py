"""Kills a tiny run of all stages at many of its write points, goes on, and compares with a run that nothing disturbed.

    make faults                                  # or: python tools/faults.py --points 20 --keep /tmp/faults
    python tools/faults.py --source judge --points 0 --random 20
    python tools/faults.py --rounds 2

A run here is what a person does: `run` up to where it waits for people, rank all answers, `run` to its end, make the
evaluation again, export the adapters, export the annotations; with `--source judge` nobody ranks. For each point, and
at `--random` moments besides the points, a process does that and dies of SIGKILL on the way; another one does the same
again. Adapters, samples, evaluation, watched answers and figures must then be equal
to the last bit, the list of files too, and no ranking that a person saw confirmed may be missing. Every kind of point
is taken before any twice.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parents[1] / "tests" / "support")]

from tiny import make_tiny_model
from tiny_run import STAGES, make_config, write_prompts

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import WaitingForPeople
from lowrank_rlhf.export.export import export_adapters
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.preferences.export_file import to_jsonl
from lowrank_rlhf.preferences.project import open_project
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run import fault_points
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import append_line, file_names, read_lines, sha256, write_atomic
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Ranking
from lowrank_rlhf.run.results.rounds import stages_in
from lowrank_rlhf.stages import evaluate, ppo, reward, sft  # noqa: F401 - before the forks, once for all of them
from lowrank_rlhf.stages.rank import STORE

SOURCES: dict[str, dict[str, object]] = {
    "human": {"rank__source": "human", "rank__minimum_rankings": 6},
    "judge": {"rank__source": "judge", "rank__judge": "faults:prefer_short"},
}
SETTINGS = {
    "sample__prompts": 6,
    "sft__save_every": 2,
    "reward__fit_head_first": True,
    "reward__save_every": 1,
    "ppo__steps": 4,
    "ppo__save_every": 1,
    "ppo__minibatches": 2,
    "ppo__kl_controller": "adaptive",
    "ppo__kl_horizon": 8,
    "ppo__critic_warmup_steps": 1,
    "evaluate__second_judge": "plain-language",
}
TIMES = ("time/", "tokens_per")
LOGS = ("metrics.jsonl", "watched.jsonl", "rollouts.jsonl", "events.jsonl")
"""Lines of a run that was killed come in another order, or again, with other times: read, not hashed."""
TIMED = (*LOGS, "report.html", "report.md", "README.md", *(f"{stage}.json" for stage in STAGES))
"""Files that hold times."""


def main() -> None:
    """Exit code 0 only if every kill point was survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=80, help="how many kill points, spread over all (default 80)")
    parser.add_argument("--source", choices=SOURCES, default="human", help="who ranks (default human)")
    parser.add_argument("--rounds", type=int, default=1, help="how many rounds (default 1)")
    parser.add_argument("--random", type=int, default=0, help="how many kills at random moments in addition")
    parser.add_argument("--seed", type=int, default=0, help="seed of these moments")
    parser.add_argument("--keep", type=Path, help="do it in this folder, and leave what failed there")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        config = make_config(
            make_tiny_model(folder / "model"), write_prompts(folder / "data.jsonl"), quantization="none",
            rounds=options.rounds, **SETTINGS, **SOURCES[options.source],
        )  # fmt: skip
        survived, tried = walk(config, folder, options.points, options.random, random.Random(options.seed))
    print(f"{survived} of {tried} kill points survived")
    sys.exit(0 if survived == tried > 0 else 1)


def walk(config: Config, folder: Path, wanted: int, moments: int, generator: random.Random) -> tuple[int, int]:
    """Kill at that many points and moments; how many were survived, and how many were tried."""
    whole, names, start = folder / "whole", folder / "points.txt", time.monotonic()
    names.unlink(missing_ok=True)
    status = in_a_process(lambda: everything(config, whole), whole, f"list:{names}")
    if status != 0:
        sys.exit(f"the undisturbed run ended with {status}: see {whole / 'said.txt'}")
    seconds = time.monotonic() - start
    points = names.read_text(encoding="utf-8").splitlines()
    numbers = chosen(points, wanted)
    print(f"{len(points)} write points of {len({kind(point) for point in points})} kinds; {len(numbers)} are tried")
    kills: list[tuple[str, int | float]] = [(f"{number:>4} {points[number - 1]}", number) for number in numbers]
    kills += [(f"after {after:.2f} s", after) for after in (generator.uniform(0, seconds) for _ in range(moments))]
    survived = 0
    for name, kill in kills:
        place, start = folder / f"killed-{kill}", time.monotonic()
        problems = list(killed_at(kill, config, place, whole))
        survived += not problems
        verdict = "survived" if not problems else f"NOT SURVIVED: {'; '.join(problems)}"
        print(f"{name}: {verdict} ({time.monotonic() - start:.1f} s)", flush=True)
        if not problems:
            shutil.rmtree(place)
    return survived, len(kills)


def chosen(points: list[str], wanted: int) -> list[int]:
    """Numbers of points, from 1: one of every kind first, the rest spread evenly over what is left."""
    firsts: dict[str, int] = {}
    for number, name in enumerate(points, 1):
        firsts.setdefault(kind(name), number)
    kinds = list(firsts.values())
    rest = [number for number in range(1, len(points) + 1) if number not in set(kinds)]
    return sorted(_spread(kinds, wanted) + _spread(rest, wanted - len(kinds)))


def _spread(numbers: list[int], wanted: int) -> list[int]:
    wanted = max(0, min(wanted, len(numbers)))
    return [numbers[i * len(numbers) // wanted] for i in range(wanted)]


def kind(name: str) -> str:
    """Points of one name are of one kind, whatever number is in it."""
    return re.sub(r"[0-9a-f]{16,}|\d+", "N", name)


def killed_at(kill: int | float, config: Config, place: Path, whole: Path) -> Iterator[str]:
    """What is wrong after a kill at that point, or after those seconds, and another go: nothing, if all is well."""
    if isinstance(kill, int):
        status = in_a_process(lambda: everything(config, place), place, f"kill:{kill}")
    else:
        status = in_a_process(lambda: everything(config, place), place, None, kill)
    if status != -signal.SIGKILL and not (status == 0 and isinstance(kill, float)):  # the machine may be faster now
        yield f"the process ended with {status}, not of SIGKILL"
    status = in_a_process(lambda: everything(config, place), place, None)
    if status != 0:
        yield f"the second process ended with {status}: see {place / 'said.txt'}"
    else:
        yield from differences(place, whole)


def in_a_process(act: Callable[[], object], place: Path, fault: str | None, seconds: float | None = None) -> int:
    """Fork and do it there, with what it says in `said.txt`; the exit status, or less a signal's number.

    With `seconds` the process is killed after them.
    """
    place.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        status = 1
        with (place / "said.txt").open("a", encoding="utf-8") as said, redirect_stdout(said), redirect_stderr(said):
            try:
                os.environ.pop(fault_points.VARIABLE, None)
                os.environ["LOWRANK_RLHF_CACHE"] = str(place / "cache")  # a warm one would shift the points
                if fault:
                    os.environ[fault_points.VARIABLE] = fault
                act()
                status = 0
            except BaseException:  # whatever it is, the child must not go on as if it were the parent
                traceback.print_exc()
        os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # ours until it is waited for, also if it has ended
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def prefer_short(_prompt: str, answers: list[str]) -> list[float]:
    """Judge of `--source judge`, imported by its name: the shorter, the better."""
    return [-float(len(answer)) for answer in answers]


def everything(config: Config, place: Path) -> None:
    """What a person does, from wherever it was left."""
    run_dir = RunDir(place / "runs" / config.name)
    for _ in range(config.rounds + 1):
        try:
            pipeline.run(config, place / "runs", progress=Progress.silent())
            break
        except WaitingForPeople:
            rank_all(open_project(run_dir.path).store, place / "confirmed.jsonl")
    last = pipeline.stages_of(config)[-1].name
    pipeline.run(config, place / "runs", redo=(last,), progress=Progress.silent())
    if not (place / "export").exists():
        export_adapters(run_dir.newest, config, place / "export")
    if config.rank.source == "human":
        write_atomic(place / "people.jsonl", to_jsonl(open_project(run_dir.path).store.contents()))


def rank_all(store: AnnotationStore, confirmed: Path) -> None:
    """A person who likes short answers, and notes each ranking that the store said it has."""
    while item := store.next_item("ann"):
        lengths = sorted({len(answer.text) for answer in item.answers})
        tiers = [tuple(sorted(a.id for a in item.answers if len(a.text) == length)) for length in lengths]
        ranking = Ranking(prompt_id=item.prompt.id, tiers=tuple(tiers), annotator="ann", shown=item.shown)
        if store.save(ranking, item.done):
            append_line(confirmed, ranking.model_dump(mode="json"))


def differences(place: Path, whole: Path) -> Iterator[str]:
    """In what the two folders differ that should be equal."""
    listed, expected = (set(file_names(folder)) for folder in (place, whole))
    yield from (f"{name} is left over" for name in sorted(listed - expected))
    yield from (f"{name} is missing" for name in sorted(expected - listed))
    for name in sorted(listed & expected):
        timed = Path(name).name in (*TIMED, "said.txt", "confirmed.jsonl", "config.yaml", "env.json", STORE)
        if not timed and sha256(place / name) != sha256(whole / name):
            yield f"{name} differs"
    runs = [RunDir(folder / "runs" / "tiny") for folder in (place, whole)]
    for one, other in zip(runs[0].rounds, runs[1].rounds, strict=True):
        for log in ("metrics", "watched", "rollouts"):
            if rows(getattr(one, log)) != rows(getattr(other, log)):
                yield f"{log}.jsonl of round {one.number} differs"
    for stage in stages_in(runs[1].path):
        if untimed(runs[0], stage) != untimed(runs[1], stage):
            yield f"the done-mark of {stage} differs"
    yield from runs[0].damage()
    if (place / "confirmed.jsonl").exists():
        stores = [AnnotationStore(each.path / STORE) for each in runs[0].rounds]
        stored = [ranking.model_dump(mode="json") for store in stores for ranking in store.rankings()]
        seen = [json.loads(line) for line in read_lines(place / "confirmed.jsonl") if line]
        yield from (f"the confirmed ranking of {row['prompt_id']} is lost" for row in seen if row not in stored)


def rows(log: Any) -> list[dict[str, Any]]:
    """The rows of a log without times."""
    return [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in log.read()]


def untimed(run_dir: RunDir, stage: str) -> dict[str, Any]:
    """Return fingerprint and result of a done mark, without times."""
    mark = run_dir.mark(stage)
    assert mark
    result = mark.result.model_dump(exclude={"seconds_per_step", "tokens_per_second", "message"})
    return {"fingerprint": mark.fingerprint, "result": result}


if __name__ == "__main__":
    main()
