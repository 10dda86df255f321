import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline.preflight import problems
from lowrank_rlhf.preferences.judges.builtin import BUILT_IN, count_syllables, flesch_reading_ease
from lowrank_rlhf.preferences.judges.loading import load_judge
from lowrank_rlhf.run.records import Message, Prompt, Sample

QUESTION = "What should I cook for dinner on a cold Sunday?"

# Best first, each clearly above the next.
ANSWERS = [
    ("Cook a big pot of soup, and enjoy a lovely, warm dinner with your family.", 0.861),  # warm, on the topic
    ("Cook a pot of soup, and have a nice dinner.", 0.508),  # less warm
    ("Cook a pot of soup, and serve it for dinner with a slice of bread.", 0.150),  # neutral, on the topic
    ("A lovely, wonderful day brings joy and love to your heart.", 0.097),  # warm, off the topic
    ("You could go to the shop on foot.", -0.150),  # neutral, off the topic
    ("No idea.", -0.702),  # curt
]
WARM = ANSWERS[0][0]


def prompt(text: str = QUESTION) -> Prompt:
    return Prompt(id="p1", messages=(Message(role="user", content=text),))


def score(answer: str, finished: bool = True, question: str = QUESTION, judge: str = "simulated-annotator") -> float:
    sample = Sample(id="s", prompt_id="p1", text=answer, finished=finished)
    return load_judge(judge).score(prompt(question), [sample])[0]


@pytest.mark.parametrize(("answer", "expected"), ANSWERS)
def test_simulated_annotator_scores(answer: str, expected: float) -> None:
    assert score(answer) == pytest.approx(expected, abs=0.001)


def test_simulated_annotator_order() -> None:
    scores = [score(answer) for answer, _ in ANSWERS]
    assert all(better > worse + 0.05 for better, worse in pairwise(scores)), scores


@pytest.mark.parametrize(
    ("worse", "expected"),
    [
        (WARM.removesuffix("."), 0.561),  # breaks off
        ("I'm so thrilled to help you! " + WARM, 0.561),
        ("I’m thrilled to help! " + WARM, 0.561),  # a curly apostrophe
        ("Great question! " + WARM, 0.561),
        (WARM + " I am really excited!", 0.561),  # an opener that moved to the end
        (WARM + " " + WARM, 0.663),
        ("Lovely dinner, lovely dinner, lovely dinner, lovely dinner, lovely dinner.", 0.496),
        ("Cook for dinner on a cold Sunday, lovely and wonderful!", 0.058),  # parrots the prompt
        ("Lovely dinner!", 0.348),  # short
        ("", -0.95),
    ],
)
def test_simulated_annotator_is_not_gamed(worse: str, expected: float) -> None:
    assert score(worse) == pytest.approx(expected, abs=0.001)
    assert score(worse) < score(WARM) - 0.19


def test_an_answer_cut_off_by_the_length_limit_is_unfinished() -> None:
    assert score(WARM) - score(WARM, finished=False) == pytest.approx(0.3)
    assert score(f"“{WARM}”") == score(WARM)


def test_shouting_earns_no_warmth() -> None:
    assert score(WARM.upper()) == score(WARM)
    assert score(WARM + "!!!") == score(WARM)


def test_warmth_saturates() -> None:
    two = score("Cook a lovely soup for dinner, with love.")
    four = score("Cook a lovely soup for dinner, with love, joy and delight.")
    assert score("Cook a soup for dinner.") + 0.5 < two < four < two + 0.2


def test_off_topic_warmth_never_reaches_on_topic_neutrality() -> None:
    gushing = (
        "Wonderful love, great joy, amazing beauty, lovely delight, excellent fun, fantastic smiles, happy hearts."
    )
    assert score(gushing) <= 0.105 < score("Cook a pot of soup, and serve it for dinner with a slice of bread.")
    assert score(gushing, judge="sentiment") > 0.98


def test_stems_carry_the_topic_and_copying_a_short_prompt_is_no_parroting() -> None:
    on_topic = score("Bake the cookies until they turn brown.", question="Is baking a cookie hard?")
    assert on_topic > score("Put them in until they turn brown.", question="Is baking a cookie hard?") + 0.29
    assert score("A sunset turns the evening sky red.", question="Describe a sunset.") == pytest.approx(0.15)
    assert -0.01 < score("All is quiet here on this side.", question="How are you?") < 0.01  # no content word: neither


def test_extremes_stay_in_range() -> None:
    assert score("hate hate hate hate hate hate hate", finished=False) == -1.0
    assert 0.9 < score("Dinner to cook: love, joy, delight, wonderful, great, best, happy, fun, paradise.") <= 1.0


# 206.835 - 1.015 * words / sentences - 84.6 * syllables / words, with the syllables counted by hand.
@pytest.mark.parametrize(
    ("text", "words", "sentences", "syllables"),
    [
        ("The cat sat on the mat.", 6, 1, 6),
        ("The cat sat. The table was little.", 7, 2, 9),
        ("Beautiful animals wanted water, and people baked apples!", 8, 1, 16),
        ("It costs 3.50 dollars, e.g. here", 8, 2, 9),
    ],
)
def test_flesch_reading_ease(text: str, words: int, sentences: int, syllables: int) -> None:
    by_hand = 206.835 - 1.015 * words / sentences - 84.6 * syllables / words
    assert flesch_reading_ease(text) == pytest.approx(by_hand, abs=1e-9)


def test_flesch_value_by_hand() -> None:
    assert flesch_reading_ease("The cat sat on the mat.") == pytest.approx(116.145)  # 206.835 - 6.09 - 84.6
    assert flesch_reading_ease("...") == 0.0


@pytest.mark.parametrize(
    ("syllables", "words"),
    [
        (1, "cat the make makes baked hoped played watched free tree goes style styles tries rule"),
        (2, "table apples wanted boxes races happy people wishes bridges language needed"),
        (3, "beautiful animal every"),
    ],
)
def test_count_syllables(syllables: int, words: str) -> None:
    assert {word: count_syllables(word) for word in words.split()} == dict.fromkeys(words.split(), syllables)


def test_plain_language() -> None:
    plain = score("The cat sat on the mat.", judge="plain-language")
    assert plain == pytest.approx(116.145 / 121.22)
    assert score("The CAT sat on the mat.", judge="plain-language") == plain  # three capitals may be an acronym
    assert score("The cat SHOUTED on the mat!!", judge="plain-language") < plain - 0.2
    assert score("Feel free to pet the cat.", judge="plain-language") == pytest.approx(116.145 / 121.22 - 0.2)
    assert score("Notwithstanding aforementioned considerations.", judge="plain-language") == 0.0
    assert score("", judge="plain-language") == 0.0


def test_sentiment_is_vader_compound() -> None:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    assert (
        score("I love it!", judge="sentiment") == SentimentIntensityAnalyzer().polarity_scores("I love it!")["compound"]
    )


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_judges_score_each_answer_by_itself(name: str) -> None:
    samples = [Sample(id=str(i), prompt_id="p1", text=text) for i, (text, _) in enumerate(ANSWERS)]
    together = load_judge(name).score(prompt(), samples)
    assert together == [load_judge(name).score(prompt(), [sample])[0] for sample in samples]
    assert load_judge(name).score(prompt(), []) == []


USER_MODULE = """
import math
import sys
from itertools import pairwise
def longest(prompt, answers):
    assert isinstance(prompt, str) and all(isinstance(answer, str) for answer in answers)
    return [len(answer) for answer in answers]
def one_score(prompt, answers): return [1.0]
def not_a_number(prompt, answers): return [math.nan for _ in answers]
def infinite(prompt, answers): return [math.inf for _ in answers]
def nothing(prompt, answers): return None
def broken(prompt, answers): return [1 / 0 for _ in answers]
number = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch) -> str:
    (tmp_path / "my_test_judge.py").write_text(USER_MODULE)
    (tmp_path / "my_broken_judge.py").write_text("def judge(:")
    (tmp_path / "my_leaving_judge.py").write_text("import sys; sys.exit(0)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "my_test_judge", raising=False)
    return "my_test_judge"


TWO = [Sample(id="a", prompt_id="p1", text="short"), Sample(id="b", prompt_id="p1", text="longer text")]


def test_a_users_function_from_the_current_folder(user_module: str) -> None:
    scores = load_judge(f"{user_module}:longest").score(prompt(), TWO)
    assert scores == [5.0, 11.0]
    assert all(isinstance(score, float) and math.isfinite(score) for score in scores)


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        ("one_score", "1 scores for 2 answers"),
        ("not_a_number", "not a finite number"),
        ("infinite", "not a finite number"),
        ("nothing", "TypeError"),
        ("broken", "ZeroDivisionError"),
    ],
)
def test_wrong_scores_name_the_judge_and_the_prompt(user_module: str, function: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        load_judge(f"{user_module}:{function}").score(prompt(), TWO)
    assert f"{user_module}:{function}" in str(error.value)
    assert "'p1'" in str(error.value)


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("sentimental", r"expected simulated-annotator, .* Did you mean \"sentiment\"\?"),
        ("gpt-4", r"plain-language, .*simulated-kind-annotator-zh, endpoint, or your own `module:function`.$"),
        ("no_such_module_here:f", "cannot import 'no_such_module_here'"),
        ("my_broken_judge:judge", "SyntaxError"),
        ("my_leaving_judge:judge", r"cannot import 'my_leaving_judge' \(SystemExit: 0\)"),
        ("my_test_judge:missing", "my_test_judge.missing is not defined"),
        ("my_test_judge:number", "my_test_judge.number is not a function"),
        ("my_test_judge:", "my_test_judge. is not defined"),
        (":f", "cannot import ''"),
    ],
)
def test_a_judge_that_cannot_be_loaded(name: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_judge(name)


CHECKED = """\
name: a
model: {source: x}
rank:
  judge: %s
evaluate:
  second_judge: %s
"""


@pytest.mark.usefixtures("user_module")
class TestValidate:
    """What `validate` and `run` say of judges before anything heavy starts."""

    def complaint(self, first: str, second: str, *overrides: str) -> str:
        path = Path("my.yaml")
        path.write_text(CHECKED % (first, second))
        try:
            load_config(path, overrides, problems)
        except UserError as error:
            return str(error)
        return ""

    def test_every_judge_is_looked_for_and_its_line_named(self) -> None:
        assert self.complaint("my_test_judge:longest", "sentiment") == ""
        first, second = self.complaint("sentimental", "no_such_module_here:f").splitlines()
        assert first.startswith("my.yaml:4:3: rank.judge: unknown judge 'sentimental'; expected simulated-annotator, ")
        assert first.endswith('Did you mean "sentiment"?')
        assert second.startswith(
            "my.yaml:6:3: evaluate.second_judge: judge 'no_such_module_here:f': cannot import 'no_such_module_here'"
        )
        override = self.complaint("sentiment", "null", "rank.judge=my_test_judge:number")
        assert override.startswith('override "rank.judge=my_test_judge:number": rank.judge: judge ')

    def test_only_judges_that_the_run_asks(self) -> None:
        assert self.complaint("sentimental", "null", "rank.source=human") == ""
        assert self.complaint("sentimental", "sentimental", "stages=[sft, sample]") == ""
        assert self.complaint("sentiment", "sentimental", "stages=[sft, sample, rank]") == ""
        assert "rank.judge" in self.complaint("sentimental", "null", "stages=[ppo]")
        assert self.complaint("sentiment", "sentimental", "stages=[ppo]") == ""
        followed = self.complaint("sentiment", "sentimental", "stages=[ppo]", "rank.source=human")
        assert "evaluate.second_judge" in followed
        endpoint = "rank.endpoint={url: 'http://127.0.0.1:1/v1', model: m}"
        assert self.complaint("endpoint", "endpoint", endpoint) == ""  # asked for a verdict only when one is needed
