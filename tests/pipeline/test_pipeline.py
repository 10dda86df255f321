"""Which stages run, which are skipped, which are refused; with stages that only write a word."""

import io
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
from marks import done
from platforms import posix
from rich.console import Console

from lowrank_rlhf import stages
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import STAGES, Config
from lowrank_rlhf.data import loading
from lowrank_rlhf.errors import RunLocked, StaleRun, Stopped, UserError, WaitingForPeople
from lowrank_rlhf.pipeline import pipeline, redo_stages
from lowrank_rlhf.pipeline.fingerprint import differences, fingerprint
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run import fault_points
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import write_json_atomic
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Message, Prompt, Ranking, Sample, write_jsonl
from lowrank_rlhf.run.results import Fingerprint, StageResult
from lowrank_rlhf.session import Session
from lowrank_rlhf.sources.model_shape import Shape


@dataclass(frozen=True)
class FakeStage(stages.Stage):
    made: Callable[[Session], StageResult] = field(kw_only=True, compare=False)

    @property
    def run(self) -> Callable[[Session], StageResult]:
        return self.made


class Factory:
    """Four stages in a chain and one aside, and the record of what ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.salt = ""
        self.before: dict[str, Callable[[Session], None]] = {}
        self.stages = (
            self.stage("sft", ("seed", "sft", "data"), ()),
            self.stage("sample", ("seed", "sample"), ("sft.txt",)),
            self.stage("rank", ("rank",), ("sample.txt",)),
            self.stage("ppo", ("ppo",), ("sft.txt", "rank.txt")),
            self.stage("evaluate", ("evaluate",), ("sft.txt",)),
        )

    def stage(self, name: str, settings: tuple[str, ...], reads: tuple[str, ...]) -> FakeStage:
        def run(session: Session) -> StageResult:
            self.ran.append(name)
            self.before.get(name, lambda _: None)(session)
            text = "".join(path.read_text() for path in map(session.run_dir.artifact, reads) if path.exists())
            (session.work(name) / f"{name}.txt").write_text(f"{text}{name} {session.config.seed}{self.salt};")
            counts = {
                "sample": {"prompts": 1, "answers": 1},
                "rank": {"rankings": 1, "comparisons": 1},
                "evaluate": {"prompts": 1},
            }
            figures: dict[str, Any] = {**counts.get(name, {}), "figure": float("nan")}
            return StageResult(message=f"{name} is made", **figures)

        return FakeStage(name, "pretend", settings, reads, (f"{name}.txt",), made=run)


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> Factory:
    factory = Factory()
    monkeypatch.setattr(stages, "STAGES", factory.stages)
    return factory


SHAPE = Shape("llama", layers=2, hidden=4, mlp=8, query=4, key_value=2, vocabulary=10, tied=True)
NAMES = ("sft", "sample", "rank", "ppo", "evaluate")


def settings(**changes: Any) -> Config:
    return Config(**{"name": "a", "model": {"source": "x"}, "stages": NAMES} | changes)


def wait_for_people() -> None:
    raise WaitingForPeople("rank some")


def run(folder: Path, config: Config | None = None, progress: Progress | None = None, **options: Any) -> RunDir:
    with progress or Progress.silent() as shown:
        return pipeline.run(config or settings(), folder, progress=shown, **options)


def states(folder: Path, config: Config | None = None) -> list[str]:
    return [entry.state for entry in pipeline.plan(config or settings(), RunDir(folder / "a"))]


def test_a_run_makes_every_stage_once_and_marks_it(tmp_path: Path, factory: Factory) -> None:
    assert states(tmp_path) == ["to do"] * 5
    assert not (tmp_path / "a").exists()
    run_dir = run(tmp_path)
    assert factory.ran == list(NAMES)
    assert run_dir.artifact("ppo.txt").read_text() == "sft 1;sft 1;sample 1;rank 1;ppo 1;"
    assert states(tmp_path) == ["done"] * 5
    mark = done(run_dir, "ppo")
    assert set(mark) == {
        "schema", "stage", "fingerprint", "summary", "seconds", "loading_seconds", "peak_memory_bytes", "finished_at",
        "processes", "planned_memory_bytes", "outputs", "logs",
    }  # fmt: skip
    assert mark["fingerprint"]["settings"]["ppo.kl_coef"] == 0.05
    assert set(mark["fingerprint"]["inputs"]) == {"sft.txt", "rank.txt"}
    assert mark["summary"] == {"message": "ppo is made", "figure": None}


def test_the_same_command_again_runs_nothing(tmp_path: Path, factory: Factory, capsys: pytest.CaptureFixture) -> None:
    run(tmp_path)
    factory.ran.clear()
    run(tmp_path, progress=Progress())
    assert factory.ran == []
    assert capsys.readouterr().out.count("  done before, skipped\n") == 5


def test_until_stops_there_and_the_next_command_goes_on(tmp_path: Path, factory: Factory) -> None:
    run(tmp_path, until="sample")
    assert factory.ran == ["sft", "sample"]
    run(tmp_path)
    assert factory.ran == list(NAMES)


def test_comparisons_from_a_data_set_need_no_samples(tmp_path: Path, factory: Factory) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    run(tmp_path, settings(rank={"source": "dataset", "dataset": str(tmp_path / "pairs.jsonl")}))
    assert factory.ran == ["sft", "rank", "ppo", "evaluate"]


def test_a_data_set_with_bad_rows_and_a_named_format_is_read_once(
    tmp_path: Path, factory: Factory, monkeypatch
) -> None:
    """The time to go, told at every stage's heading, counts what was read at the beginning, with the same settings."""
    both = {"rejected": "c", "responses": ["b", "c"], "scores": [1, 2]}
    rows = [{"prompt": f"q{i}", "chosen": "b" if i else "", **both} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "my.jsonl").write_text("".join(f'{{"prompt": "question {i}", "response": "yes"}}\n' for i in range(5)))
    asked = {"source": "dataset", "dataset": str(tmp_path / "pairs.jsonl"), "format": "preference"}
    data = {"prompts": str(tmp_path / "my.jsonl"), "held_out": 1, "skip_bad_rows": 0.25}
    reads: list[str] = []
    original = loading.read_rows
    monkeypatch.setattr(loading, "read_rows", lambda source: reads.append(Path(source).name) or original(source))
    monkeypatch.setattr(pipeline, "find_shape", lambda _: SHAPE)
    factory.before = {"sft": lambda _: time.sleep(0.06)}  # a pace, to a tenth of a second
    console = Console(file=io.StringIO(), width=200)
    run(tmp_path, settings(rank=asked, data=data), Progress(console))
    assert "to go" in console.file.getvalue()
    assert factory.ran == ["sft", "rank", "ppo", "evaluate"]
    assert sorted(reads) == ["my.jsonl", "pairs.jsonl"]


def test_the_time_to_go_is_without_that_of_people_who_rank_until_they_have(
    tmp_path: Path, factory: Factory, monkeypatch
) -> None:
    (tmp_path / "my.jsonl").write_text("".join(f'{{"prompt": "question {i}", "response": "yes"}}\n' for i in range(5)))
    monkeypatch.setattr(pipeline, "find_shape", lambda _: SHAPE)
    factory.before = {"sft": lambda _: time.sleep(0.06)}  # a pace, to a tenth of a second
    console = Console(file=io.StringIO(), width=200)
    run(tmp_path, settings(rank=HUMAN, data={"prompts": str(tmp_path / "my.jsonl"), "held_out": 1}), Progress(console))
    headings = [line for line in console.file.getvalue().splitlines() if "to go" in line]
    assert [heading.split()[1] for heading in headings] == ["sample:", "rank:", "ppo:", "evaluate:"]
    assert [", without the time to rank)" in heading for heading in headings] == [True, True, False, False]


def test_a_changed_setting_is_refused_with_what_differs_and_the_way_out(tmp_path: Path, factory: Factory) -> None:
    run_dir = run(tmp_path)
    kept = (run_dir.path / "config.yaml").read_text()
    factory.ran.clear()
    changed = settings(ppo={"kl_coef": 0.1, "target_kl": 1}, evaluate={"second_judge": None})
    assert states(tmp_path, changed) == ["done", "done", "done", "stale", "stale"]
    with pytest.raises(StaleRun) as caught:
        run(tmp_path, changed)
    assert str(caught.value) == (
        "Stage ppo does not match the current settings and inputs:\n"
        "  ppo.kl_coef: 0.05 -> 0.1\n"
        "  ppo.target_kl: 0.02 -> 1.0\n"
        "Stage evaluate does not match the current settings and inputs:\n"
        '  evaluate.second_judge: "plain-language" -> null\n'
        "Redo it, with all stages that depend on it: --redo ppo --redo evaluate\n"
        "Or keep it, and start a new run under another name: name=..."
    )
    assert factory.ran == []
    assert (run_dir.path / "config.yaml").read_text() == kept
    run(tmp_path, changed, redo=["ppo", "evaluate"])
    assert factory.ran == ["ppo", "evaluate"]
    assert "kl_coef: 0.1" in (run_dir.path / "config.yaml").read_text()


def test_chat_settings_change_in_a_finished_run_without_a_stage(tmp_path: Path, factory: Factory) -> None:
    run(tmp_path)
    run_dir = run(tmp_path, settings(chat={"top_p": 0.25}))
    assert factory.ran == list(NAMES)
    assert load_config(run_dir.path / "config.yaml").chat.top_p == 0.25


def test_no_real_stage_depends_on_the_chat_settings() -> None:
    empty, changed = (settings(**changes) for changes in ({}, {"chat": {"temperature": 0.3, "top_p": 0.25}}))
    for stage in stages.STAGES:
        assert fingerprint(stage, empty, {}) == fingerprint(stage, changed, {})


def test_a_stale_stage_beyond_until_is_nobodys_business(tmp_path: Path, factory: Factory) -> None:
    run(tmp_path)
    run(tmp_path, settings(ppo={"steps": 1}), until="rank")
    assert factory.ran == list(NAMES)


@pytest.mark.usefixtures("factory")
def test_32_is_32_point_0(tmp_path: Path) -> None:
    run(tmp_path, settings(sample={"temperature": 1}))
    mark = done(RunDir(tmp_path / "a"), "sample")
    mark["fingerprint"]["settings"]["sample.temperature"] = 1
    write_json_atomic(tmp_path / "a" / "done" / "sample.json", mark)
    assert states(tmp_path) == ["done"] * 5


@pytest.mark.usefixtures("factory")
@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("kl_coef", 0.05, None),  # the default, which is not null
        ("kl_coef", 0.1, "ppo.kl_coef: (not set) -> 0.1"),
        ("target_kl", 0.02, None),
        ("target_kl", None, "ppo.target_kl: (not set) -> null"),
        ("target_kl", 1, "ppo.target_kl: (not set) -> 1.0"),
        ("score_clip", None, "ppo.score_clip: (not set) -> null"),  # null is no default here
    ],
)
def test_a_setting_that_the_runs_version_did_not_know_had_its_default(tmp_path: Path, key, value, line) -> None:
    mark = done(run(tmp_path), "ppo")
    del mark["fingerprint"]["settings"][f"ppo.{key}"]
    write_json_atomic(tmp_path / "a" / "done" / "ppo.json", mark)
    found = pipeline.plan(settings(ppo={key: value}), RunDir(tmp_path / "a"))
    assert {entry.stage.name: entry.why for entry in found if entry.why} == ({"ppo": (line,)} if line else {})


def test_defaults_are_those_of_a_config_that_sets_nothing() -> None:
    stage = FakeStage("x", "", tuple(Config.model_fields), (), (), made=lambda _: StageResult())
    made = fingerprint(stage, settings(), {})
    required = {"name", "model.source"}
    changed = {"stages"}  # in `settings` here
    defaults = Config.defaults()
    of_endpoint = {key for key in defaults if key.startswith("rank.endpoint.")}
    found = {key: value for key, value in made.settings.items() if key not in required | changed}
    assert found == {key: value for key, value in defaults.items() if key in found}
    of_others = {"data.validation", "data.columns", "rank.columns", "ppo.rewards"}  # left out unless set
    of_others.add("sample.sft_share")  # in later rounds only
    assert set(defaults) - of_endpoint - stages.PACE - changed - of_others == set(found)
    assert defaults["stages"] == list(STAGES)
    assert defaults["rank.endpoint.max_tokens"] > 0
    assert "rank.endpoint.url" not in defaults


@pytest.mark.usefixtures("factory")
def test_a_changed_input_is_refused(tmp_path: Path) -> None:
    run(tmp_path).artifact("rank.txt").write_text("by hand")
    with pytest.raises(StaleRun, match=r"Stage ppo does not match .*\n  rank\.txt has changed\n.*--redo ppo\n"):
        run(tmp_path)


def test_an_input_that_changes_in_this_very_run_is_refused(tmp_path: Path, factory: Factory) -> None:
    (run(tmp_path).path / "done" / "sft.json").unlink()
    factory.salt = "!"
    with pytest.raises(StaleRun, match=r"Stage sample does not match .*\n  sft\.txt has changed\n"):
        run(tmp_path)
    assert factory.ran == [*NAMES, "sft"]


@pytest.mark.usefixtures("factory")
def test_an_output_that_is_gone_is_noticed(tmp_path: Path) -> None:
    run(tmp_path).artifact("rank.txt").unlink()
    with pytest.raises(StaleRun) as caught:
        run(tmp_path)
    assert "Stage rank" in str(caught.value)
    assert "  rank.txt is gone\n" in str(caught.value)


@pytest.mark.usefixtures("factory")
def test_a_damaged_output_is_refused_by_name_until_it_is_restored_or_made_again(tmp_path: Path) -> None:
    run_dir = run(tmp_path, until="rank")
    path = run_dir.artifact("rank.txt")
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])  # one bit; ppo, which reads it, has not begun
    with pytest.raises(StaleRun) as caught:
        run(tmp_path)
    assert str(caught.value) == (
        "Outputs of stage rank were changed or damaged after it finished:\n"
        "  rank.txt does not match its recorded sha256\n"
        "Redo it, with all stages that depend on it: --redo rank\n"
        "Or restore the damaged files from a copy.\n"
        "Or keep it, and start a new run under another name: name=..."
    )
    assert states(tmp_path) == ["done", "done", "stale", "to do", "to do"]
    path.write_bytes(whole)
    assert states(tmp_path)[2] == "done"
    path.write_bytes(whole[:-1])
    with pytest.raises(StaleRun, match=r"rank\.txt is 21 bytes instead of 22"):
        run(tmp_path)
    run(tmp_path, redo=["rank"])
    assert states(tmp_path) == ["done"] * 5


@pytest.mark.usefixtures("factory")
def test_a_mark_of_an_older_version_has_no_checksums_and_says_nothing(tmp_path: Path) -> None:
    run_dir = run(tmp_path, until="rank")
    mark = done(run_dir, "rank")
    write_json_atomic(
        run_dir.path / "done" / "rank.json", {k: v for k, v in mark.items() if k not in ("outputs", "logs")}
    )
    run_dir.artifact("rank.txt").write_text("other")
    assert states(tmp_path)[2] == "done"
    assert run_dir.damage() == []
    run(tmp_path)


@pytest.mark.usefixtures("factory")
@pytest.mark.parametrize("contents", ["", '{"schema": 1, "stage": "ra', "[]", "\0\0\0\0"])
def test_a_damaged_mark_is_an_error_by_name_and_no_silent_redo(tmp_path: Path, factory: Factory, contents: str) -> None:
    run_dir = run(tmp_path)
    path = run_dir.path / "done" / "rank.json"
    path.write_text(contents)
    factory.ran.clear()
    for command in (states, run):
        with pytest.raises(UserError, match=r"done/rank\.json: not a JSON object\. The file was edited or is damaged"):
            command(tmp_path)
    assert factory.ran == []
    run(tmp_path, redo=["rank"])
    assert factory.ran == ["rank", "ppo"]


def test_rows_of_a_finished_stage_that_changed_are_an_error_by_name(tmp_path: Path, factory: Factory) -> None:
    factory.before = {"sft": lambda session: [session.metrics.append("sft", step, loss=0.5) for step in range(3)]}
    run_dir = run(tmp_path)
    whole = run_dir.metrics.path.read_text()
    assert done(run_dir, "sft")["logs"]["metrics.jsonl"]["rows"] == 3
    for damaged, rows in ((whole.replace("0.5", "0.7", 1), 3), (whole[10:], 2), (whole + whole, 6), ("", 0), (None, 0)):
        run_dir.metrics.path.unlink()
        if damaged is not None:
            run_dir.metrics.path.write_text(damaged)
        with pytest.raises(
            StaleRun, match=rf"metrics\.jsonl: the rows of stage sft .* \({rows} readable rows, 3 recorded\)"
        ):
            run(tmp_path)
        assert len(run_dir.damage()) == 1
        run_dir.metrics.path.write_text(whole)
    run_dir.metrics.append("other", 1, loss=1.0)
    run(tmp_path)
    run_dir.metrics.path.unlink()  # the way out that the message names, and marks of older versions
    mark = run_dir.path / "done/sft.json"
    mark.write_text(json.dumps({key: value for key, value in done(run_dir, "sft").items() if key != "logs"}))
    assert states(tmp_path) == ["done"] * 5
    run(tmp_path)


@pytest.mark.parametrize("name", ["con", "NUL.txt", "com1", "run."])
def test_a_new_run_with_a_reserved_name_is_refused(tmp_path: Path, factory: Factory, name: str) -> None:
    with pytest.raises(UserError, match="not a valid folder name on Windows"):
        run(tmp_path, settings(name=name))
    assert not (tmp_path / name).exists()
    (tmp_path / name).mkdir()  # as an older version left it
    run(tmp_path, settings(name=name))
    assert factory.ran == list(NAMES)


@pytest.mark.usefixtures("factory")
def test_a_new_run_whose_name_differs_in_case_only_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(UserError, match="name: A differs from the existing run a in upper and lower case only"):
        run(tmp_path, settings(name="A"))
    run(tmp_path)
    run(tmp_path, settings(name="console"))


@pytest.mark.usefixtures("factory")
def test_data_files_outside_the_run_count_by_their_contents(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "One?", "response": "1"}\n{"prompt": "Two?", "response": "2"}\n')
    config = settings(data={"prompts": str(prompts), "held_out": 1})
    run(tmp_path, config)
    prompts.write_text('{"prompt": "One?", "response": "1"}\n{"prompt": "Three?", "response": "3"}\n')
    assert states(tmp_path, config) == ["stale", "done", "done", "done", "done"]
    with pytest.raises(StaleRun, match=r"prompts\.jsonl has changed"):
        run(tmp_path, config)


def test_redo_remakes_all_that_was_built_on_it_and_no_more(tmp_path: Path, factory: Factory) -> None:
    run_dir = run(tmp_path)
    made = run_dir.artifact("evaluate.txt").stat()
    factory.ran.clear()
    run(tmp_path, redo=["sample"])
    assert factory.ran == ["sample", "rank", "ppo"]
    now = run_dir.artifact("evaluate.txt").stat()
    assert (now.st_ino, now.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)  # it may have been read


@pytest.mark.usefixtures("factory")
def test_an_interrupted_redo_leaves_no_stage_that_was_built_on_a_deleted_one(tmp_path: Path, monkeypatch) -> None:
    run(tmp_path)

    def die(point: str) -> None:
        if point == "rank: done/rank.json set aside":
            raise KeyboardInterrupt

    monkeypatch.setattr(fault_points, "point", die)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, redo=["sample"])
    assert states(tmp_path) == ["done", "done", "to do", "to do", "done"]


def test_a_stopped_redo_can_be_undone(tmp_path: Path, factory: Factory) -> None:
    run_dir = run(tmp_path)
    made = {name: run_dir.artifact(f"{name}.txt").read_text() for name in NAMES}
    factory.salt = " again"
    factory.before["rank"] = lambda _: wait_for_people()
    with pytest.raises(WaitingForPeople):
        run(tmp_path, redo=["sample"])
    assert states(tmp_path) == ["done", "done", "to do", "to do", "done"]
    assert redo_stages.undo(run_dir) == ["sample", "rank", "ppo"]  # also sample, whose new results are done
    assert {name: run_dir.artifact(f"{name}.txt").read_text() for name in NAMES} == made
    assert states(tmp_path) == ["done"] * 5
    assert not (run_dir.path / "before").exists()
    with pytest.raises(WaitingForPeople):
        run(tmp_path, redo=["sample"])
    run(tmp_path, until="sample")
    assert run_dir.earlier.stages() == ["sample", "rank", "ppo"]
    factory.before.clear()
    run(tmp_path)
    assert states(tmp_path) == ["done"] * 5
    assert not (run_dir.path / "before").exists()


HUMAN = {"source": "human", "minimum_rankings": 1}


def save_a_ranking(run_dir: RunDir) -> Path:
    store = AnnotationStore(path := run_dir.path / "annotations.sqlite")
    prompt = Prompt(id="p", messages=(Message(role="user", content="hi"),))
    store.add_items([prompt], [Sample(id=name, prompt_id="p", text=name) for name in "ab"])
    store.save(Ranking(prompt_id="p", annotator="ann", tiers=(("a",), ("b",)), shown=("a", "b")))
    return path


def test_other_answers_than_people_ranked_are_refused_before_anything_goes(tmp_path: Path, factory: Factory) -> None:
    run(tmp_path, settings(rank=HUMAN))
    config, other = settings(rank=HUMAN, seed=2), settings(rank=HUMAN, seed=3)
    save_a_ranking(run(tmp_path, config, redo=["sft"]))  # nobody had ranked
    with pytest.raises(UserError, match=r"has rankings of 1 prompts by people(.|\n)*seed: 2 -> 3(.|\n)*name="):
        run(tmp_path, other, redo=["sft"])
    assert states(tmp_path, config) == ["done"] * 5
    factory.ran.clear()
    run(tmp_path, config, redo=["sft"])  # the same answers again
    assert "sample" in factory.ran


@pytest.mark.parametrize("begun", ["sft", "sample"])
def test_ranked_answers_are_safe_after_an_interrupted_redo_too(tmp_path: Path, factory: Factory, begun: str) -> None:
    config, run_dir = settings(rank=HUMAN), run(tmp_path, settings(rank=HUMAN))
    save_a_ranking(run_dir)
    factory.before[begun] = lambda _: wait_for_people()
    with pytest.raises(WaitingForPeople):
        run(tmp_path, config, redo=["sft"])
    factory.before.clear()
    other = settings(rank=HUMAN, sample={"answers_per_prompt": 3})
    for redo in ([], ["sample"]):
        with pytest.raises(UserError, match=r"of 1 prompts(.|\n)*answers_per_prompt: 4 -> 3(.|\n)*--undo-redo"):
            run(tmp_path, other, redo=redo)
    run(tmp_path, config)
    assert states(tmp_path, config) == ["done"] * 5


def samples_in_a_file(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage sample writes the answers that `save_a_ranking` ranks; with a salt, others of the same ids."""

    def write(session: Session) -> None:
        samples = [Sample(id=name, prompt_id="p", text=name + factory.salt) for name in "ab"]
        write_jsonl(session.work("sample") / "samples.jsonl", samples)

    factory.before["sample"] = write
    both = ("sample.txt", "samples.jsonl")
    made = tuple(replace(stage, writes=both) if stage.name == "sample" else stage for stage in factory.stages)
    monkeypatch.setattr(stages, "STAGES", made)


def test_rankings_of_the_earlier_answers_do_not_refuse_an_undo(tmp_path: Path, factory: Factory, monkeypatch) -> None:
    """As after a change from people to a judge, with which other answers may be sampled."""
    samples_in_a_file(factory, monkeypatch)
    run_dir = run(tmp_path, settings(rank=HUMAN))
    save_a_ranking(run_dir)
    factory.salt = " again"
    factory.before["rank"] = lambda _: wait_for_people()
    with pytest.raises(WaitingForPeople):
        run(tmp_path, settings(sample={"answers_per_prompt": 3}), redo=["sample"])
    assert redo_stages.undo(run_dir) == ["sample", "rank", "ppo"]
    assert states(tmp_path, settings(rank=HUMAN)) == ["done"] * 5


def test_first_answers_that_people_ranked_are_not_undone(tmp_path: Path, factory: Factory, monkeypatch) -> None:
    """The redo of an earlier stage also sets aside a stage sample that had not begun."""
    samples_in_a_file(factory, monkeypatch)
    run_dir = run(tmp_path, settings(rank=HUMAN), until="sft")
    factory.before["rank"] = lambda _: wait_for_people()
    with pytest.raises(WaitingForPeople):
        run(tmp_path, settings(rank=HUMAN), redo=["sft"])
    save_a_ranking(run_dir)
    with pytest.raises(UserError, match="has rankings of 1 prompts"):
        redo_stages.undo(run_dir)


def test_a_redo_whose_answers_people_ranked_is_not_undone(tmp_path: Path, factory: Factory, monkeypatch) -> None:
    factory.salt = " before"
    samples_in_a_file(factory, monkeypatch)
    run_dir, other = run(tmp_path, settings(rank=HUMAN)), settings(rank=HUMAN, sample={"answers_per_prompt": 3})
    factory.salt = ""
    factory.before["rank"] = lambda _: wait_for_people()
    with pytest.raises(WaitingForPeople):
        run(tmp_path, other, redo=["sample"])
    store = save_a_ranking(run_dir)
    with pytest.raises(UserError, match=r"of 1 prompts(.|\n)*answers_per_prompt: 4 -> 3(.|\n)*Finish the redo"):
        redo_stages.undo(run_dir)
    store.unlink()
    assert redo_stages.undo(run_dir) == ["sample", "rank", "ppo"]
    assert states(tmp_path, settings(rank=HUMAN)) == ["done"] * 5


@pytest.mark.usefixtures("factory")
def test_redo_discards_what_this_config_would_not_run(tmp_path: Path) -> None:
    run_dir = run(tmp_path)
    run(tmp_path, settings(stages=("sft", "sample")), redo=["sft"])
    assert done(run_dir, "evaluate") is None
    assert not run_dir.artifact("ppo.txt").exists()
    assert not (run_dir.path / "before").exists()  # nothing is left to wait for


@pytest.mark.usefixtures("factory")
def test_earlier_results_of_another_version_refuse_a_redo_and_its_undo(tmp_path: Path) -> None:
    run_dir = run(tmp_path)
    write_json_atomic(mark := run_dir.path / "before/sft/files/done/sft.json", {})
    for act in (lambda: run(tmp_path, redo=["sft"]), lambda: redo_stages.undo(run_dir)):
        with pytest.raises(UserError, match="before: earlier results of a redo with another version"):
            act()
    run(tmp_path)
    assert mark.exists()
    assert states(tmp_path) == ["done"] * 5


@pytest.mark.usefixtures("factory")
@pytest.mark.parametrize("option", [{"until": "smaple"}, {"redo": ["sft", "smaple"]}])
def test_unknown_stage_names(tmp_path: Path, option: dict[str, Any]) -> None:
    expected = '"smaple" is not a stage of this run; they are sft, sample, rank, ppo, evaluate. Did you mean "sample"?'
    with pytest.raises(UserError) as caught:
        run(tmp_path, **option)
    assert str(caught.value) == expected
    assert not (tmp_path / "a").exists()


class TestMissingInputs:
    """`stages` may leave out what was made before, and nothing else; the real stages' own reads and writes."""

    @staticmethod
    def refused(tmp_path: Path, *names: str, **changes: Any) -> str:
        with pytest.raises(UserError) as caught:
            run(tmp_path, settings(stages=names, **changes))
        assert not (tmp_path / "a" / "events.jsonl").exists()  # nothing was begun
        return str(caught.value)

    @pytest.mark.usefixtures("factory")
    @pytest.mark.parametrize("names", [("rank",), ("sft", "rank", "ppo")])
    def test_a_stage_without_its_input_is_refused_before_anything_runs(self, tmp_path: Path, names: Any) -> None:
        assert self.refused(tmp_path, *names) == (
            f"stages: rank reads sample.txt, which is not in {tmp_path / 'a'}; stage sample makes it: "
            "add sample to `stages`"
        )

    @pytest.mark.parametrize(
        ("names", "reads", "maker"),
        [
            (("sft", "ppo"), "ppo reads adapters/reward", "reward"),
            (("reward",), "reward reads adapters/sft", "sft"),
            (("sft", "reward"), "reward reads prompts.jsonl", "rank"),
            (("sft", "rank"), "rank reads samples.jsonl", "sample"),
            (("sft", "sample", "rank", "reward", "evaluate"), "evaluate reads adapters/policy", "ppo"),
        ],
    )
    def test_the_real_stages(self, tmp_path: Path, names: Any, reads: str, maker: str) -> None:
        found = self.refused(tmp_path, *names)
        assert found.startswith(f"stages: {reads}, which")
        assert f"stage {maker} makes it" in found

    def test_what_an_earlier_run_made_will_do(self, tmp_path: Path, factory: Factory) -> None:
        run(tmp_path, until="rank")
        factory.ran.clear()
        run(tmp_path, settings(stages=("ppo",)))
        assert factory.ran == ["ppo"]

    def test_what_redo_would_discard_will_not(self, tmp_path: Path, factory: Factory) -> None:
        run_dir = run(tmp_path, until="rank")
        with pytest.raises(UserError, match=r"ppo reads rank\.txt, .* stage rank makes it"):
            run(tmp_path, settings(stages=("sft", "ppo")), redo=["sft"])
        assert run_dir.artifact("rank.txt").exists()
        assert factory.ran == ["sft", "sample", "rank"]

    def test_until_asks_for_no_more_than_it_needs(self, tmp_path: Path, factory: Factory) -> None:
        run(tmp_path, settings(stages=("sft", "rank")), until="sft")
        assert factory.ran == ["sft"]


class TestHalfDone:
    @staticmethod
    def stop_half_way(session: Session) -> None:
        (session.work("rank") / "half").write_text("x")
        signal.raise_signal(signal.SIGINT)
        session.stop.check("half of it is saved")

    @staticmethod
    def wait_half_way(session: Session) -> None:
        (session.work("sft") / "half").write_text("x")
        wait_for_people()

    def test_a_stop_keeps_the_work_and_the_same_command_goes_on(self, tmp_path: Path, factory: Factory) -> None:
        factory.before["rank"] = self.stop_half_way
        with pytest.raises(Stopped, match="half of it is saved"):
            run(tmp_path)
        assert states(tmp_path) == ["done", "done", "half done", "to do", "to do"]
        found = []
        factory.before["rank"] = lambda session: found.append((session.work("rank") / "half").read_text())
        run(tmp_path)
        assert found == ["x"]
        assert factory.ran == ["sft", "sample", "rank", "rank", "ppo", "evaluate"]
        assert not (tmp_path / "a" / "work" / "rank").exists()

    def test_seconds_add_up_over_the_attempts(
        self, tmp_path: Path, factory: Factory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = iter(range(0, 1000, 10))
        monkeypatch.setattr(pipeline.time, "monotonic", lambda: next(clock))
        factory.before["sft"] = self.wait_half_way
        for _ in range(2):
            with pytest.raises(WaitingForPeople):
                run(tmp_path, until="sft")
        del factory.before["sft"]
        assert done(run(tmp_path, until="sft"), "sft")["seconds"] == 30

    def test_a_stage_that_left_nothing_is_to_do_with_other_settings_too(self, tmp_path: Path, factory: Factory) -> None:
        """PPO refuses a weak reward model before its first step, and says which setting would let it."""
        factory.before["ppo"] = lambda _: wait_for_people()
        with pytest.raises(WaitingForPeople):
            run(tmp_path)
        assert states(tmp_path) == ["done", "done", "done", "to do", "to do"]
        del factory.before["ppo"]
        changed = settings(ppo={"accept_weak_reward": True})
        mark = done(run(tmp_path, changed), "ppo")
        assert mark["fingerprint"]["settings"]["ppo.accept_weak_reward"] is True

    def test_the_peak_of_memory_is_the_stages_own_and_the_highest_of_its_attempts(
        self, tmp_path: Path, factory: Factory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on Linux, where the kernel's mark can be reset."""
        mark = [900]
        monkeypatch.setattr(pipeline, "forget_peak_memory", lambda: mark.__setitem__(0, 10))
        monkeypatch.setattr(pipeline, "peak_memory_bytes", lambda: mark[0])

        def use(count: int, then: Callable[[Session], None] = lambda _: None) -> Callable[[Session], None]:
            return lambda session: (mark.__setitem__(0, max(mark[0], count)), then(session))[0]

        factory.before |= {"sft": use(500, self.wait_half_way), "sample": use(20)}
        with pytest.raises(WaitingForPeople):
            run(tmp_path, until="sft")
        factory.before["sft"] = use(100)
        run_dir = run(tmp_path, until="rank")
        peaks = [done(run_dir, name)["peak_memory_bytes"] for name in ("sft", "sample", "rank")]
        assert peaks == [500, 20, 10]

    def test_half_done_work_of_another_config_is_refused(self, tmp_path: Path, factory: Factory) -> None:
        factory.before["rank"] = self.stop_half_way
        with pytest.raises(Stopped):
            run(tmp_path)
        factory.before.clear()
        changed = settings(rank={"tie_margin": 0.5})
        with pytest.raises(StaleRun, match=r"rank\.tie_margin: 0\.0 -> 0\.5\n.*--redo rank"):
            run(tmp_path, changed)
        run(tmp_path, changed, redo=["rank"])
        assert factory.ran == ["sft", "sample", "rank", "rank", "ppo", "evaluate"]

    def test_a_stop_between_stages_starts_no_other(self, tmp_path: Path, factory: Factory) -> None:
        factory.before["sft"] = lambda _: signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match="everything finished so far is saved"):
            run(tmp_path)
        assert states(tmp_path)[:2] == ["done", "to do"]

    def test_a_stop_in_the_last_stage_lets_it_finish(self, tmp_path: Path, factory: Factory) -> None:
        factory.before["evaluate"] = lambda _: signal.raise_signal(signal.SIGTERM)
        run(tmp_path)
        assert states(tmp_path) == ["done"] * 5

    def test_a_bug_is_not_dressed_up(self, tmp_path: Path, factory: Factory) -> None:
        factory.before["sft"] = lambda _: 1 / 0
        with pytest.raises(ZeroDivisionError):
            run(tmp_path)
        last = json.loads((tmp_path / "a" / "events.jsonl").read_text().splitlines()[-1])
        assert (last["kind"], last["stage"], last["error"]) == ("ended early", "sft", "ZeroDivisionError")


@posix
@pytest.mark.parametrize("moves", range(8))
def test_a_process_killed_while_it_finishes_a_stage_costs_no_work(tmp_path: Path, factory: Factory, moves: int) -> None:
    """`moves` renames into the finish of `sample` the process dies without a word; the same command mends it."""
    child = os.fork()
    if child == 0:
        try:
            factory.before["sample"] = lambda _: die_after(moves)
            run(tmp_path)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    run(tmp_path)
    assert states(tmp_path) == ["done"] * 5
    assert RunDir(tmp_path / "a").artifact("rank.txt").read_text() == "sft 1;sample 1;rank 1;"
    # Once its plan to finish is on disk, the first of the renames, the stage is not made again.
    assert ("sample" in factory.ran) == (moves == 0)


def die_after(moves: int) -> None:
    replace = os.replace

    def counted(*arguments: Any) -> None:
        nonlocal moves
        if moves == 0:
            os._exit(9)
        moves -= 1
        replace(*arguments)

    os.replace = counted


def test_two_runs_of_one_name_do_not_mix(tmp_path: Path, factory: Factory) -> None:
    with RunDir(tmp_path / "a").lock(), pytest.raises(RunLocked):
        run(tmp_path)
    assert factory.ran == []


def test_differences_name_what_is_new_and_what_is_gone() -> None:
    old = Fingerprint(settings={"a": 1, "b": "x" * 99, "old": True}, inputs={"same": "1", "lost": "2", "other": "3"})
    new = Fingerprint(settings={"a": 1, "b": None, "new": 2}, inputs={"same": "1", "other": "4", "found": "5"})
    assert differences(old, new) == (
        f'b: "{"x" * 56}... -> null',
        "old: true -> (not set)",
        "new: (not set) -> 2",
        "lost is no longer read",
        "other has changed",
        "found is read now",
    )
    assert differences(old, old) == ()
    newer = Fingerprint(settings={**old.settings, "unknown to the older version": None}, inputs=old.inputs)
    assert differences(old, newer) == differences(newer, old) == ()


def test_the_real_stages_settings_exist_and_what_they_read_is_written_before() -> None:
    made: set[str] = set()
    for stage in stages.STAGES:
        assert fingerprint(stage, settings(), {}).settings
        assert made.issuperset(stage.reads)
        assert made.isdisjoint(stage.writes)
        made |= set(stage.writes)


class Hub:
    """A data set of one prompt more at each push; `commit` is its newest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commit, self.reachable, self.read = "a" * 40, True, []
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(datasets, "load_dataset", self.load)

    def dataset_info(self, _name: str, *, revision: str | None) -> SimpleNamespace:
        if not self.reachable:
            raise ConnectionError("no network")
        return SimpleNamespace(sha=revision or self.commit)

    def load(self, _name: str, _config: str | None, *, revision: str | None, split: str) -> datasets.Dataset:
        self.read.append(revision)
        rows = 2 + ((revision or self.commit) == "b" * 40)
        return datasets.Dataset.from_list(
            [{"prompt": f"{split} {number}", "response": "Yes."} for number in range(rows)]
        )


def test_a_run_keeps_to_the_commit_of_a_data_set_that_it_read_first(
    tmp_path: Path, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner pushes between two commands: rows, ids and the split under finished stages stay what they were."""
    hub, config = Hub(monkeypatch), settings(data={"prompts": "hub:a/b", "held_out": 1})
    seen: list[int] = []
    factory.before = dict.fromkeys(NAMES, lambda session: seen.append(len(session.prompts[0])))
    run_dir = run(tmp_path, config, until="sample")
    assert done(run_dir, "sft")["fingerprint"]["inputs"]["hub:a/b"] == hub.commit
    hub.commit = "b" * 40
    assert states(tmp_path, config)[:2] == ["done", "done"]
    run(tmp_path, config)
    assert seen == [1] * 5
    assert set(hub.read) == {"a" * 40}
    (run_dir.path / "datasets.json").unlink()
    with pytest.raises(StaleRun, match="hub:a/b has changed"):
        run(tmp_path, config)
    run(tmp_path, config, redo=["sft"])
    assert seen[5:] == [2] * 5


def test_a_run_whose_data_sets_commit_is_not_known_goes_on(
    tmp_path: Path, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One made by an older version, or without a network from the library's cache."""
    hub, config = Hub(monkeypatch), settings(data={"prompts": "hub:a/b", "held_out": 1})
    hub.reachable = False
    run_dir = run(tmp_path, config, until="sft")
    assert hub.read == [None]
    assert not (run_dir.path / "datasets.json").exists()
    hub.reachable = True
    run(tmp_path, config)
    assert factory.ran == list(NAMES)
    assert json.loads((run_dir.path / "datasets.json").read_text())["commits"] == {"hub:a/b": hub.commit}


LONG = {"skip_too_long": True}
PEOPLE = {"source": "human"}


@pytest.mark.parametrize(
    ("stage", "before", "after", "says"),
    [
        ("sft", {"data": LONG}, {"data": LONG, "sample": {"max_new_tokens": 64}}, "room for a prompt"),
        ("sft", {"data": LONG}, {"data": LONG, "stages": ("sft",)}, "room for a prompt"),
        ("sft", {}, {"sample": {"max_new_tokens": 64}}, None),  # nothing is left out
        ("sft", {"data": LONG}, {"data": LONG, "stages": ("sft", "ppo")}, None),  # answers follow all the same
        ("ppo", {"rank": PEOPLE}, {"rank": PEOPLE, "evaluate": {"second_judge": "sentiment"}}, "second_judge"),
        ("ppo", {"rank": PEOPLE}, {"rank": PEOPLE, "evaluate": {"bootstrap_samples": 100}}, None),
        ("ppo", {}, {"evaluate": {"second_judge": "sentiment"}}, "second_judge"),  # followed beside the one that ranked
        ("sft", {}, {"data": {"validation": 8}}, None),
        ("reward", {}, {"data": {"validation": 0}}, None),
    ],
)
def test_what_a_stage_reads_of_other_sections_counts(stage: str, before: Any, after: Any, says: str | None) -> None:
    made, now = (fingerprint(stages.stage(stage), settings(**changes), {}) for changes in (before, after))
    found = differences(made, now)
    assert len(found) == (says is not None)
    assert says is None or says in found[0]
    if stage == "ppo":  # its curves alone follow that judge
        assert differences(made, now, finished=True) == ()
    known = {key: value for key, value in made.settings.items() if " " not in key}
    older = Fingerprint(settings=known, inputs=made.inputs)
    assert differences(older, now) == ()  # a mark that lacks it makes no finished run stale


def test_an_endpoint_for_others_leaves_rank_as_it_is() -> None:
    """Only a judge that asks it makes it a setting of the ranking, in marks of older versions too."""
    endpoint = {"endpoint": {"url": "http://a/v1", "model": "m"}}
    second, rank = {"second_judge": "endpoint"}, stages.stage("rank")
    without, with_it = (
        fingerprint(rank, settings(), {}),
        fingerprint(rank, settings(rank=endpoint, evaluate=second), {}),
    )
    assert differences(without, with_it) == differences(with_it, without) == ()
    recorded = {"rank.endpoint.url": "http://b/v1", "rank.endpoint.model": "m"}
    for added in ({"rank.endpoint": None}, recorded):
        older = Fingerprint(settings=without.settings | added, inputs={})
        assert differences(older, with_it) == differences(older, without) == ()
    asked = {"judge": "endpoint"}
    judge, other = (
        fingerprint(rank, settings(rank=asked | {"endpoint": {"url": url, "model": "m"}}), {})
        for url in ("http://a/v1", "http://b/v1")
    )
    assert differences(judge, other) == ('rank.endpoint.url: "http://a/v1" -> "http://b/v1"',)
    assert 'rank.judge: "endpoint"' in differences(judge, without)[0]
    evaluate = stages.stage("evaluate")
    assert differences(
        *(
            fingerprint(evaluate, settings(rank={"endpoint": {"url": url, "model": "m"}}, evaluate=second), {})
            for url in ("http://a/v1", "http://b/v1")
        )
    )


def test_how_an_endpoint_is_asked_is_a_setting_of_what_it_judges() -> None:
    """A run made before these settings stays as it is; a reward reads `verdict`, and has a rubric of its own."""
    plain = {"url": "http://a/v1", "model": "m"}

    def found(stage: str, **changed: str) -> Fingerprint:
        rewards = {"own": {"source": "endpoint"}, "model": {"source": "model"}}
        judged = settings(rank={"judge": "endpoint", "endpoint": plain | changed}, ppo={"rewards": rewards})
        return fingerprint(stages.stage(stage), judged, {})

    new = [f"rank.endpoint.{name}" for name in ("ask", "verdict", "rubric")]
    for stage in ("rank", "ppo", "evaluate"):
        made = found(stage)
        known = {key: value for key, value in made.settings.items() if key not in new}
        older = Fingerprint(settings=known | {"rank.endpoint.template": "english"}, inputs={})
        assert differences(older, made) == ()
        assert differences(made, found(stage, verdict="logprobs")) == ('rank.endpoint.verdict: "text" -> "logprobs"',)
        pointwise = differences(made, found(stage, ask="pointwise"))
        assert pointwise == (() if stage == "ppo" else ('rank.endpoint.ask: "pairwise" -> "pointwise"',))
        assert bool(differences(made, found(stage, template="chinese"))) == (stage != "ppo")


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path, factory: Factory, monkeypatch: Any) -> None:
    """Adapters are made for one base: with another of the same shape they would load, and mean nothing."""
    for entry in factory.stages:
        object.__setattr__(entry, "settings", (*entry.settings, "model"))
    held = {"identity": "sha256 1"}
    fetched: list[str] = []
    monkeypatch.setattr(pipeline, "fetch_model", lambda model, _: fetched.append(model.source))
    monkeypatch.setattr("lowrank_rlhf.pipeline.fingerprint.model_identity", lambda _: held.get("identity"))
    monkeypatch.setattr(Session, "filter_lengths", lambda _: None)  # there is no tokenizer
    run(tmp_path, until="sample")
    held["identity"] = "sha256 2"
    with pytest.raises(StaleRun, match=r'sft does not match .*:\n  model files: "sha256 1" -> "sha256 2"'):
        run(tmp_path)
    held.pop("identity")
    assert states(tmp_path) == ["done", "done", "to do", "to do", "to do"]  # not on this machine: nothing is known
    monkeypatch.setattr(pipeline, "fetch_model", lambda *_: held.update(identity="sha256 3"))
    with pytest.raises(StaleRun, match='"sha256 1" -> "sha256 3"'):
        run(tmp_path)  # what was fetched is another model than before
    assert factory.ran == ["sft", "sample"]
    held["identity"] = "sha256 1"
    run(tmp_path, until="sample")  # all done: nothing is fetched
    assert fetched == ["x"]
