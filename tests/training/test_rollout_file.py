"""Answers of rollouts, token by token: the figures of the update, and pieces that join to the text."""

from dataclasses import replace

import pytest
import torch
from tiny import STYLES, make_roles, make_tokenizer
from tiny_ppo import PROMPTS, make_ppo_config, rollout_of, start
from tokenizers import decoders

from lowrank_rlhf.maths.advantages import gae
from lowrank_rlhf.maths.masking import whiten
from lowrank_rlhf.models.generation import text_pieces
from lowrank_rlhf.run.records import Message, Prompt
from lowrank_rlhf.training.rollout_file import KEPT_ANSWERS, rollout_rows

ASKED = [Prompt(id=f"p{i}", messages=(Message(role="user", content=f"question {i}"),)) for i in range(len(PROMPTS))]


def test_figures_of_a_token_are_those_of_the_update(tiny_base) -> None:
    """Three tokens by hand: log-ratios 0.5, 0 and -1 cost a tenth of a nat each; the last earns the score 2."""
    roles = start(make_roles(tiny_base()))
    config = make_ppo_config(whiten_advantages=False, gamma=1.0, gae_lambda=0.95, missing_eos="keep")
    rollout = rollout_of(roles, config)
    row = next(i for i, response in enumerate(rollout.responses[:KEPT_ANSWERS]) if len(response.tokens) >= 3)
    places = rollout.batch.response[row].nonzero().squeeze(-1)[-3:]
    new = {name: getattr(rollout, name).clone() for name in ("logprobs", "ref_logprobs", "values", "scores")}
    new["logprobs"][row, places] = torch.tensor([-1.0, -2.0, -3.0])
    new["ref_logprobs"][row, places] = torch.tensor([-1.5, -2.0, -2.0])
    new["values"][row, places] = torch.tensor([0.5, 0.25, 1.0])
    new["scores"][row] = 2.0
    changed = replace(rollout, **new, figures=rollout.figures | {"objective/kl_coef": 0.1})
    found = list(rollout_rows(changed, ASKED, roles.base, config))[row]
    assert found.logprobs[-3:] == (-1, -2, -3)
    assert found.ref_logprobs[-3:] == (-1.5, -2, -2)
    assert found.values[-3:] == (0.5, 0.25, 1)
    assert found.rewards[-3:] == pytest.approx((-0.05, 0, 2.1))
    assert found.score == 2
    assert (found.prompt_id, found.prompt) == (f"p{row}", f"question {row}")


@pytest.mark.parametrize("settings", [{}, {"whiten_rewards": True}, {"missing_eos": "penalty", "score_clip": 0.1}])
def test_advantages_follow_from_the_kept_figures(tiny_base, settings) -> None:
    """GAE of the rewards and values in the rows gives the advantages that the update used."""
    roles = start(make_roles(tiny_base()))
    config = make_ppo_config(whiten_advantages=False, **settings)
    rollout = rollout_of(roles, config)
    rows = list(rollout_rows(rollout, ASKED, roles.base, config))
    assert len(rows) == KEPT_ANSWERS
    for i, row in enumerate(rows):
        response = torch.ones(1, len(row.pieces), dtype=torch.bool)
        values = torch.tensor([row.values])
        advantages, _ = gae(torch.tensor([row.rewards]), values, response, config.gamma, config.gae_lambda)
        assert advantages[0].tolist() == pytest.approx(
            rollout.advantages[i, rollout.batch.response[i]].tolist(), abs=1e-4
        )
        assert list(row.advantages) == pytest.approx(advantages[0].tolist(), abs=1e-4)


def test_whitened_advantages_are_kept_as_the_update_used_them(tiny_base) -> None:
    roles = start(make_roles(tiny_base()))
    plain, white = (make_ppo_config(whiten_advantages=each) for each in (False, True))
    raw, rollout = rollout_of(roles, plain), rollout_of(roles, white)
    expected = whiten(raw.advantages, raw.batch.response)
    for i, row in enumerate(rollout_rows(rollout, ASKED, roles.base, white)):
        assert list(row.advantages) == pytest.approx(expected[i, raw.batch.response[i]].tolist(), abs=1e-4)


@pytest.mark.parametrize("text", ["the user asks", "你好，世界", "a 👩‍🔬 b", "naïve — ok", "", "tail \n\n"])
def test_pieces_join_to_the_text(text) -> None:
    """Characters of several bytes, none of which has a token of its own; the special token that ends the answer."""
    tokenizer = make_tokenizer(*STYLES["chatml"])
    tokens = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")]
    pieces = text_pieces(tokens, tokenizer.decode)
    assert "".join(pieces) == tokenizer.decode(tokens) == f"{text}<|im_end|>"
    assert len(pieces) == len(tokens)
    assert pieces[-1] == "<|im_end|>"
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_a_character_of_several_tokens_is_the_first_ones() -> None:
    tokenizer = make_tokenizer(*STYLES["chatml"])
    tokens = tokenizer("a你", add_special_tokens=False)["input_ids"]
    assert text_pieces(tokens, tokenizer.decode) == ["a", "你", "", ""]
    assert text_pieces(tokens[:3], tokenizer.decode) == ["a", "\N{REPLACEMENT CHARACTER}", ""]


def test_a_decoder_that_revises_an_unfinished_run_of_bytes() -> None:
    """Byte fallback turns a whole run of byte tokens into U+FFFD while its last character is incomplete."""
    decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokens = [f"<0x{byte:02X}>" for byte in "你好".encode()]
    decode = lambda ids: decoder.decode([tokens[token] for token in ids])  # noqa: E731
    assert decode([0, 1, 2, 3]) == "\ufffd" * 4
    assert text_pieces(range(6), decode) == ["你", "", "", "好", "", ""]
    assert text_pieces(range(4), decode) == ["你", "", "", "\ufffd"]


def test_a_decoder_that_revises_earlier_text_loses_nothing_after_it() -> None:
    """Such as one that removes the space before an apostrophe once the next token is known."""
    words = ["He", " '", " s", " ok"]
    decode = lambda ids: "".join(words[i] for i in ids).replace(" ' s", "'s")  # noqa: E731
    assert text_pieces(range(4), decode) == ["He", " '", "'s", " ok"]


def test_spaces_that_a_decoder_strips_before_a_text() -> None:
    """A decoder of SentencePiece vocabularies drops the space before the first token only."""
    decoder = decoders.Metaspace()
    tokens = ["▁the", "▁user", "s", "▁ask"]
    assert text_pieces(range(4), lambda ids: decoder.decode([tokens[i] for i in ids])) == ["the", " user", "s", " ask"]
