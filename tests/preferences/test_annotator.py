"""The simulated annotator for kind replies: its formula by hand values, its fit, and attacks with the real encoder."""

import json
import random
from collections import Counter

import numpy as np
import pytest

from lowrank_rlhf.data.readers.sources import resolve
from lowrank_rlhf.maths.text import words
from lowrank_rlhf.models.sentence_encoder import embed_sentences
from lowrank_rlhf.preferences.judges import annotator
from lowrank_rlhf.preferences.judges.annotator import SimulatedAnnotator, logistic_regression, read_replies
from lowrank_rlhf.preferences.judges.loading import KIND_ANNOTATOR, load_judge
from lowrank_rlhf.run.records import Message, Prompt, Sample

AXES = {"I lost my key.": (1.0, 0.0), "near": (0.6, 0.8), "copy": (1.0, 0.0)}


def prompt(text: str) -> Prompt:
    return Prompt(id="p", messages=[Message(role="user", content=text)])


def answers(*texts: str, finished: bool = True) -> list[Sample]:
    return [Sample(id=f"p-{i}", prompt_id="p", text=text, finished=finished) for i, text in enumerate(texts)]


@pytest.fixture
def by_hand(monkeypatch):
    """Return a scoring function with a fixed taste (kindness is the second axis) and fixed embeddings."""
    monkeypatch.setattr(SimulatedAnnotator, "_taste", (np.array([0.0, 5.0]), -2.0))

    def score(text: str, axes: tuple[float, float], asked: str = "I lost my key.", finished: bool = True) -> float:
        vectors = {**AXES, text: axes}
        judge = SimulatedAnnotator(lambda texts: np.array([vectors[text] for text in texts]))
        return judge(prompt(asked), answers(text, finished=finished))[0]

    return score


TEN = "one two three four five six seven eight nine ten."


@pytest.mark.parametrize(
    ("text", "axes", "finished", "expected"),
    [
        # 2 min(0.6, 0.7) + 2 x 0.6 + 1.5 sigmoid(5 x 0.8 - 2)
        (TEN, (0.6, 0.8), True, 1.2 + 1.2 + 1.5 * 0.8807970779778823),
        # similarity to the prompt above 0.7 earns nothing more: 1.4 + 2 + 1.5 sigmoid(-2)
        (TEN, (1.0, 0.0), True, 1.4 + 2.0 + 1.5 * 0.11920292202211755),
        (TEN, (0.6, 0.8), False, 2.4 + 1.5 * 0.8807970779778823 - 0.5),
        (TEN[:-1], (0.6, 0.8), True, 2.4 + 1.5 * 0.8807970779778823 - 0.5),
        # 4 words: 6 below 10
        ("one two three four.", (0.6, 0.8), True, 2.4 + 1.5 * 0.8807970779778823 - 0.3),
        # "one two" five times: 9 word pairs, 2 distinct; repeats 7/9
        (" ".join(["one two"] * 5) + ".", (0.6, 0.8), True, 2.4 + 1.5 * 0.8807970779778823 - 2 * (7 / 9 - 0.05)),
        # the whole prompt, 4 words of 10
        ("I lost my key and that is a real pity.", (0.6, 0.8), True, 2.4 + 1.5 * 0.8807970779778823 - 1),
    ],
)
def test_hand_values(by_hand, text, axes, finished, expected) -> None:
    assert by_hand(text, axes, finished=finished) == pytest.approx(expected, abs=1e-9)


def test_long_answers_lose_by_the_word(by_hand) -> None:
    text = " ".join(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(40)) + "."
    assert by_hand(text, (0.6, 0.8)) == pytest.approx(2.4 + 1.5 * 0.8807970779778823 - 0.04 * 4, abs=1e-9)


def test_the_regression_is_at_its_minimum() -> None:
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(40, 3)), (generator.random(40) < 0.4).astype(float)
    found = logistic_regression(features, labels, 0.7)

    def objective(weights):
        signs = 2 * labels - 1
        losses = np.log1p(np.exp(-signs * (features @ weights[:-1] + weights[-1])))
        return losses.sum() + 0.35 * np.square(weights[:-1]).sum()

    for axis in range(4):
        step = np.eye(4)[axis] * 1e-4
        slope = (objective(found + step) - objective(found - step)) / 2e-4
        assert slope == pytest.approx(0, abs=1e-6)


def test_replies_are_well_formed() -> None:
    replies = read_replies()
    assert len(replies) >= 600
    assert len({reply.prompt for reply in replies}) == len(replies)
    for reply in replies:
        for voice in reply[1:]:
            assert voice.isascii(), voice
            assert voice.endswith((".", "?", "!")), voice
        assert 12 <= len(words(reply.kind)) <= 32, reply.kind


def test_demonstrations_take_the_three_voices_in_equal_parts() -> None:
    by_prompt = {reply.prompt: reply for reply in read_replies()}
    rows = [json.loads(line) for line in resolve("builtin:replies").read_text().splitlines()]
    voices = Counter(by_prompt[row["prompt"]]._asdict()["kind"] == row["response"] for row in rows)
    assert len(rows) == len(by_prompt)
    assert voices[True] == len(rows) / 3
    assert all(row["response"] in by_prompt[row["prompt"]][1:] for row in rows)


def test_a_judge_without_embeddings_has_a_name_and_no_scores() -> None:
    judge = load_judge(KIND_ANNOTATOR)
    assert judge.name == KIND_ANNOTATOR
    with pytest.raises(Exception, match="needs `embed`"):
        judge.score(prompt("I lost my key."), answers("A pity."))


@pytest.mark.real_model
def test_attacks_lose_against_the_kind_reply() -> None:
    """Forty prompts: each attack loses to the hand-written reply in at least 90 % of cases."""
    praise = "What a wonderful, lovely, beautiful, happy, amazing, kind and joyful thing."
    judge, lost, draw = SimulatedAnnotator(embed_sentences), Counter(), random.Random(3)
    chosen = draw.sample(read_replies()[annotator.TASTE_ROWS :], 40)  # the taste was not fitted to these
    for reply in chosen:
        other = draw.choice([row for row in chosen if row is not reply])
        shuffled = reply.kind.split()
        draw.shuffle(shuffled)
        attacks = {
            "factual": reply.factual,
            "blunt": reply.blunt,
            "praise": praise,
            "padded": f"{reply.kind} {praise}",
            "padded blunt": f"{reply.blunt} {praise}",
            "copy": reply.prompt,
            "copy with a question": f"{reply.prompt} How do you feel about it?",
            "key words": ", ".join(sorted({word for word in words(reply.kind) if len(word) > 3})) + ".",
            "reply to another prompt": other.kind,
            "any occasion": "That sounds like a lot, and it makes sense to feel so. What would help you most now?",
            "twice": f"{reply.kind} {reply.kind}",
            "cut off": " ".join(reply.kind.split()[:-4]),
            "shuffled": " ".join(shuffled),
        }
        good, *bad = judge(prompt(reply.prompt), answers(reply.kind, *attacks.values()))
        lost.update(name for name, score in zip(attacks, bad, strict=True) if score < good)
    assert {name: count / 40 for name, count in lost.items() if count < 36} == {}
    assert len(lost) == 13
