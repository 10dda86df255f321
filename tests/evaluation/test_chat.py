"""The conversation with stand-ins for the models, and the command on a tiny run."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import randomise
from tiny_finished import ROLES, finished_run

from lowrank_rlhf import cli
from lowrank_rlhf.commands.terminal import chat_loop
from lowrank_rlhf.commands.terminal.chat_loop import Conversation, Settings, talk
from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.evaluation.chat import ChatAnswer, ChatModels, ChatSampling
from lowrank_rlhf.evaluation.speakers import check_speaker, speakers
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.models import pinned_precision
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.storage import save_role
from lowrank_rlhf.run.checkpoints import save_checkpoint
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.records import Message, Prompt
from lowrank_rlhf.session import Session

SETTINGS = Settings(
    voices=("base", "sft", "policy"), speaks="policy", temperature=0.7, max_new_tokens=8, max_prompt_tokens=20, seed=3
)


class Parrots:
    """Each voice says its name and the number of messages that it saw; a token is a character."""

    about_scores = "no scores here"

    def __init__(self) -> None:
        self.heard: list[tuple[str, int, ChatSampling]] = []
        self.stop_at: str | None = None
        self.says: str | None = None

    def encode(self, messages: Sequence[Message]) -> list[int]:
        self._count = len(messages)
        return [ord(character) for message in messages for character in message.content]

    def answer(
        self, voice: str, prompt: list[int], sampling: ChatSampling, on_text: Callable[[str], None]
    ) -> ChatAnswer:
        assert prompt
        self.heard.append((voice, self._count, sampling))
        text = self.says if self.says is not None else f"{voice}{self._count}"
        stopped = voice == self.stop_at
        text = text[:2] if stopped else text
        on_text(text)
        return ChatAnswer(voice, text, len(text), finished=not stopped, stopped=stopped, score=None if stopped else 0.5)


@pytest.fixture
def parrots() -> Parrots:
    return Parrots()


def lines_from(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    """A person at a terminal who types these lines, or presses Ctrl-C; then Ctrl-D."""
    left = iter(lines)

    def typed(_: str) -> str:
        line = next(left, EOFError)
        if not isinstance(line, str):
            raise line
        return line

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)


def session_of(parrots: Parrots, **settings) -> Conversation:
    return Conversation(parrots, replace(SETTINGS, **settings))


class TestConversation:
    def test_it_goes_on(self, parrots, capsys, monkeypatch) -> None:
        lines_from(monkeypatch, "a", "", "b", "/undo", "c", "/reset", "d")
        talk(session_of(parrots))
        assert [(voice, count) for voice, count, _ in parrots.heard] == [
            ("policy", 1),
            ("policy", 3),
            ("policy", 3),
            ("policy", 1),
        ]
        out, err = capsys.readouterr()
        assert out == "policy: policy1\npolicy: policy3\npolicy: policy3\npolicy: policy1\n\n"
        assert "policy answers: temperature 0.7, up to 8 tokens, seed 3. /help shows the commands." in err
        assert "no scores here" in err
        assert "[reward +0.50, 7 tokens]" in err

    def test_all_go_on_with_the_policys_answer(self, parrots, capsys) -> None:
        session = session_of(parrots, speaks="all", max_prompt_tokens=99)
        session.introduce()
        assert [answer.model for answer in session.ask("a")] == ["base", "sft", "policy"]
        session.ask("b")
        assert [(voice, count) for voice, count, _ in parrots.heard] == [
            (voice, count) for count in (1, 3) for voice in ("base", "sft", "policy")
        ]
        assert [message.content for message in session._messages] == ["a", "policy1", "b", "policy3"]
        out, err = capsys.readouterr()
        assert out.splitlines()[:3] == ["base: base1", "sft: sft1", "policy: policy1"]
        assert "the conversation continues with the answer of policy" in err

    def test_seeds(self, parrots) -> None:
        """One stream for all voices of a question, another for the next question; /seed restarts the streams."""
        session = session_of(parrots, speaks="all", max_prompt_tokens=999)
        for line in ("a", "b"):
            session.ask(line)
        session.command("/undo")
        session.ask("b")
        session.command("/seed 3")
        session.ask("a")
        session.command("/seed 4")
        session.ask("a")
        seeds = [sampling.seed for _, _, sampling in parrots.heard]
        one, two, three, again, other = (seeds[i : i + 3] for i in range(0, 15, 3))
        assert one == again == [derive_seed(3, "chat", 0)] * 3
        assert len({*one, *two, *three, *other}) == 4
        assert {(s.temperature, s.max_new_tokens) for _, _, s in parrots.heard} == {(0.7, 8)}

    def test_the_oldest_turns_go_first(self, parrots, capsys) -> None:
        session = session_of(parrots)  # 20 characters fit
        session.ask("aaa")  # and policy1: 10
        session.ask("bbb")  # 13; with policy3 20
        assert capsys.readouterr().err.count("dropped") == 0
        session.ask("ccccc")  # 25: the first turn must go
        assert [message.content for message in session._messages] == ["bbb", "policy3", "ccccc", "policy3"]
        assert "dropped the oldest question and its answer" in capsys.readouterr().err
        session.ask("d" * 20)
        assert "dropped the oldest 2 questions and their answers" in capsys.readouterr().err
        assert parrots.heard[-1][1] == 1

    def test_a_question_too_long_is_not_asked(self, parrots, capsys) -> None:
        session = session_of(parrots)
        assert session.ask("d" * 21) == []
        assert parrots.heard == []
        assert "the question has 21 tokens, but only 20 fit" in capsys.readouterr().err
        session.ask("e")
        assert parrots.heard[0][1] == 1

    def test_control_characters_are_spelt_out(self, parrots, capsys) -> None:
        parrots.says = "\x1b]0;title\x07\x1b[2J\r\u202e\x9b31m 你好\u3000！\n\tend"
        session_of(parrots).ask("a")
        out = capsys.readouterr().out
        assert out == "policy: \\x1b]0;title\\x07\\x1b[2J\\r\\u202e\\x9b31m 你好\u3000！\n\tend\n"

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("/as al", 'unknown model "al"; expected base, sft, policy, all. Did you mean "all"?'),
            ("/as \x1b[2J", 'unknown model "\\x1b[2J"'),
            ("/as", 'unknown model ""'),
            ("/as sft", "sft answers now"),
            ("/as all", "the conversation continues with the answer of policy"),
            ("/seed x", "/seed expects a whole number"),
            ("/seed -1", "/seed expects a whole number"),
            ("/seed ²", "/seed expects a whole number"),
            ("/seed 7", "seed is now 7"),
            ("/undo", "nothing to undo"),
            ("/udno", 'unknown command /udno; /help lists the commands. Did you mean "/undo"?'),
            ("/help", "/undo      remove the last question and its answer"),
        ],
    )
    def test_commands(self, parrots, capsys, line, says) -> None:
        session = session_of(parrots)
        assert session.command(line)
        out, err = capsys.readouterr()
        assert says in err
        assert out == ""

    def test_as_changes_who_answers(self, parrots) -> None:
        session = session_of(parrots)
        session.command("/as base")
        session.ask("a")
        assert parrots.heard[0][0] == "base"

    def test_quit_and_a_question_that_begins_with_a_slash(self, parrots, monkeypatch) -> None:
        lines_from(monkeypatch, "//etc", "/quit", "never asked")
        session = session_of(parrots)
        talk(session)
        assert [message.content for message in session._messages] == ["/etc", "policy1"]


class TestCtrlC:
    def test_once_stops_the_answer_and_keeps_what_was_said(self, parrots, monkeypatch, capsys) -> None:
        parrots.stop_at = "policy"
        lines_from(monkeypatch, "a", "b")
        session = session_of(parrots)
        talk(session)
        assert [message.content for message in session._messages] == ["a", "po", "b", "po"]
        out, err = capsys.readouterr()
        assert out == "policy: po\npolicy: po\n\n"
        assert "[2 tokens, stopped]" in err

    def test_again_leaves(self, parrots, monkeypatch) -> None:
        parrots.stop_at = "policy"
        lines_from(monkeypatch, "a", KeyboardInterrupt, "never asked")
        with pytest.raises(KeyboardInterrupt):
            talk(session_of(parrots))
        assert len(parrots.heard) == 1

    def test_twice_at_the_prompt_leaves_and_once_does_not(self, parrots, monkeypatch, capsys) -> None:
        lines_from(monkeypatch, KeyboardInterrupt, "a", KeyboardInterrupt, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            talk(session_of(parrots))
        assert len(parrots.heard) == 1
        assert capsys.readouterr().err.count("press Ctrl-C again to quit, or type /quit") == 2

    def test_before_the_last_voice_the_question_is_forgotten(self, parrots, capsys) -> None:
        parrots.stop_at = "sft"
        session = session_of(parrots, speaks="all")
        assert [answer.model for answer in session.ask("a")] == ["base", "sft"]
        assert session._messages == []
        assert "this question is not part of the conversation" in capsys.readouterr().err


# --- The models themselves


@pytest.fixture
def run(tiny_folder, tmp_path, monkeypatch) -> Session:
    session = finished_run(tiny_folder(), tmp_path, sample__temperature=0.8)
    monkeypatch.chdir(tmp_path)
    return session


def chat_models(session: Session) -> ChatModels:
    return ChatModels(session.load_roles(), session.run_dir)


def asked(session: Session, text: str) -> list[int]:
    return session.load_roles().base.encode_prompt(Prompt(id="x", messages=(Message(role="user", content=text),)))


def test_each_voice_is_its_adapter(run, monkeypatch) -> None:
    """Tokens of the stream against `sample_answers` as each role; one base is loaded, and it stays as it was."""
    loaded = []
    real = pinned_precision.load_base
    monkeypatch.setattr(pinned_precision, "load_base", lambda *arguments: loaded.append(1) or real(*arguments))
    session = Session(run.config, run.run_dir, run.progress, run.stop)
    speakers, prompt = chat_models(session), asked(run, "what is short")
    checksum, heard = session.load_roles().base.checksum(), {}
    for voice in ("policy", "base", "sft", "policy", "base"):
        pieces: list[str] = []
        answer = speakers.answer(voice, prompt, ChatSampling(24, 0.8, 11), pieces.append)
        assert "".join(pieces) == answer.text
        assert heard.setdefault(voice, answer) == answer
    assert len(loaded) == 1
    assert session.load_roles().base.checksum() == checksum
    for voice, role in (("policy", Role.POLICY), ("sft", Role.REFERENCE)):
        ((expected,),) = sample_answers(
            run.load_roles(), role, [prompt], SampleConfig(max_new_tokens=24, temperature=0.8), seed=11
        )
        assert heard[voice].text == run.load_roles().base.decode(expected.tokens)
        assert (heard[voice].tokens, heard[voice].finished) == (len(expected.tokens), expected.finished)
    assert len({answer.text for answer in heard.values()}) == 3


def test_the_bare_base_speaks_without_an_adapter(run) -> None:
    """Greedy, against transformers' own forward with all adapters off."""
    prompt = asked(run, "what is short")
    speakers = chat_models(run)
    speakers.answer("policy", prompt, ChatSampling(4, 0.0, 0), lambda _: None)
    tokens = list(prompt)
    for _ in range(6):
        with run.load_roles().peft.disable_adapter(), torch.no_grad():
            tokens.append(int(run.load_roles().peft(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == run.load_roles().base.eos:
            break
    answer = speakers.answer("base", prompt, ChatSampling(6, 0.0, 0), lambda _: None)
    assert answer.text == run.load_roles().base.decode(tokens[len(prompt) :])


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_score_is_the_normalised_one(tiny_folder, tmp_path, pooling) -> None:
    run = finished_run(tiny_folder(), tmp_path, pooling=pooling)
    prompt = asked(run, "what is short")
    speakers = chat_models(run)
    answer = speakers.answer("sft", prompt, ChatSampling(9, 0.8, 2), lambda _: None)
    ((response,),) = sample_answers(
        run.load_roles(), Role.REFERENCE, [prompt], SampleConfig(max_new_tokens=9, temperature=0.8), seed=2
    )
    with run.load_roles().acting_as(Role.REWARD):
        states = run.load_roles().decoder(input_ids=torch.tensor([[*prompt, *response.tokens]])).last_hidden_state[0]
        values = (states @ run.load_roles().heads[Role.REWARD].weight[0])[len(prompt) :]
    raw = float(values[-1] if pooling == "last" else values.mean())
    assert answer.score == pytest.approx((raw - 0.4) / 1.7, abs=1e-3)


def test_ctrl_c_in_the_middle_leaves_the_models_whole(run) -> None:
    prompt, speakers = asked(run, "what is short"), chat_models(run)
    whole = speakers.answer("policy", prompt, ChatSampling(24, 0.8, 11), lambda _: None)
    pieces: list[str] = []

    def interrupted(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    answer = speakers.answer("policy", prompt, ChatSampling(24, 0.8, 11), interrupted)
    assert (answer.stopped, answer.finished, answer.score) == (True, False, None)
    assert answer.text == "".join(pieces)
    assert whole.text.startswith(answer.text)
    assert len(answer.text) < len(whole.text)
    assert speakers.answer("policy", prompt, ChatSampling(24, 0.8, 11), lambda _: None) == whole


def test_what_a_score_means_is_said(tiny_folder, tmp_path) -> None:
    run = finished_run(tiny_folder(), tmp_path)
    assert chat_models(run).about_scores == "reward: 0 is the average SFT answer, 1 is one standard deviation above it"
    path = run.run_dir.artifact("adapters/reward") / "reward.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weak": "no better than chance"}))
    assert chat_models(run).about_scores.endswith("this reward model is weak: no better than chance")
    path.unlink()
    speakers = chat_models(run)
    assert speakers.about_scores == "no scores: the run has no reward model yet"
    assert speakers.answer("sft", asked(run, "a"), ChatSampling(3, 1.0, 0), lambda _: None).score is None


# --- The command


@pytest.fixture
def kept_policies(run) -> dict[str, Path]:
    """Random adapters where a run keeps policies: the last step, an earlier one, two checkpoints of a second round."""
    run_dir = run.run_dir
    second = RunDir(run_dir.run, 2)
    second.path.mkdir()
    second.event("start")
    found = {"policy-last": run_dir.artifact("adapters/policy-last")}
    for seed, step in enumerate((4, 14), 20):

        def write(folder: Path, seed: int = seed) -> None:
            randomise(run.load_roles(), Role.POLICY, seed)
            save_role(run.load_roles(), Role.POLICY, folder / "policy")

        save_checkpoint(second.work("ppo"), step, write)
        found[f"round-2/step-{step}"] = second.work("ppo") / f"step-{step:06}" / "policy"
    shutil.copytree(found["round-2/step-4"], found["policy-last"])
    kept = found["policy-last"] / "step-000002"
    shutil.copytree(found["round-2/step-14"], kept)
    return {"policy-last": found.pop("policy-last"), "step-2": kept, **found}


def test_every_kept_policy_can_speak(run, kept_policies, command) -> None:
    """Checkpoints and the last step answer as `policy` does in their place; an earlier round's policy has its name."""
    assert list(speakers(run.run_dir.run)) == ["base", "sft", "policy", *kept_policies]
    ask = ("--prompt", "what is short", "--json", "--max-new-tokens", "20")
    code, out, err = command("chat", "tiny", "--as", ",".join(kept_policies), *ask)
    assert code == 0, err
    said = {answer["as"]: answer["text"] for answer in json.loads(out)["answers"]}
    assert list(said) == list(kept_policies)
    assert said["policy-last"] == said["round-2/step-4"] != said["round-2/step-14"] == said["step-2"]
    policy = run.run_dir.artifact("adapters/policy")
    shutil.rmtree(policy)
    shutil.copytree(kept_policies["round-2/step-14"], policy)
    assert json.loads(command("chat", "tiny", *ask)[1])["answers"][0]["text"] == said["round-2/step-14"]
    shutil.copytree(policy, RunDir(run.run_dir.run, 2).artifact("adapters/policy"))
    assert list(speakers(run.run_dir.run)) == ["base", "sft", "round-1", "policy", "round-2/step-4", "round-2/step-14"]


def test_a_damaged_checkpoint_does_not_speak(kept_policies, command) -> None:
    weights = kept_policies["round-2/step-14"] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code, out, err = command("chat", "tiny", "--as", "round-2/step-14", "--prompt", "a")
    assert (code, out) == (2, "")
    assert "step-000014: damaged checkpoint" in err


@pytest.mark.parametrize("name", ["ppo", "step-000004", "policy"])
def test_a_run_may_be_named_like_a_folder_of_checkpoints(tmp_path, name) -> None:
    for adapter in ("sft", "policy"):
        folder = tmp_path / name / "adapters" / adapter
        folder.mkdir(parents=True)
        check_speaker(folder)


def test_the_conversation_may_be_as_long_as_the_model_can_read(run, command) -> None:
    """256 positions, although training was limited to 60 tokens."""
    question = "what is short " * 12
    assert run.config.model.max_length < len(asked(run, question)) < 250
    code, out, _ = command("chat", "tiny", "--prompt", question, "--json")
    assert (code, len(json.loads(out)["answers"])) == (0, 1)


def test_an_answer_without_memory_left_is_an_error_in_words(run, monkeypatch) -> None:
    def fail(*_arguments, **_settings):
        raise MemoryError("none left")
        yield

    monkeypatch.setattr("lowrank_rlhf.evaluation.chat.stream_answer", fail)
    with pytest.raises(UserError, match=r"chat: out of memory after .* Begin a new conversation"):
        chat_models(run).answer("sft", asked(run, "a"), ChatSampling(3, 1.0, 0), lambda _: None)


def test_prompt_as_json(run, command) -> None:
    code, out, err = command("chat", "tiny", "--as", "all", "--prompt", "what is short", "--json", "--seed", "5")
    said = json.loads(out)
    assert code == 0
    assert "[reward" not in err
    assert (said["prompt"], said["temperature"], said["max_new_tokens"], said["seed"]) == ("what is short", 0.8, 6, 5)
    assert [answer["as"] for answer in said["answers"]] == ["base", "sft", "policy"]
    for answer, role in zip(said["answers"][1:], (ROLES["sft"], ROLES["policy"]), strict=True):
        ((expected,),) = sample_answers(
            run.load_roles(),
            role,
            [asked(run, "what is short")],
            SampleConfig(max_new_tokens=6, temperature=0.8),
            derive_seed(5, "chat", 0),
        )
        assert answer["text"] == run.load_roles().base.decode(expected.tokens)
        assert isinstance(answer["score"], float)
    assert out.isascii()


@pytest.mark.usefixtures("run")
def test_prompt_for_scripts(command) -> None:
    """stdout is the answer and nothing else; the default is the furthest adapter, seed and settings are the run's."""
    code, out, err = command("chat", "tiny", "--prompt", "what is short")
    explicit = ("--as", "policy", "--seed", "1", "--temperature", "0.8", "--max-new-tokens", "6")
    expected = json.loads(command("chat", "tiny", *explicit, "--prompt", "what is short", "--json")[1])
    assert (code, out) == (0, chat_loop.visible(expected["answers"][0]["text"]) + "\n")
    assert "[reward" in err
    code, out, _ = command("chat", "tiny", "--as", "all", "--prompt", "what is short")
    assert [line.split(":")[0] for line in out.splitlines() if ": " in line][:1] == ["base"]


def test_chat_samples_by_the_section_chat_of_the_config(tiny_folder, tmp_path, command, monkeypatch) -> None:
    """A temperature of its own and a top-p; the options replace them."""
    run = finished_run(tiny_folder(), tmp_path, sample__temperature=0.8, chat__temperature=1.4, chat__top_p=0.5)
    monkeypatch.chdir(tmp_path)
    ask = ("chat", "tiny", "--as", "policy", "--prompt", "what is short", "--json", "--max-new-tokens", "20")
    said = json.loads(command(*ask)[1])
    assert (said["temperature"], said["top_p"]) == (1.4, 0.5)
    options = ("--temperature", "0.8", "--top-p", "1")
    changed = json.loads(command(*ask, *options)[1])
    assert (changed["temperature"], changed["top_p"]) == (0.8, 1)
    for found in (said, changed):
        sampling = ChatSampling(20, found["temperature"], derive_seed(1, "chat", 0), found["top_p"])
        expected = chat_models(run).answer("policy", asked(run, "what is short"), sampling, lambda _: None)
        assert found["answers"][0]["text"] == expected.text
    assert said["answers"] != changed["answers"]


def test_top_p_is_shown_where_it_is_in_use(parrots, capsys) -> None:
    session_of(parrots, top_p=0.9).introduce()
    assert "policy answers: temperature 0.7, top-p 0.9, up to 8 tokens" in capsys.readouterr().err
    session_of(parrots, top_p=0.9).ask("a")
    session_of(parrots).ask("a")
    assert [sampling.top_p for _, _, sampling in parrots.heard] == [0.9, 1.0]


def test_refusals(tiny_folder, tmp_path, command, monkeypatch) -> None:
    finished_run(tiny_folder(), tmp_path, adapters=("sft",))
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (("nothing",), 'run "nothing" not found in runs. Existing runs: tiny.'),
        (("tiny", "--as", "policy"), "--as: runs/tiny has no model `policy`; it has base, sft"),
        (("tiny", "--json"), "--json requires --prompt"),
        (("tiny", "--as", "sft,step-4"), "--as: runs/tiny has no model `step-4`; it has base, sft"),
        (
            ("tiny", "--max-new-tokens", "256"),
            "--max-new-tokens: must be less than the context of this run's model, 256",
        ),
        (("tiny", "--temperature", "inf"), "--temperature: must be a finite number of at least 0"),
        (("tiny", "--top-p", "0"), "--top-p: must be above 0 and at most 1"),
        (("tiny", "--top-p", "1.01"), "--top-p: must be above 0 and at most 1"),
        (("tiny", "--top-p", "nan"), "--top-p: must be above 0 and at most 1"),
        (("tiny", "--prompt", "x" * 290), "tokens, but only 250 fit"),
        (("tiny", "--prompt", " "), "--prompt: must not be empty"),
    ):
        code, out, err = command("chat", *arguments)
        assert (code, out) == (2, ""), arguments
        assert message in err


def test_lines_from_a_pipe(tiny_folder, tmp_path) -> None:
    """Chinese in and bytes out through a real process; then bytes that are no text."""
    finished_run(tiny_folder(), tmp_path, adapters=("sft",))
    ended = subprocess.run(
        [sys.executable, "-m", "lowrank_rlhf", "chat", "tiny"],
        input="春天好\n\n/as base\nhello\n".encode() + b"\xff\xfe\n",
        capture_output=True, timeout=120, check=False, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    out, err = ended.stdout.decode(), ended.stderr.decode()
    assert ended.returncode == 2, err
    assert out.startswith("sft: ")
    assert "\nbase: " in out
    assert out.count("you: ") == 0
    assert "no scores: the run has no reward model yet" in err
    assert "stdin: not UTF-8 text" in err


def test_not_utf8_in_a_terminal(parrots, monkeypatch) -> None:
    lines_from(monkeypatch, "lone \udcff")
    with pytest.raises(UserError, match="stdin: not UTF-8 text"):
        talk(session_of(parrots))
