"""How many rankings are enough: the same answer for the run, the page and the terminal."""

from pathlib import Path

import pytest

from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.maths.reward_gate import PROMPTS, expected_passes, prompts_for_power, weakness_of
from lowrank_rlhf.maths.statistics import Interval
from lowrank_rlhf.preferences.enough import RankingNeed, needed
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import append_line


def config(**changes) -> Config:
    return Config(**{"name": "a", "model": {"source": "x"}, "rank": {"source": "human"}} | changes)


def measure(run: Path, prompts: int, accuracy: float, **more) -> None:
    append_line(
        run / "events.jsonl",
        {
            "kind": "measured",
            "stage": "reward",
            "prompts": prompts,
            "accuracy": accuracy,
            "interval": [0.4, 0.8],
            **more,
        },
    )


def test_the_verdict_by_intervals() -> None:
    good = Interval(0.51, 0.7)
    assert weakness_of(6, Interval(0.5, 0.9), Interval(0.1, 0.2)) == "chance"
    assert weakness_of(6, good, Interval(-0.2, 0.0)) == "length"
    assert weakness_of(6, good, Interval(0.0, 0.2)) == "length_unclear"
    assert weakness_of(6, good, Interval(0.01, 0.2)) is None
    assert weakness_of(5, Interval(1, 1), Interval(0.01, 0.2)) == "few"  # five of five right: 1/32 by chance


def test_the_simulated_test_passes_as_the_stages_own_does() -> None:
    """Against `held_out_accuracy` and `weakness` of the stage, on 80 reward models with their own bootstrap."""
    torch = pytest.importorskip("torch")
    from types import SimpleNamespace

    from lowrank_rlhf.evaluation.reward_metrics import held_out_accuracy, weakness

    passed, generator = 0, torch.Generator().manual_seed(0)
    pairs = [(i, j) for i in range(4) for j in range(4)]
    for run in range(80):
        groups, scores = [], []
        for prompt in range(24):  # a fifth of 120
            utility, noise = torch.randn(2, 4, generator=generator)
            length = torch.randint(1, 10_000, (4,), generator=generator).tolist()
            own = [(i, j, 1) for i, j in pairs if utility[i] > utility[j]]
            groups.append(SimpleNamespace(pairs=own, lengths=length, prompt_id=str(prompt)))
            scores.append(0.587785 * utility + 0.809017 * noise)  # pairs in the right order: 70 %
        passed += weakness(held_out_accuracy(groups, scores, 200, run)) is None
    assert expected_passes(120, 0.7, 4, 0.2) == pytest.approx(passed / 80, abs=0.13)


def test_more_rankings_and_better_models_pass_more_often() -> None:
    shares = [expected_passes(prompts, 0.7, 4, 0.2) for prompts in (24, 60, 120, 300)]
    assert shares == sorted(shares)
    assert shares[0] < 0.3
    assert shares[-1] > 0.95
    assert expected_passes(120, 0.5, 4, 0.2) < 0.06
    assert prompts_for_power(0.7, 4, 0.2) == 150
    assert prompts_for_power(0.5, 4, 0.2) == PROMPTS[-1]


def test_enough_before_a_reward_model_is_by_expected_power(tmp_path: Path) -> None:
    need = needed(config(), tmp_path, 1000)
    assert (need.prompts, need.reason, need.few) == (150, "power", False)
    assert needed(config(), tmp_path, 40)[:2] == (40, "power")
    few = needed(config(rank={"source": "human", "minimum_rankings": 24}), tmp_path, 1000)
    assert (few.prompts, few.reason, few.few) == (24, "setting", True)
    assert needed(config(ppo={"accept_weak_reward": True}), tmp_path, 1000) == RankingNeed(24, "setting")
    assert needed(config(stages=["sft", "sample", "rank", "reward"]), tmp_path, 1000) == RankingNeed(24, "setting")


def test_enough_after_a_reward_model_is_by_its_verdict(tmp_path: Path) -> None:
    asked = config(rank={"source": "human", "minimum_rankings": 24})
    measure(tmp_path, 19, 0.7, weakness="chance")  # of 24
    assert needed(asked, tmp_path, 1000)[:2] == (150, "weak")
    assert needed(asked, tmp_path, 100)[:2] == (100, "weak")
    measure(tmp_path, 200, 0.8)  # an older version's event: the interval is the verdict
    assert needed(asked, tmp_path, 1000)[:2] == (376, "weak")
    measure(tmp_path, 80, 0.7, weakness=None)
    assert needed(asked, tmp_path, 1000) == RankingNeed(24, "setting")
    assert needed(config(), tmp_path, 1000) == RankingNeed(100, "setting")


def test_a_later_round_needs_its_own_prompts_only(tmp_path: Path) -> None:
    """Its reward model was tested on the 400 ranked prompts of both rounds, 300 of them ranked in the first."""
    passed = {"held_out": 80, "earlier": 300, "weakness": None}
    measure(tmp_path, 320, 0.75, **passed)
    assert needed(config(), tmp_path, 1000) == RankingNeed(100, "setting")
    assert needed(config(rank={"source": "human", "minimum_rankings": 60}), tmp_path, 1000).prompts == 60
    measure(tmp_path, 320, 0.75, **passed | {"weakness": "length"})
    found = needed(config(), tmp_path, 1000)
    assert (found.prompts, found.reason) == (400 + 200 + 1 - 300, "weak")
    assert found.passes == expected_passes(601, 0.75, 4, 0.2)


def test_figures_of_all_rounds_are_named_so(tmp_path: Path, monkeypatch) -> None:
    """The reward model was trained and tested on 40 prompts of earlier rounds too: 12 of this round are asked for."""
    from people import a_ranking, a_run

    from lowrank_rlhf.commands.terminal.ranking_text import project_summary
    from lowrank_rlhf.dashboard.ranking.figures import figures_words
    from lowrank_rlhf.dashboard.ranking.screen import progress_words
    from lowrank_rlhf.preferences.overview import overview
    from lowrank_rlhf.preferences.project import open_project
    from lowrank_rlhf.run.files import write_atomic

    monkeypatch.chdir(tmp_path)
    store, run = a_run("people", 2, 12), Path("runs/people")
    write_atomic(run / "config.yaml", dump_config(config()))
    for prompt in range(10):
        store.save(a_ranking(prompt, "012"))
    measure(run, 40, 0.6, held_out=10, earlier=40, weakness="length")
    project = open_project(run)
    words = progress_words(project, "ann", "en", owner=True)
    assert words["line"][0] == "10 of 12 prompts ranked"
    assert "With 52 (40 of them in earlier rounds) ranked prompts" in words["next"]
    assert "About 2 more before" in words["next"]
    figures = figures_words(overview(project), project, "en", owner=True)
    assert any(row["figure"].startswith("40 prompts of all rounds: 60 % of held-out pairs") for row in figures)
    for prompt in (10, 11):
        store.save(a_ranking(prompt, "012"))
    monkeypatch.setattr(type(project), "rankings_changed", True)
    assert "With 52 of all rounds, a reward model" in project_summary(project)


def test_a_weak_reward_model_waits_for_people_who_have_prompts_left(tmp_path: Path) -> None:
    from people import a_ranking, a_run

    from lowrank_rlhf.errors import StageFailed, WaitingForPeople
    from lowrank_rlhf.run.files import write_atomic, write_json_atomic
    from lowrank_rlhf.training.policy_roles import load_roles

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        store = a_run("people", 2, 5)
        run = Path("runs/people").absolute()
        human = config(rank={"source": "human", "minimum_rankings": 2})
        write_atomic(run / "config.yaml", dump_config(human))
        write_json_atomic(run / "adapters" / "reward" / "reward.json", {"weak": "the reward model is weak"})
        measure(run, 2, 0.6, weakness="chance")
        for prompt in range(2):
            store.save(a_ranking(prompt, "012"))
        with pytest.raises(WaitingForPeople, match=r"weak\. About 3 more ranked prompts(.|\n)*--redo rank"):
            load_roles(None, RunDir(run), human)
        for prompt in range(2, 5):
            store.save(a_ranking(prompt, "012"))
        with pytest.raises(StageFailed, match=r"rank their answers, or set ppo\.accept_weak"):
            load_roles(None, RunDir(run), human)


@pytest.mark.parametrize("minimum", [2, None])
def test_page_and_terminal_give_the_runs_answer(tmp_path: Path, monkeypatch, minimum: int | None) -> None:
    from people import a_ranking, a_run

    from lowrank_rlhf.commands.terminal.ranking_text import project_summary
    from lowrank_rlhf.dashboard.ranking.screen import progress_words
    from lowrank_rlhf.preferences.project import open_project
    from lowrank_rlhf.run.files import write_atomic

    monkeypatch.chdir(tmp_path)
    store = a_run("people", 2, 30)
    human = config(rank={"source": "human", "minimum_rankings": minimum})
    write_atomic(Path("runs/people/config.yaml"), dump_config(human))
    for prompt in range(2):
        store.save(a_ranking(prompt, "012"))
    project = open_project(Path("runs/people"))
    words, summary = progress_words(project, "ann", "en", owner=True), project_summary(project)
    assert words["enough"] is project.enough is (minimum == 2)
    if minimum:
        passes = round(100 * expected_passes(2, 0.7, 4, 0.2))
        assert f"orders 70 % of pairs correctly passes its test in only {passes} % of simulations" in words["next"]
        assert f"orders 70 % of pairs correctly passes its test in {passes} % of simulations" in summary
        assert words["sound"] is False
    else:
        passes = round(100 * expected_passes(30, 0.7, 4, 0.2))
        assert words["next"].startswith("28 more before the run can resume. With 30 ranked prompts, a reward model")
        assert f"orders 70 % of pairs correctly passes its test in {passes} % of simulations" in words["next"]
        assert summary.startswith("2 of 30 prompts ranked, 28 more needed: a reward model trained on fewer often")


def test_after_a_failed_test_the_page_names_its_accuracy_and_never_says_enough(tmp_path: Path, monkeypatch) -> None:
    """The guided path's 32 rankings, 6 answers and half for the test: 90 % of simulations at 70 %, assumed before."""
    from people import a_ranking, a_run

    from lowrank_rlhf.commands.terminal.ranking_text import project_summary
    from lowrank_rlhf.dashboard.ranking.screen import progress_words
    from lowrank_rlhf.preferences.project import Project, open_project
    from lowrank_rlhf.run.files import write_atomic

    monkeypatch.chdir(tmp_path)
    store, run = a_run("people", 2, 32), Path("runs/people")
    write_atomic(run / "config.yaml", dump_config(config(sample={"answers_per_prompt": 6}, reward={"held_out": 0.5})))
    project = open_project(run)

    def words() -> dict:
        return progress_words(project, "ann", "en", owner=True)

    for prompt in range(20):
        store.save(a_ranking(prompt, "012"))
    good = round(100 * expected_passes(32, 0.7, 6, 0.5))
    assert good >= 80
    assert words()["next"].startswith("12 more before the run can resume. With 32 ranked prompts")
    for prompt in range(20, 32):
        store.save(a_ranking(prompt, "012"))
    now = words()
    assert now["next"].startswith("Enough to resume the run: with 32 ranked prompts, a reward model that orders 70 %")
    assert f"passes its test in {good} % of simulations" in now["next"]
    assert now["sound"] is True
    measure(run, 16, 0.55, held_out=16, weakness="chance")
    now = words()
    assert (now["enough"], now["sound"]) == (False, False)  # to resume would fail again
    assert now["next"].startswith("Not enough: the reward model trained on these rankings failed its test")
    assert "55 % of held-out pairs" in now["next"]
    assert "simulations" not in now["next"]
    summary = project_summary(project)
    assert "trained on them failed its test" in summary
    assert "resume" not in summary
    monkeypatch.setattr(Project, "rankings_changed", True)  # and not tried yet
    weak = round(100 * expected_passes(32, 0.6, 6, 0.5))
    now = words()
    assert f"that orders 60 % of pairs correctly passes its test in only {weak} % of simulations" in now["next"]
    assert "More prompts need a new run" in now["next"]
    assert now["sound"] is False
