"""All six stages on a tiny NF4 model through the pipeline."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from marks import done
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import load_file
from tiny_run import STAGES, make_config, make_session, write_prompts

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.prompts import load_prompt_data
from lowrank_rlhf.errors import StaleRun, Stopped, UserError, WaitingForPeople
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.pipeline.pipeline import run, stages_of
from lowrank_rlhf.preferences.reward_tests import reward_tests
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Comparison, Ranking, Sample, Score, read_jsonl, write_jsonl
from lowrank_rlhf.stages import ppo, rank, sft, stage
from lowrank_rlhf.training.rollout import RewardScale

JUDGE = "tiny_run_judge:count_e"


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module with a judge of the user's: it counts a letter."""
    folder = tmp_path_factory.mktemp("judge")
    code = "def count_e(prompt, answers):\n    return [answer.count('e') + 0.01 * len(answer) for answer in answers]\n"
    (folder / "tiny_run_judge.py").write_text(code)
    return folder


@pytest.fixture
def config(tiny_folder, tmp_path, judge_folder, monkeypatch) -> Config:
    monkeypatch.syspath_prepend(judge_folder)
    return make_config(tiny_folder(), write_prompts(tmp_path / "prompts.jsonl"), rank__judge=JUDGE)


def go(config: Config, runs: Path, **settings) -> RunDir:
    return run(config, runs, progress=Progress.silent(), **settings)


def marks(run_dir: RunDir) -> dict[str, dict]:
    found = {name: done(run_dir, name) for name in STAGES}
    return {name: mark for name, mark in found.items() if mark}


def changed(config: Config, section: str, **fields) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=fields)})


def test_all_six_stages(config, tmp_path) -> None:
    said = io.StringIO()
    with Progress(Console(file=said, width=200)) as progress:
        run_dir = run(config, tmp_path, progress=progress)
    told = {name: mark["planned_memory_bytes"] for name, mark in marks(run_dir).items()}
    assert [name for name in STAGES if told[name] is None] == ["rank"]  # which has no model
    assert all(size > 1e6 for size in told.values() if size)
    assert len(re.findall(r"peak memory \d.*iB; plan said \d.*iB", said.getvalue())) == 5
    assert list(marks(run_dir)) == list(STAGES)
    for name in STAGES:
        for written in stage(name).writes:
            path = run_dir.artifact(written)
            assert list(path.iterdir()) if path.is_dir() else path.stat().st_size, written
    assert list((run_dir.path / "work").iterdir()) == []
    claims = {c["claim"]: c for mark in marks(run_dir).values() for c in mark["summary"].get("claims", [])}
    assert len(claims) == 8
    assert claims["PPO moved no weight of the roles that it does not train"]["figure"] == "REFERENCE, REWARD"
    of_reward = claims["the reward stage moved no weight of the roles that it does not train"]
    assert of_reward["figure"] == "POLICY, REFERENCE"  # the one holds SFT there, the other has sampled
    assert [claim for claim, about in claims.items() if not about["holds"]] == []
    assert claims["KL(policy || SFT) is 0 at step 0"]["figure"] == 0
    checksums = {c["figure"] for claim, c in claims.items() if "checksum" in claim}
    assert len(checksums) == 1
    noted = json.loads((run_dir.path / "env.json").read_text())["packages"]["torch"]
    assert noted.partition("+")[0] == torch.__version__.partition("+")[0]  # +cpu and the like: not everywhere in both
    assert len((run_dir.path / "report.html").read_text()) > 10_000
    assert len((run_dir.path / "report.md").read_text()) > 500
    rows = [json.loads(line) for line in (run_dir.path / "metrics.jsonl").read_text().splitlines()]
    steps = {name: [row["step"] for row in rows if row["stage"] == name and "eval/kl" not in row] for name in STAGES}
    assert steps["sft"] == [1, 2, 3, 4, 5]  # 10 demonstrations twice, 4 in a batch
    assert steps["ppo"] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "eval/kl" in row] == [0, 2, 4]
    assert rows[-1]["stage"] == "ppo"
    for row in rows:
        if "eval/kl" in row:  # the judge's scores by prompt, for paired tests
            assert len(row["eval/judge_scores"]) == 3
            assert sum(row["eval/judge_scores"]) / 3 == pytest.approx(row["eval/judge"])
    evaluation = marks(run_dir)["evaluate"]["summary"]
    assert evaluation["temperature"] == 1
    assert evaluation["kl_at_temperature_1"] == pytest.approx(evaluation["kl_per_answer"], abs=1e-6)
    assert evaluation["length_controlled_interval"][0] <= evaluation["length_controlled_win_rate"]
    assert evaluation["variety"]["p"] > 0
    held_out = {row["step"]: row for row in rows if "eval/kl" in row}
    kept = marks(run_dir)["ppo"]["summary"]["best_step"]
    assert kept == 4 or (kept == 2 and held_out[2]["eval/objective"] > held_out[4]["eval/objective"])
    samples = list(read_jsonl(run_dir.artifact("samples.jsonl"), Sample))
    assert len(samples) == 8 * 3
    assert len(list(read_jsonl(run_dir.artifact("rankings.jsonl"), Ranking))) == 8
    assert list(read_jsonl(run_dir.artifact("comparisons.jsonl"), Comparison))
    evaluated = [json.loads(line) for line in run_dir.artifact("eval.jsonl").read_text().splitlines()]
    prompts = make_session(config, tmp_path).prompts
    assert [row["prompt_id"] for row in evaluated] == [prompt.id for prompt in prompts.test]
    watched = {row["prompt_id"] for row in run_dir.watched.read("ppo")}
    assert watched == {prompt.id for prompt in prompts.validation}
    held_out = {prompt.id for prompt in prompts.held_out}
    assert not held_out & {sample.prompt_id for sample in samples}

    before = {path: path.stat().st_mtime_ns for path in run_dir.path.rglob("*") if path.is_file()}
    go(config, tmp_path)
    touched = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert touched <= {"config.yaml", "env.json", "run.lock"}

    for section, fields, first in (
        ("sft", {"epochs": 3}, "sft"),
        ("sample", {"temperature": 0.5}, "sample"),
        ("reward", {"learning_rate": 1e-4}, "reward"),
        ("ppo", {"kl_coef": 0.2}, "ppo"),
    ):
        with pytest.raises(StaleRun, match=rf"(?s)Stage {first} does not match.*{section}\.{next(iter(fields))}: "):
            go(changed(config, section, **fields), tmp_path)
    again = go(changed(config, "evaluate", second_judge="sentiment"), tmp_path, redo=["evaluate"])
    assert list(marks(again)) == list(STAGES)


def test_ppo_with_contrastive_scores_uses_ranked_prompts_and_their_mean_scores(config, tmp_path) -> None:
    plain = changed(config, "reward", layers=1, pooling="mean", fit_head_first=True)
    run_dir = go(changed(plain, "ppo", contrastive=True, missing_eos="penalty"), tmp_path)
    session = make_session(changed(config, "ppo", contrastive=True, missing_eos="penalty"), tmp_path)
    about = json.loads((run_dir.artifact("adapters/reward") / "reward.json").read_text())
    assert (about["layers"], about["pooling"]) == (1, "mean")
    scale = RewardScale("mean", about["score_mean"], about["score_std"])
    prompts, baselines = ppo._prompts(session.prompts[0], session.run_dir, session.config, scale)
    samples = list(read_jsonl(run_dir.artifact("answers.jsonl"), Sample))
    scores = {score.sample_id: score for score in read_jsonl(run_dir.artifact("scores.jsonl"), Score)}
    ranked = [prompt for prompt in session.prompts[0] if prompt.id in {score.prompt_id for score in scores.values()}]
    assert prompts == ranked
    assert 4 < len(ranked) < len(session.prompts[0])
    for prompt, baseline in zip(ranked, baselines.tolist(), strict=True):
        of_prompt = []
        for sample in samples:
            if sample.prompt_id == prompt.id and sample.id in scores:
                score = (scores[sample.id].score - about["score_mean"]) / about["score_std"]
                of_prompt.append(max(-5.0, min(5.0, score)) - (0 if sample.finished else 6))
        assert baseline == pytest.approx(sum(of_prompt) / len(of_prompt), abs=1e-5)
    assert {score.held_out for score in scores.values()} == {True, False}
    mean = sum(score.score for score in scores.values()) / len(scores)
    assert mean == pytest.approx(about["score_mean"], abs=1e-5)
    with pytest.raises(ValidationError, match=r"ppo\.contrastive requires ranked SFT answers"):
        Config.model_validate(
            session.config.model_dump() | {"rank": {"source": "dataset", "dataset": "x.jsonl"}},
        )


@pytest.mark.parametrize(("stopped", "before"), [("sample", "sft"), ("rank", "sample")])
def test_a_stop_is_obeyed_where_nothing_is_saved_and_costs_only_that_stage(config, tmp_path, stopped, before) -> None:
    go(config, tmp_path, until=before)
    session = make_session(config, tmp_path)
    session.stop.requested = True
    with pytest.raises(Stopped, match="everything before this stage is saved"):
        stage(stopped).run(session)
    assert list(marks(session.run_dir))[-1] == before
    assert done(go(config, tmp_path, until=stopped), stopped)


def test_headings_tell_the_time_to_go_once_a_stage_is_done(config, tmp_path) -> None:
    text = io.StringIO()
    with Progress(Console(file=text, width=200)) as progress:
        run(config, tmp_path, until="rank", progress=progress)
    first, second, third = (line for line in text.getvalue().splitlines() if line.startswith("["))
    assert "to go" not in first
    assert re.fullmatch(r"\[2/3\] sample: sample answers to rank  \(\d+:\d\d so far, about \d+:\d\d to go\)", second)
    assert third.endswith(" so far)")  # ranking by a program takes no time worth telling


def test_a_stages_own_time_tells_that_of_the_stages_after_it(config, tmp_path, monkeypatch) -> None:
    told = {}
    monkeypatch.setattr(Progress, "stage", lambda _, __, ___, name, *rest: told.update({name: rest[2]}))
    go(config, tmp_path, until="sample")
    assert told["sft"](20.0) == pytest.approx(2 * told["sft"](10.0))  # no other stage is done: its pace is sft's alone
    assert told["sft"](10.0) > 0
    assert told["sample"](10.0) is None  # nothing comes after it


def test_people_rank_and_the_run_goes_on(config, tmp_path) -> None:
    asked = changed(config, "rank", source="human", minimum_rankings=5)
    with pytest.raises(WaitingForPeople, match="0 of 5 prompts"):
        go(asked, tmp_path, until="reward")
    run_dir = RunDir(tmp_path / "tiny")
    assert list(marks(run_dir)) == ["sft", "sample"]
    store = AnnotationStore(run_dir.path / "annotations.sqlite")
    for number in range(5):
        assert number == store.ranked_prompts()
        with pytest.raises(WaitingForPeople, match=f"{number} of 5 prompts"):
            go(asked, tmp_path, until="reward")
        item = store.next_item("ann")
        tiers = ((item.shown[0],), item.shown[1:])
        store.save(Ranking(prompt_id=item.prompt.id, tiers=tiers, annotator="ann", shown=item.shown))
    go(asked, tmp_path)
    summary = marks(run_dir)["rank"]["summary"]
    assert (summary["rankings"], summary["comparisons"], summary["annotators"]) == (5, 10, ["ann"])
    table = marks(run_dir)["evaluate"]["summary"]
    reward = marks(run_dir)["reward"]["summary"]
    [test] = reward_tests(run_dir.path)  # the ranking page shows it
    assert test.model_dump() == {
        "prompts": reward["prompts_train"],
        "held_out": reward["prompts_held_out"],
        "earlier": 0,
        "accuracy": reward["accuracy"],
        "interval": tuple(reward["accuracy_interval"]),
        "weakness": reward["weakness"],
        "curve": None,  # too few prompts
    }
    assert test.ranked(0.9) == 5  # counted, not from the share
    assert table["judge"] is None  # nobody but the reward model can be asked about new answers
    assert marks(run_dir)["ppo"]["summary"]["gold"] == table["second_judge"] == "plain-language"
    rows = [json.loads(line) for line in (run_dir.path / "metrics.jsonl").read_text().splitlines()]
    judged = {row["step"]: row["eval/second_judge"] for row in rows if "eval/kl" in row}
    assert list(judged) == [0, 2, 4]
    assert not [row for row in rows if "eval/judge" in row]
    of_sft = [row["second_judge"] for row in run_dir.watched.read("ppo") if row["step"] == 0]
    assert judged[0] == pytest.approx(sum(of_sft) / 3)  # SFT's answers to the same prompts
    page = run_dir.artifact("report.html").read_text()
    assert "second judge (gold)" in page
    assert "the judge “plain-language” (gold)" in page
    assert list(marks(run_dir)) == list(STAGES)


def test_rankings_of_prompts_that_the_run_samples_no_more_do_not_count(tmp_path) -> None:
    """They stay in the store, where other prompts were sampled before a setting changed."""
    config = make_config(
        tmp_path, write_prompts(tmp_path / "prompts.jsonl"), rank__source="human", rank__minimum_rankings=2
    )
    session = make_session(config, tmp_path / "runs")
    names = [prompt.id for prompt in session.prompts[0][:3]]
    samples = [Sample(id=f"{name}-{k}", prompt_id=name, text="x" * (k + 1)) for name in names for k in range(2)]
    store = AnnotationStore(session.run_dir.artifact("annotations.sqlite"))
    store.add_items(session.prompts[0][:3], samples)
    write_jsonl(session.run_dir.artifact("samples.jsonl"), samples[2:])

    def rank_all(*names: str) -> None:
        for name in names:
            store.save(Ranking(prompt_id=name, tiers=((f"{name}-0",), (f"{name}-1",)), annotator="ann"))

    rank_all(*names[:2])
    with pytest.raises(WaitingForPeople, match="1 of 2 prompts"):
        rank.run(session)
    rank_all(names[2])
    assert rank.run(session).rankings == 2
    made = read_jsonl(session.work("rank") / "rankings.jsonl", Ranking)
    assert [ranking.prompt_id for ranking in made] == names[1:]


def test_a_dataset_of_comparisons_from_the_bare_base(tiny_folder, tmp_path) -> None:
    chosen = ["kind and short " * (1 + number % 2) for number in range(9)]
    rows = [{"prompt": f"question {n}", "chosen": text, "rejected": f"an {n}"} for n, text in enumerate(chosen)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = make_config(
        tiny_folder(),
        stages=("sft", "rank", "reward"),
        sft__source="base",
        rank__source="dataset",
        rank__dataset=str(data),
    )
    assert [entry.name for entry in stages_of(config)] == ["sft", "rank", "reward"]
    run_dir = go(config, tmp_path)
    assert list(marks(run_dir)) == ["sft", "rank", "reward"]
    assert marks(run_dir)["sft"]["summary"]["source"] == "base"
    assert marks(run_dir)["rank"]["summary"]["comparisons"] == 9
    assert (
        "<b>Reward model: held-out accuracy</b>" in run_dir.artifact("report.html").read_text()
    )  # without an evaluation too
    session = make_session(config, tmp_path)
    sft.load_role(session.load_roles(), Role.POLICY, run_dir.artifact("adapters/sft"))
    weights = session.load_roles().named_parameters(Role.POLICY)
    assert all((weight == 0).all() for name, weight in weights.items() if "lora_B" in name)
    data.write_text(data.read_text() + json.dumps(rows[0] | {"prompt": "one more"}))
    with pytest.raises(StaleRun, match=r"pairs\.jsonl has changed"):
        go(config, tmp_path)


def test_sft_from_an_adapter(config, tmp_path) -> None:
    made = go(config, tmp_path, until="sft").artifact("adapters/sft")
    taken = changed(config, "sft", source="adapter", adapter=str(made)).model_copy(update={"name": "taken"})
    run_dir = go(taken, tmp_path, until="sft")
    weights = "adapter_model.safetensors"
    assert (run_dir.artifact("adapters/sft") / weights).read_bytes() == (made / weights).read_bytes()
    wrong = changed(taken, "lora", alpha=3).model_copy(update={"name": "wrong"})
    with pytest.raises(UserError, match="lora_alpha"):
        go(wrong, tmp_path, until="sft")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_an_adapter_for_a_changed_base_is_refused(config, tmp_path, start) -> None:
    """PEFT's PiSSA and its kin move part of the base into the adapter: on the plain base it would be another model."""
    written = go(config, tmp_path, until="sft").artifact("adapters/sft")
    made = Path(shutil.copytree(written, tmp_path / "outside"))  # in a run folder a change would be damage
    about = json.loads((made / "adapter_config.json").read_text())
    (made / "adapter_config.json").write_text(json.dumps(about | {"init_lora_weights": start}))
    taken = changed(config, "sft", source="adapter", adapter=str(made)).model_copy(update={"name": "taken"})
    with pytest.raises(UserError, match=f"init_lora_weights: '{start}': not supported"):
        go(taken, tmp_path, until="sft")
    assert done(RunDir(tmp_path / "taken"), "sft") is None


def test_no_demonstrations_is_said(tiny_folder, tmp_path) -> None:
    data = tmp_path / "bare.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(9)))
    with pytest.raises(UserError, match=r"sft\.source: base"):
        go(make_config(tiny_folder(), data), tmp_path)


def test_training_rows(config, tmp_path) -> None:
    """Every epoch has each demonstration once, in another order; the loss is on the response with its end."""
    session = make_session(config, tmp_path)
    demonstrations, base = session.filter_lengths().demonstrations, session.load_roles().base
    rows = sft.training_rows(demonstrations, base, session.config.sft.epochs, session.config.seed)
    demonstrations = load_prompt_data(config.data, config.seed).demonstrations
    expected = {(tuple(base.encode_prompt(d.prompt)), tuple(base.encode_response(d.response))) for d in demonstrations}
    epochs = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    found = []
    for epoch in epochs:
        found.append([])
        for row in epoch:
            length = row["labels"].count(-100)
            assert row["labels"] == [-100] * length + row["input_ids"][length:]
            assert row["labels"][-1] == base.eos
            found[-1].append((tuple(row["input_ids"][:length]), tuple(row["input_ids"][length:])))
        assert set(found[-1]) == expected
        assert len(found[-1]) == len(expected)
    assert found[0] != found[1]


def test_scale_multiplies_the_trained_update_of_every_layer(config, tmp_path) -> None:
    saved = []
    for factor in (1.0, 0.25):
        session = make_session(changed(config, "sft", scale=factor), tmp_path / str(factor))
        sft.run(session)
        saved.append(load_file(session.work("sft") / "adapters" / "sft" / "adapter_model.safetensors"))
    whole, quarter = saved
    for name in (name for name in whole if ".lora_A." in name):
        update = [weights[name.replace("lora_A", "lora_B")] @ weights[name] for weights in saved]
        assert torch.allclose(0.25 * update[0], update[1], rtol=1e-6, atol=0)
        assert update[0].any()
    assert whole.keys() == quarter.keys()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_trl_leaves_nothing_behind(config, tmp_path, checkpointing) -> None:
    session = make_session(changed(config, "model", gradient_checkpointing=checkpointing), tmp_path)
    roles, model = session.load_roles(), session.load_roles().base.model
    before, cache = session.load_roles().base.checksum(), model.config.use_cache
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    summary = sft.run(session)
    assert summary.claims[0].holds
    assert session.load_roles().base.checksum() == before
    assert "forward" not in model.__dict__
    assert model.config.use_cache == cache
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert {parameter.dtype for parameter in roles.parameters(Role.POLICY)} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in roles.peft.parameters())
    assert not roles.peft.training
    assert roles.acting is None
    assert not any(module.training for module in model.modules())
