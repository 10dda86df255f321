"""`label` as a script uses it, one line after the other, and its figures."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from annotators_page import with_guidelines
from people import a_ranking, a_run, tiers_as_shown

from lowrank_rlhf import cli
from lowrank_rlhf.commands.terminal.ranking_text import ALPHA
from lowrank_rlhf.preferences.agreement import AlphaLevel
from lowrank_rlhf.preferences.team.exclusion import exclude
from lowrank_rlhf.preferences.team.guidelines import version_of
from lowrank_rlhf.run.records import Message, Prompt, Sample, Score, write_jsonl


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("getpass.getuser", lambda: "login")


@pytest.fixture
def label(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs `label people` in this process with these lines on stdin: its exit code, stdout and stderr."""

    def call(lines: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", "label", "people", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0), *capsys.readouterr()

    return call


class TestLines:
    def test_from_the_first_ranking_to_the_way_on(self, label) -> None:
        store = a_run(minimum=2)
        shown = store.item("login", "p0").shown
        code, out, err = label("2 > 1 = 3\n\n1=2=3 f1\ns\ns\n123\n")
        assert (code, err) == (0, "")
        assert tiers_as_shown(store) == [[["2"], ["1", "3"]], [["1", "2", "3"]], [["1"], ["2"], ["3"]]]
        first, second, _ = store.rankings()
        assert (first.annotator, first.flags, second.flags) == ("login", (), ("unsure",))
        assert first.shown == shown
        assert 0 <= first.seconds < 60
        assert "ranking as login; use --annotator NAME for another name\n" in out
        assert "saved: 2 > 1 = 3\n" in out
        assert "saved: 1 = 2 = 3   flags: unsure\n" in out
        assert out.count("2 prompts are ranked: the run can resume.") == 1
        assert out.endswith(
            "3 prompts ranked (2 needed). To resume the run:\n  python -m lowrank_rlhf run runs/people/config.yaml\n"
        )

    def test_the_run_can_resume_only_with_agreement_above_chance(self, label) -> None:
        """Two people with opposite orders of one prompt, whose second ranked prompt is the last that is needed."""
        store = a_run(minimum=2)
        store.save(a_ranking(0, "012", "ann"))
        store.save(a_ranking(0, "210", "bob"))
        out = label("123\n")[1]
        assert "can resume" not in out
        doubt = (
            "annotators order 0 % of 3 pairs alike, not shown to be above chance. About 16 more prompts ranked by two "
            "of them would show whether it is."
        )
        assert f"2 prompts are ranked, but {doubt} Rank more, or quit with q.\n" in out
        assert f"2 prompts ranked (2 needed), but {doubt} See label RUN --stats." in out

    def test_guidelines_come_first_and_are_named(self, label, tmp_path: Path) -> None:
        store = a_run(minimum=1)
        assert "guidelines" not in label("123\n")[1].lower()
        with_guidelines(tmp_path, "Be *kind*.\n\x1b[2J")
        out = label("123\n")[1]
        assert out.index("Guidelines:\nBe *kind*.\n\\x1b[2J") < out.index("Tell me 1")
        first, second = store.rankings()
        assert (first.guidelines, second.guidelines) == (None, version_of("Be *kind*.\n\x1b[2J"))
        out = label("", "--stats")[1]
        assert f"rankings by version of the guidelines: 1 with none, 1 with {second.guidelines}\n" in out
        found = json.loads(label("", "--stats", "--json")[1])["guidelines"]
        assert found == [{"version": None, "rankings": 1}, {"version": second.guidelines, "rankings": 1}]

    def test_resumes_and_counts_down(self, label) -> None:
        a_run(minimum=3)
        code, out, err = label("123\n", "--annotator", "ann")
        assert (code, err) == (5, "1 of 3 prompts ranked, 2 more needed. The same command resumes.\n")
        assert re.findall(r"-- (\d of \d)   ann --", out) == ["1 of 3", "2 of 3"]
        assert "\n0 ranked, 3 more needed; h shows the keys\n" in out
        assert "\n1 ranked, 2 more needed, 0:00 each, about 0:00 to go; h shows the keys\n" in out
        code, out, _ = label("123\n", "--annotator", "ann")
        assert re.findall(r"-- (\d of \d)   ann --", out) == ["2 of 3", "3 of 3"]
        assert "Tell me 0" not in out

    def test_the_time_to_go_is_shared_and_by_the_pace_of_earlier_sessions(self, label) -> None:
        store = a_run(minimum=3)
        store.save(a_ranking(0, "012", "ann", seconds=60.0))
        store.next_item("bob")
        assert "\n1 ranked, 2 more needed, 1:00 each, about 1:00 to go; h" in label("", "--annotator", "ann")[1]

    def test_several_annotators_share_the_need(self, label) -> None:
        store = a_run(minimum=2)
        assert label("123\n", "--annotator", "ann")[0] == 5
        code, out, _ = label("123\n", "--annotator", " 安娜 ")
        assert (code, "ranked so far by" in out) == (0, False)
        by = [(ranking.annotator, ranking.prompt_id) for ranking in store.rankings()]
        assert by == [("ann", "p0"), ("安娜", "p1")]  # what nobody has ranked comes first
        assert label("s\n123\n", "--annotator", "bob")[0] == 0
        assert "ranked so far by: ann, bob, 安娜\n" in label("")[1]

    def test_skip_undo_and_the_end(self, label) -> None:
        store = a_run(minimum=3)
        code, out, _ = label("s\nu\n123\ns\n321\ns\n213\nu\n231\nq\n111\n", "--annotator", "ann")
        assert code == 0
        assert re.findall(r"Tell me (\d)", out) == list("0101211")
        assert tiers_as_shown(store) == [[["1"], ["2"], ["3"]], [["3"], ["2"], ["1"]], [["2"], ["3"], ["1"]]]
        assert "No prompts left: of 3 prompts you have ranked 2 and skipped 1.\n" in out
        assert "No prompts left: of 3 prompts you have ranked 3 and skipped 0.\n" in out
        assert sum(verdict.withdrawn for verdict in store.contents().history) == 1

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("12", "not placed yet: 3"),
            ("1 2 2 3", "2 is placed already; u undoes the last key"),
            ("1234", "no answer 4 here: they are 1 to 3"),
            ("123 s", "a command must be alone on its line"),
            ("su", "a line must be one ranking, such as 2 > 1 = 3, or one command, such as s"),
            ("hello", "a line must be one ranking, such as 2 > 1 = 3, or one command, such as s"),
            ("x", "x has no effect here; h shows the keys"),
            ("f1", "not placed yet: 1, 2, 3"),
            ("12b", "not placed yet: 3"),
            ("12=", "= needs the answer that is as good; u undoes it"),
        ],
    )
    def test_a_wrong_line_ends_it_with_its_number(self, label, line: str, why: str) -> None:
        store = a_run()
        code, _, err = label(f"123\n{line}\n321\n")
        assert (code, err) == (2, f"stdin:2: {why}. The lines before it are saved; this one and the rest are not.\n")
        assert tiers_as_shown(store) == [[["1"], ["2"], ["3"]]]

    def test_lines_after_the_end(self, label) -> None:
        a_run(prompts=1)
        assert label("123\nh\n123\n")[2].startswith("stdin:3: u undoes the last step, s restores skipped prompts")
        assert label("u\n123\nu\nu\n")[2].startswith("stdin:4: nothing to undo")

    def test_all_bad_and_harmful_without_an_order(self, label) -> None:
        store = a_run()
        assert label("b\n!\n123!\n")[0] == 5  # one prompt has an order, and two are needed
        assert [(ranking.flags, len(ranking.tiers)) for ranking in store.rankings()] == [
            (("all answers bad",), 0),
            (("harmful",), 0),
            (("harmful",), 3),
        ]

    def test_names(self, label, monkeypatch: pytest.MonkeyPatch) -> None:
        a_run()
        assert label("", "--annotator", " ")[2] == "not a valid name: ' '. Use 1 to 100 printable characters\n"
        assert label("", "--annotator", "a\x1bb")[0] == 2

        def nobody() -> str:
            raise KeyError("getpwuid(): uid not found: 1234")

        monkeypatch.setattr("getpass.getuser", nobody)
        assert label("123\n")[2] == "login name not found; set --annotator NAME\n"
        assert label("", "--json")[2] == "--json requires --stats\n"

    def test_who_is_excluded_gets_no_prompts(self, label) -> None:
        store = a_run()
        store.save(a_ranking(0, "012", "bob"))
        exclude(store, "bob")
        assert "\nYour rankings are set aside, and no prompts are left for you." in label("", "--annotator", "bob")[1]

    def test_a_conversation_is_shown_whole_and_harmless(self, label) -> None:
        store = a_run(prompts=0)
        turns = [("system", "Be brief."), ("user", "春天"), ("assistant", "雨\x1b[2J[red]"), ("user", "还有呢？")]
        prompt = Prompt(id="x", messages=tuple(Message(role=role, content=text) for role, text in turns))
        texts = ["\x1b]0;title\x07樱花", "[bold]", ""]
        store.add_items(
            [prompt], [Sample(id=f"x-{k}", prompt_id="x", text=text, finished=k != 1) for k, text in enumerate(texts)]
        )
        _, out, _ = label("")
        assert re.search(
            r"system +Be brief\. *\n.*user +春天 *\n.*assistant 雨\\x1b\[2J\[red] *\n.*user +还有呢？", out, re.S
        )
        assert re.search(r"^\d \\x1b]0;title\\x07樱花 *$", out, re.M)
        assert re.search(r"^\d \[bold] \(cut off\) *$", out, re.M)
        assert re.search(r"^\d \(empty\) *$", out, re.M)
        assert "\x1b" not in out

    def test_too_many_answers_for_keys(self, label) -> None:
        store = a_run(prompts=0)
        prompt = Prompt(id="x", messages=(Message(role="user", content="Hi"),))
        store.add_items([prompt], [Sample(id=f"x-{k}", prompt_id="x", text="a") for k in range(36)])
        assert label("")[2] == "prompt 'x' has 36 answers; the maximum is 35\n"


class TestStats:
    def test_by_hand(self, label) -> None:
        store = a_run(minimum=2)
        shown = ("p0-0", "p0-1", "p0-2")
        store.save(a_ranking(0, "012", seconds=3.0, shown=shown))
        store.save(a_ranking(1, "012", seconds=65.0))
        store.save(a_ranking(0, "021", "b[o]b\x1b", seconds=7.0, shown=shown, flags=("unsure",)))
        store.save(a_ranking(2, "021", "gone"))
        store.undo("gone")
        store.skip("ann", "p2")
        scores = [("p0", 0.9, True), ("p0", 0.1, True), ("p0", 0.5, True), ("p1", 0.0, False), ("p1", 1.0, False)]
        scored = [
            Score(sample_id=f"{prompt}-{k % 3}", prompt_id=prompt, score=score, held_out=held_out)
            for k, (prompt, score, held_out) in enumerate(scores)
        ]
        write_jsonl(store.path.parent / "scores.jsonl", scored)
        code, out, err = label("", "--stats", "--json")
        found = json.loads(out)
        assert (code, err) == (0, "")
        assert {key: found[key] for key in ("prompts", "prompts_ranked", "prompts_needed")} == {
            "prompts": 3,
            "prompts_ranked": 2,
            "prompts_needed": 2,
        }
        # As in test_agreement.test_by_hand: both ways round, of three pairs two agree.
        assert found["krippendorff_alpha"] == pytest.approx(7 / 18)
        assert found["alpha_means"] == ALPHA[AlphaLevel.WEAK]
        ann, bob, gone = found["annotators"]
        assert ann == {
            "annotator": "ann",
            "rankings": 2,
            "median_seconds": 34.0,
            "tied_pairs": 0.0,
            "flagged": 0,
            "best_shown_first": 1.0,
            "best_shown_first_by_chance": pytest.approx(1 / 3),
            "longer_preferred": 0.0,
            "longer_preferred_by_chance": 0.5,
            "comparisons_of_unequal_length": 6,
            "skipped": 1,
            "taken_back": 0,
            "agreement": pytest.approx(2 / 3),
            "pairs_with_others": 3,
            "own_agreement": None,
            "pairs_ranked_twice": 0,
            "reward_model_agreement": pytest.approx(2 / 3),  # 0 > 1, 0 > 2, not 1 > 2
            "pairs_with_reward_model": 3,
            "most_frequent_pattern": 1.0,
            "most_frequent_place": 1.0,
            "attention_checks": 0,
            "check_pairs": 0,
            "check_pairs_right": 0,
            "unread": 0,
            "signs": [],
        }
        assert (bob["annotator"], bob["flagged"], bob["longer_preferred"]) == ("b[o]b\x1b", 1, pytest.approx(1 / 3))
        assert (gone["rankings"], gone["taken_back"], gone["median_seconds"]) == (0, 1, None)
        assert found["all"]["longer_preferred"] == pytest.approx(1 / 9)

        out = label("", "--stats")[1]
        rows = {line.split()[0]: line.split()[1:] for line in reversed(out.splitlines())}
        assert out.startswith("2 of 3 prompts ranked; needed: 2\n")
        assert rows["ann"] == ["2", "1", "0", "0:34", "0", "%", "0", "100", "%", "0", "%", "67", "%"]
        assert rows["b[o]b\\x1b"] == ["1", "0", "0", "0:07", "0", "%", "1", "100", "%", "33", "%", "67", "%"]
        assert rows["gone"] == ["0", "0", "1", "-", "-", "0", "-", "-", "-"]
        assert rows["all"] == ["3", "0:07", "0", "%", "1", "100", "%", "11", "%", "-"]
        assert (
            "the answer shown first is best in 33 %, the longer of two answers is better in 50 % (of 9 comparisons)"
            in out
        )
        assert "Krippendorff's alpha: 0.39, weak: tastes differ" in out
        assert "ann ordered 67 % of 3 held-out pairs as the reward model does\n" in out
        store.save(a_ranking(1, "021", seconds=65.0))
        assert "ann ordered 67 % of 3 pairs as before, on prompts ranked twice\n" in label("", "--stats")[1]

    def test_a_prompt_without_an_order_does_not_count_as_ranked(self, label) -> None:
        a_run(minimum=2, prompts=2)
        assert label("123\nb\n")[0] == 5
        code, out, _ = label("", "--stats", "--json")
        found = json.loads(out)
        assert (code, found["prompts_ranked"], found["prompts_needed"]) == (0, 1, 2)
        assert found["all"]["flagged"] == 1

    def test_of_nothing(self, label) -> None:
        a_run()
        code, out, _ = label("", "--stats")
        assert code == 0
        assert out.startswith("0 of 3 prompts ranked; needed: 2\n")
        assert "Krippendorff's alpha: -, unknown: " in out
        assert json.loads(label("", "--stats", "--json")[1])["annotators"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["label", "people", "--stats"],
        ["annotations", "export", "people", "y.jsonl"],
        ["annotations", "import", "people", "x.jsonl"],
        ["label", "people"],
    ],
)
def test_no_command_here_imports_torch(arguments: list[str]) -> None:
    a_run()
    Path("x.jsonl").write_text(a_ranking(0, "012").model_dump_json())
    look = f"""
import sys
from lowrank_rlhf import cli
sys.argv = ["lowrank-rlhf", *{arguments}]
try:
    cli.main()
finally:
    print([name for name in ("torch", "transformers", "datasets", "matplotlib") if name in sys.modules])
"""
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", look],
        input="q\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["label"], ["annotations"], ["annotations", "export"], ["annotations", "import"]]
)
def test_every_help_has_examples_that_are_commands(monkeypatch, capsys, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", *arguments, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main()
    out = capsys.readouterr().out
    examples = [line for line in out.split("Examples:")[1].splitlines()[1:] if "python -m" in line]
    assert examples
    assert all(line.startswith("    python -m lowrank_rlhf") for line in examples)
