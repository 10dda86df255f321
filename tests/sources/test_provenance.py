"""An adapter says what it was trained on, and is refused on anything else, with the difference."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import CHATML, SPECIAL, load_tiny, make_roles, make_tokenizer
from tiny_finished import finished_run
from tiny_run import make_config, write_prompts

from lowrank_rlhf import cli
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.adapters import fill_role, load_role
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import WEIGHTS, save_role
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.provenance import KEY

OTHER_TEMPLATE = CHATML.replace("{% for", "Be brief.\n{% for", 1)
LOADERS = [load_role, fill_role]


def other_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] += 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_vocabulary(folder: Path) -> None:
    names = {"pad_token": SPECIAL[0], "eos_token": SPECIAL[2]}
    make_tokenizer([*SPECIAL, "<|spare|>"], CHATML, names).save_pretrained(folder)


def other_cuts(folder: Path) -> None:
    """The same vocabulary, but no merge is ever made: text becomes other tokens."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = []
    path.write_text(json.dumps(tokenizer))


def other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(OTHER_TEMPLATE)


CHANGES = {
    "base": other_weights,
    "tokenizer": other_vocabulary,
    "tokenizer, same vocabulary": other_cuts,
    "chat template": other_template,
}


@pytest.fixture
def saved(tiny_base, tmp_path) -> Path:
    """A policy trained on the tiny model, in 4 bits."""
    save_role(make_roles(tiny_base("nf4")), Role.POLICY, tmp_path / "adapter")
    return tmp_path / "adapter"


def refusal(load: Callable, roles: Roles, folder: Path) -> str:
    before = {name: tensor.clone() for name, tensor in roles.named_parameters(Role.POLICY).items()}
    with pytest.raises(UserError) as caught:
        load(roles, Role.POLICY, folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in roles.named_parameters(Role.POLICY).items())
    return str(caught.value)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("change", CHANGES)
def test_another_base_tokenizer_or_template_is_refused(saved, tiny_folder, tmp_path, change, load) -> None:
    model = shutil.copytree(tiny_folder(), tmp_path / "model")
    CHANGES[change](model)
    said = refusal(load, make_roles(load_tiny(model, "nf4")), saved)
    assert said.startswith(f"{saved / WEIGHTS}: trained with another {change.partition(',')[0]} (")
    assert said.count("there") == 1  # nothing else differs


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_another_quantisation_is_refused(saved, tiny_base, quantization, load) -> None:
    said = refusal(load, make_roles(tiny_base(quantization)), saved)
    assert f"trained with another quantisation (nf4 there, {quantization} here)" in said


def test_all_that_differs_is_said(saved, tiny_folder, tmp_path) -> None:
    model = shutil.copytree(tiny_folder(), tmp_path / "model")
    other_weights(model)
    other_template(model)
    said = refusal(load_role, make_roles(load_tiny(model)), saved)
    assert "trained with another base (" in said
    assert ", another chat template (" in said
    assert ", another quantisation (nf4 there, none here)" in said


@pytest.mark.parametrize("load", LOADERS)
def test_the_same_model_in_another_folder_is_the_same(saved, tiny_folder, tmp_path, load) -> None:
    model = shutil.copytree(tiny_folder(), tmp_path / "elsewhere")
    (model / "README.md").write_text("a copy")
    load(make_roles(load_tiny(model, "nf4")), Role.POLICY, saved)


@pytest.mark.parametrize("load", LOADERS)
def test_what_plain_peft_saved_says_nothing_and_loads(saved, tiny_base, load) -> None:
    save_file(load_file(saved / WEIGHTS), saved / WEIGHTS, metadata={"format": "pt"})
    load(make_roles(tiny_base("none")), Role.POLICY, saved)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ('{"schema": 2}', "written by a newer version (schema 2). Update lowrank_rlhf"),
        ("{", f"the entry {KEY} in its header is damaged"),
        ("[1]", f"the entry {KEY} in its header is damaged"),
        ('{"schema": "x"}', f"the entry {KEY} in its header is damaged"),
    ],
)
def test_an_entry_that_cannot_be_read_is_refused(saved, tiny_base, entry, says) -> None:
    save_file(load_file(saved / WEIGHTS), saved / WEIGHTS, metadata={"format": "pt", KEY: entry})
    assert says in refusal(load_role, make_roles(tiny_base("nf4")), saved)


def test_the_entry_names_nothing_of_this_machine(saved, tmp_path) -> None:
    with safe_open(saved / WEIGHTS, framework="numpy") as file:
        entry = file.metadata()[KEY]
    assert set(json.loads(entry)) == {"schema", "base", "tokenizer", "chat template", "quantisation"}
    assert str(tmp_path) not in entry
    assert "/" not in entry


class TestCommands:
    """A finished run whose config then names another model than its adapters were trained on."""

    @pytest.fixture(autouse=True)
    def _run(self, tiny_folder, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        finished_run(tiny_folder(), tmp_path)
        self.config = tmp_path / "runs" / "tiny" / "config.yaml"

    def refused(self, capsys, monkeypatch, *command: str) -> str:
        monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", *command])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr().err
        assert caught.value.code == 2, said
        assert "Traceback" not in said
        return said

    def test_evaluate(self, capsys, monkeypatch) -> None:
        said = self.refused(capsys, monkeypatch, "evaluate", "tiny", "model.quantization=none", "--limit", "1")
        assert "another quantisation (nf4 there, none here)" in said

    @pytest.mark.parametrize(
        "command",
        [
            ("chat", "tiny", "--prompt", "question 1", "--as", "sft"),
            ("export", "tiny", "out"),
            ("export", "tiny", "out", "--what", "reward"),
        ],
        ids=lambda command: " ".join(command),
    )
    def test_chat_and_export(self, capsys, monkeypatch, command) -> None:
        text = self.config.read_text()
        assert "quantization: nf4" in text
        self.config.write_text(text.replace("quantization: nf4", "quantization: int8"))
        assert "another quantisation (nf4 there, int8 here)" in self.refused(capsys, monkeypatch, *command)
        assert not Path("out").exists()


def test_sft_from_an_adapter_of_another_base_is_refused(saved, tiny_folder, tmp_path) -> None:
    changes = {"sft__source": "adapter", "sft__adapter": str(saved), "model__chat_template": OTHER_TEMPLATE}
    config = make_config(tiny_folder(), write_prompts(tmp_path / "prompts.jsonl"), **changes)
    with pytest.raises(UserError, match="another chat template"):
        pipeline.run(config, tmp_path / "runs", until="sft", progress=Progress.silent())


def test_ppo_refuses_a_reward_model_of_another_base(tiny_folder, tmp_path) -> None:
    """Put there by hand: what the run itself makes is stale as soon as its model changes."""
    from tiny_run import make_session

    from lowrank_rlhf.stages import ppo

    session = finished_run(tiny_folder(), tmp_path)
    other = make_session(session.config.model_copy(update={"model": other_model(session, tmp_path)}), tmp_path / "runs")
    with pytest.raises(UserError, match=r"adapters/sft/adapter_model.safetensors: trained with another base"):
        ppo.run(other)


def other_model(session, tmp_path: Path):
    model = shutil.copytree(session.config.model.source, tmp_path / "other")
    other_weights(model)
    return session.config.model.model_copy(update={"source": str(model)})
