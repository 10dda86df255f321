"""`evaluate` as people use it, on a tiny run; the evaluate stage, plain PEFT and plain transformers are the oracles."""

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from chat_server import serving
from marks import done
from peft import PeftModel
from tiny import load_plain
from tiny_run import make_config, make_session, write_prompts
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lowrank_rlhf.config.loading import dump_config, load_config
from lowrank_rlhf.config.schema import LoraConfig
from lowrank_rlhf.data.comparisons import load_comparisons
from lowrank_rlhf.errors import ExitCode, UserError
from lowrank_rlhf.evaluation import match as match_module
from lowrank_rlhf.evaluation import policy_evaluation, reward_metrics
from lowrank_rlhf.evaluation.compared_models import ComparedModel, Match, run_adapter
from lowrank_rlhf.evaluation.sampling import answer_prompts
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.maths.sequences import Sequences
from lowrank_rlhf.models.logprobs import TokenLogprobs
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import save_role
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import sha256
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.training import rollout

PAIRS = [
    {"prompt": "question one", "chosen": "the answer is kind", "rejected": "no"},
    {"prompt": "question one", "chosen": "short", "rejected": "the answer is kind"},
    {"prompt": "question two", "chosen": "the user asks", "rejected": "that is the point and the question"},
    {"prompt": "question three", "chosen": "gives", "rejected": "kinds"},
]
NOTE = "the run's policy was selected on these prompts, which flatters it"
RANKED = [
    {"prompt": "question four", "responses": ["kind", "short", "the point"], "scores": [2, 1, 1]},
    {"prompt": "question five", "responses": ["answer", "user"], "scores": [1, 1]},
]


@pytest.fixture(scope="session")
def finished(tiny_folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, whose reward model reads the last token as a classifier does; nobody writes there."""
    folder = tmp_path_factory.mktemp("evaluated")
    division: dict[str, object] = {"data__validation": 2, "evaluate__answers_per_prompt": 2, "reward__pooling": "last"}
    division["rank__judge"] = "plain-language"  # its scores differ from answer to answer, so that the mean shifts
    config = make_config(tiny_folder(), write_prompts(folder / "prompts.jsonl"), "none", **division)
    return pipeline.run(config, folder / "runs", progress=Progress.silent()).path


@pytest.fixture
def figures(evaluate):
    """The command's JSON."""

    def call(*arguments: object) -> dict[str, Any]:
        code, out, err = evaluate(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


def older(run: Path) -> Path:
    """The run as a version without `data.validation` leaves it."""
    for name in ("ppo", "evaluate"):
        path = run / "done" / f"{name}.json"
        mark = json.loads(path.read_text())
        del mark["fingerprint"]["settings"]["data.validation"]
        path.write_text(json.dumps(mark))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("validation: 2", "validation:"))
    return run


def eval_rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def copied(run: Path, to: Path, *without: str) -> Path:
    shutil.copytree(run, to)
    for name in without:
        remove_output(to, name)
    return to


def change(run: Path, section: str, **settings: Any) -> None:
    """Change a section of the run's config."""
    config = load_config(run / "config.yaml")
    changed = getattr(config, section).model_copy(update=settings)
    (run / "config.yaml").write_text(dump_config(config.model_copy(update={section: changed})))


def remove_output(run: Path, name: str) -> None:
    """Delete an output as if its stage had not written it; a missing file of a finished stage would be damage."""
    shutil.rmtree(run / name)
    for mark in (run / "done").glob("*.json"):
        about = json.loads(mark.read_text())
        kept = {path: size for path, size in about["outputs"].items() if not path.startswith(f"{name}/")}
        mark.write_text(json.dumps(about | {"outputs": kept}))


def foreign(folder: Path, tiny_base) -> Path:
    """An adapter of another rank on other layers, with weights that matter."""
    roles = Roles(tiny_base(), LoraConfig(rank=3, alpha=20, target_modules=("v_proj", "up_proj")))
    with torch.no_grad():
        for name, parameter in roles.named_parameters(Role.POLICY).items():
            generator = torch.Generator().manual_seed(len(name))
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    save_role(roles, Role.POLICY, folder)
    return folder


class TestAMatch:
    def test_the_run_s_own_pair_is_what_the_evaluate_stage_found(self, finished, figures) -> None:
        before = sha256(finished)
        match = figures(finished)["match"]
        stage, rows = done(RunDir(finished), "evaluate")["summary"], eval_rows(finished)
        assert (match["left"], match["right"], match["prompts"], len(rows)) == ("sft", "policy", 3, 6)
        assert (stage["prompts"], stage["answers_per_prompt"], match["answers_per_prompt"]) == (3, 2, 2)
        assert stage["selected_on_test"] is False
        assert match["prompts_from"] == "the run's test prompts"
        for mine, theirs in zip(match["answers"], rows, strict=True):
            assert (mine["prompt_id"], mine["left"], mine["right"]) == tuple(
                theirs[key] for key in ("prompt_id", "sft", "policy")
            )
            assert (mine["judge_left"], mine["judge_right"]) == (theirs["judge_sft"], theirs["judge_policy"])
            for key, name in {"kl": "kl", "score_left": "score_sft", "score_right": "score_policy"}.items():
                assert mine[key] == pytest.approx(theirs[name], abs=1e-4)
        sft, policy = ([row[f"judge_{side}"] for row in rows] for side in ("sft", "policy"))
        assert stage["mean_shift"] != 0
        assert stage["mean_shift"] == pytest.approx((fmean(policy) - fmean(sft)) / stdev(sft), abs=1e-12)
        assert match["win_rate"] == stage["win_rate"]
        assert match["win_rate_interval"] == stage["win_rate_interval"]
        assert match["kl_interval"] == pytest.approx(stage["kl_mean_interval"], abs=1e-4)
        assert match["kl_per_answer"] == pytest.approx(stage["kl_per_answer"], abs=1e-4)
        named = {row["figure"]: row for row in stage["table"]}
        for row in match["table"]:
            if row["figure"] in named:
                theirs = named[row["figure"]]
                assert (row["left"], row["right"]) == pytest.approx((theirs["sft"], theirs["policy"]), abs=1e-4)
        assert sha256(finished) == before

    def test_the_intervals_of_the_stage_resample_prompts_not_answers(self, finished) -> None:
        """Both answers to a prompt are drawn together: their means are what the bootstrap resamples."""
        stage, rows = done(RunDir(finished), "evaluate")["summary"], eval_rows(finished)
        names = [row["prompt_id"] for row in rows]
        assert names == [name for name in dict.fromkeys(names) for _ in range(2)]
        means = [(first["kl"] + second["kl"]) / 2 for first, second in zip(rows[::2], rows[1::2], strict=True)]
        draws = sorted(sum(three) / 3 for three in itertools.product(means, repeat=3))  # all resamples of three prompts
        low, high = stage["kl_mean_interval"]
        assert min(abs(low - value) for value in draws) < 1e-6
        assert min(abs(high - value) for value in draws) < 1e-6
        assert stage["kl_per_answer"] == pytest.approx(sum(means) / 3)

    def test_training_s_evaluations_draw_other_numbers(self, finished) -> None:
        """With the same prompts too: the policy must not be selected on the answers that are reported."""
        session = make_session(load_config(finished / "config.yaml"), finished.parents[1] / "other")
        keys = (policy_evaluation.SEED_KEY, match_module.SEED_KEY)
        assert len({derive_seed(session.config.seed, key) for key in keys}) == 2
        watched = list(RunDir(finished).watched.read("ppo"))
        assert {row["prompt_id"] for row in watched} == {prompt.id for prompt in session.prompts.validation}
        assert not {row["prompt_id"] for row in watched} & {row["prompt_id"] for row in eval_rows(finished)}

    def test_an_undivided_run_samples_other_answers_and_says_what_it_was_selected_on(
        self, finished, figures, tmp_path
    ) -> None:
        """A run of an older version: its ppo knows no division, so the same prompts selected the policy."""
        run = older(copied(finished, tmp_path / "run"))
        match = figures(run)["match"]
        assert (match["prompts"], match["notes"][0]) == (5, NOTE)
        assert NOTE not in figures(run, "--right", "base")["match"]["notes"]
        of_training = {row["prompt_id"]: row["answer"] for row in RunDir(run).watched.read("ppo") if row["step"] == 0}
        answers = {row["prompt_id"]: row["left"] for row in match["answers"][::2]}
        assert of_training.keys() < answers.keys()
        assert [of_training[name] for name in of_training] != [answers[name] for name in of_training]

    def test_an_adapter_against_itself(self, finished, figures) -> None:
        match = figures(finished, "--left", "sft", "--right", finished / "adapters" / "sft")["match"]
        assert all(row["left"] == row["right"] and row["kl"] == 0 for row in match["answers"])
        assert match["win_rate"] == match["length_controlled_win_rate"] == 0.5
        assert match["win_rate_interval"] == [0.5, 0.5]
        assert (match["ties"], match["kl_per_answer"]) == (6, 0)

    def test_kl_of_a_foreign_adapter_against_the_base_as_plain_peft_computes_it(
        self, finished, tiny_base, tmp_path
    ) -> None:
        folder = foreign(tmp_path / "foreign", tiny_base)
        session = make_session(load_config(finished / "config.yaml"), tmp_path)
        prompts = session.prompts.test
        match = Match(ComparedModel("base", None), ComparedModel("foreign", folder), prompts, 2, 7, None)
        sampling = session.config.sample
        pairs = match_module.play_match(session.load_roles(), match, None, sampling, session.progress, session.stop)
        seed = derive_seed(7, "test answers")
        groups = answer_prompts(session.load_roles(), Role.POLICY, prompts, sampling, seed, answers_per_prompt=2)
        tokens = [
            (prompt, list(sample.tokens)) for prompt, group in zip(prompts, groups, strict=True) for sample in group
        ]
        assert len(pairs) == len(tokens) == 6
        roles = session.load_roles()
        bare = load_plain(AutoModelForCausalLM, roles, "none")
        without = [
            sequence_logprob(bare, session.load_roles().base.encode_prompt(prompt), row) for prompt, row in tokens
        ]
        adapted = PeftModel.from_pretrained(bare, folder).eval()
        found = [
            sequence_logprob(adapted, session.load_roles().base.encode_prompt(prompt), row) for prompt, row in tokens
        ]
        expected = [ours - theirs for ours, theirs in zip(found, without, strict=True)]
        assert [pair.kl for pair in pairs] == pytest.approx(expected, abs=1e-3)
        assert max(map(abs, expected)) > 0.5
        assert [pair.candidate.text for pair in pairs] == [session.load_roles().base.decode(row) for _, row in tokens]

    def test_other_prompts_several_answers_and_a_base_of_another_name(
        self, finished, figures, tiny_base, tmp_path
    ) -> None:
        folder = foreign(tmp_path / "foreign", tiny_base)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "another/model"}))
        turns = [{"messages": [{"role": "user", "content": f"is point {n}"}]} for n in range(4)]
        file = write_rows(tmp_path / "mine.jsonl", turns)
        options = ("--right", folder, "--prompts", file, "--samples", 3, "--limit", 2)
        match = figures(finished, *options)["match"]
        assert (match["prompts"], match["answers_per_prompt"], len(match["answers"])) == (2, 3, 6)
        names = [row["prompt_id"] for row in match["answers"]]
        assert names == [name for name in dict.fromkeys(names) for _ in range(3)]
        assert {row["prompt"] for row in match["answers"]} < {turn["messages"][0]["content"] for turn in turns}
        assert any(note.startswith(f"{folder} was trained on another/model ") for note in match["notes"])
        again, other = (figures(finished, *options, "--seed", seed)["match"] for seed in (1, 2))
        assert again["answers"] == match["answers"]
        assert [row["left"] for row in other["answers"]] != [row["left"] for row in match["answers"]]
        assert {row["prompt"] for row in other["answers"]} == {row["prompt"] for row in match["answers"]}

    def test_says_when_the_run_trained_on_the_prompts(self, finished, figures, tmp_path) -> None:
        rows = [json.loads(line) for line in (finished.parents[1] / "prompts.jsonl").read_text().splitlines()]
        splits = make_session(load_config(finished / "config.yaml"), tmp_path).prompts
        held_out = {prompt.id for prompt in splits.held_out}
        trained = [row["prompt"] for row in rows if row["id"] not in held_out][:3]
        new = [row["prompt"] for row in rows if row["id"] in held_out][:2]
        file = write_rows(tmp_path / "mixed.jsonl", [{"prompt": text} for text in (*trained, *new, "is that kind")])
        note = "the run was trained on 3 of these 6 prompts; others may score lower"
        assert note in figures(finished, "--prompts", file)["match"]["notes"]
        others = write_rows(tmp_path / "new.jsonl", [{"prompt": text} for text in new])
        assert "trained on" not in str(figures(finished, "--prompts", others)["match"]["notes"])
        run = copied(finished, tmp_path / "run")
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("prompts: /", "prompts: /gone/"))
        (note, *_) = figures(run, "--prompts", file)["match"]["notes"]
        assert note.startswith("cannot check whether the run was trained on these prompts: /gone/")

    def test_bad_rows_are_skipped_as_the_run_skips_them(self, finished, evaluate, tmp_path) -> None:
        prompts = write_rows(tmp_path / "mine.jsonl", [{"prompt": "is point"}, {"prompt": ""}, {"prompt": "is it"}])
        pairs = write_rows(tmp_path / "pairs.jsonl", [*PAIRS, {"prompt": "a", "chosen": "", "rejected": "b"}])
        for option, file in (("--prompts", prompts), ("--comparisons", pairs)):
            code, _, err = evaluate(finished, option, file)
            assert (code, " is empty" in err) == (2, True)
            code, _, err = evaluate(finished, option, file, "data.skip_bad_rows=0.1")
            assert (code, "more than data.skip_bad_rows=0.1 allows" in err) == (2, True)
        code, out, err = evaluate(finished, "--prompts", prompts, "data.skip_bad_rows=0.5", "--json")
        assert (code, json.loads(out)["match"]["prompts"]) == (0, 2)
        assert "Left out 1 bad row; the first: " in err
        run = copied(finished, tmp_path / "run")
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("skip_bad_rows: 0.0", "skip_bad_rows: 0.5"))
        code, out, _ = evaluate(run, "--comparisons", pairs)
        assert (code, "Left out 1 bad row; the first: " in out.replace("\n", " ")) == (0, True)

    def test_columns_of_prompts_under_other_names(self, finished, evaluate, tmp_path) -> None:
        file = write_rows(tmp_path / "mine.jsonl", [{"query": "is point"}, {"query": "is it"}])
        code, _, err = evaluate(finished, "--prompts", file)
        assert (code, "such as --columns prompt=COLUMN." in err) == (2, True)
        run = copied(finished, tmp_path / "run")
        change(run, "data", prompts=str(file), columns={"prompt": "query"})  # its own file needs no option
        for folder, options in ((finished, ("--columns", "prompt=query")), (run, ())):
            code, out, _ = evaluate(folder, "--prompts", file, *options, "--json")
            assert (code, {row["prompt"] for row in json.loads(out)["match"]["answers"]}) == (0, {"is point", "is it"})

    def test_settings_of_sampling_can_change(self, finished, figures) -> None:
        match = figures(finished, "sample.max_new_tokens=2")["match"]
        assert max(row[f"tokens_{side}"] for row in match["answers"] for side in ("left", "right")) == 2

    def test_a_judge_that_only_compares(self, finished, figures, tmp_path, monkeypatch) -> None:
        run = copied(finished, tmp_path / "run")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        with serving() as server:
            where = (f"rank.endpoint.url={server.url}", "rank.endpoint.model=judge-1")
            match = figures(run, *where, "--judge", "endpoint", "--left", "base")["match"]
        better = {"left": 0.0, "tie": 0.5, "right": 1.0}
        for row in match["answers"]:  # the server prefers the longer answer
            length = len(row["right"]) - len(row["left"])
            assert better[row["judge_prefers"]] == (0.5 if length == 0 else float(length > 0))
        assert "judge_left" not in match["answers"][0]
        expected = sum(better[row["judge_prefers"]] for row in match["answers"]) / len(match["answers"])
        assert match["win_rate"] == expected
        assert match["decided_by"].endswith("judge-1")

    def test_without_a_judge_the_reward_model_decides(self, finished, figures, tmp_path, monkeypatch) -> None:
        """With the length of an answer as its score, each side's score is that of its own answer."""
        run = copied(finished, tmp_path / "run")
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("source: judge", "source: human"))
        match = figures(run)["match"]
        leads = [row["score_right"] - row["score_left"] for row in match["answers"]]
        better = [0.5 if abs(lead) < 1e-9 else float(lead > 0) for lead in leads]
        assert match["decided_by"] == "reward model"
        assert match["win_rate"] == sum(better) / len(better)

        def characters(roles: Roles, batch: Sequences, _: Any) -> torch.Tensor:
            rows = zip(batch.ids, batch.response, strict=True)
            return torch.tensor([float(len(roles.base.decode(ids[response].tolist()))) for ids, response in rows])

        monkeypatch.setattr(rollout, "reward_scores", characters)
        answers = figures(run)["match"]["answers"]
        assert any(len(row["left"]) != len(row["right"]) for row in answers)
        for row in answers:
            assert (row["score_left"], row["score_right"]) == (len(row["left"]), len(row["right"]))
        remove_output(run, "adapters/reward")
        assert figures(run, "--judge", "plain-language")["match"]["decided_by"] == "plain-language"


def sequence_logprob(model: Any, prompt: list[int], response: list[int]) -> float:
    """log p(response | prompt) at temperature 1, from a plain forward of this one row."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double()
    steps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return float(steps.gather(-1, torch.tensor(response)[:, None]).sum())


class TestRewardModelAccuracy:
    def test_by_a_plain_classifier_on_a_run_that_has_nothing_else(self, finished, figures, tmp_path) -> None:
        run = copied(finished, tmp_path / "run", "adapters")
        shutil.copytree(finished / "adapters" / "reward", run / "adapters" / "reward")
        result = figures(run, "--comparisons", write_rows(tmp_path / "pairs.jsonl", PAIRS))
        assert result["match"] is None
        found = result["accuracy"]
        session = make_session(load_config(run / "config.yaml"), tmp_path)
        plain = load_plain(AutoModelForSequenceClassification, session.load_roles(), "none", num_labels=1)
        model = PeftModel.from_pretrained(plain, run / "adapters" / "reward").eval()
        model.config.pad_token_id = session.load_roles().base.pad

        def score(row: dict[str, str], key: str) -> float:
            prompt = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
            ids = session.load_roles().base.tokenizer(f"{prompt}{row[key]}<|im_end|>", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                return float(model(input_ids=ids).logits)

        margins = [score(row, "chosen") - score(row, "rejected") for row in PAIRS]
        assert min(map(abs, margins)) > 1e-3
        assert found["accuracy"] == sum(margin > 0 for margin in margins) / 4
        assert found["longer_wins"] == (1 + 0 + 0 + 0.5) / 4  # "gives" and "kinds" are equally long
        assert (found["comparisons"], found["prompts"], found["ties"], found["too_long"]) == (4, 3, 0, 0)
        assert found["accuracy_interval"][0] <= found["accuracy"] <= found["accuracy_interval"][1]

    def test_ties_and_prompts_that_are_too_long_are_counted_and_left_out(self, finished, evaluate, tmp_path) -> None:
        long = {"prompt": "long " * 60, "responses": ["a", "b"], "scores": [1, 0]}
        file = write_rows(tmp_path / "ranked.jsonl", [*RANKED, long])
        code, out, err = evaluate(finished, "--comparisons", file)
        assert code == 0, err
        assert "2 comparisons of 1 prompt; 2 ties left out, and 1 comparison too long" in out.replace("\n", " ")
        assert "model.max_length 60: 1 prompts skipped as too long" in out
        assert load_comparisons(file).ties == 2

    def test_says_that_the_reward_model_learnt_from_them(self, finished, evaluate, tmp_path) -> None:
        run, file = copied(finished, tmp_path / "run"), write_rows(tmp_path / "pairs.jsonl", PAIRS)
        shutil.copy(file, tmp_path / "same.jsonl")
        assert "learnt from" not in evaluate(run, "--comparisons", file)[1]
        config = run / "config.yaml"
        text = config.read_text().replace("source: judge", "source: dataset")
        config.write_text(text.replace("dataset: null", f"dataset: {tmp_path / 'same.jsonl'}"))
        assert "The run's reward model was trained on most of these" in evaluate(run, "--comparisons", file)[1]

    def test_columns_under_other_names(self, finished, evaluate, figures, tmp_path) -> None:
        names = {"prompt": "question 1", "chosen": "good", "rejected": "bad"}
        rows = [{names[key]: text for key, text in row.items()} | {"label": 1} for row in PAIRS]
        file, plain = (write_rows(tmp_path / f"{n}.jsonl", each) for n, each in enumerate((rows, PAIRS)))
        code, _, err = evaluate(finished, "--comparisons", file)
        assert (code, "Name the columns, such as --columns prompt=COLUMN." in err.replace("\n", " ")) == (2, True)
        options = [f"--columns={key}={column}" for key, column in (names | {"label": "null"}).items()]
        expected = figures(finished, "--comparisons", plain)["accuracy"]
        found = figures(finished, "--comparisons", file, *options)["accuracy"]
        ignored = ("file", "notes")
        assert all(found[key] == expected[key] for key in expected if key not in ignored)
        code, _, err = evaluate(finished, "--comparisons", plain, *options)
        assert (code, '--columns prompt: column "question 1" not found.' in err) == (2, True)

    def test_the_run_s_own_columns_for_its_own_file(self, finished, figures, tmp_path) -> None:
        """Its map is part of its file: another file has its own."""
        run = copied(finished, tmp_path / "run")
        rows = [{"question": row["prompt"], "good": row["chosen"], "rejected": row["rejected"]} for row in PAIRS]
        own, other = (write_rows(tmp_path / f"{n}.jsonl", each) for n, each in enumerate((rows, PAIRS)))
        columns = {"prompt": "question", "chosen": "good"}
        change(run, "rank", source="dataset", dataset=str(own), columns=columns)
        for file in (own, other):
            assert figures(run, "--comparisons", file)["accuracy"]["comparisons"] == 4

    def test_beside_a_match(self, finished, figures, tmp_path) -> None:
        file = write_rows(tmp_path / "pairs.jsonl", PAIRS)
        result = figures(finished, "--left", "base", "--limit", 2, "--comparisons", file)
        assert (result["match"]["left"], result["match"]["prompts"]) == ("base", 2)
        assert result["accuracy"]["comparisons"] == 4


PANDALM = Path(__file__).parents[3] / "shared" / "data" / "pandalm_testset_v1.json"


@pytest.mark.skipif(not PANDALM.exists(), reason="the real comparisons are not here")
def test_ties_of_real_comparisons() -> None:
    votes = [[row[f"annotator{n}"] for n in (1, 2, 3)] for row in json.loads(PANDALM.read_text())]
    same = [row["response1"] == row["response2"] for row in json.loads(PANDALM.read_text())]
    split = sum(max(vote.count(1), vote.count(2)) < 2 and not alike for vote, alike in zip(votes, same, strict=True))
    assert load_comparisons(PANDALM).ties == split > 90


class TestErrors:
    @pytest.mark.parametrize(
        ("gone", "arguments", "says"),
        [
            ("adapters/policy", (), "adapters/policy not found; stage ppo writes it"),
            ("adapters/policy-last", ("--right", "policy-last"), "stage ppo writes it"),
            ("adapters/sft", (), "--until sft"),
            ("adapters/reward", ("--comparisons", "x.jsonl"), "stage reward writes it"),
        ],
    )
    def test_an_adapter_that_is_not_made_yet(self, finished, evaluate, tmp_path, gone, arguments, says) -> None:
        run = copied(finished, tmp_path / "run", gone)
        code, out, err = evaluate(run, *arguments)
        assert (code, out) == (2, "")
        assert says in err
        assert "Traceback" not in err
        assert "Add" not in err

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("role", [Role.REWARD, Role.POLICY, Role.REFERENCE])
    def test_numbers_that_are_not_finite_become_no_figure(self, finished, evaluate, monkeypatch, role, value) -> None:
        scored, measured = rollout.reward_scores, match_module.score_logprobs

        def scores(*args: Any) -> torch.Tensor:
            found = scored(*args)
            found[1] = value if role is Role.REWARD else found[1]
            return found

        def logprobs(roles: Roles, acting: Role, *args: Any) -> TokenLogprobs:
            found = measured(roles, acting, *args)
            return replace(found, logprobs=found.logprobs + value) if acting is role else found

        monkeypatch.setattr(rollout, "reward_scores", scores)
        monkeypatch.setattr(match_module, "score_logprobs", logprobs)
        code, out, err = evaluate(finished, "--limit", 2)
        assert (code, out) == (ExitCode.NOT_FINITE, "")
        whose = {Role.REWARD: "reward model's scores of 1", Role.POLICY: "policy's log-probabilities of 4"}
        whose[Role.REFERENCE] = "reference's log-probabilities of 4"
        assert f"the {whose[role]} of 4 answers are NaN or infinite (prompts " in " ".join(err.split())
        assert "Traceback" not in err

    def test_a_score_that_is_not_finite_is_no_accuracy(self, finished, evaluate, monkeypatch, tmp_path) -> None:
        scored = reward_metrics.score_tokens
        monkeypatch.setattr(reward_metrics, "score_tokens", lambda *args: scored(*args) * math.nan)
        code, out, err = evaluate(finished, "--comparisons", write_rows(tmp_path / "pairs.jsonl", PAIRS))
        assert (code, out) == (ExitCode.NOT_FINITE, "")
        assert "the reward model's scores of 7 of 7 answers are NaN or infinite" in " ".join(err.split())

    def test_a_stage_that_the_run_leaves_out_is_to_be_added_first(self, tmp_path) -> None:
        run_dir = RunDir(tmp_path / "a")
        run_dir.open("name: a\nmodel: {source: x}\nstages: [sft]\n")
        with pytest.raises(UserError) as caught:
            run_adapter(run_dir, "policy", "ppo")
        assert f"stage ppo writes it. Add ppo to `stages` in {run_dir.path}" in str(caught.value)

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (
                ("--left", "polcy"),
                'unknown model "polcy": expected base, sft, policy, policy-last, or the folder of an adapter. Did you',
            ),
            (("--right", "."), ".: adapter_config.json not found"),
            (("--judge", "sentimant"), 'Did you mean "sentiment"?'),
            (("--judge", "endpoint"), "requires a section rank.endpoint"),
            (("--prompts", "nowhere.jsonl"), "nowhere.jsonl"),
            (("--comparisons", "nowhere.jsonl"), "nowhere.jsonl"),
            (
                ("seed=3",),
                '"seed=3": only settings of model, sample, rank.endpoint, evaluate and data.skip_bad_rows can',
            ),
            (("data.held_out=9",), "only settings of"),
            (("sample.temprature=2",), 'Did you mean "temperature"?'),
            (("--out", "result.txt"), "must end in .json"),
            (("--out", "/proc/nowhere/result.json"), "cannot be written"),
            (("model.max_length=10",), "only 4 fit"),
        ],
    )
    def test_what_a_person_can_mend(self, finished, evaluate, tmp_path, arguments, says) -> None:
        code, out, err = evaluate(finished, *arguments)
        assert (code, out) == (2, "")
        assert says in err
        assert "Traceback" not in err
        assert list(tmp_path.glob("*.json")) == []

    def test_nobody_to_decide_and_nothing_held_out(self, finished, evaluate, tmp_path) -> None:
        run = copied(finished, tmp_path / "run", "adapters/reward")
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("source: judge", "source: human"))
        assert "this run has no reward model yet; set --judge" in evaluate(run)[2]
        stages = "stages: [sft, sample, rank, reward]\n"
        text = config.read_text().replace("held_out: 5", "held_out: 0").replace("validation: 2", "validation: 0")
        config.write_text(stages + "".join(part for part in _without_stages(text)))
        assert "this run has no held-out prompts" in evaluate(run, "--judge", "sentiment")[2]

    def test_ctrl_c_writes_nothing(self, finished, evaluate, tmp_path, monkeypatch) -> None:
        def stopped(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(match_module, "play_match", stopped)
        code, out, err = evaluate(finished, "--out", "result.json")
        assert (code, out) == (130, "")
        assert "Stopped; nothing was written." in err
        assert list(tmp_path.iterdir()) == []


def _without_stages(text: str) -> list[str]:
    """The lines of a config less its list of stages."""
    kept, inside = [], False
    for line in text.splitlines(keepends=True):
        inside = line.startswith("stages:") or (inside and line.startswith("- "))
        if not inside:
            kept.append(line)
    return kept


class TestOutput:
    def test_json_and_text_are_saved(self, finished, evaluate) -> None:
        code, out, err = evaluate(finished, "--out", "new/result.json", "--limit", 3)
        assert code == 0, err
        saved = json.loads(Path("new/result.json").read_text())
        assert saved["match"]["prompts"] == 3
        assert saved["seed"] == 1
        text = Path("new/result.txt").read_text()
        assert out.startswith(text)
        assert out[len(text) :].strip() == "Saved as new/result.json; this text as new/result.txt"
        assert sorted(path.name for path in Path("new").iterdir()) == ["result.json", "result.txt"]
        assert max(map(len, text.splitlines())) <= 100
