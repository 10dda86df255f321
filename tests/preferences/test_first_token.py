"""A language model as judge by the probabilities of its first token, and as judge of one answer alone."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import Answer, ChatServer, completion, first_token, serving, texts

from lowrank_rlhf.config.endpoint import EndpointConfig
from lowrank_rlhf.config.rewards import RewardTerm
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.judges.first_token import expected_grade, first_token_of, probability_of_first
from lowrank_rlhf.preferences.judges.grading import GradingJudge
from lowrank_rlhf.preferences.judges.llm_client import ChatClient
from lowrank_rlhf.preferences.judges.llm_judge import EndpointJudge
from lowrank_rlhf.preferences.rewards.endpoint import EndpointReward
from lowrank_rlhf.run.progress import StopRequest
from lowrank_rlhf.run.records import Message, Prompt, Sample

PROMPT = Prompt(id="p1", messages=(Message(role="user", content="Why is the sky blue?"),))
ONE, TWO, THREE = (Sample(id=text, prompt_id="p1", text=text) for text in ("one", "two", "three"))
FIRST = {("one", "two"): 0.8, ("two", "one"): 0.6, ("one", "three"): 0.25, ("three", "one"): 0.45}
"""P(A) / (P(A) + P(B)) by the answers shown as A and B."""
FIRST |= {("two", "three"): 0.3, ("three", "two"): 0.7}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("OPENAI_API_KEY", "")
    with serving(prefers) as running:
        yield running


def prefers(question: str) -> dict[str, float]:
    """Four fifths of the probability on A and B, in two tokens each."""
    share = FIRST[tuple(texts(question)[1:])]
    a, b = 0.8 * share, 0.8 * (1 - share)
    return {"A": 0.75 * a, " a": 0.25 * a, "B": 0.5 * b, " B": 0.5 * b, "The": 0.15, "Answer": 0.05}


def client(server: ChatServer, **settings) -> ChatClient:
    config = EndpointConfig(**{"url": server.url, "model": "small", "verdict": "logprobs"} | settings)
    return ChatClient(config, StopRequest(), print, backoff_seconds=0.01)


def pairs(server: ChatServer, folder: Path, **settings) -> EndpointJudge:
    return EndpointJudge(client(server, **settings), folder / "verdicts.jsonl")


def grades(server: ChatServer, folder: Path, **settings) -> GradingJudge:
    return GradingJudge(client(server, **{"ask": "pointwise"} | settings), folder / "grades.jsonl")


@pytest.mark.parametrize(
    ("probability", "tokens"),
    [
        (0.75, {"A": 0.6, "B": 0.2, "The": 0.2}),
        (0.75, {"A": 0.3, " A": 0.2, "a": 0.05, "**A": 0.05, "B": 0.1, " b": 0.1, "The": 0.2}),
        (5 / 6, {"A": 0.5, "tie": 0.3, "The": 0.1}),  # B at most 0.1, as the smallest listed and as what is left
        (1 / 91, {"B": 0.9, "The": 0.06, "It": 0.01}),  # A at most 0.01, as the smallest listed
        (0.9, {"A": 0.9}),  # B at most the 0.1 that is left
        (0.5, {"The": 0.9, "It": 0.05, "A": 0.0001}),
        (1.0, {"A": 1.0}),
        (None, {"The": 0.5, "Answer": 0.3, "AB": 0.1, "C": 0.1}),
        (None, {}),
    ],
)
def test_the_probability_of_a_among_the_first_tokens(probability, tokens) -> None:
    assert probability_of_first(tokens) == (probability and pytest.approx(probability, rel=1e-12))


@pytest.mark.parametrize(
    ("grade", "tokens"),
    [
        (7.75 / 9, {"7": 0.5, "8": 0.25, " 9": 0.25}),
        (0.5, {"0": 0.3, "9": 0.3, "The": 0.4}),
        (1 / 9, {"10": 0.9, "1": 0.1}),
        (0.0, {"0": 1.0}),
        (None, {"Seven": 0.9, "10": 0.1}),
        (None, {}),
    ],
)
def test_the_expected_grade(grade, tokens) -> None:
    assert expected_grade(tokens) == (grade and pytest.approx(grade, rel=1e-12))


def test_a_reply_of_llama_cpp() -> None:
    """Cut from a reply of its server; two tokens may have one text, and an end of turn alone has no entry."""
    top = [
        {"id": 32, "token": "A", "bytes": [65], "logprob": -0.6931471805599453},
        {"id": 33, "token": "B", "bytes": [66], "logprob": -1.3862943611198906},
        {"id": 34, "token": "�", "bytes": [198], "logprob": -3.0},
        {"id": 35, "token": "�", "bytes": [199], "logprob": -3.0},
        {"id": 36, "token": "never", "bytes": [0], "logprob": -9999.0},
    ]
    message = {"role": "assistant", "content": "A"}
    found = first_token_of({"message": message, "logprobs": {"content": [{**top[0], "top_logprobs": top}]}})
    assert found == pytest.approx({"A": 0.5, "B": 0.25, "�": 2 * 0.049787068367863944, "never": 0.0}, rel=1e-12)
    assert first_token_of({"message": {"content": ""}}) == {}
    assert first_token_of({"message": {"content": None}, "logprobs": None}) == {}
    assert first_token_of({"message": message, "logprobs": None}) is None
    assert first_token_of({"message": message, "logprobs": {"content": [{"top_logprobs": []}]}}) is None


def test_both_orders_are_averaged(server, tmp_path) -> None:
    """By hand: one against two (0.8 + 1 - 0.6) / 2 = 0.6, one against three 0.4, two against three 0.3."""
    judge = pairs(server, tmp_path)
    assert judge.score(PROMPT, [ONE, TWO, THREE]) == pytest.approx([1.0, 0.7, 1.3], rel=1e-12)
    assert judge.summary() == {"requests": 6, "pairs": 3, "changed_with_the_order": 2, "unreadable_replies": 0}
    assert judge.absolute is False
    for body in server.bodies:
        assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)
        assert body["messages"][0]["content"].endswith("Which answer is better? Reply with one letter, A or B.")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_a_preference_for_a_place_cancels(server, tmp_path, share) -> None:
    server.decide = lambda _: {"A": share, "B": 1 - share}
    judge = pairs(server, tmp_path)
    assert judge.score(PROMPT, [ONE, TWO, THREE]) == [1, 1, 1]  # a tie, not a preference by rounding
    assert judge.summary()["changed_with_the_order"] == (0 if share == 0.5 else 3)


def test_no_probability_is_asked_for_twice(server, tmp_path) -> None:
    server.script += [Answer(503), Answer(body=first_token(prefers_one := {"A": 0.9, "B": 0.1})), Answer(401)]
    with pytest.raises(UserError, match="401"):
        pairs(server, tmp_path).score(PROMPT, [ONE, TWO])
    with (tmp_path / "verdicts.jsonl").open("a") as file:
        file.write('{"question": "1", "verdict": 1.5}\n{"question": "2", "verdict": NaN}\n{"question": "3", "verd')
    server.asked.clear()
    judge = pairs(server, tmp_path)
    assert judge.steps(PROMPT, [ONE, TWO]) == (2, 1)
    expected = (prefers_one["A"] + 1 - FIRST["two", "one"]) / 2
    assert judge.score(PROMPT, [ONE, TWO]) == pytest.approx([expected, 1 - expected], rel=1e-12)
    assert len(server.asked) == 1
    assert pairs(server, tmp_path).score(PROMPT, [ONE, TWO]) == pytest.approx([expected, 1 - expected], rel=1e-12)
    assert len(server.asked) == 1
    for change in ({"verdict": "text"}, {"model": "other"}, {"template": "chinese"}):
        assert pairs(server, tmp_path, **change).steps(PROMPT, [ONE, TWO]).done == 0, change
    assert pairs(server, tmp_path, timeout_seconds=5).steps(PROMPT, [ONE, TWO]).done == 2


def test_verdicts_in_words_are_kept_beside_probabilities(server, tmp_path) -> None:
    pairs(server, tmp_path).score(PROMPT, [ONE, TWO])
    server.decide = lambda question: "A" if texts(question)[1] == "two" else "B"
    assert pairs(server, tmp_path, verdict="text").score(PROMPT, [ONE, TWO]) == [0, 1]
    assert "logprobs" not in server.bodies[-1]
    assert server.asked[-1].endswith("Reply with one line that holds nothing but A, B or tie.")
    assert pairs(server, tmp_path).score(PROMPT, [ONE, TWO]) == pytest.approx([0.6, 0.4], rel=1e-12)


def test_a_server_without_log_probabilities(server, tmp_path) -> None:
    server.decide = lambda _: "A"
    with pytest.raises(UserError) as caught:
        pairs(server, tmp_path).score(PROMPT, [ONE, TWO])
    assert str(caught.value) == (
        f"{server.url}/chat/completions: the reply has no log-probabilities. Use a server that returns them, such as "
        "llama.cpp's or vLLM, or set `rank.endpoint.verdict: text`"
    )
    server.script.append(Answer(400, json.dumps({"error": {"message": "logprobs is not supported"}})))
    with pytest.raises(UserError, match=r"“logprobs is not supported”.* If it refuses `logprobs`, set `rank\.endpoint"):
        pairs(server, tmp_path).score(PROMPT, [ONE, TWO])
    broken = completion("A").replace('"index": 0', '"logprobs": {"content": [{"top_logprobs": [{"token": "A"}]}]}')
    for body in (broken, broken.replace('"token": "A"', '"token": "A", "logprob": NaN'), broken.replace("[{", "[0, {")):
        server.script.append(Answer(body=body))
        with pytest.raises(UserError, match="not a chat completion"):
            pairs(server, tmp_path).score(PROMPT, [ONE, TWO])


def test_a_first_token_that_is_no_verdict(server, tmp_path) -> None:
    server.decide = lambda _: {"<think>": 0.97, "\x1bHm": 0.02, "The": 0.01}
    with pytest.raises(UserError) as caught:
        pairs(server, tmp_path).score(PROMPT, [ONE, TWO])
    assert str(caught.value).startswith(
        "judge 'endpoint:small', prompt 'p1': neither A nor B is among the 20 most probable first tokens of its reply: "
        "“<think>” 97%, “ Hm” 2%, “The” 1%. Ask for that in `rank.endpoint.template`, use another model, or set "
    )
    assert len(server.asked) == 1  # the same question has the same probabilities
    judge = pairs(server, tmp_path, unreadable="tie")
    assert judge.score(PROMPT, [ONE, TWO]) == [0.5, 0.5]
    assert judge.summary()["unreadable_replies"] == 2
    server.script.append(Answer(body=completion("")))
    with pytest.raises(UserError, match="first tokens of its reply: the reply is empty"):
        pairs(server, tmp_path).score(PROMPT, [ONE, TWO])


def test_an_order_without_a_verdict_ties_the_pair(server, tmp_path) -> None:
    server.script.append(Answer(body=first_token({"The": 1.0})))
    assert pairs(server, tmp_path, unreadable="tie").score(PROMPT, [ONE, TWO]) == [0.5, 0.5]


def test_each_answer_is_graded_alone(server, tmp_path) -> None:
    server.decide = lambda question: str(len(texts(question)[1]))
    judge, steps = grades(server, tmp_path, verdict="text"), []
    given = [ONE, THREE, TWO, ONE]
    scores = judge.score(PROMPT, given, lambda count, **figures: steps.append((count, figures["requests"])))
    assert scores == [0.3, 0.5, 0.3, 0.3]
    assert [texts(question) for question in server.asked] == [[PROMPT.text, name] for name in ("one", "three", "two")]
    assert steps == [(1, 1), (1, 2), (1, 3), (1, 3)]
    assert judge.summary() == {"requests": 3, "answers": 4, "unreadable_replies": 0}
    assert (judge.name, judge.absolute, judge.unit) == ("endpoint:small", True, "grades")
    again = grades(server, tmp_path, verdict="text")
    assert again.steps(PROMPT, given) == (4, 4)
    assert again.score(PROMPT, given) == scores
    assert len(server.asked) == 3
    assert grades(server, tmp_path).steps(PROMPT, given) == (4, 0)
    assert grades(server, tmp_path, verdict="text", rubric="chinese").steps(PROMPT, given) == (4, 0)


def test_a_grade_by_probabilities_and_by_a_rubric_of_one_s_own(server, tmp_path) -> None:
    server.decide = lambda _: {"2": 0.3, "5": 0.1, "The": 0.6}
    rubric = "Is it polite? {prompt} {answer} One digit from 0 (rude) to 9."
    assert grades(server, tmp_path, rubric=rubric).score(PROMPT, [ONE]) == pytest.approx([(0.6 + 0.5) / 0.4 / 9])
    assert server.asked[0].startswith("Is it polite? <text-")


def test_an_answer_without_a_grade(server, tmp_path) -> None:
    server.decide = lambda _: "Nice!"
    text = r"^judge 'endpoint:small', prompt 'p1': the last line of the reply is not a number .*`rank\.endpoint\.rub"
    with pytest.raises(UserError, match=text):
        grades(server, tmp_path, verdict="text").score(PROMPT, [ONE])
    lenient = grades(server, tmp_path, verdict="text", unreadable="tie")
    assert lenient.score(PROMPT, [ONE, TWO]) == [0.5, 0.5]
    assert lenient.summary() == {"requests": 4, "answers": 2, "unreadable_replies": 2}
    assert grades(server, tmp_path, verdict="text").steps(PROMPT, [ONE, TWO]).done == 0
    assert grades(server, tmp_path, verdict="text", unreadable="tie").steps(PROMPT, [ONE, TWO]).done == 2


def test_a_reward_and_a_judge_with_one_rubric_share_the_grades(server, tmp_path) -> None:
    server.decide = lambda _: {"4": 1.0}
    term = RewardTerm(source="endpoint", max_requests=1)
    own = EndpointReward("ppo.rewards.own", term, client(server), tmp_path / "grades.jsonl")
    assert own.score([PROMPT], [ONE]) == pytest.approx([4 / 9])
    assert grades(server, tmp_path).score(PROMPT, [ONE, TWO]) == pytest.approx([4 / 9] * 2)
    assert len(server.asked) == 2
    again = EndpointReward("ppo.rewards.own", term, client(server), tmp_path / "grades.jsonl")
    assert again.score([PROMPT] * 2, [ONE, TWO]) == pytest.approx([4 / 9] * 2)  # the judge's costs no budget
