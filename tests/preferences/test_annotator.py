"""The simulated annotators for kind replies: formula by hand values, fit, and attacks with the real encoders."""

import json
import random
from collections import Counter

import numpy as np
import pytest

from lowrank_rlhf.data.readers.sources import resolve
from lowrank_rlhf.maths.text import words
from lowrank_rlhf.models.encoders import minilm, multilingual
from lowrank_rlhf.preferences.judges.annotator import (
    CHINESE,
    ENGLISH,
    SimulatedAnnotator,
    logistic_regression,
    read_replies,
)
from lowrank_rlhf.preferences.judges.loading import KIND_ANNOTATOR, KIND_ANNOTATOR_ZH, load_judge
from lowrank_rlhf.run.records import Message, Prompt, Sample

AXES = {
    "I lost my key.": (1.0, 0.0),
    "My key fell into the sea today.": (1.0, 0.0),
    "near": (0.6, 0.8),
    "copy": (1.0, 0.0),
}


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


VOICES = ("kind", "factual", "blunt")
TEN = "one two three four five six seven eight nine ten."


@pytest.mark.parametrize(
    ("text", "axes", "finished", "expected"),
    [
        # 4 min(0.6, 0.7) + 1.5 sigmoid(5 x 0.8 - 2)
        (TEN, (0.6, 0.8), True, 2.4 + 1.5 * 0.8807970779778823),
        # similarity to the prompt above 0.7 earns nothing more: 4 x 0.7 + 1.5 sigmoid(-2)
        (TEN, (1.0, 0.0), True, 2.8 + 1.5 * 0.11920292202211755),
        (TEN, (0.6, 0.8), False, 2.4 + 1.5 * 0.8807970779778823 - 0.5),
        (TEN[:-1], (0.6, 0.8), True, 2.4 + 1.5 * 0.8807970779778823 - 0.5),
        # 4 words: 6 below 10
        ("one two three four.", (0.6, 0.8), True, 2.4 + 1.5 * 0.8807970779778823 - 0.3),
        # "one two" five times: 9 word pairs, 2 distinct; repeats 7/9
        (" ".join(["one two"] * 5) + ".", (0.6, 0.8), True, 2.4 + 1.5 * 0.8807970779778823 - 2 * (7 / 9 - 0.05)),
        # 2 words ("lost" and "key") match the prompt's 4 in the second person: restatement 4/14; it keeps "I" and "my"
        ("I lost my key and that is a real pity.", (0.6, 0.8), True, 2.4 + 1.5 * 0.8807970779778823 + 2 * 4 / 14 - 1),
    ],
)
def test_hand_values(by_hand, text, axes, finished, expected) -> None:
    assert by_hand(text, axes, finished=finished) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("So your key fell into the sea here. How is that?", 2 * 12 / 15),  # 6 words match, of 7 and 8
        ("So my key fell into the sea. How is that now?", 2 * 10 / 14 - 1),  # 5 match; it keeps "my"
    ],
)
def test_saying_the_message_back_earns_and_copying_costs(by_hand, text, points) -> None:
    found = by_hand(text, (0.6, 0.8), asked="My key fell into the sea today.")
    assert found == pytest.approx(2.4 + 1.5 * 0.8807970779778823 + points, abs=1e-9)


def test_the_kind_reply_to_the_prompt_counts_where_there_is_one(by_hand, monkeypatch) -> None:
    monkeypatch.setattr(SimulatedAnnotator, "_kind_replies", {"I lost my key.": "near"})
    # 4 (0.6 x 0.6 + 0.8 x 0.8) + 1.5 sigmoid(5 x 0.8 - 2)
    assert by_hand(TEN, (0.6, 0.8)) == pytest.approx(4.0 + 1.5 * 0.8807970779778823, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "axes", "points"),
    [
        ("钥匙丢了真着急，包里找过了吗？", (0.4, 0.9), 2 * 8 / 19),  # 13 characters; 4 match, of 6 and 13
        ("钥匙丢了，包里找过吗？", (0.4, 0.9), 2 * 8 / 15 - 0.05 * 3),  # 9 characters: 3 below 12
        ("钥匙丢了真着急，包里找过了吗.", (0.4, 0.9), 2 * 8 / 19 - 0.5),  # not the end of a Chinese sentence
        # 5 match, and 我 stays; 5 of 13 pairs are repeats
        ("我的钥匙丢了，我的钥匙丢了哎呀。", (0.4, 0.9), 2 * 10 / 20 - 1 - 2 * (5 / 13 - 0.05)),
        ("钥匙丢了真着急，OK吗没事吧 hello？", (0.4, 0.9), 2 * 8 / 19 - 2 * 2 / 13),  # 2 of 13 words are not Chinese
    ],
)
def test_chinese_hand_values(monkeypatch, text, axes, points) -> None:
    monkeypatch.setattr(SimulatedAnnotator, "_taste", (np.array([0.0, 5.0]), -2.0))
    asked = "我的钥匙丢了。"
    vectors = {asked: (1.0, 0.0), text: axes}
    judge = SimulatedAnnotator(lambda texts: np.array([vectors[text] for text in texts]), CHINESE)
    expected = 4 * 0.4 + 1.5 / (1 + np.exp(-(5 * 0.9 - 2))) + points
    assert judge(prompt(asked), answers(text)) == pytest.approx([expected], abs=1e-9)


def test_similarity_to_a_chinese_prompt_counts_up_to_a_limit(monkeypatch) -> None:
    monkeypatch.setattr(SimulatedAnnotator, "_taste", (np.array([0.0, 0.0]), 0.0))
    judge = SimulatedAnnotator(lambda texts: np.array([(1.0, 0.0) for _ in texts]), CHINESE)
    text = "钥匙丢了真着急，包里找过了吗？"
    assert judge(prompt("我的钥匙丢了。"), answers(text)) == pytest.approx([4 * 0.45 + 0.75 + 2 * 8 / 19], abs=1e-9)


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
        for voice in reply.voices:
            assert voice.isascii(), voice
            assert voice.endswith((".", "?", "!")), voice
        assert 10 <= len(words(reply.kind)) <= 20, reply.kind


@pytest.mark.parametrize(("language", "name"), [(ENGLISH, "replies"), (CHINESE, "replies_zh")])
def test_demonstrations_take_the_three_voices_in_equal_parts(language, name) -> None:
    by_prompt = {reply.prompt: reply for reply in read_replies(language)}
    rows = [json.loads(line) for line in resolve(f"builtin:{name}").read_text(encoding="utf-8").splitlines()]
    voices = [Counter(getattr(by_prompt[row["prompt"]], voice) == row["response"] for row in rows) for voice in VOICES]
    assert len(rows) == len(by_prompt)
    assert [found[True] for found in voices] == [len(rows) / 3] * 3


def test_chinese_replies_are_well_formed() -> None:
    replies = read_replies(CHINESE)
    texts = [voice for reply in replies for voice in reply.voices]
    assert len(replies) >= 560
    assert len({reply.prompt for reply in replies}) == len(replies)
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert text.endswith(tuple(CHINESE.ends)), text
        assert 15 <= len(text) <= 30, text


@pytest.mark.parametrize("name", [KIND_ANNOTATOR, KIND_ANNOTATOR_ZH])
def test_a_judge_without_embeddings_has_a_name_and_no_scores(name) -> None:
    judge = load_judge(name)
    assert judge.name == name
    with pytest.raises(Exception, match="needs `embed`"):
        judge.score(prompt("I lost my key."), answers("A pity."))


@pytest.mark.real_model
def test_attacks_lose_against_the_kind_reply() -> None:
    """Forty prompts: each attack loses to the hand-written reply in at least 90 % of cases."""
    praise = "What a wonderful, lovely, beautiful, happy, amazing, kind and joyful thing."
    judge, lost, draw = SimulatedAnnotator(minilm.embed_sentences), Counter(), random.Random(3)
    chosen = draw.sample(read_replies()[ENGLISH.taste_rows :], 40)  # the taste was not fitted to these
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


@pytest.mark.real_model
def test_chinese_kindness_is_learned() -> None:
    """Five folds of prompts: over 95 % of the replies are on their side, and the kind one of each prompt leads."""
    replies = read_replies(CHINESE)
    voices = np.stack(
        [multilingual.embed_sentences(texts) for texts in zip(*(row.voices for row in replies), strict=True)]
    )
    margins, fold = np.zeros((3, len(replies))), np.arange(len(replies)) % 5
    for held_out in range(5):
        training = voices[:, fold != held_out]
        is_kind = np.repeat([1.0, 0.0, 0.0], training.shape[1])
        weights = logistic_regression(training.reshape(-1, training.shape[2]), is_kind, CHINESE.taste_l2)
        margins[:, fold == held_out] = voices[:, fold == held_out] @ weights[:-1] + weights[-1]
    assert np.mean([*(margins[0] > 0), *(margins[1:] < 0).ravel()]) > 0.95
    assert np.mean(margins[0] > margins[1:].max(0)) > 0.98


@pytest.mark.real_model
def test_chinese_attacks_lose_against_the_kind_reply() -> None:
    """54 prompts: each attack loses to the hand-written reply in at least 90 % of cases."""
    judge = SimulatedAnnotator(multilingual.embed_sentences, CHINESE)
    lost, draw = Counter(), random.Random(3)
    chosen = draw.sample(read_replies(CHINESE)[CHINESE.taste_rows :], 54)  # the taste was not fitted to these
    for reply in chosen:
        attacks = chinese_attacks(reply, draw.choice([row for row in chosen if row is not reply]), draw)
        good, *bad = judge(prompt(reply.prompt), answers(reply.kind, *attacks.values()))
        lost.update(name for name, score in zip(attacks, bad, strict=True) if score < good)
    assert {name: count / len(chosen) for name, count in lost.items() if count < 0.9 * len(chosen)} == {}
    assert len(lost) == 24


def chinese_attacks(reply, other, draw) -> dict[str, str]:
    kind_words = "真替你高兴，一定特别开心吧，心里暖暖的，你真棒！抱抱你，别难过，我陪着你。"
    news, shuffled = reply.prompt.rstrip("。！"), list(reply.kind.rstrip("。！？"))
    draw.shuffle(shuffled)
    return {
        "factual": reply.factual,
        "blunt": reply.blunt,
        "kind words": kind_words,
        "padded": f"{reply.kind}{kind_words}",
        "padded blunt": f"{reply.blunt}{kind_words}",
        "blunt with a kind ending": f"{reply.blunt}不过真的替你开心，抱抱你。",
        "factual with a kind ending": f"{reply.factual}心疼你，抱抱。",
        "copy": reply.prompt,
        "copy with a question": f"{reply.prompt}你现在心情怎么样呀？",
        "copy with pity": f"{news}，心里一定很不好受吧，我陪着你。",
        "copy with joy": f"{news}，真替你高兴呀！",
        "key words of the prompt": "、".join(news[i : i + 2] for i in range(0, len(news), 2)) + "。",
        "key words of the reply": "、".join(reply.kind[i : i + 2] for i in range(0, len(reply.kind) - 2, 3)) + "。",
        "reply to another prompt": other.kind,
        "any occasion": "你说的事我听到了，我在听你慢慢说。你现在感觉怎么样？",
        "twice": f"{reply.kind}{reply.kind}",
        "particles": "呀" * 20 + "！",
        "laughter": "哈" * 18 + "。",
        "copy with particles": f"{news}{'呀' * 8}！",
        "cut off": reply.kind[:-6],
        "shuffled": "".join(shuffled) + "。",
        "empty": "",
        "English": "I am so sorry to hear that, it must be hard for you. Do you want to talk about it?",
        "English ending": f"{news}, that must feel wonderful, I am so happy for you!",
    }
