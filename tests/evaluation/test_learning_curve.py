"""What further rankings would gain: on curves of a known shape, on planted preferences, and in words."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from annotators_page import a_run_with_answers

from lowrank_rlhf.commands.terminal.ranking_text import project_summary
from lowrank_rlhf.config.schema import RewardConfig
from lowrank_rlhf.dashboard.ranking.session import ranking_handler, sign
from lowrank_rlhf.errors import Stopped
from lowrank_rlhf.evaluation import learning_curve as measuring
from lowrank_rlhf.evaluation.learning_curve import curve_of, learning_curve, save_curve, saved_curve
from lowrank_rlhf.maths.reward_gate import (
    LEAST_PROMPTS,
    LEAST_TRAINING_PROMPTS,
    held_out_count,
    prompts_for_curve,
)
from lowrank_rlhf.preferences.project import open_project
from lowrank_rlhf.preferences.reward_tests import (
    CurvePoint,
    LearningCurve,
    RewardTest,
    record_reward_test,
    reward_tests,
)
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import StopRequest
from lowrank_rlhf.training.reward_data import Group
from lowrank_rlhf.training.rewards.reward_head import fit_head

SIZES = (25, 50, 75, 100)


def along(a: float, b: float, prompts: int = 200) -> np.ndarray:
    """Shares of right pairs on the curve a - b / sqrt(n), one pair of each prompt, equally spread at each size."""
    spread = np.linspace(-0.1, 0.1, prompts)
    return np.array([a - b / np.sqrt(size) + spread for size in SIZES])


@pytest.mark.parametrize("b", [0.0, 1.0])
def test_a_known_curve_gives_its_own_gain(b: float) -> None:
    """By hand: from 100 to 144 the curve rises by b (1/10 - 1/12). A flat one promises nothing."""
    names = [f"p{n}" for n in range(200)]
    found = curve_of(SIZES, along(0.8, b), names, more=44, samples=200, seed=0)
    assert found.gain == pytest.approx(b * (1 / 10 - 1 / 12), abs=1e-9)
    assert [point.accuracy for point in found.points] == pytest.approx([0.8 - b / size**0.5 for size in SIZES])
    low, high = found.points[-1].interval
    assert low < found.points[-1].accuracy < high
    assert found.gain_interval == pytest.approx((found.gain, found.gain), abs=1e-9)  # all prompts have the same curve


def test_the_interval_is_over_prompts_and_pairs_the_sizes() -> None:
    """What makes a prompt hard at every size cancels in the gain; what changes between sizes does not."""
    rng, names = np.random.default_rng(1), [f"p{n}" for n in range(60) for _ in range(6)]
    hard = np.repeat(rng.random(60) * 0.5, 6)
    paired = curve_of(SIZES, np.array([0.5 + hard] * 4), names, more=44, samples=500, seed=0)
    assert paired.gain_interval == pytest.approx((0, 0), abs=1e-9)
    assert paired.points[0].interval[1] - paired.points[0].interval[0] > 0.05
    noisy = curve_of(SIZES, rng.random((4, 360)) < 0.7, names, more=44, samples=500, seed=0)
    assert noisy.gain_interval[0] < 0 < noisy.gain_interval[1]


def planted(count: int, seed: int, width: int = 30) -> tuple[list[Group], list[torch.Tensor]]:
    """Pairs that a taste in `width` features decides, with noise."""
    generator = torch.Generator().manual_seed(seed)
    taste = torch.randn(width, generator=torch.Generator().manual_seed(9))
    groups, features = [], []
    for number in range(count):
        own = torch.randn(2, width, generator=generator)
        better = int(torch.randn((), generator=generator) * 3 < (own[1] - own[0]) @ taste)
        name, pair = f"{seed}-{number}", (better, 1 - better, 1)
        groups.append(Group(name, [5], [f"{name}-0", f"{name}-1"], [[7], [7]], [1, 1], [pair], [], counts=(2, 0)))
        features.append(own)
    return groups, features


def test_the_promised_gain_comes_true_on_planted_preferences() -> None:
    """Fitted to 60 prompts, curves foretell the accuracy at 120; a line in log n would promise two points more."""
    config, errors = RewardConfig(head_l2=1, held_out=0.5), []
    test, read = planted(1000, seed=1)
    for seed in range(2, 5):
        train, own = planted(120, seed)
        now, later = (
            learning_curve(train[:count], test, [*own[:count], *read], config, 0, samples=50) for count in (60, 120)
        )
        assert now is not None
        assert later is not None
        assert [point.prompts for point in now.points] == [15, 30, 45, 60]
        assert now.shown
        slope = now.gain / (60**-0.5 - 72**-0.5)  # 24 more, half of them for training
        foretold = now.points[-1].accuracy + slope * (60**-0.5 - 120**-0.5)
        assert foretold > now.points[-1].accuracy + 0.02
        errors.append(foretold - later.points[-1].accuracy)
    assert np.mean(errors) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(
    ("training", "held_out", "measured"),
    [
        (LEAST_TRAINING_PROMPTS, LEAST_PROMPTS, True),
        (LEAST_TRAINING_PROMPTS - 1, LEAST_PROMPTS, False),
        (LEAST_TRAINING_PROMPTS, LEAST_PROMPTS - 1, False),
    ],
)
def test_a_curve_requires_prompts_on_both_sides(training: int, held_out: int, measured: bool) -> None:
    """An interval over fewer held-out prompts cannot show anything: over a single one it has no width."""
    (train, own), (test, read) = planted(training, seed=2), planted(held_out, seed=1)
    found = learning_curve(train, test, [*own, *read], RewardConfig(head_l2=1), 0, samples=20)
    assert (found is not None) == measured


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
def test_the_page_names_the_smallest_number_of_prompts(share: float) -> None:
    def enough(count: int) -> bool:
        test = held_out_count(share, count)
        return test >= LEAST_PROMPTS and count - test >= LEAST_TRAINING_PROMPTS

    found = prompts_for_curve(share)
    assert enough(found)
    assert not any(map(enough, range(2, found)))


def test_the_fitted_head_is_the_last_point_and_a_stop_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    (train, own), (test, read) = planted(20, seed=2), planted(10, seed=1)
    arguments = (train, test, [*own, *read], RewardConfig(head_l2=1), 0, 20)
    whole = fit_head([replace(group, counts=(1,)) for group in train], own, RewardConfig(head_l2=1), 0)
    fitted = []

    def counted(groups: list[Group], *rest: object) -> object:
        fitted.append(len(groups))
        return fit_head(groups, *rest)

    monkeypatch.setattr(measuring, "fit_head", counted)
    assert learning_curve(*arguments, whole).points[-1] == learning_curve(*arguments).points[-1]
    assert (len(fitted), fitted.count(20)) == (9 + 10, 1)
    stop = StopRequest()
    stop.requested = True
    with pytest.raises(Stopped, match="fitted again"):
        learning_curve(*arguments, whole, stop)


def test_a_resumed_stage_reads_its_curve(tmp_path: Path) -> None:
    assert saved_curve(tmp_path) is None
    save_curve(tmp_path, CURVE)
    assert saved_curve(tmp_path) == CURVE
    save_curve(tmp_path, None)
    assert saved_curve(tmp_path) is None


CURVE = LearningCurve(
    points=(
        CurvePoint(prompts=30, accuracy=0.61, interval=(0.55, 0.67)),
        CurvePoint(prompts=60, accuracy=0.64, interval=(0.58, 0.7)),
    ),
    more=24,
    gain=0.0104,
    gain_interval=(0.002, 0.019),
)
TEST = RewardTest(prompts=60, held_out=15, accuracy=0.66, interval=(0.6, 0.72), weakness=None)


def test_owner_and_terminal_read_the_gain(tmp_path: Path) -> None:
    a_run_with_answers(tmp_path, 3)
    run = RunDir(tmp_path / "runs" / "people")
    page = ranking_handler(tmp_path / "runs", b"s", owner=True)

    def rows(language: str = "en") -> dict[str, dict]:
        asked = {"do": "figures", "badge": sign(b"s", "people", "ann"), "language": language}
        return {row["name"]: row for row in page(asked)["figures"]}

    record_reward_test(run, TEST)
    assert "curve" not in json.loads((run.path / "events.jsonl").read_text().splitlines()[-1])
    assert rows()["Reward model"]["means"].endswith("requires reward.fit_head_first and at least 28 ranked prompts.")
    assert "Learning curve" not in rows()
    record_reward_test(run, TEST.model_copy(update={"curve": CURVE}))
    assert reward_tests(run.path)[-1].curve == CURVE
    gain = "24 more rankings would gain about 1.0 percentage points of accuracy on held-out pairs (0.2 to 1.9)."
    assert rows()["Reward model"]["means"].endswith(gain)
    assert rows()["Learning curve"]["figure"].splitlines()[1] == "60 prompts: 64 % (58 % to 70 %)"
    assert "再排 24 个，留出比较的判对率大约可提高 1.0 个百分点" in rows("zh")["奖励模型"]["means"]
    assert f"By the last reward model, {gain}" in project_summary(open_project(run.path))
    unclear = CURVE.model_copy(update={"gain_interval": (-0.01, 0.03)})
    record_reward_test(run, TEST.model_copy(update={"curve": unclear}))
    assert "(-1.0 to 3.0), not shown to be above zero." in project_summary(open_project(run.path))
    assert "not shown to be above zero" in rows()["Reward model"]["means"]
    record_reward_test(run, TEST)
    assert "By the last reward model" not in project_summary(open_project(run.path))  # as on the page
