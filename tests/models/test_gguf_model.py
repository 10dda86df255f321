"""A GGUF file loaded in its own blocks against transformers' dequantised load of the same file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny import LORA, load_tiny, make_batch, make_tiny_model, randomise, tiny_gguf
from tiny_sources import make_gguf
from torch import nn
from transformers import AutoModelForCausalLM, GgufConfig

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.base import load_base
from lowrank_rlhf.models.layers.gguf_linear import GgufLinear
from lowrank_rlhf.models.layers.merging import merged
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources import gguf_blocks
from lowrank_rlhf.sources.fetch import fetch_model
from lowrank_rlhf.sources.gguf import convert_gguf
from lowrank_rlhf.sources.gguf_blocks import dequantise_blocks
from lowrank_rlhf.sources.model_shape import find_shape


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWRANK_RLHF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(source: Path, **settings: object) -> ModelConfig:
    return ModelConfig.model_validate({"source": str(source), "device": "cpu", "compute_dtype": "float32", **settings})


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"])
def test_every_weight_is_that_of_transformers_dequantised_load(tmp_path, monkeypatch, architecture) -> None:
    if architecture == "qwen3":
        monkeypatch.setitem(tiny.ARCHITECTURES, "qwen3", {"head_dim": 128})  # transformers does not read its width
    path = tiny_gguf(make_tiny_model(tmp_path / architecture, architecture))
    base = load_base(config(path), Progress.silent())
    assert base.config.quantization == "gguf"
    plain = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    ).eval()
    expected = dict(plain.named_parameters())
    found = {
        f"{name}.{leaf}": layer.dequantised() if isinstance(layer, GgufLinear) and leaf == "weight" else parameter
        for name, layer in base.model.named_modules()
        for leaf, parameter in layer.named_parameters(recurse=False)
        if leaf in ("weight", "bias") and name != "lm_head"
    }
    assert found.keys() == expected.keys()
    assert [name for name, weight in found.items() if not torch.equal(weight, expected[name])] == []
    layers = [layer for layer in base.model.get_decoder().layers.modules() if isinstance(layer, nn.Linear)]
    assert {type(layer) for layer in layers} == {GgufLinear, nn.Linear}  # one kind is F16
    assert {layer.kind for layer in layers if isinstance(layer, GgufLinear)} == {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(base.model(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_an_untied_vocabulary_projection_is_read(tiny_folder, tmp_path) -> None:
    folder = tmp_path / "untied"
    model = AutoModelForCausalLM.from_pretrained(tiny_folder(), tie_word_embeddings=False)
    nn.init.normal_(model.lm_head.weight)
    load_tiny(tiny_folder()).tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    path = make_gguf(folder, tmp_path / "untied.gguf", kinds=("Q8_0",))
    base = load_base(config(path), Progress.silent())
    assert base.model.lm_head.weight is not base.model.get_input_embeddings().weight
    torch.testing.assert_close(base.model.lm_head.weight, model.lm_head.weight, rtol=0, atol=0.02)


def test_the_converted_folder_is_as_small_as_the_file(tiny_folder) -> None:
    path = tiny_gguf(tiny_folder())
    folder = fetch_model(config(path), Progress.silent())
    assert folder.name.endswith("-blocks")
    assert (folder / "model.safetensors").stat().st_size < 1.1 * path.stat().st_size
    assert fetch_model(config(path, quantization="nf4"), Progress.silent()) != folder


def test_merged_weights_answer_as_the_adapter_does(tiny_folder) -> None:
    roles, batch = Roles(load_tiny(tiny_folder(), "gguf"), LORA), make_batch()
    randomise(roles, Role.POLICY, 0)
    inputs = {"input_ids": batch.ids, "attention_mask": batch.attention.long()}
    with roles.acting_as(Role.POLICY):
        expected = roles.base.model(**inputs).logits[batch.attention]
    with merged(roles, Role.POLICY), torch.no_grad():
        assert all(joint.merged is not None for joint in roles.slots.joints)
        torch.testing.assert_close(roles.base.model(**inputs).logits[batch.attention], expected, rtol=1e-4, atol=1e-4)


def test_the_planned_bytes_are_those_of_the_loaded_layers(tiny_folder) -> None:
    path = tiny_gguf(tiny_folder())
    for source in (path, path):  # by the file's header, and again with the folder made
        shape = find_shape(config(source))
        base = load_base(config(source), Progress.silent())
        layers = [layer for layer in base.model.get_decoder().layers.modules() if isinstance(layer, GgufLinear)]
        held = sum(parameter.nbytes for layer in layers for parameter in layer.parameters())
        assert shape is not None
        assert shape.block_bytes == pytest.approx(held, rel=0.04)
        assert shape.block_weights == sum(layer.in_features * layer.out_features for layer in layers)


# --- Dequantised


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gemma3_text", "phi3"])
@pytest.mark.parametrize("limit", [2**30, 2**14])
def test_tensor_by_tensor_it_is_transformers_whole_conversion(tmp_path, monkeypatch, architecture, limit) -> None:
    path = tiny_gguf(make_tiny_model(tmp_path / architecture, architecture))
    monkeypatch.setattr(gguf_blocks, "_SHARD_BYTES", limit)
    monkeypatch.setattr(gguf_blocks, "_ROWS_BYTES", 2**10)
    whole, found = tmp_path / "whole", tmp_path / "found"
    convert_gguf(path, whole)
    monkeypatch.setattr(gguf_blocks, "convert_gguf", lambda *_: pytest.fail("all in float32 at once"))
    dequantise_blocks(path, found)
    files = sorted(found.glob("*.safetensors"))
    assert (len(files) > 1) == (limit == 2**14)
    sizes = [[tensor.nbytes for tensor in load_file(file).values()] for file in files]
    assert all(sum(tensors) <= limit or len(tensors) == 1 for tensors in sizes)
    expected, loaded = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (whole, found))
    assert expected.keys() == loaded.keys()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.bfloat16}
    assert [name for name, tensor in loaded.items() if not torch.equal(tensor, expected[name])] == []


def test_a_file_that_is_not_known_here_is_read_by_transformers(tiny_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gguf_blocks, "_ARCHITECTURES", ())
    dequantise_blocks(tiny_gguf(tiny_folder()), tmp_path / "found")
    assert load_file(tmp_path / "found" / "model.safetensors")


# --- Refusals


def test_only_a_gguf_file_has_blocks(tiny_folder) -> None:
    with pytest.raises(ValueError, match="quantization: gguf requires a GGUF file as source"):
        config(tiny_folder(), quantization="gguf")


@pytest.mark.parametrize(
    ("architecture", "kinds", "reason"),
    [
        ("falcon", (), "blocks of a falcon model are not supported"),
        ("llama", ("Q4_1", "TQ1_0"), "has blocks of type TQ1_0, not one of Q4_0, Q4_1"),
    ],
)
def test_a_file_that_cannot_be_kept_names_the_way_out(wide_folder, tmp_path, architecture, kinds, reason) -> None:
    path = make_gguf(wide_folder, tmp_path / "odd.gguf", architecture, kinds)
    with pytest.raises(UserError) as caught:
        fetch_model(config(path), Progress.silent())
    assert reason in str(caught.value)
    assert "model.quantization=nf4" in str(caught.value)


@pytest.fixture
def wide_folder(tiny_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder whose rows are whole numbers of 256 weights."""
    folder = tmp_path / "wide"
    settings = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    about = json.loads((tiny_folder() / "config.json").read_text()) | settings
    model = AutoModelForCausalLM.from_config(type(load_tiny(tiny_folder()).model.config)(**about))
    load_tiny(tiny_folder()).tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("damage", ["missing", "shape", "row"])
def test_a_damaged_folder(tiny_folder, damage) -> None:
    made = config(tiny_gguf(tiny_folder()))
    path = fetch_model(made, Progress.silent()) / "model.safetensors"
    metadata, tensors = _metadata(path), load_file(path)
    name = "model.layers.1.mlp.down_proj.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = tensors[name][1:].contiguous()
    else:
        tensors[name] = tensors[name][:, 1:].contiguous()
    save_file(tensors, path, metadata)
    listed = json.loads((path.parent / "files.json").read_text()) | {path.name: path.stat().st_size}
    (path.parent / "files.json").write_text(json.dumps(listed))
    (path.parent / "checksums.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match=f"{name} is not in|by config.json"):
        load_base(made, Progress.silent())


def _metadata(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    header: dict[str, dict[str, str]] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header["__metadata__"]
