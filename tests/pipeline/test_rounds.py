"""Rounds: sample as the last policy, rank, learn from the rankings of all rounds, train on; the KL is from SFT."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from tiny_run import make_config, write_prompts

from lowrank_rlhf import cli, stages
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.served.routes import routes
from lowrank_rlhf.dashboard.tabs.result import _contents
from lowrank_rlhf.dashboard.tabs.samples import samples
from lowrank_rlhf.dashboard.text import html
from lowrank_rlhf.errors import ExitCode, UserError, WaitingForPeople
from lowrank_rlhf.export.export import export_adapters
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.pipeline import pipeline, redo_stages
from lowrank_rlhf.preferences.project import open_project
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import sha256
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Prompt, Ranking, Sample, read_jsonl, write_jsonl
from lowrank_rlhf.run.results import (
    EvaluateResult,
    PolicyResult,
    RewardResult,
    SampleResult,
    SftResult,
    StageResult,
)
from lowrank_rlhf.run.results.rounds import rounds_in
from lowrank_rlhf.run.step_log import StepLog
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import sample as sampling
from lowrank_rlhf.training import policy_roles
from lowrank_rlhf.training.policy_checkpoints import PolicyState

SETTINGS = {
    "sft__epochs": 1,
    "reward__fit_head_first": True,
    "reward__save_every": 2,
    "ppo__steps": 3,
    "ppo__evaluate_every": 1,
    "ppo__save_every": 1,
    "rank__judge": "plain-language",
    "evaluate__yardstick_prompts": 0,
}
LATER = ("sample", "rank", "reward", "ppo", "evaluate")
ADAPTERS = ("sft", "reward", "policy", "policy-last", "critic")
FILES = ("samples.jsonl", "rankings.jsonl", "scores.jsonl", "watched.jsonl", "eval.jsonl")


class Killed(BaseException):
    """As SIGKILL: nobody gets to save anything."""


def go(config: Config, runs: Path, **options: Any) -> RunDir:
    return pipeline.run(config, runs, progress=Progress.silent(), **options)


def rows(run_dir: RunDir) -> list[dict[str, Any]]:
    """The metrics without times and pace."""
    return [
        {key: value for key, value in row.items() if not key.startswith(("time/", "tokens_per"))}
        for row in run_dir.metrics.read()
    ]


def at(run_dir: RunDir, step: int) -> dict[str, Any]:
    """The figures of an evaluation in PPO."""
    return next(row for row in run_dir.metrics.read("ppo") if row["step"] == step and "eval/kl" in row)


def made(run_dir: RunDir) -> dict[str, str]:
    return run_dir.hashes([*(f"adapters/{name}" for name in ADAPTERS), *FILES])


@pytest.fixture(scope="module")
def runs(tiny_folder, tmp_path_factory) -> SimpleNamespace:
    """A run of one round, the same one with a second round added, and one of two rounds from the start."""
    folder = tmp_path_factory.mktemp("rounds")
    config = make_config(tiny_folder(), write_prompts(folder / "prompts.jsonl"), **SETTINGS)
    two = config.model_copy(update={"rounds": 2})
    once = go(config, folder / "once")
    first, marks = made(once), {stage: (once.path / f"done/{stage}.json").read_bytes() for stage in ("sft", *LATER)}
    shutil.copytree(once.path, folder / "raised" / config.name)
    raised = go(two, folder / "raised")
    return SimpleNamespace(
        config=config, two=two, once=once, first=first, marks=marks, raised=raised, whole=go(two, folder / "whole")
    )


def test_the_first_round_is_the_same_with_one_round_and_with_two(runs) -> None:
    assert made(runs.whole) == runs.first
    assert rows(runs.whole) == rows(runs.once)
    for stage in ("sft", *LATER):
        before, after = json.loads(runs.marks[stage]), json.loads((runs.whole.path / f"done/{stage}.json").read_text())
        assert after["fingerprint"] == before["fingerprint"]


def test_raising_the_number_in_a_finished_run_adds_a_round_and_nothing_else(runs) -> None:
    assert {stage: (runs.raised.path / f"done/{stage}.json").read_bytes() for stage in runs.marks} == runs.marks
    assert made(runs.raised.round(2)) == made(runs.whole.round(2))
    assert rows(runs.raised.round(2)) == rows(runs.whole.round(2))
    names = [status.stage.name for status in pipeline.plan(runs.two, runs.raised)]
    assert names == ["sft", *LATER, *(f"round-2/{stage}" for stage in LATER)]
    assert {status.state for status in pipeline.plan(runs.two, runs.raised)} == {"done"}


def test_the_kl_is_from_the_first_sft_model_and_training_starts_as_the_last_policy(runs) -> None:
    first, second = runs.whole, runs.whole.round(2)
    kept = first.results().ppo.best_step
    before, start = at(first, kept), at(second, 0)
    assert start["eval/kl"] == pytest.approx(before["eval/kl"], abs=1e-6)
    assert abs(start["eval/kl"]) > 1e-3  # not 0, as it would be from the last policy
    assert start["eval/kl_last"] == pytest.approx(0, abs=1e-6)
    assert at(second, 3)["eval/kl_last"] != pytest.approx(0, abs=1e-6)
    assert "eval/kl_last" not in before
    answers = [
        {row["prompt_id"]: row["answer"] for row in run_dir.watched.read("ppo") if row["step"] == step}
        for run_dir, step in ((first, kept), (second, 0))
    ]
    assert answers[0] == answers[1]  # of the same random streams
    assert start["eval/judge"] == before["eval/judge"]


def test_no_round_changes_the_base_sft_or_another_role(runs) -> None:
    second = runs.whole.round(2)
    for result in (second.results().reward, second.results().ppo):
        claims = {claim.id: claim for claim in result.claims}
        assert all(claim.holds for claim in claims.values())
        assert {"base_unchanged", "other_roles_unchanged"} <= claims.keys()
    assert claims["starts_as_last_round"].figure == pytest.approx(0, abs=1e-6)
    assert "kl_is_zero" not in claims
    assert "REFERENCE" in claims["other_roles_unchanged"].figure
    assert sha256(second.artifact("adapters/sft")) == runs.first["adapters/sft"]
    assert not (second.path / "adapters/sft").exists()


def test_other_random_choices_are_made_in_each_round(runs) -> None:
    texts = [
        [row["objective/scores"] for row in run_dir.metrics.read("ppo") if "objective/scores" in row]
        for run_dir in (runs.whole, runs.whole.round(2))
    ]
    assert texts[0] != texts[1]


def test_a_round_ranks_its_own_answers_of_the_last_policy_and_of_sft(runs) -> None:
    first, second = (
        list(read_jsonl(each.artifact("samples.jsonl"), Sample)) for each in (runs.whole, runs.whole.round(2))
    )
    ranked = list(read_jsonl(runs.whole.round(2).artifact("rankings.jsonl"), Ranking))
    assert {sample.id for sample in first}.isdisjoint(sample.id for sample in second)
    named = {name for ranking in ranked for tier in ranking.tiers for name in tier}
    assert named <= {sample.id for sample in second}
    prompts = [list(dict.fromkeys(sample.prompt_id for sample in samples)) for samples in (first, second)]
    assert len(prompts[1]) == 8
    assert set(prompts[0] + prompts[1]) > set(prompts[0])  # the next ones
    assert sampling._parts(runs.two.sample, 2) == {Role.POLICY: ("sample", 2), Role.REFERENCE: ("sample sft", 1)}
    only = runs.two.sample.model_copy(update={"sft_share": 0.0})
    assert sampling._parts(only, 2) == {Role.POLICY: ("sample", 3)}


def test_prompts_begin_again_after_the_last() -> None:
    prompts = [Prompt(id=name, messages=()) for name in "abcde"]
    of_round = ["".join(prompt.id for prompt in sampling.round_prompts(prompts, 2, number)) for number in (1, 2, 3, 4)]
    assert of_round == ["ab", "cd", "ea", "bc"]
    assert sampling.round_prompts(prompts, None, 3) == sampling.round_prompts(prompts, 9, 2) == prompts


def test_the_rankings_of_all_rounds_reach_the_reward_model(runs) -> None:
    second, reward = runs.whole.round(2), runs.whole.round(2).results().reward
    rankings = [
        ranking for each in second.up_to_this for ranking in read_jsonl(each.artifact("rankings.jsonl"), Ranking)
    ]
    ordered = {name for ranking in rankings if len(ranking.tiers) > 1 for tier in ranking.tiers for name in tier}
    scored = [json.loads(line) for line in second.artifact("scores.jsonl").read_text().splitlines()]
    assert {row["sample_id"] for row in scored} >= ordered
    in_test = {
        held_out: {row["prompt_id"] for row in scored if row["held_out"] == held_out} for held_out in (True, False)
    }
    assert in_test[True].isdisjoint(in_test[False])  # a prompt of both rounds is on one side
    assert reward.pairs_train + reward.pairs_held_out > runs.once.results().reward.pairs_train
    by_round = {found.round: found for found in reward.by_round}
    assert sum(found.pairs for found in by_round.values()) == reward.pairs_held_out
    mean = sum(found.accuracy * found.pairs for found in by_round.values()) / reward.pairs_held_out
    assert mean == pytest.approx(reward.accuracy)
    assert all((found.before is None) == (number == 1) for number, found in by_round.items())
    assert not runs.once.results().reward.by_round


@pytest.mark.parametrize(("stage", "step"), [("sample", 0), ("sample sft", 0), ("reward", 3), ("ppo", 2)])
def test_killed_inside_the_second_round_it_ends_with_the_same_weights(runs, monkeypatch, tmp_path, stage, step) -> None:
    shutil.copytree(runs.once.path, tmp_path / runs.config.name)
    append, waiting = StepLog.append, [(stage, step)]

    def append_and_die(log: StepLog, name: str, number: int, **row: Any) -> None:
        append(log, name, number, **row)
        if "round-2" in str(log.path) and (name, number) in waiting:
            waiting.clear()
            raise Killed

    monkeypatch.setattr(StepLog, "append", append_and_die)
    with pytest.raises(Killed):
        go(runs.two, tmp_path)
    run_dir = go(runs.two, tmp_path)
    assert not waiting
    assert made(run_dir) == runs.first
    assert made(run_dir.round(2)) == made(runs.whole.round(2))
    assert rows(run_dir.round(2)) == rows(runs.whole.round(2))


def test_a_redo_of_an_early_stage_sets_all_rounds_aside_and_undo_restores_them(runs, monkeypatch, tmp_path) -> None:
    shutil.copytree(runs.raised.path, tmp_path / runs.config.name)
    run_dir = RunDir(tmp_path / runs.config.name)

    def fail(_: Session) -> StageResult:
        raise Killed

    monkeypatch.setattr("lowrank_rlhf.stages.reward.run", fail)
    with pytest.raises(Killed):
        go(runs.two, tmp_path, redo=["reward"])
    states = {status.stage.name: status.state for status in pipeline.plan(runs.two, run_dir)}
    assert states["round-2/sample"] == states["round-2/evaluate"] == "to do"
    assert not list(run_dir.round(2).metrics.read())
    aside = ["reward", "ppo", "evaluate", *(f"round-2/{stage}" for stage in LATER)]
    assert run_dir.earlier.stages() == aside
    assert redo_stages.undo(run_dir) == aside
    assert made(run_dir.round(2)) == made(runs.raised.round(2))
    assert rows(run_dir.round(2)) == rows(runs.raised.round(2))
    assert {status.state for status in pipeline.plan(runs.two, run_dir)} == {"done"}
    assert run_dir.damage() == []


def test_a_redo_in_the_second_round_leaves_the_first(runs, monkeypatch, tmp_path) -> None:
    shutil.copytree(runs.raised.path, tmp_path / runs.config.name)
    other = runs.two.model_copy(update={"sample": runs.two.sample.model_copy(update={"sft_share": 1.0})})
    stale = [status.stage.name for status in pipeline.plan(other, RunDir(tmp_path / "tiny")) if status.state == "stale"]
    assert stale == ["round-2/sample"]
    monkeypatch.setattr("lowrank_rlhf.stages.rank.run", lambda _: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        go(other, tmp_path, redo=["round-2/sample"])
    assert made(RunDir(tmp_path / "tiny")) == runs.first


def test_the_last_round_s_policy_is_the_first_candidate(tmp_path, monkeypatch) -> None:
    saved = []
    monkeypatch.setattr(policy_roles, "save_role", lambda _, __, folder: saved.append(folder))
    config = make_config(tmp_path, ppo__critic_warmup_steps=1)
    for number, kept in ((1, 3), (2, 0)):
        state = PolicyState()
        run_dir = RunDir(tmp_path / f"{number}", number)
        for step, height in enumerate((5.0, 5.0, 1.0, 1.5)):
            state.step = step
            objectives = [height, height + 0.1, height - 0.1, height]
            policy_roles.choose_policy(None, run_dir, state, objectives, [True] * 4, [True] * 4, config)
        assert state.kept_step == kept
    assert saved[-1] == tmp_path / "2/round-2/work/ppo/best"


def test_newest_is_what_others_get(runs, tmp_path) -> None:
    assert runs.raised.newest.number == 2
    assert runs.once.newest is runs.once
    export_adapters(runs.raised.newest, runs.two, tmp_path / "out")
    weights = "adapter_model.safetensors"
    second = runs.raised.round(2).artifact("adapters")
    assert sha256(tmp_path / "out/policy" / weights) == sha256(second / "policy" / weights)
    assert sha256(tmp_path / "out/sft" / weights) == sha256(runs.raised.artifact("adapters/sft") / weights)


def test_status_plan_and_report_show_the_rounds(runs, monkeypatch, capsys) -> None:
    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 0
        return capsys.readouterr().out

    folder = runs.raised.path
    found = json.loads(call("status", str(folder), "--json"))["stages"]
    assert [row["stage"] for row in found if row["state"] == "done"][-1] == "round-2/evaluate"
    assert found[-1]["summary"]["win_rate"] is not None
    place = ("--runs", str(folder.parent))
    planned = json.loads(call("plan", str(folder / "config.yaml"), *place, "--json"))["stages"]
    reads = {row["stage"]: [file["name"] for file in row["reads"]] for row in planned}
    assert reads["round-2/sample"] == ["adapters/sft", "adapters/policy"]
    assert {"rankings.jsonl", "round-2/rankings.jsonl", "adapters/reward"} <= set(reads["round-2/reward"])
    assert reads["round-2/ppo"][0] == "adapters/sft"
    assert {"adapters/policy", "round-2/adapters/reward"} <= set(reads["round-2/ppo"])
    page, text = (runs.raised.round(2).artifact(name).read_text() for name in ("report.html", "report.md"))
    for words in ("tiny/round-2", "Rounds", "各轮", "Gold over distance, by round", "第 2 轮", "KL to last policy"):
        assert words in page
    table = text[text.index("## Rounds") :].splitlines()
    assert [line.split("|")[1].strip() for line in table if line.startswith(("| 1 ", "| 2 "))] == ["1", "2"]
    assert "## Rounds" not in runs.raised.artifact("report.md").read_text()


@pytest.mark.parametrize(("language", "last"), [("en", "Last round's policy"), ("zh", "上一轮的策略")])
def test_the_page_shows_the_newest_round(runs, language, last) -> None:
    folder = RunsFolder(runs.raised.path.parent)
    run = folder.status(runs.config.name)
    assert (run.state, run.round_dir.number, run.figure.key) == ("finished", 2, "win_rate")
    assert run.done[-1] == "round-2/evaluate"
    assert run.results == runs.raised.round(2).results()
    assert run.results.sft is not None
    assert f'src="/runs/{run.name}/round-2/report.html' in _contents(folder, run.name, language)[1]
    client = TestClient(Starlette(routes=routes(folder)))
    page = runs.raised.round(2).artifact("report.html").read_text()
    assert client.get(f"/runs/{run.name}/round-2/report.html").text.startswith(page)
    for path in ("round-3/report.html", "round-2/eval.jsonl", "round-2/../config.yaml", "x/report.html"):
        assert client.get(f"/runs/{run.name}/{path}").status_code == 404
    watched = list(runs.raised.round(2).watched.read())
    assert html(last) in samples(run.round_dir.path, watched, [], language, run.round_dir.number)


def test_fewer_rounds_than_the_run_has_are_refused(runs) -> None:
    with pytest.raises(UserError, match=r"rounds is 1, but .* has 2 rounds\. Set rounds=2, or move .*round-2 away"):
        go(runs.config, runs.raised.path.parent)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank__source": "dataset", "rank__dataset": "a.jsonl"}, "a data set cannot rank new answers"),
        ({"stages": ("sft", "sample", "rank", "reward")}, "the stages ppo: add"),
        ({"ppo__rewards": {"short": {"source": "length", "maximum": 3}}, "ppo__critic_head": "zero"},
         "the stages sample, rank, reward: without"),
    ],
    ids=["dataset", "no ppo", "no reward model"],
)  # fmt: skip
def test_rounds_need_new_rankings_and_a_policy(tmp_path, changes, words) -> None:
    with pytest.raises(ValueError, match=rf"rounds \(2\) requires.*{words}"):
        make_config(tmp_path, rounds=2, **changes)


def test_the_policy_gives_at_least_one_answer_to_each_prompt(tmp_path) -> None:
    shares = {"sample__answers_per_prompt": 2, "sample__sft_share": 0.75}  # 1.5 of 2, rounded to 2
    make_config(tmp_path, **shares)  # one round has SFT's answers anyway
    with pytest.raises(ValueError, match=r"sample.sft_share \(0.75\) of 2 answers leaves none for the policy"):
        make_config(tmp_path, rounds=2, **shares)


@pytest.fixture
def by_people(tiny_folder, tmp_path, monkeypatch) -> Callable[..., Config]:
    """Stages that only write a word, but for `rank`: people order the answers."""

    def sample(session: Session) -> SampleResult:
        number = session.run_dir.number
        asked = sampling.round_prompts(session.prompts.training, 3, number)
        made = [
            Sample(id=f"{prompt.id}-{number}-{k}", prompt_id=prompt.id, text=f"{number} {k}", tokens=(k,))
            for prompt in asked
            for k in range(2)
        ]
        write_jsonl(session.work("sample") / "samples.jsonl", made)
        return SampleResult(prompts=3, answers=6)

    def fake(stage: str, names: tuple[str, ...], result: StageResult) -> None:
        def run(session: Session) -> StageResult:
            for name in names:
                path = session.work(stage) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{stage} {session.run_dir.number}")
            return result

        monkeypatch.setattr(f"lowrank_rlhf.stages.{stage}.run", run)

    fake("sft", ("adapters/sft",), SftResult())
    fake("reward", ("adapters/reward", "scores.jsonl"), RewardResult())
    fake("ppo", ("adapters/policy", "adapters/policy-last", "adapters/critic"), PolicyResult())
    fake("evaluate", ("eval.jsonl", "report.html", "report.md"), EvaluateResult(prompts=1))
    monkeypatch.setattr(sampling, "run", sample)
    data = write_prompts(tmp_path / "prompts.jsonl")
    return lambda **changes: make_config(
        tiny_folder(), data, rank__source="human", rank__minimum_rankings=3, **{"rounds": 2} | changes
    )


def rank_everything(run_dir: RunDir) -> None:
    store = open_project(run_dir.run).store
    while item := store.next_item("ann"):
        tiers = tuple((answer.id,) for answer in sorted(item.answers, key=lambda answer: answer.id))
        store.save(Ranking(prompt_id=item.prompt.id, annotator="ann", tiers=tiers, shown=item.shown))


def test_each_round_waits_for_people_with_exit_code_5_and_asks_its_own_answers(by_people, tmp_path) -> None:
    config = by_people()
    run_dir = RunDir(tmp_path / "runs" / config.name)
    with pytest.raises(WaitingForPeople) as waits:
        go(config, tmp_path / "runs")
    assert waits.value.exit_code == ExitCode.WAITING == 5
    assert "round 1" not in str(waits.value)
    assert open_project(run_dir.path).round == 1
    rank_everything(run_dir)
    with pytest.raises(
        WaitingForPeople, match=r"0 of 3 prompts of round 2 are ranked in .*round-2.annotations"
    ) as waits:
        go(config, tmp_path / "runs")
    assert f"label {run_dir.path}`" in str(waits.value)
    project = open_project(run_dir.path)
    assert project.round == 2
    asked = {answer.id for answer in project.store.contents().answers}
    assert asked == {sample.id for sample in read_jsonl(run_dir.round(2).artifact("samples.jsonl"), Sample)}
    assert (project.needed, project.store.ranked_prompts()) == (3, 0)
    rank_everything(run_dir)
    go(config, tmp_path / "runs")
    assert {status.state for status in pipeline.plan(config, run_dir)} == {"done"}
    ranked = {ranking.prompt_id for ranking in read_jsonl(run_dir.round(2).artifact("rankings.jsonl"), Ranking)}
    assert ranked == {prompt.id for prompt in read_jsonl(run_dir.round(2).artifact("prompts.jsonl"), Prompt)}
    changed = AnnotationStore(run_dir.round(2).artifact("annotations.sqlite"))
    changed.undo("ann")
    assert open_project(run_dir.path).rankings_changed
    assert open_project(run_dir.path).next_command.endswith("--redo round-2/rank")


def test_what_a_redo_replaced_is_gone_before_a_later_round_builds_on_it(by_people, tmp_path) -> None:
    """An undo would leave a second round, and people's rankings, of a policy that the run no longer has."""
    config = by_people(rounds=1)
    run_dir = RunDir(tmp_path / "runs" / config.name)
    with pytest.raises(WaitingForPeople):
        go(config, tmp_path / "runs")
    rank_everything(run_dir)
    go(config, tmp_path / "runs")
    redo_stages.set_aside([stages.stage("ppo"), stages.stage("evaluate")], run_dir, Progress.silent())
    assert run_dir.earlier.stages() == ["ppo", "evaluate"]
    with pytest.raises(WaitingForPeople, match="of round 2"):
        go(by_people(ppo__kl_coef=0.5), tmp_path / "runs")
    assert run_dir.earlier.stages() == []


def test_while_the_first_round_is_redone_people_rank_it(by_people, tmp_path) -> None:
    """The second round was sampled; a redo of the first one sets that aside and waits for more rankings."""
    config = by_people()
    run_dir = RunDir(tmp_path / "runs" / config.name)
    with pytest.raises(WaitingForPeople):
        go(config, tmp_path / "runs")
    rank_everything(run_dir)
    with pytest.raises(WaitingForPeople):
        go(config, tmp_path / "runs")
    assert open_project(run_dir.path).round == 2
    (run_dir.round(2).artifact("done") / "sample.json").unlink()
    assert open_project(run_dir.path).round == 1


def test_a_folder_without_a_file_is_no_round(tmp_path) -> None:
    (tmp_path / "round-2" / "done").mkdir(parents=True)
    assert rounds_in(tmp_path) == [1]
    (tmp_path / "round-2" / "done" / "sample.json").touch()
    assert rounds_in(tmp_path) == [1, 2]


def test_answers_that_people_ranked_in_a_later_round_are_not_replaced(by_people, tmp_path) -> None:
    config = by_people()
    run_dir = RunDir(tmp_path / "runs" / config.name)
    for _ in range(2):
        with pytest.raises(WaitingForPeople):
            go(config, tmp_path / "runs")
        rank_everything(run_dir)
    go(config, tmp_path / "runs")
    gentle = by_people(ppo__kl_coef=0.5)
    with pytest.raises(
        UserError, match=r"round-2.annotations.sqlite has rankings of 3 prompts(.|\n)*ppo.kl_coef: 0.05 -> 0.5"
    ):
        go(gentle, tmp_path / "runs", redo=["ppo"])
    with pytest.raises(UserError, match=r"of 3 prompts(.|\n)*rank takes the current rankings"):
        go(config, tmp_path / "runs", redo=["rank"])
    go(config, tmp_path / "runs", redo=["ppo"])  # the same policy again
    go(config, tmp_path / "runs", redo=["round-2/rank"])
    assert {status.state for status in pipeline.plan(config, run_dir)} == {"done"}
