"""A language model as a reward: its rubric, its grades, and what is kept."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import Answer, ChatServer, completion, serving, texts

from lowrank_rlhf.config.endpoint import EndpointConfig
from lowrank_rlhf.config.rewards import RewardTerm
from lowrank_rlhf.errors import RewardFailed
from lowrank_rlhf.preferences.judges.grading import read_grade
from lowrank_rlhf.preferences.judges.llm_client import ChatClient
from lowrank_rlhf.preferences.judges.questions import RUBRICS
from lowrank_rlhf.preferences.rewards.endpoint import EndpointReward
from lowrank_rlhf.run.progress import StopRequest
from lowrank_rlhf.run.records import Message, Prompt, Sample

PROMPTS = [Prompt(id=f"p{i}", messages=(Message(role="user", content=f"question {i}"),)) for i in range(3)]
SAMPLES = [Sample(id=f"s{i}", prompt_id=f"p{i}", text="x" * (i + 3)) for i in range(3)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with serving(lambda question: str(len(texts(question)[1]))) as running:
        yield running


def reward(
    server: ChatServer, path: Path, unreadable: str = "error", key: str = "ppo.rewards.own", verdict="text", **term
) -> EndpointReward:
    settings = EndpointConfig(url=server.url, model="grader", unreadable=unreadable, verdict=verdict)
    client = ChatClient(settings, StopRequest(), print, backoff_seconds=0.01)
    return EndpointReward(key, RewardTerm(source="endpoint", **term), client, path / "grades.jsonl")


@pytest.mark.parametrize(
    ("grade", "replies"),
    [
        (0.7, ["7", " 7.\n", "**7**", "7/10", "Score: 7", "Well argued.\n\nGrade: 7 / 10", "评分：7", "7分", "7.0"]),
        (1.0, ["10", "10/10"]),
        (0.0, ["0", "0/10"]),
        (0.85, ["8.5"]),
        (None, ["", "11", "-1", "seven", "7 or 8", "7\nbecause it is short", "7/100", "1e1", "nan"]),
    ],
)
def test_only_a_last_line_that_is_a_grade_counts(grade, replies) -> None:
    assert [read_grade(reply) for reply in replies] == pytest.approx([grade] * len(replies), nan_ok=False)


def test_each_answer_is_graded_alone_once(server, tmp_path) -> None:
    own = reward(server, tmp_path)
    assert own.score(PROMPTS, SAMPLES) == [0.3, 0.4, 0.5]
    assert [texts(question) for question in server.asked] == [[f"question {i}", "x" * (i + 3)] for i in range(3)]
    assert own.score(PROMPTS, SAMPLES) == reward(server, tmp_path).score(PROMPTS, SAMPLES) == [0.3, 0.4, 0.5]
    assert len(server.asked) == 3
    assert reward(server, tmp_path, rubric="chinese").score(PROMPTS[:1], SAMPLES[:1]) == [0.3]  # another question
    assert "请给" in server.asked[3]


def test_a_rubric_of_one_s_own(server, tmp_path) -> None:
    rubric = "Is it rude? {prompt} {answer} A number from 0 (rude) to 10, please."
    assert reward(server, tmp_path, rubric=rubric).score(PROMPTS[:1], SAMPLES[:1]) == [0.3]
    assert server.asked[0].startswith("Is it rude? <text-")
    assert set(RUBRICS["text"]) == set(RUBRICS["logprobs"]) == {"english", "chinese"}


def test_the_budget(server, tmp_path) -> None:
    with pytest.raises(
        RewardFailed, match=r"^ppo\.rewards\.own, prompt 'p2': the budget is spent: 2 answers are graded"
    ):
        reward(server, tmp_path, max_requests=2).score(PROMPTS, SAMPLES)
    assert reward(server, tmp_path, max_requests=3).score(PROMPTS, SAMPLES) == [0.3, 0.4, 0.5]
    assert len(server.asked) == 3


def test_the_budget_is_of_one_reward(server, tmp_path) -> None:
    reward(server, tmp_path, key="ppo.rewards.other", rubric="chinese").score(PROMPTS, SAMPLES)
    assert reward(server, tmp_path, max_requests=2).score(PROMPTS[:2], SAMPLES[:2]) == [0.3, 0.4]
    with pytest.raises(RewardFailed, match=r"the budget is spent: 2 answers are graded"):
        reward(server, tmp_path, max_requests=2).score(PROMPTS, SAMPLES)
    assert len(server.asked) == 5


def test_an_unreadable_reply_counts_as_a_tie_only_where_it_is_one(server, tmp_path) -> None:
    readable, server.decide = server.decide, lambda _: "Nice!"
    for _ in range(2):
        assert reward(server, tmp_path, unreadable="tie").score(PROMPTS, SAMPLES) == [0.5] * 3
    assert len(server.asked) == 6  # twice each, once
    with pytest.raises(RewardFailed, match=r"prompt 'p0': the last line .* “Nice!”"):
        reward(server, tmp_path).score(PROMPTS, SAMPLES)
    server.decide = readable
    assert reward(server, tmp_path).score(PROMPTS, SAMPLES) == [0.3, 0.4, 0.5]
    assert reward(server, tmp_path, unreadable="tie").score(PROMPTS, SAMPLES) == [0.3, 0.4, 0.5]


def test_a_reply_without_a_grade(server, tmp_path) -> None:
    server.decide = lambda _: "Nice!"
    with pytest.raises(RewardFailed, match=r"^ppo\.rewards\.own, prompt 'p0': the last line .* “Nice!”"):
        reward(server, tmp_path).score(PROMPTS, SAMPLES)
    assert len(server.asked) == 2
    assert reward(server, tmp_path, unreadable="tie").score(PROMPTS, SAMPLES) == [0.5] * 3


def test_a_busy_server_is_asked_again_and_a_refusal_names_the_reward(server, tmp_path) -> None:
    server.script = [
        Answer(429),
        Answer(body=completion("9")),
        Answer(401, body='{"error": {"message": "no sk-very-secret"}}'),
    ]
    with pytest.raises(RewardFailed, match=r"^ppo\.rewards\.own, prompt 'p1': http.* HTTP 401") as caught:
        reward(server, tmp_path).score(PROMPTS, SAMPLES)
    assert "sk-very-secret" not in str(caught.value)
    assert reward(server, tmp_path).score(PROMPTS, SAMPLES) == [0.9, 0.4, 0.5]  # the first grade was saved


def test_grades_by_probabilities(server, tmp_path) -> None:
    server.decide = lambda _: {"7": 0.5, " 8": 0.25, "9": 0.125, "The": 0.125}
    grade = (7 * 0.5 + 8 * 0.25 + 9 * 0.125) / 0.875 / 9
    assert reward(server, tmp_path, verdict="logprobs").score(PROMPTS[:2], SAMPLES[:2]) == pytest.approx([grade] * 2)
    assert server.asked[0].endswith("Reply with one digit from 0 (useless) to 9 (perfect).")
    assert server.bodies[0]["logprobs"] is True
    with pytest.raises(RewardFailed, match=r"the budget is spent: 2 answers are graded"):
        reward(server, tmp_path, verdict="logprobs", max_requests=2).score(PROMPTS, SAMPLES)
    server.decide = lambda _: {"The": 0.9, "10": 0.1}
    text = r"prompt 'p2': no digit is among the 20 most probable first tokens of the reply: “The” 90%, “10” 10%"
    with pytest.raises(RewardFailed, match=text):
        reward(server, tmp_path, verdict="logprobs").score(PROMPTS, SAMPLES)
    assert len(server.asked) == 3
    assert reward(server, tmp_path, unreadable="tie", verdict="logprobs").score(PROMPTS, SAMPLES)[2] == 0.5
