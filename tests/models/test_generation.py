"""Sampling against exact probabilities and against a naive loop without cache, padding or batches."""

import pytest
import torch
from tiny import ARCHITECTURES, DEVICE, make_roles
from tiny_sampling import LENGTH, PROMPTS, naive, sample
from torch import Tensor
from transformers import TopPLogitsWarper

from lowrank_rlhf.errors import ExitCode, ModelNotFinite
from lowrank_rlhf.models import generation
from lowrank_rlhf.models.decoding import GrowingSteps, RecordedSteps
from lowrank_rlhf.models.generation import draw, generating_as, nucleus, stream_answer, stream_text
from lowrank_rlhf.models.layers.merging import merged
from lowrank_rlhf.models.roles import Role, Roles

BONUS = 3.0


each_kind = pytest.mark.parametrize("steps", [GrowingSteps, RecordedSteps], indirect=True)


@pytest.fixture
def likely_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise the end-of-turn logit, so that answers end at different lengths."""
    real = generation.vocabulary_logits

    def biased(states: Tensor, model) -> Tensor:
        logits = real(states, model)
        logits[:, 2] += BONUS
        return logits

    monkeypatch.setattr(generation, "vocabulary_logits", biased)


# --- not a number


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_not_a_number_is_no_token(tiny_base, monkeypatch, value, temperature) -> None:
    """It would draw the last token of the vocabulary, and people would rank the text."""
    roles, real = make_roles(tiny_base()), generation.vocabulary_logits

    def broken(states: Tensor, model) -> Tensor:
        logits = real(states, model)
        logits[-1, 7] = value
        return logits

    with generating_as(roles, Role.POLICY):
        monkeypatch.setattr(generation, "vocabulary_logits", broken)
        with pytest.raises(ModelNotFinite, match="logits of 1 of 1 answers are NaN or infinite") as raised:
            list(stream_answer(roles, PROMPTS[0], max_new_tokens=3, temperature=temperature, seed=0))
    assert raised.value.exit_code == ExitCode.NOT_FINITE
    with pytest.raises(ModelNotFinite, match="logits of 1 of"):
        sample(roles, PROMPTS[:3])
    rows = torch.tensor([[0.0, -torch.inf], [value, 0.0], [-torch.inf, -torch.inf]])
    found = generation._next_tokens(rows, temperature, torch.full((3,), 0.5))
    assert found.tolist() == [0, -1, -1]  # -inf is a token that is never drawn


# --- draw


def test_draw_has_exactly_the_distribution() -> None:
    """On a uniform grid of n points every token's frequency is within 1/n of its probability."""
    n = 20_000
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    drawn = draw(logits.expand(n, -1), (torch.arange(n) + 0.5) / n)
    frequencies = drawn.bincount(minlength=50) / n
    assert (frequencies - logits.softmax(-1)).abs().max() < 1.01 / n


def test_draw_at_the_edges() -> None:
    """Tokens of probability 0 are never drawn: not at 0, not at the largest uniform, not at a boundary."""
    low = -torch.inf
    logits = torch.tensor([low, 0.0, low, 0.0, low]).expand(5, -1)
    uniforms = torch.tensor([0.0, 0.4999, 0.5, 0.5001, 1 - 2**-24])
    assert draw(logits, uniforms).tolist() == [1, 1, 3, 3, 3]
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(2_000, 300, generator=generator) * 3
    many[:, ::3] = low
    many[:, 200:] = low
    for uniform in (torch.rand(2_000, generator=generator), torch.zeros(2_000), torch.full((2_000,), 1 - 2**-24)):
        assert many.gather(-1, draw(many, uniform)[:, None]).isfinite().all()


def test_draw_takes_each_rows_own_uniform() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [5.0, 0.0]])
    assert draw(logits, torch.tensor([0.7, 0.2, 0.7])).tolist() == [1, 0, 0]


# --- sample_answers


@pytest.mark.usefixtures("likely_end")
@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("is_merged", [True, False], ids=["merged", "adapter"])
@each_kind
def test_against_a_naive_loop(tiny_base, quantization, is_merged, steps) -> None:  # noqa: ARG001 - a fixture
    roles = make_roles(tiny_base(quantization, True, merged=is_merged))
    uniforms = torch.rand(len(PROMPTS), 2, LENGTH, generator=torch.Generator().manual_seed(3)).tolist()
    found = sample(roles, answers_per_prompt=2)
    expected = [[naive(roles, p, u, 0.9, bonus=BONUS) for u in us] for p, us in zip(PROMPTS, uniforms, strict=True)]
    assert found == expected
    assert {answer.finished for answers in found for answer in answers} == {True, False}
    assert len({len(answer.tokens) for answers in found for answer in answers}) > 4


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "llama"])
def test_other_architectures_against_a_naive_loop(tiny_base, architecture) -> None:
    """Sliding windows of 8 tokens (mistral, gemma2), biases (qwen2), fused projections (phi3), capped logits."""
    roles = make_roles(tiny_base(architecture=architecture))
    uniforms = torch.rand(3, 2, LENGTH, generator=torch.Generator().manual_seed(3)).tolist()
    expected = [[naive(roles, PROMPTS[i], u, 0.9) for u in uniforms[i]] for i in range(3)]
    assert sample(roles, PROMPTS[:3], answers_per_prompt=2) == expected


def test_nearly_greedy_at_a_low_temperature(tiny_base) -> None:
    roles = make_roles(tiny_base())
    (answers,) = sample(roles, PROMPTS[:1], temperature=1e-6, answers_per_prompt=3)
    assert len(set(answers)) == 1
    ids = torch.tensor([[*PROMPTS[0], *answers[0].tokens]], device=DEVICE)
    with roles.acting_as(Role.POLICY):
        best = roles.peft(input_ids=ids).logits[0].argmax(-1)
    assert tuple(best[len(PROMPTS[0]) - 1 : -1].tolist()) == answers[0].tokens


@pytest.mark.usefixtures("likely_end")
def test_neither_batch_size_nor_neighbours_change_an_answer(tiny_base) -> None:
    roles = make_roles(tiny_base())
    whole = sample(roles, answers_per_prompt=3)
    for batch_size in (1, 3, 7):
        assert sample(roles, answers_per_prompt=3, batch_size=batch_size) == whole
    assert sample(roles, PROMPTS[:2], answers_per_prompt=3) == whole[:2]


def test_answers_of_one_prefill_equal_separate_ones(tiny_base) -> None:
    """K answers to P prompts are P x K answers to each prompt given K times: the streams run in that order."""
    roles = make_roles(tiny_base())
    together = sample(roles, answers_per_prompt=3)
    apart = sample(roles, [prompt for prompt in PROMPTS for _ in range(3)])
    assert [answer for answers in together for answer in answers] == [answer for (answer,) in apart]
    assert len({answer for answers in together for answer in answers}) == 15


def test_what_was_sampled_before_is_taken_over(tiny_base) -> None:
    """Shortest prompts first, two at once: after one batch of five prompts three are left."""
    roles, heard, rest = make_roles(tiny_base()), [], []
    whole = sample(roles, answers_per_prompt=2, batch_size=4, on_batch=lambda groups, **_: heard.append(groups))
    again = sample(
        roles, answers_per_prompt=2, batch_size=4, done=heard[0], on_batch=lambda groups, **_: rest.append(groups)
    )
    assert again == whole
    assert rest == heard[1:]
    assert len(heard) == 3


@pytest.mark.usefixtures("likely_end")
def test_an_answer_ends_with_its_first_end_of_turn(tiny_base) -> None:
    roles, heard = make_roles(tiny_base()), []
    answers = sample(
        roles,
        answers_per_prompt=8,
        batch_size=16,
        on_batch=lambda groups, **figures: heard.append((sum(map(len, groups)), figures)),
    )
    flat = [answer for group in answers for answer in group]
    for answer in flat:
        assert answer.finished == (answer.tokens[-1] == 2)
        assert 2 not in answer.tokens[:-1]
        assert answer.finished or len(answer.tokens) == LENGTH
        assert 0 not in answer.tokens  # padding never gets into an answer; the draw of token 0 is unlikely
    assert sum(count for count, _ in heard) == len(flat) == 40
    assert [count for count, _ in heard] == [16, 16, 8]
    assert all(figures["tokens_per_second"] > 0 for _, figures in heard)


@pytest.mark.usefixtures("likely_end")
@each_kind
def test_rows_that_end_are_dropped(tiny_base, monkeypatch, steps) -> None:
    """Each step runs only the unfinished rows."""
    roles, rows = make_roles(tiny_base()), []
    lazy = sample(roles, answers_per_prompt=4)
    monkeypatch.setattr(steps, "drop_below", 0.99)
    real = steps.__call__
    monkeypatch.setattr(steps, "__call__", lambda self, tokens: rows.append(len(tokens)) or real(self, tokens))
    eager = sample(roles, answers_per_prompt=4)
    assert eager == lazy
    answers = [answer for group in eager for answer in group]
    going = [sum(len(answer.tokens) > t for answer in answers) for t in range(1, max(len(a.tokens) for a in answers))]
    assert rows == going
    assert rows[-1] < rows[0]


def test_seed_and_role_matter(tiny_base) -> None:
    roles = make_roles(tiny_base())
    assert sample(roles) == sample(roles)
    assert sample(roles) != sample(roles, seed=4)
    assert sample(roles) != sample(roles, role=Role.REFERENCE)
    assert sample(roles, []) == []


# --- one answer as it comes


def streamed(roles: Roles, prompt: list[int], role: Role = Role.POLICY, **settings) -> tuple[int, ...]:
    with generating_as(roles, role):
        return tuple(stream_answer(roles, prompt, max_new_tokens=LENGTH, **settings))


@pytest.mark.usefixtures("likely_end")
@pytest.mark.parametrize("is_merged", [True, False], ids=["merged", "adapter"])
def test_a_streamed_answer_is_the_sampled_one(tiny_base, is_merged) -> None:
    roles, lengths = make_roles(tiny_base("nf4", merged=is_merged)), set()
    for prompt in PROMPTS:
        for role in (Role.POLICY, Role.REFERENCE):
            ((expected,),) = sample(roles, [prompt], role=role, seed=5)
            assert streamed(roles, prompt, role, temperature=0.9, seed=5) == expected.tokens
            lengths.add(len(expected.tokens))
    assert len(lengths) > 2


@each_kind
def test_a_streamed_token_needs_no_later_one(tiny_base, monkeypatch, steps) -> None:
    """The first token is available after the prompt, the second after one step."""
    roles, forwards = make_roles(tiny_base()), []
    real = steps.__call__
    monkeypatch.setattr(steps, "__call__", lambda self, tokens: forwards.append(1) or real(self, tokens))
    with generating_as(roles, Role.POLICY):
        tokens = stream_answer(roles, PROMPTS[1], max_new_tokens=LENGTH, temperature=1.0, seed=0)
        for count in (1, 2, 3):
            next(tokens)
            assert len(forwards) == count - 1


def test_temperature_0_takes_the_most_probable(tiny_base) -> None:
    roles = make_roles(tiny_base())
    tokens = streamed(roles, PROMPTS[1], temperature=0.0, seed=1)
    with roles.acting_as(Role.POLICY):
        best = roles.peft(input_ids=torch.tensor([[*PROMPTS[1], *tokens]], device=DEVICE)).logits[0].argmax(-1)
    assert tuple(best[len(PROMPTS[1]) - 1 : -1].tolist()) == tokens


def test_the_nucleus_by_hand() -> None:
    """Probabilities .5, .3, .2 in another order: the fewest tokens with at least p together, before and after 1 / T."""
    logits = torch.tensor([[0.2, 0.5, 0.3], [0.5, 0.3, 0.2]]).log()
    kept = {p: nucleus(logits, 1.0, p).isfinite().tolist() for p in (0.01, 0.49, 0.51, 0.79, 0.81, 0.999)}
    one, two, all_three = [[False, True, False]], [[False, True, True]], [[True, True, True]]
    assert {p: rows[:1] for p, rows in kept.items()} == {
        0.01: one, 0.49: one, 0.51: two, 0.79: two, 0.81: all_three, 0.999: all_three
    }  # fmt: skip
    assert kept[0.51][1] == [True, True, False]
    assert torch.equal(nucleus(logits, 1.0, 0.51)[0, 1:], logits[0, 1:])
    squared = nucleus(logits, 0.5, 0.64)  # .25, .09, .04 of .38: .66, .24, .11
    assert squared.isfinite().tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 1.7])
def test_the_nucleus_is_that_of_transformers(temperature, top_p) -> None:
    """So that `chat` and `generate` of an export sample from the same tokens."""
    logits = 3 * torch.randn(200, 60, generator=torch.Generator().manual_seed(0))
    expected = TopPLogitsWarper(top_p)(None, logits / temperature).isfinite()
    assert torch.equal(nucleus(logits, temperature, top_p).isfinite(), expected)


def test_a_streamed_answer_stays_in_the_nucleus(tiny_base) -> None:
    roles, temperature, left_out = make_roles(tiny_base()), 1.3, 0
    for seed in range(5):
        tokens = streamed(roles, PROMPTS[1], temperature=temperature, seed=seed, top_p=0.6)
        with roles.acting_as(Role.POLICY):
            logits = roles.peft(input_ids=torch.tensor([[*PROMPTS[1], *tokens]], device=DEVICE)).logits[0].double()
        for row, token in zip((logits / temperature).softmax(-1)[len(PROMPTS[1]) - 1 : -1], tokens, strict=True):
            assert float(row[row > row[token]].sum()) < 0.6
        left_out += tokens != streamed(roles, PROMPTS[1], temperature=temperature, seed=seed)
        nearly_one = streamed(roles, PROMPTS[1], temperature=temperature, seed=seed, top_p=1e-6)
        assert nearly_one == streamed(roles, PROMPTS[1], temperature=0.0, seed=seed)
        assert streamed(roles, PROMPTS[1], temperature=0.0, seed=seed, top_p=0.6) == nearly_one
    assert left_out


@pytest.mark.parametrize("text", ["the user asks", "春天来了，你好！", "a 👩‍🔬 b", "naïve\n  indented", "\ufffd kept"])
def test_text_comes_in_whole_characters(tiny_base, text) -> None:
    """The tokenizer has single bytes only: a Chinese character is three tokens, an emoji four."""
    base = tiny_base()
    tokens = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = list(stream_text([*tokens, base.eos], base.decode))
    assert "".join(pieces) == text
    assert len(pieces) > len(text.split())
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
        assert all(piece in text for piece in pieces)


def test_half_a_character_at_the_end_is_shown_as_such(tiny_base) -> None:
    base = tiny_base()
    tokens = base.tokenizer("春天", add_special_tokens=False)["input_ids"][:-1]
    assert "".join(stream_text(tokens, base.decode)) == base.decode(tokens) == "春\ufffd"
    assert list(stream_text([], base.decode)) == [""]


# --- merged weights


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_merged_weights_are_the_role(tiny_base, quantization, architecture) -> None:
    roles, ids = (
        make_roles(tiny_base(quantization, architecture=architecture)),
        torch.tensor([PROMPTS[1]], device=DEVICE),
    )
    layers = dict(roles.base.model.named_modules())
    for role in (Role.POLICY, Role.REFERENCE):
        with roles.acting_as(role):
            expected = roles.peft(input_ids=ids).logits
        with merged(roles, role), torch.no_grad():
            found = roles.base.model(input_ids=ids).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    after = dict(roles.base.model.named_modules())
    assert after.keys() == layers.keys()
    assert all(after[name] is module for name, module in layers.items())
