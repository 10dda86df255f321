"""Rows that are too long are listed before anything is computed, or left out with data.skip_too_long."""

import io
import json
from pathlib import Path

import pytest
from marks import done
from rich.console import Console
from tiny import STYLES, load_tiny, make_tiny_model
from tiny_run import make_config, make_session

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.length_filter import check_lengths
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline.pipeline import run
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Message, Prompt, Sample, read_jsonl

LONG = "short and kind to the point "
FIX = "Raise model.max_length, shorten them, or leave them out: data.skip_too_long=true"


def write(folder: Path, **texts: tuple[str, str | None]) -> Path:
    """Twelve short rows, those with an even number with a response, and then the rows of those ids."""
    rows: list[dict[str, str]] = []
    for number in range(12):
        rows.append({"id": f"s{number:02d}", "prompt": f"question {number}"})
        if number % 2 == 0:
            rows[-1]["response"] = "kind"
    for name, (prompt, response) in texts.items():
        rows.append({"id": name, "prompt": prompt} | ({"response": response} if response else {}))
    path = folder / "my.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make(tiny_folder, tmp_path):
    def config(long: dict[str, tuple[str, str | None]], **changes) -> Config:
        return make_config(tiny_folder(), write(tmp_path, **long), **{"data__held_out": 2, **changes})

    return config


def tokens(config: Config, text: str, response: str | None = None) -> int:
    """Of a prompt, and with its response: by the tokenizer of the loaded model."""
    base = load_tiny(Path(config.model.source))
    found = base.encode_prompt(Prompt(id="x", messages=(Message(role="user", content=text),)))
    return len(found) + (len(base.encode_response(response)) if response else 0)


def test_all_are_named_before_anything_is_computed(make, tmp_path) -> None:
    """Rows 13 and 14 leave no room for six more tokens in 60, one of them held out; of 15 only the response is long."""
    long = {"one": (6 * LONG, None), "two": (7 * LONG, "kind"), "three": ("question", 6 * LONG)}
    config = make(long)
    counts = tokens(config, 6 * LONG), tokens(config, 7 * LONG), tokens(config, "question", 6 * LONG)
    assert min(counts) > 60
    with pytest.raises(UserError) as caught:
        run(config, tmp_path / "runs", progress=Progress.silent())
    assert str(caught.value) == (
        "data.prompts: 2 prompts and 1 response too long for model.max_length 60:\n"
        f"  {tmp_path}/my.jsonl:13 (one): {counts[0]} tokens, and sample.max_new_tokens leaves 54\n"
        f"  {tmp_path}/my.jsonl:14 (two): {counts[1]} tokens, and sample.max_new_tokens leaves 54\n"
        f"  {tmp_path}/my.jsonl:15 (three): {counts[2]} tokens with its response\n"
        f"{FIX}"
    )
    assert not list((tmp_path / "runs").rglob("done/*"))
    assert not list((tmp_path / "runs").rglob("work"))


def test_held_out_ones_count_and_only_the_first_few_are_shown(make, tmp_path) -> None:
    config = make({f"l{number}": (f"{number} {7 * LONG}", None) for number in range(7)}, data__held_out=13)
    assert all(
        name in {prompt.id for prompt in make_session(config, tmp_path).data.prompts.held_out} for name in ("l6",)
    )
    with pytest.raises(
        UserError, match=r"(?s)7 prompts too long .*:13 \(l0\).*:17 \(l4\)[^(]*  and 2 more\n"
    ) as caught:
        make_session(config, tmp_path).filter_lengths()
    assert "l5" not in str(caught.value)


def test_the_limit_is_exact(make, tmp_path) -> None:
    """A prompt with room for just the answer, and a demonstration that just fits, are fine; one token less is not."""
    longest = tokens(make({}), 3 * LONG)
    for room, fits in ((longest, True), (longest - 1, False)):
        config = make({"a": (3 * LONG, None)}, model__max_length=room + 6)
        if fits:
            make_session(config, tmp_path).filter_lengths()
            continue
        with pytest.raises(UserError, match=rf"1 prompt too long .*\n.*\(a\): {longest} tokens"):
            make_session(config, tmp_path).filter_lengths()
    whole = tokens(make({}), "question", LONG)
    make_session(make({"a": ("question", LONG)}, model__max_length=whole), tmp_path).filter_lengths()
    with pytest.raises(UserError, match=rf"1 response too long .*\n.*\(a\): {whole} tokens with its response"):
        make_session(make({"a": ("question", LONG)}, model__max_length=whole - 1), tmp_path).filter_lengths()


@pytest.mark.parametrize("style", STYLES)
def test_without_the_model_the_errors_are_the_same(tmp_path, style) -> None:
    """By the tokenizer's own files, at every limit: the counts agree to the token, and so do the sentences."""
    data = write(tmp_path, one=(4 * LONG, None), two=(3 * LONG, "kind"), three=("question", 4 * LONG))
    folder, errors = make_tiny_model(tmp_path / "model", style=style), set()
    for limit in range(16, 80, 3):
        config = make_config(folder, data, data__held_out=2, model__max_length=limit)
        session = make_session(config, tmp_path)
        found = []
        for check in (session.filter_lengths, lambda: check_lengths(session.data.prompts, None, config, ())):  # noqa: B023
            try:
                check()
                found.append("")
            except UserError as error:
                found.append(str(error))
        assert found[0] == found[1]
        errors.add(found[0])
    assert "" in errors
    assert len(errors) > 5


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"stages": ["sft"]}, "1 response"),
        ({"stages": ["sft"], "sft__source": "base"}, None),
        ({"stages": ["sft"], "sft__examples": 1}, None),
        ({"stages": ["sample"]}, "1 prompt"),
        ({"stages": ["sample", "rank"], "rank__source": "dataset", "rank__dataset": "pairs.jsonl"}, None),
        ({"sft__source": "base"}, "1 prompt"),
    ],
)
def test_only_what_the_run_uses_is_looked_at(make, tmp_path, monkeypatch, changes, refused) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text(json.dumps({"prompt": "question", "chosen": "kind", "rejected": "short"}) + "\n")
    config = make({"one": (7 * LONG, None), "three": ("question", 7 * LONG)}, **{"seed": 2, **changes})
    session = make_session(config, tmp_path)
    assert session.data.prompts.demonstrations[0].prompt.id != "three"
    if refused is None:
        session.filter_lengths()
    else:
        with pytest.raises(UserError, match=rf"data\.prompts: {refused} too long"):
            session.filter_lengths()


def test_they_are_left_out_when_asked_to(make, tmp_path) -> None:
    long = {f"l{number}": (f"{number} {7 * LONG}", "kind" if number else None) for number in range(2)}
    config = make({**long, "three": ("question", 7 * LONG)}, data__skip_too_long=True, sample__prompts=None)
    console = Console(file=io.StringIO(), width=200)
    run_dir = run(config, tmp_path, until="sample", progress=Progress(console))
    printed = console.file.getvalue()
    session = make_session(config, tmp_path)
    training, held_out = session.prompts.training, session.prompts.held_out
    lost = sum(prompt.id in long for prompt in session.data.prompts.held_out)
    assert f"Left out 2 prompts and 1 response too long for model.max_length 60; {13 - 2 + lost} training" in printed
    assert (len(training), len(held_out)) == (11 + lost, 2 - lost)
    sampled = {sample.prompt_id for sample in read_jsonl(run_dir.artifact("samples.jsonl"), Sample)}
    assert sampled == {prompt.id for prompt in training}
    assert "three" in sampled, "only its response was too long"
    assert not sampled & set(long)
    assert done(run_dir, "sft")["summary"]["examples"] == len(session.filter_lengths().demonstrations)
    assert not {entry.prompt.id for entry in session.filter_lengths().demonstrations} & {*long, "three"}


def test_sft_takes_the_next_ones_for_those_left_out(make, tmp_path) -> None:
    long = {f"l{number}": ("question " + str(number), 7 * LONG) for number in range(20)}
    session = make_session(make(long, data__skip_too_long=True, sft__examples=4), tmp_path)
    fitting = [entry for entry in session.data.prompts.demonstrations if entry.prompt.id not in long]
    assert session.data.prompts.demonstrations[:4] != fitting[:4]
    assert session.filter_lengths().demonstrations == fitting[:4]


def test_nothing_left_is_an_error(make, tmp_path) -> None:
    config = make({}, model__max_length=12, data__skip_too_long=True)
    with pytest.raises(UserError, match=r"data\.skip_too_long: leaves no training prompt: 12 prompts too long"):
        make_session(config, tmp_path).filter_lengths()
