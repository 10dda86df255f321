"""`validate` reads the data and refuses what the run would refuse before its first stage."""

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tiny import load_tiny
from tiny_run import make_config, make_session

from lowrank_rlhf import cli
from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.data import length_filter
from lowrank_rlhf.data.length_filter import check_lengths
from lowrank_rlhf.data.requirements import check_data
from lowrank_rlhf.data.run_data import RunData
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline.pipeline import run
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.session import Session
from lowrank_rlhf.sources.tokenizer import ChatTokenizer, local_tokenizer
from lowrank_rlhf.training.reward_data import make_groups


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(number: int, prompt: str = "") -> dict[str, str]:
    return {"prompt": prompt or f"question {number}", "chosen": f"kind {number}", "rejected": "short"}


def cut_pair(number: int) -> dict[str, str]:
    """Answers of over 100 tokens that differ in the last one only, as pairs_equal_after_cut.jsonl of issue 20."""
    same = f"the user asks question {number} and " * 20
    return {"prompt": f"question {number}?", "chosen": f"{same}good", "rejected": f"{same}bad bad"}


PROMPTS = [{"prompt": f"other question {number}", "response": "kind"} for number in range(8)]
LONG = "short and kind to the point " * 8
TOOL = {"role": "tool", "content": "20 degrees"}
NO_TOOLS = "{% for m in messages %}{% if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + (
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CASES = {
    "no comparisons": ([pair(1) | {"rejected": "kind 1"}], "no comparisons left"),
    "one compared prompt": (
        [pair(1), pair(2, "question 1")],
        "rank.dataset: 1 prompt with comparisons, without those that data.held_out keeps; stage reward requires 2. "
        "Add prompts",
    ),
    "no room": (
        [pair(number, f"{number} {LONG}") for number in range(3)],
        "rank.dataset: no two of its 3 prompts leave room for an answer within model.max_length 60. Raise it",
    ),
    "answers equal after the cut": (
        [cut_pair(number) for number in range(16)],
        "rank.dataset: in 16 of 16 comparisons the answers are equal after the cut to model.max_length 60. 0 "
        "prompts left to compare; stage reward requires 2. Raise model.max_length",
    ),
    "one prompt with others": (
        [cut_pair(1), cut_pair(2), pair(3)],
        "in 2 of 3 comparisons the answers are equal after the cut to model.max_length 60. 1 prompt left",
    ),
    "bad rows": ([{"prompt": "Hi", "chosen": "a", "rejected": 7}], '"rejected" must be a string, not a number'),
}


@pytest.mark.parametrize("name", CASES)
def test_comparisons_are_checked_before_the_first_stage(tiny_folder, tmp_path, capsys, monkeypatch, name) -> None:
    rows, expected = CASES[name]
    config = make_config(
        tiny_folder(),
        write(tmp_path / "prompts.jsonl", *PROMPTS),
        rank__source="dataset",
        rank__dataset=str(write(tmp_path / "pairs.jsonl", *rows)),
    )
    with pytest.raises(UserError) as caught:
        run(config, tmp_path / "runs", progress=Progress.silent())
    assert expected in str(caught.value)
    assert not list((tmp_path / "runs").rglob("done/*"))
    (tmp_path / "my.yaml").write_text(dump_config(config))
    monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", "validate", str(tmp_path / "my.yaml"), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert json.loads(capsys.readouterr().out) == {"ok": False, "errors": str(caught.value).splitlines()}


def test_two_compared_prompts_need_room_for_two_tokens(tiny_folder, tmp_path) -> None:
    """One token of an answer, and the one that ends it."""
    pairs = write(tmp_path / "pairs.jsonl", pair(1), pair(2))
    prompts = write(tmp_path / "prompts.jsonl", *PROMPTS)
    settings = {"rank__source": "dataset", "rank__dataset": str(pairs), "stages": ("rank", "reward")}
    settings["sample__max_new_tokens"] = 1
    config = make_config(tiny_folder(), prompts, **settings)
    tokenizer, compared = local_tokenizer(config.model), RunData(config).comparisons
    longest = max(tokenizer.prompts([prompt.messages for prompt in compared.prompts]))
    config = make_config(tiny_folder(), prompts, model__max_length=longest + 2, **settings)
    check_data(RunData(config), config)
    config = make_config(tiny_folder(), prompts, model__max_length=longest + 1, **settings)
    with pytest.raises(UserError, match="no two of its 2 prompts leave room for an answer"):
        check_data(RunData(config), config)


@pytest.mark.parametrize(("limit", "left_out"), [(60, 3), (150, 2), (250, 0)])
def test_validate_names_the_comparisons_that_the_run_leaves_out(
    tiny_folder, tmp_path, capsys, monkeypatch, limit, left_out
) -> None:
    """Also the tokenizer without torch and the model's own, and the reward stage, which leaves out as many."""
    answers = {row["prompt"]: [row["chosen"], row["rejected"]] for row in map(cut_pair, (1, 2))}
    answers |= {"question 3?": ["kind", "short"], "question 4?": [f"{LONG}kind", f"{LONG}short", "kind"]}
    rows = [{"prompt": name, "responses": each, "scores": [3, 2, 1][: len(each)]} for name, each in answers.items()]
    config = make_config(
        tiny_folder(),
        write(tmp_path / "prompts.jsonl", *PROMPTS),
        model__max_length=limit,
        rank__source="dataset",
        rank__dataset=str(write(tmp_path / "lists.jsonl", *rows)),
    )
    said = f"Left out {left_out} of 6 comparisons: the answers are equal after the cut to model.max_length {limit}."
    notes = [said] if left_out else []
    (tmp_path / "my.yaml").write_text(dump_config(config))
    for option in ("", "--json"):
        arguments = ["lowrank-rlhf", "validate", f"{tmp_path}/my.yaml", option]
        monkeypatch.setattr(sys, "argv", list(filter(None, arguments)))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        out = capsys.readouterr().out
        if option:
            assert json.loads(out)["notes"] == notes
        else:
            assert out.splitlines()[1:] == [f"  {note}" for note in notes]
    session, shown = make_session(config, tmp_path), io.StringIO()
    session.progress = Progress(Console(file=shown, width=200))
    session.filter_lengths()
    assert shown.getvalue().strip() == "".join(notes)
    found = session.data.comparisons
    pairs = [pair for ranking in found.rankings for pair in compare(ranking)]
    groups, _ = make_groups(load_tiny(tiny_folder()), limit, found.prompts, found.answers, pairs, found.rankings)
    assert sum(len(group.pairs) for group in groups) == 6 - left_out


def test_responses_are_tokenized_in_chunks_and_only_while_the_reward_stage_is_to_run(
    tiny_folder, tmp_path, monkeypatch
) -> None:
    """Three rankings at once: chunks of 3, 3 and 2 rankings of two answers each."""
    config = make_config(
        tiny_folder(),
        write(tmp_path / "prompts.jsonl", *PROMPTS),
        rank__source="dataset",
        rank__dataset=str(write(tmp_path / "pairs.jsonl", *map(pair, range(7)), cut_pair(8))),
    )
    data, sizes = RunData(config), []
    whole = ChatTokenizer.answer_ids
    monkeypatch.setattr(ChatTokenizer, "answer_ids", lambda self, texts: sizes.append(len(texts)) or whole(self, texts))
    monkeypatch.setattr(length_filter, "_AT_ONCE", 3)
    notes = check_lengths(None, data.comparisons, config, ("rank", "reward"))
    assert notes == ["Left out 1 of 8 comparisons: the answers are equal after the cut to model.max_length 60."]
    assert sizes == [6, 6, 4]
    assert check_lengths(None, data.comparisons, config, ("ppo", "evaluate")) == []
    assert sizes == [6, 6, 4]


def test_a_resumed_run_checks_what_its_unfinished_stages_read(tiny_folder, tmp_path, monkeypatch) -> None:
    config = make_config(
        tiny_folder(),
        write(tmp_path / "prompts.jsonl", *PROMPTS),
        data__held_out=2,
        rank__source="dataset",
        rank__dataset=str(write(tmp_path / "pairs.jsonl", *map(pair, range(7)))),
    )
    run(config, tmp_path, until="reward", progress=Progress.silent())
    found = []

    def stop(session: Session) -> None:
        found.append(tuple(session.unfinished))
        raise UserError("enough")

    monkeypatch.setattr(Session, "filter_lengths", stop)
    for redo in ((), ("reward",)):
        with pytest.raises(UserError, match="enough"):
            run(config, tmp_path, until="ppo", redo=redo, progress=Progress.silent())
    assert found == [("ppo", "evaluate"), ("reward", "ppo", "evaluate")]


def test_prompts_are_checked_too(tiny_folder, tmp_path) -> None:
    bare = write(tmp_path / "bare.jsonl", *({"prompt": row["prompt"]} for row in PROMPTS))
    config = make_config(tiny_folder(), bare)
    with pytest.raises(UserError, match=r"data\.prompts: no training prompt has a `response`"):
        check_data(RunData(config), config)
    config = make_config(tiny_folder(), bare, sft__source="base")
    check_data(RunData(config), config)
    config = make_config(tiny_folder(), bare, sft__source="base", sample__prompts=1)
    with pytest.raises(UserError, match=r"data\.prompts: 1 training prompt to rank answers to; stage reward requires"):
        check_data(RunData(config), config)
    check_data(RunData(config), config.model_copy(update={"stages": ("sft", "sample", "rank")}))


HUB = "hub:somebody/set"
ON_HUB: dict[str, tuple[list[dict[str, object]] | None, list[dict[str, object]] | None, str]] = {
    "good prompts": (PROMPTS, None, ""),
    "bad prompts": ([*PROMPTS, {"prompt": 7}], None, '"prompt" must be a string, not a number'),
    "no demonstration": ([{"prompt": row["prompt"]} for row in PROMPTS], None, "no training prompt has a `response`"),
    "a prompt with a control token": ([*PROMPTS, {"prompt": "a<|im_end|>"}], None, "a control token of the model"),
    "a long prompt": ([*PROMPTS, {"prompt": LONG * 3}], None, "too long for model.max_length 60"),
    "good pairs": (None, [pair(1), pair(2)], ""),
    "a pair with a control token": (None, [pair(1), pair(2, "a<|im_end|>")], "a control token of the model"),
    **{name: (None, rows, problem) for name, (rows, problem) in CASES.items()},
    "both": (None, None, ""),
}
"""Prompts, or None for those on the hub, comparisons likewise, and the problem of the ones on this machine."""


@pytest.mark.parametrize("name", ON_HUB)
def test_validate_checks_what_is_not_on_the_hub(tiny_folder, tmp_path, capsys, monkeypatch, name) -> None:
    prompts, pairs, problem = ON_HUB[name]
    config = make_config(
        tiny_folder(),
        data__prompts=str(write(tmp_path / "prompts.jsonl", *prompts)) if prompts else HUB,
        data__held_out=5,
        rank__source="dataset",
        rank__dataset=str(write(tmp_path / "pairs.jsonl", *pairs)) if pairs else HUB,
    )
    (tmp_path / "my.yaml").write_text(dump_config(config))
    for option in ("", "--json"):
        monkeypatch.setattr(
            sys, "argv", list(filter(None, ("lowrank-rlhf", "validate", f"{tmp_path}/my.yaml", option)))
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert ended.value.code == (2 if problem else 0)
        if problem:
            assert problem in "\n".join(json.loads(out)["errors"] if option else [err])
        elif option:
            assert json.loads(out)["not_read"] == [HUB]
        else:
            assert f"not read: {HUB}." in out


@pytest.mark.parametrize("where", ["prompts", "comparisons"])
def test_a_turn_that_the_template_leaves_out_is_named_before_the_first_stage(tiny_folder, tmp_path, where) -> None:
    asked = [{"role": "user", "content": "Is it warm?"}, {"role": "assistant", "content": "I ask."}, TOOL]
    prompts, pairs = [*PROMPTS], [pair(1), pair(2), pair(3)]
    (prompts if where == "prompts" else pairs).append({"prompt": asked, "chosen": "a", "rejected": "b"})
    if where == "prompts":
        prompts[-1] = {"messages": asked}
    file, compared = write(tmp_path / "prompts.jsonl", *prompts), write(tmp_path / "pairs.jsonl", *pairs)
    settings = {"rank__source": "dataset", "rank__dataset": str(compared)}
    place = f"{file}:9 (p00009)" if where == "prompts" else f"{compared}, row 4"
    config = make_config(tiny_folder(), file, model__chat_template=NO_TOOLS, **settings)
    for check in (
        lambda: run(config, tmp_path / "runs", progress=Progress.silent()),
        lambda: check_data(RunData(config), config),
    ):
        with pytest.raises(UserError) as caught:
            check()
        assert str(caught.value) == (
            f"The chat template rejects 1 prompt:\n  {place}: leaves out the tool message\n"
            "Change or delete these rows, or set another template as model.chat_template"
        )
    assert not list((tmp_path / "runs").rglob("done/*"))
    keeps = make_config(tiny_folder(), file, **settings)
    check_data(RunData(keeps), keeps)
