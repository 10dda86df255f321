"""Benchmark of ways to choose what annotators are asked next: hand values, and a tiny model from end to end."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.choosing import crossed_bootstrap, main  # noqa: E402
from benchmarks.questions import Questions, choose, heads, values  # noqa: E402
from lowrank_rlhf.training.reward_data import Group  # noqa: E402


def group(prompt: str, pairs: list[tuple[int, int, int]], rankings: list[list[list[int]]]) -> Group:
    return Group(prompt, [], samples=[], answers=[[1]] * 3, lengths=[1, 2, 3], pairs=pairs, rankings=rankings)


def test_strategies_by_hand() -> None:
    """Question 0 has one pair, question 1 two: means over the pairs of a question."""
    log3 = float(np.log(3))
    margins = torch.tensor([[log3, 1.0, 3.0], [0.0, 5.0, 5.0], [-2 * log3, 0.0, 4.0]])
    question, generator = np.array([0, 1, 1]), np.random.default_rng(0)
    doubt = [4 * 0.75 * 0.25, (1 + 4 * 0.9 * 0.1) / 2]
    assert values("uncertain", margins, question, generator) == pytest.approx(doubt)
    spread = [2**0.5, (0 + 8**0.5) / 2]
    assert values("disagreement", margins, question, generator) == pytest.approx(spread)
    assert values("far_apart", margins, question, generator) == pytest.approx([log3, log3])
    drawn = values("random", margins, question, generator)
    assert len(set(drawn)) == 2
    assert not np.array_equal(drawn, values("random", margins, question, generator))


def test_the_most_wanted_questions_are_asked_once() -> None:
    wanted, order = np.array([0.1, 0.9, 0.5, 0.7]), np.array([3, 0, 2])
    assert choose(wanted, np.arange(4), order, 2) == [3, 2]  # question 1 was asked before
    # Two pairs of each of two prompts: the prompts in the given order, of each the pair with the larger value.
    assert choose(wanted, np.array([0, 0, 1, 1]), np.array([1, 0]), 2) == [3, 1]
    assert choose(wanted, np.array([0, 0, 1, 1]), np.array([0]), 2) == [1]


def test_a_question_is_a_ranking_or_a_pair_of_its_answers() -> None:
    tiers = [[2], [0, 1]]
    groups = [group("a", [(2, 0, 1), (2, 1, 1)], [tiers]), group("b", [(0, 1, 1), (1, 0, 1)], [[[0], [1]], [[1], [0]]])]
    features = [torch.eye(3), torch.eye(3)]
    whole = Questions.of(groups, features, by_pair=False)
    assert [own.pairs for own in whole.groups] == [[(2, 0, 1), (2, 1, 1)], [(0, 1, 1)], [(1, 0, 1)]]
    assert whole.units.tolist() == [0, 1, 2]
    differences, question = whole.differences()
    assert question.tolist() == [0, 0, 0, 1, 2]
    assert differences[0].tolist() == [1, -1, 0]
    pairs = Questions.of(groups[:1], features[:1], by_pair=True)
    assert [own.pairs for own in pairs.groups] == [[], [(2, 0, 1)], [(2, 1, 1)]]  # a tie gives no comparison
    assert pairs.units.tolist() == [0, 0, 0]
    assert whole.correct(torch.tensor([1.0, 0.0, 1.0])).tolist() == [0.75, 1, 0]


def test_a_share_of_the_comparisons_is_turned_round() -> None:
    questions = Questions.of([group("a", [], [[[0], [1]]])] * 400, [torch.eye(3)] * 400, by_pair=False)

    def turned(share: float) -> int:
        return sum(own.pairs == [(1, 0, 1)] for own in questions.flipped(share, np.random.default_rng(0)))

    assert (turned(0), turned(1)) == (0, 400)
    assert turned(0.3) == pytest.approx(120, abs=40)
    tiers = Questions.of([group("a", [], [[[0], [1], [2]]])] * 400, [torch.eye(3)] * 400, by_pair=False)
    flipped = tiers.flipped(0.6, np.random.default_rng(0), by_gap=True)
    assert sum((2, 0, 2) in own.pairs for own in flipped) == pytest.approx(120, abs=40)
    assert sum((1, 0, 1) in own.pairs for own in flipped) == pytest.approx(240, abs=40)


def test_members_are_fitted_to_other_samples_than_the_head() -> None:
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(3, 5, generator=generator) for _ in range(20)]
    groups = [group(str(i), [(0, 1, 1)], [[[0], [1]]]) for i in range(20)]
    alone, several = heads(groups, features, 1.0, 0, 7), heads(groups, features, 1.0, 4, 7)
    assert alone.shape == (1, 5)
    assert several.shape == (5, 5)
    torch.testing.assert_close(several[0], alone[0])
    assert float((several[1:] - several[0]).abs().max(1).values.min()) > 0.01


def test_intervals_are_over_seeds_and_prompts() -> None:
    """Prompts alike and seeds not: an interval over prompts alone would have no width; and the other way round."""
    by_seed = np.repeat([[0.0], [1.0]], 50, axis=1)
    mean, low, high = crossed_bootstrap(by_seed, [str(i) for i in range(50)])
    assert (mean, low, high) == (0.5, 0, 1)
    by_prompt = np.repeat([[0.0] * 10 + [1.0] * 10], 3, axis=0)
    mean, low, high = crossed_bootstrap(by_prompt, [str(i) for i in range(20)])
    assert mean == 0.5
    assert low == pytest.approx(0.5 - 1.96 * (0.25 / 20) ** 0.5, abs=0.06)
    assert high == pytest.approx(0.5 + 1.96 * (0.25 / 20) ** 0.5, abs=0.06)
    one_prompt = crossed_bootstrap(by_prompt, ["same"] * 20)
    assert one_prompt == (0.5, 0.5, 0.5)


def test_choosing_on_a_tiny_model(
    tiny_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four answers to each of forty prompts; the better ones have a word that the head can learn."""
    words = ["good good", "good fine", "bad fine", "bad bad"]
    rows = [
        {"prompt": f"Say {i}", "responses": [f"{w} {i}" for w in words], "ranking": [0, 1, 2, 3]} for i in range(40)
    ]
    file = tmp_path / "ranked.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tiny = [f"--set=model.source={tiny_folder()}", "--set=model.sha256=null", "--set=model.quantization=none"]
    tiny += ["--set=model.chat_template=null", "--layer=2"]
    work = [
        str(file),
        f"--cache={tmp_path / 'cache'}",
        "--budgets",
        "4",
        "12",
        "--noise",
        "0",
        "--seeds=2",
        "--ridge=1",
    ]
    main([*work, *tiny, "--json", f"--output={tmp_path / 'out'}"])
    found = json.loads(capsys.readouterr().out)
    assert found["files"][0]["asked_from"] == 28
    assert found["files"][0]["tested"] == 12
    assert [row["strategy"] for row in found["rows"]] == 2 * ["random", "uncertain", "disagreement", "far_apart"]
    assert [row["flipped"] for row in found["rows"]] == 4 * [0] + 4 * [None]
    assert len({row["accuracy"]["4"] for row in found["rows"]}) == 1  # the first round is the same
    assert all(row["accuracy"]["12"] > 0.7 for row in found["rows"])
    assert found["rows"][0]["less_random"] == [0, 0, 0]
    assert json.loads((tmp_path / "out" / "choosing.json").read_text()) == found
    assert (tmp_path / "out" / "choosing.svg").read_text().count("<polyline") == 9  # mean, file, legend
    main([*work, *tiny, "--pairs"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("- ranked: asked from 28 rankings, tested on 12; longer wins ")
    assert len(lines) == 12
    assert lines[4].endswith("|  |")
    assert lines[5].startswith("| ranked | 0 | `uncertain` | ")
