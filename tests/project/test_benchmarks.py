"""Run the benchmarks on tiny models and check their figures."""

import http.client
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


def test_ppo_step_prints_one_json_object(tiny_folder: Callable[..., Path]) -> None:
    work = {"batch": 4, "prompt-tokens": 8, "new-tokens": 6, "epochs": 2, "updates": 2, "threads": 1}
    command = [sys.executable, ROOT / "benchmarks" / "ppo_step.py", "--json", f"--model={tiny_folder()}"]
    command += ["--dtype=float32", *(f"--{name}={value}" for name, value in work.items())]
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert len(result["seconds_per_update"]) == 2
    assert set(result["phases"]) == {"rollout", "scoring", "policy_update", "critic_update"}
    assert sum(result["phases"].values()) > result["arithmetic_floor_seconds"] > 0
    # No answer ends early: 4 answers of 6 tokens in the (rounded) time of the rollout.
    tokens = result["rollout_tokens_per_second"] * result["phases"]["rollout"]
    assert abs(tokens - 24) < 3
    assert result["peak_rss_mb"] > 100
    assert 100 < result["operations_per_pass"] < 1000
    assert 0 < result["role_switch_ms"] < 100
    assert 0 < result["merge_ms"] < 1000


def test_memory_table_compares_the_peak_with_the_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand values: 3 GiB measured where 2 were forecast."""
    sys.path.insert(0, str(ROOT))
    from benchmarks import memory

    gib = 2**30
    monkeypatch.setattr(memory, "planned", lambda *_: 2 * gib)
    cell = {"model": "m", "setting": "a", "measured": {"sft": 2 * gib, "ppo": 3 * gib}}
    assert memory.table([cell]).splitlines()[2:] == [
        "| m | a | sft | 2,048 | 2,048 | 1.00 |",
        "| m | a | ppo | 2,048 | 3,072 | 1.50 |",
    ]


def test_a_visitor_counts_unanswered_events_and_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two events: both answered, one without an answer, a refusal, and a connection that ends early.

    The visitor is on the second of two tabs whose timers are inactive at first.
    """
    sys.path.insert(0, str(ROOT))
    from benchmarks import page_load

    timers = [{"id": at, "type": "timer", "props": {"active": at == 0}} for at in range(3)]
    ticks = [{"id": at + 10, "inputs": [], "targets": [(at, "tick")]} for at in range(3)]
    config = {"components": timers, "dependencies": ticks}
    ids = [{"event_id": "a"}, {"event_id": "b"}]
    done = ["a", "b"], ["b"]
    replies = iter([config, *ids, done[0], *ids, done[1], {"detail": "full"}, http.client.RemoteDisconnected()])
    opened = []

    class Connection:
        def __init__(self, *_: object, **__: object) -> None:
            opened.append(self)

        def request(self, _: str, path: str, *__: object) -> None:
            if "heartbeat" in path:  # without a reply while the page is open
                return
            reply = next(replies)
            if isinstance(reply, Exception):
                raise reply
            events = reply if isinstance(reply, list) else ()
            lines = [{"msg": "process_completed", "event_id": event, "success": True} for event in events]
            self.stream = io.BytesIO("".join(f"data: {json.dumps(line)}\n" for line in lines).encode())
            self.reply = json.dumps(reply)

        def getresponse(self) -> SimpleNamespace:
            return SimpleNamespace(read=lambda: self.reply, readline=self.stream.readline)

        def close(self) -> None:
            pass

    monkeypatch.setattr(page_load.http.client, "HTTPConnection", Connection)
    monkeypatch.setattr(page_load, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: None))
    visitor = page_load.Visitor("host", "run", 1)
    assert [event for event, _ in visitor._events] == [10, 12]
    visitor.tick()
    assert (len(visitor.seconds), visitor.errors) == (2, [])
    visitor.tick()
    assert (len(visitor.seconds), visitor.errors) == (3, ["event a: no answer"])
    moments = iter([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 3.0])
    page_load.time.monotonic = lambda: next(moments)
    visitor.stay(2.0)
    assert [error.partition("(")[0] for error in visitor.errors[1:]] == ["KeyError", "RemoteDisconnected"]
    assert len(opened) == 3 * 3


def test_the_page_is_not_timed_beside_a_training_that_has_ended() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks import page_load

    with pytest.raises(SystemExit, match="exit code 3"):
        page_load.check_training(SimpleNamespace(poll=lambda: 3))
    page_load.check_training(SimpleNamespace(poll=lambda: None))


def test_flattery_is_the_mean_difference_over_seeds_with_its_standard_error() -> None:
    """Differences .10 and .20 in the win rate, .3 and -.1 in the objective."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.seeds import flattery

    rows = [
        {"seed": 1, "old_win_rate": 0.8, "win_rate": 0.7, "old_objective": 0.5, "test_objective": 0.2},
        {"seed": 2, "old_win_rate": 0.8, "win_rate": 0.6, "old_objective": 0.3, "test_objective": 0.4},
    ]
    lines = flattery(rows).splitlines()
    assert lines[2:4] == ["| 1 | 80 % | 70 % | 0.50 | 0.20 |", "| 2 | 80 % | 60 % | 0.30 | 0.40 |"]
    assert "win_rate, old less new: +0.150, standard error 0.050" in lines
    assert "objective, old less new: +0.100, standard error 0.200" in lines


def test_a_short_soak_measures_memory_and_logs(tmp_path: Path) -> None:
    """Eight steps are too few to judge the memory, but enough for the log size per step."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.soak import MOST_LOGGED_BYTES, soak

    figures = soak(tmp_path, 8)
    assert 100 < figures["warm_mib"] < 20_000
    assert abs(figures["growth"]) < 0.5
    assert 100 < figures["logged_bytes_per_step"] < MOST_LOGGED_BYTES


def test_gpu_check_counts_passed_and_failed_tests(tmp_path: Path) -> None:
    """One test of each outcome, run by pytest; and the row for docs/hardware.md."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.gpu_check import read_junit, table_line

    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_good(): pass\ndef test_bad(): assert 0\n"
        "@pytest.mark.skip\ndef test_left_out(): pass\n"
        "@pytest.fixture\ndef broken(): 1 / 0\ndef test_error(broken): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=out.xml", "test_it.py"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    found = read_junit(tmp_path / "out.xml")
    assert found == {"passed": 1, "skipped": 1, "failed": ["test_it::test_bad", "test_it::test_error"]}
    machine = {"date": "2026-11-27", "card": "T4", "versions": {"torch": "2.13.0", "bitsandbytes": "0.50.2"}}
    run = {"stages": {"sft": {"seconds": 10.4}, "ppo": {"seconds": 20.0}}, "claims": 8, "failed": []}
    report = {"machine": machine, "tests": found, "run": run, "update": {"seconds_per_update": [3.0, 1.0, 2.0]}}
    cells = (
        "2026-11-27",
        "T4",
        "torch 2.13.0, bitsandbytes 0.50.2",
        "1 passed, 2 failed",
        "2 stages in 30 s, 8 self-checks pass",
    )
    assert table_line(report) == f"| {' | '.join(cells)} | 2.00 s |"


def test_gpu_check_finds_every_test_file_of_the_laws() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.gpu_check import LAW_TESTS, law_tests

    assert len(law_tests()) == len(LAW_TESTS)


def test_a_preset_for_a_card_is_measured_with_rows_that_fill_it(tiny_folder: Callable[..., Path]) -> None:
    """Prompt and response together are slightly shorter than `max_length`."""
    sys.path.insert(0, str(ROOT))
    from transformers import AutoTokenizer

    from benchmarks.cards import full_rows
    from lowrank_rlhf.config.loading import load_config, preset_folder

    config, tokenizer = load_config(preset_folder() / "gpu_8gb.yaml"), AutoTokenizer.from_pretrained(tiny_folder())
    lengths = [len(tokenizer(row["prompt"] + row["response"])["input_ids"]) for row in full_rows(config, tokenizer)]
    assert len(lengths) == 40
    assert 0.88 * config.model.max_length < min(lengths) <= max(lengths) < config.model.max_length - 20


def test_the_table_of_algorithms() -> None:
    """Means with the lowest and highest over two seeds; the page around the table stays the same."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.algorithms import BEGIN, END, PAGE, settings, table, with_table

    figures = {"kl": 2.0, "length": 20, "ends": 1.0, "steps": 16, "tokens": 12_345, "seconds": 60, "peak_mib": 2000}
    rows = [
        {
            "algorithm": name,
            "measure": measure,
            "seed": seed,
            "second_win_rate": None,
            "win_rate": 0.5 + seed / 10,
            **figures,
        }
        for name in ("ppo", "rloo", "grpo", "dpo")
        for measure in ("tokens", "time")
        for seed in (1, 2)
    ]
    lines = table(rows).splitlines()
    assert len(lines) == 2 + 8 + 2
    assert lines[2] == "| equal tokens | PPO | 0.65 [0.60, 0.70] | – | 2.0 | 20 | 1.00 | 16 | 12,345 | 60 | 2,000 |"
    page = PAGE.read_text(encoding="utf-8")
    replaced = with_table(page, "a table")
    assert (
        replaced.replace(f"{BEGIN}\n\na table\n\n{END}", "")
        == page[: page.index(BEGIN)] + page[page.index(END) + len(END) :]
    )
    assert settings("dpo", 2, 64, 640)[:2] == ["ppo.evaluate_every=2", "align.epochs=2"]
    assert settings("ppo", 16, 72, 640) == ["ppo.evaluate_every=2", "ppo.steps=16", "ppo.batch_size=72"]


def test_rows_of_other_seeds_stay_if_their_setting_is_the_same(tmp_path) -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.algorithms import others

    of, file = {"preset": "quickstart", "steps": 16}, tmp_path / "algorithms.json"
    assert others(file, of, [3]) == []
    file.write_text(json.dumps({"of": of, "rows": [{"seed": 1}, {"seed": 2}, {"seed": 3}]}))
    assert others(file, of, [3, 2]) == [{"seed": 1}]
    assert others(file, of | {"steps": 2}, [3]) == []


def test_the_settings_of_the_algorithms_are_valid() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.algorithms import ALIGN, settings
    from lowrank_rlhf.config.loading import load_config

    for name in ("ppo", *ALIGN):
        assert load_config(Path("quickstart"), settings(name, 16, 72, 2000)).align.algorithm == name


def test_a_judge_that_likes_questions_prefers_the_kind_replies(tmp_path: Path) -> None:
    """Every kind reply ends with a question and no blunt one does; in words the server always says A, or 5."""
    from chat_server import serving, texts

    def decide(question: str) -> str | dict[str, float]:
        first, *second = (text.endswith("?") for text in texts(question)[1:])
        if "nothing but" in question:
            return "A" if second else "5"
        return {"A": 0.9 if first else 0.6, "B": 0.1} if second else {"8" if first else "3": 1.0}

    with serving(decide) as server:
        command = [
            sys.executable,
            str(ROOT / "benchmarks" / "judges.py"),
            server.url,
            "--pairs=3",
            f"--cache={tmp_path}",
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in run.stdout.splitlines()[2:]]
    assert rows == [
        ["pairwise", "text", "0 of 3", "0"],
        ["pairwise", "logprobs", "3 of 3", "3"],
        ["pointwise", "text", "0 of 3", "0"],
        ["pointwise", "logprobs", "3 of 3", "3"],
    ]


def test_reward_adapters_are_trained_as_in_the_stage(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Lower states read once give the margins of the stage's training without them; none of 5 epochs is left out."""
    sys.path.insert(0, str(ROOT))
    import torch
    from tiny_run import make_config, make_session, separable, write_ranked

    from benchmarks.reward_adapters import OWN, Answers, Setting, measure
    from lowrank_rlhf.evaluation.reward_metrics import raw_scores
    from lowrank_rlhf.models.roles import Role
    from lowrank_rlhf.training.reward_data import read_groups, split_scores
    from lowrank_rlhf.training.rewards.reward_head import fit_head
    from lowrank_rlhf.training.rewards.reward_training import train_adapter
    from lowrank_rlhf.training.rollout import RewardScale

    changes = {"reward__epochs": 5, "reward__learning_rate": 1e-2, "reward__head_l2": 1.0}
    session = make_session(make_config(tiny_folder(), quantization="none", lora__last_layers=1, **changes), tmp_path)
    write_ranked(session, *separable(6))
    roles, config = session.load_roles(), session.config
    roles.prepare(Role.REWARD)
    groups = read_groups(roles.base, session.run_dir, config.model.max_length)[0]
    train, held_out = groups[:4], groups[4:]
    answers = {name: Answers.read(roles, groups, "mean", tmp_path / "states.safetensors") for name in (OWN, "again")}
    found = measure(roles, Setting(epochs=5), config, answers, (train, held_out), 3)
    assert found.margins[OWN] == found.margins["again"]

    features = split_scores(answers[OWN].features[answers[OWN].of(train)], train)
    roles.reset(Role.REWARD, torch.Generator().manual_seed(3))
    with torch.no_grad():
        roles.heads[Role.REWARD].weight.copy_(fit_head(train, features, config.reward, 3)[0])
    scale = RewardScale("mean", 0.0, 1.0)
    before = torch.cat(raw_scores(roles, held_out, scale))
    train_adapter(config.reward, 3, roles, train, scale, session.run_dir, session.progress, session.stop)
    after = raw_scores(roles, held_out, scale)
    assert float((torch.cat(after) - before).abs().max()) > 0.1
    expected = [
        float(own[better] - own[worse])
        for own, group in zip(after, held_out, strict=True)
        for better, worse, _ in group.pairs
    ]
    torch.testing.assert_close(torch.tensor(found.margins[OWN]), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_language_loss_is_that_of_the_preferred_answers(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """The likelihood by transformers alone, of both layers although the head reads the first."""
    sys.path.insert(0, str(ROOT))
    import torch
    from tiny_run import make_config, make_session, separable, write_ranked
    from transformers import AutoModelForCausalLM

    from benchmarks.reward_adapters import Answers, with_language_loss
    from lowrank_rlhf.models.roles import Role
    from lowrank_rlhf.training.reward_data import group_loss, read_groups

    config = make_config(tiny_folder(), quantization="none", reward__layers=1)
    session = make_session(config, tmp_path)
    write_ranked(session, *separable(2))
    roles = session.load_roles()
    roles.prepare(Role.REWARD)
    roles.reset(Role.REWARD, torch.Generator().manual_seed(0))
    groups = read_groups(roles.base, session.run_dir, config.model.max_length)[0]
    answers = Answers.read(roles, groups, "mean", tmp_path / "states.safetensors")
    group, scores = groups[1], torch.tensor([0.0, 1.0, -1.0, 2.0])
    with roles.acting_as(Role.REWARD, train=True):
        found = with_language_loss(roles, answers, 0.5)(scores, group, "pairwise", 0.0)
        roles.backward(found)
        assert any(parameter.grad is not None for parameter in roles.parameters(Role.REWARD))

    plain = AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32)
    likelihoods = []
    for index in sorted({better for better, *_ in group.pairs}):
        row = torch.tensor([[*group.prompt, *group.answers[index]]])
        with torch.no_grad():
            logprobs = plain(row).logits.log_softmax(-1)[0]
        start = len(group.prompt)
        likelihoods += [float(logprobs[place - 1, row[0, place]]) for place in range(start, row.shape[1])]
    expected = float(group_loss(scores, group, "pairwise", 0.0)) - 0.5 * sum(likelihoods) / len(likelihoods)
    assert abs(float(found) - expected) < 1e-4


def test_the_table_of_reward_adapters() -> None:
    """Two prompts with one pair and two: the head alone orders two pairs, the adapter all; one length is a tie."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.reward_adapters import OWN, Outcome, Setting, table
    from lowrank_rlhf.training.reward_data import Group

    empty = {"prompt": [1], "samples": [], "answers": [], "rankings": []}
    groups = [
        Group(prompt_id="a", lengths=[3, 2], pairs=[(0, 1, 1)], **empty),
        Group(prompt_id="b", lengths=[3, 3, 4], pairs=[(0, 1, 1), (0, 2, 1)], **empty),
    ]
    by_setting = {
        Setting(): [Outcome({OWN: [1.0, -1.0, 2.0], "emptied": [1.0, -1.0, -1.0]})],
        Setting.parse("8:3e-4:2:0.1"): [Outcome({OWN: [1.0, 1.0, 2.0], "emptied": [0.0, 1.0, 1.0]}, 12.4)],
    }
    first, *_, alone, trained = table(groups, by_setting).splitlines()
    assert first == "longer wins 50.0 [25.0, 100.0]"
    assert alone.startswith(
        "| head alone |  |  |  | 66.7 [50.0, 100.0] | +16.7 [+0.0, +25.0] | +0.0 [+0.0, +0.0] | 0.5845"
    )
    assert alone.endswith("| 33.3 | 0 |")
    assert trained.startswith(
        "| 8 | 0.0003 | 2 | 0.1 | 100.0 [100.0, 100.0] | +50.0 [+0.0, +75.0] | +33.3 [+0.0, +50.0] |"
    )
    assert trained.endswith("| 83.3 | 12 |")


def test_rankings_are_counted_over_rounds_and_averaged_over_seeds() -> None:
    """Hand values: the mean of 60 and 70 % with both ends; 96 rankings in one round and in two are different rows."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.rankings import plot, table

    same = {"equal_length": 0.5, "second": None, "accuracy": 0.8}
    rows = [
        {"rankings": 96, "round": 1, "seed": 1, "win_rate": 0.6, "kl": 1.5, **same},
        {"rankings": 96, "round": 1, "seed": 2, "win_rate": 0.7, "kl": 2.5, **same},
        {"rankings": 96, "round": 2, "seed": 1, "win_rate": 0.9, "kl": 3.0, **same},
    ]
    assert table(rows).splitlines()[2:] == [
        "| 96 | 1 | 2 | 65 % (60 to 70) | 50 % (50 to 50) | - | 80 % (80 to 80) | 2.00 (1.50 to 2.50) |",
        "| 96 | 2 | 1 | 90 % | 50 % | - | 80 % | 3.00 |",
    ]
    assert plot(rows).startswith("<svg")
