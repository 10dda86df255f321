"""The audit of a reward model without its prompts, with scores that are written down instead of a model's."""

from types import SimpleNamespace

import pytest
import torch

from lowrank_rlhf.evaluation import prompt_audit
from lowrank_rlhf.evaluation.prompt_audit import audit_in_words, audit_prompts, emptied, exchanged
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.training.reward_data import Group
from lowrank_rlhf.training.rollout import RewardScale

SCALE = RewardScale("mean", 0.0, 1.0)


def group(name: str, prompt: list[int], answers: tuple[int, int] = (3, 3)) -> Group:
    own = [[7] * length for length in answers]
    return Group(name, prompt, [f"{name}-0", f"{name}-1"], own, [3, 3], [(0, 1, 1)], [])


def test_prompts_are_exchanged_between_neighbours_in_length() -> None:
    groups = [group("a", [0] * 9), group("b", [1] * 2), group("c", [2] * 8), group("d", [3] * 3)]
    assert [changed.prompt for changed in exchanged(groups)] == [[2] * 8, [3] * 3, [0] * 9, [1] * 2]
    five = [*groups, group("e", [4] * 10)]
    assert [changed.prompt for changed in exchanged(five)] == [[4] * 10, [3] * 3, [0] * 9, [1] * 2, [2] * 8]
    assert [len(changed.prompt) for changed in exchanged(groups[:2])] == [2, 9]
    assert [(changed.prompt_id, changed.pairs) for changed in exchanged(groups)] == [
        (g.prompt_id, g.pairs) for g in groups
    ]


def test_no_row_becomes_longer_than_the_longest() -> None:
    groups = [group("a", [1] * 10, (2, 3)), group("b", [2] * 3, (8, 10))]
    changed = exchanged(groups)
    assert [len(answer) for answer in changed[1].answers] == [3, 3]  # after ten tokens of prompt, in thirteen
    assert max(each.width for each in changed) <= max(each.width for each in groups)


def test_an_emptied_prompt_is_an_empty_message() -> None:
    base = SimpleNamespace(encode_prompt=lambda prompt: [len(prompt.messages), len(prompt.text), 99])
    changed = emptied(base, [group("a", [1, 2]), group("b", [3])])
    assert [each.prompt for each in changed] == [[1, 0, 99]] * 2
    assert changed[0].answers == group("a", [1]).answers


@pytest.fixture
def by_prompt(monkeypatch):
    """Scores of a model that reads the prompt's first token: even is right, odd wrong, 99 (empty) a tie."""

    def score(_roles, groups, scale, _progress):
        assert scale is SCALE
        return [torch.tensor([0.0, {0: -1.0, 1: 1.0}.get(g.prompt[0] % 2, 0.0) * (g.prompt[0] != 99)]) for g in groups]

    monkeypatch.setattr(prompt_audit, "score_groups", score)
    return SimpleNamespace(base=SimpleNamespace(encode_prompt=lambda _: [99]))


def test_the_figures_by_hand(by_prompt) -> None:
    """Two prompts read as right are exchanged with two of which one reads as wrong."""
    groups = [group("a", [2]), group("b", [4]), group("c", [6, 6]), group("d", [7, 7])]
    scores = [torch.tensor([1.0, 0.0])] * 3 + [torch.tensor([0.0, 1.0])]
    audit = audit_prompts(by_prompt, groups, scores, SCALE, samples=200, seed=0, progress=Progress.silent())
    assert (audit.prompts, audit.pairs, audit.accuracy) == (4, 4, 0.75)
    assert (audit.emptied.accuracy, audit.emptied.lost) == (0.5, 0.25)
    assert audit.emptied.interval == (0.5, 0.5)
    assert audit.shuffled.accuracy == 0.75  # c gets d's and is wrong, d gets c's and is right
    assert audit.shuffled.lost == 0
    assert audit.shuffled.lost_interval[0] < 0 < audit.shuffled.lost_interval[1]
    assert "own prompt, with an empty one 50.0 %, with another prompt 75.0 %" in audit_in_words(audit)


def test_it_stays_cheap_and_a_single_prompt_has_no_other(by_prompt) -> None:
    many = [group(f"p{n}", [2 * n]) for n in range(150)]
    scores = [torch.tensor([1.0, 0.0])] * 150
    audit = audit_prompts(by_prompt, many, scores, SCALE, samples=10, seed=0, progress=Progress.silent())
    assert (audit.prompts, audit.pairs) == (100, 100)
    alone = audit_prompts(by_prompt, many[:1], scores[:1], SCALE, samples=10, seed=0, progress=Progress.silent())
    assert alone.shuffled is None
    assert "another" not in audit_in_words(alone)
