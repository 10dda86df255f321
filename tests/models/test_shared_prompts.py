"""Features of answers that share a row with others to the same prompt, against separate rows."""

import pytest
import torch
from test_decoding import SERVED
from tiny import ARCHITECTURES, make_roles, random_tokens, randomise

from lowrank_rlhf.maths.sequences import pack
from lowrank_rlhf.models import shared_prompts
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.scoring import score_features
from lowrank_rlhf.models.shared_prompts import answer_features, pack_shared, shared_rows

SIZES = [[4, 2, 7], [3], [5, 1]]


def _data() -> tuple[list[list[int]], list[list[list[int]]]]:
    prompts = random_tokens(0, [6, 3, 9])
    return prompts, [random_tokens(number + 1, sizes) for number, sizes in enumerate(SIZES)]


def _separate(roles, prompts, answers, pooling):
    every = [prompt for prompt, own in zip(prompts, answers, strict=True) for _ in own]
    batch = pack(every, [answer for own in answers for answer in own], roles.base.pad, roles.base.device)
    return score_features(roles, Role.REWARD, batch, pooling, lambda _: None)


def test_rows_have_the_answers_to_one_prompt_while_they_fit() -> None:
    prompts, answers = _data()
    for longest, expected in (
        (19, [[0, 1, 2], [3], [4, 5]]),
        (18, [[0, 1], [2], [3], [4, 5]]),
        (1, [[i] for i in range(6)]),
    ):
        rows = shared_rows(prompts, answers, longest)
        assert [list(row.index) for row in rows] == expected
        assert [answer for row in rows for answer in row.answers] == [answer for own in answers for answer in own]


def test_answers_see_their_prompt_and_themselves() -> None:
    rows = shared_rows([[11, 12], [13]], [[[21], [22, 23]], [[24]]])
    ids, positions, mask = pack_shared(rows, pad=0)
    assert ids.tolist() == [[11, 12, 21, 22, 23], [13, 24, 0, 0, 0]]
    assert positions.tolist() == [[0, 1, 2, 2, 3], [0, 1, 0, 0, 0]]
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1],
    ]  # fmt: skip
    assert mask[1, 0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1],
    ]  # fmt: skip


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_are_those_of_separate_rows(tiny_base, monkeypatch, architecture, pooling) -> None:
    roles = make_roles(tiny_base(architecture=architecture))
    randomise(roles, Role.REWARD, 1)
    (prompts, answers), counts = _data(), []
    expected = _separate(roles, prompts, answers, pooling)
    if architecture in SERVED:
        monkeypatch.setattr(shared_prompts, "score_features", None)
    found = answer_features(roles, Role.REWARD, prompts, answers, pooling, counts.append)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert sum(counts) == 6


@pytest.mark.parametrize("fault", ["raises", "differs"])
def test_a_model_that_reads_shared_rows_differently_gets_separate_ones(tiny_base, monkeypatch, fault) -> None:
    roles, (prompts, answers) = make_roles(tiny_base()), _data()

    def spoilt(*_):
        if fault == "raises":
            raise ValueError("no masks of four dimensions")
        return torch.zeros(())

    monkeypatch.setattr(shared_prompts, "_features", spoilt)
    found = answer_features(roles, Role.REWARD, prompts, answers, "mean", lambda _: None)
    torch.testing.assert_close(found, _separate(roles, prompts, answers, "mean"))
