"""Saved adapters are plain PEFT, which loads without this package."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from tiny import ARCHITECTURES, LORA, load_plain, make_batch, make_roles, randomise, role_loss, snapshot
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lowrank_rlhf.config.schema import LoraConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.maths.masking import pool
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import load_optimizer, read_tensors, save_optimizer, save_role, write_tensors

CHOICES = [
    ("none", "llama"),
    ("nf4", "llama"),
    ("gguf", "llama"),
    *(("none", name) for name in ARCHITECTURES if name != "llama"),
]
everywhere = pytest.mark.parametrize(("quantization", "architecture"), CHOICES)


@everywhere
def test_a_policy_loads_in_plain_peft(tiny_base, tmp_path, quantization, architecture) -> None:
    roles, batch = make_roles(tiny_base(quantization, architecture=architecture)), make_batch()
    save_role(roles, Role.REFERENCE, tmp_path)
    model = PeftModel.from_pretrained(load_plain(AutoModelForCausalLM, roles, quantization), tmp_path).eval()
    inputs = {"input_ids": batch.ids, "attention_mask": batch.attention.long()}
    with roles.acting_as(Role.REFERENCE):
        expected = roles.peft(**inputs).logits[batch.attention]
        torch.testing.assert_close(model(**inputs).logits[batch.attention], expected, rtol=1e-5, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["task_type"], written["r"], written["lora_alpha"]) == ("CAUSAL_LM", 4, 8)
    assert written["base_model_name_or_path"] == roles.base.config.source
    assert written["inference_mode"] is True


@everywhere
@pytest.mark.filterwarnings("ignore:Some weights")
def test_a_reward_model_loads_as_a_plain_classifier(tiny_base, tmp_path, quantization, architecture) -> None:
    roles, batch = make_roles(tiny_base(quantization, architecture=architecture)), make_batch()
    save_role(roles, Role.REWARD, tmp_path)
    classifier = load_plain(AutoModelForSequenceClassification, roles, quantization, num_labels=1)
    classifier.config.pad_token_id = roles.base.pad
    model = PeftModel.from_pretrained(classifier, tmp_path).eval()
    with torch.no_grad():
        found = model(input_ids=batch.ids, attention_mask=batch.attention.long()).logits.squeeze(-1)
    with roles.acting_as(Role.REWARD):
        expected = pool(roles.scores(batch), batch.response, "last")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_saving_leaves_the_live_config_alone(tiny_base, tmp_path) -> None:
    roles = make_roles(tiny_base())
    before = {role: roles.peft.peft_config[role.value].to_dict() for role in Role}
    save_role(roles, Role.REWARD, tmp_path / "new" / "deep")
    assert {role: roles.peft.peft_config[role.value].to_dict() for role in Role} == before


def test_what_plain_peft_saves_loads_here(tiny_base, tmp_path) -> None:
    """An SFT adapter from elsewhere is a valid start."""
    roles = make_roles(tiny_base())
    roles.peft.save_pretrained(tmp_path, selected_adapters=[Role.POLICY.value])
    expected = snapshot(roles, Role.POLICY)
    randomise(roles, Role.POLICY, 9)
    load_role(roles, Role.POLICY, tmp_path)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in snapshot(roles, Role.POLICY).items())


# --- errors


def saved(tiny_base, folder: Path, lora: LoraConfig = LORA) -> Path:
    save_role(Roles(tiny_base(), lora), Role.POLICY, folder)
    return folder


def refused(tiny_base, folder: Path) -> str:
    roles = make_roles(tiny_base())
    before = snapshot(roles, Role.POLICY)
    with pytest.raises(UserError) as caught:
        load_role(roles, Role.POLICY, folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot(roles, Role.POLICY).items())
    return str(caught.value)


def test_another_rank_is_refused(tiny_base, tmp_path) -> None:
    text = refused(tiny_base, saved(tiny_base, tmp_path, LoraConfig(rank=2, alpha=8)))
    assert "does not fit this run's section lora" in text
    assert "layers.0.mlp.down_proj.lora_A.weight is (2, 128), not (4, 128)" in text
    assert text.endswith("; and 25 more")


def test_another_alpha_is_refused(tiny_base, tmp_path) -> None:
    """The shapes agree, but the same weights would have twice the effect."""
    assert "lora_alpha is 16" in refused(tiny_base, saved(tiny_base, tmp_path, LoraConfig(rank=4, alpha=16)))


def test_other_modules_are_refused(tiny_base, tmp_path) -> None:
    text = refused(tiny_base, saved(tiny_base, tmp_path, LoraConfig(rank=4, alpha=8, target_modules=("q_proj",))))
    assert "missing base_model.model.model.layers.0.mlp.down_proj.lora_A.weight" in text


def test_what_is_no_adapter_is_refused(tiny_base, tmp_path) -> None:
    assert refused(tiny_base, tmp_path).startswith(f"{tmp_path}: adapter_config.json not found")
    folder = saved(tiny_base, tmp_path)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert refused(tiny_base, folder).startswith(f"{weights}: not a readable safetensors file (")
    saved(tiny_base, tmp_path)
    for text in ("{", "[]", "7"):
        (folder / "adapter_config.json").write_text(text)
        assert refused(tiny_base, folder).startswith(f"{folder / 'adapter_config.json'}: not a JSON object")


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"bias": "all"}, {"peft_type": "IA3"}])
def test_anything_but_plain_lora_is_refused(tiny_base, tmp_path, settings) -> None:
    """The tensors have the names and shapes of this run's, but the adapter computes another function."""
    path = saved(tiny_base, tmp_path) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    assert "not supported" in refused(tiny_base, tmp_path)


# --- the optimiser


def step(roles: Roles, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    with roles.acting_as(Role.CRITIC, train=True):
        roles.backward(role_loss(roles, Role.CRITIC, make_batch()))
    optimizer.step()


ADAM, ADAMW = torch.optim.Adam, torch.optim.AdamW
FUSED = partial(ADAM, fused=True)  # PPO's on CUDA


@pytest.mark.parametrize(("kind", "later"), [(ADAM, ADAM), (ADAMW, ADAMW), (FUSED, FUSED), (ADAM, FUSED)])
def test_two_steps_are_one_saved_and_one_more(tiny_base, tmp_path, kind, later) -> None:
    """Also with the fused one, which resumes from the other's file, and differs from it in the last bit."""
    roles = make_roles(tiny_base())
    optimizer = kind(roles.parameters(Role.CRITIC), lr=1e-2, eps=1e-5)
    step(roles, optimizer)
    save_optimizer(optimizer, tmp_path / "optimizer.safetensors")
    save_role(roles, Role.CRITIC, tmp_path)
    step(roles, optimizer)

    resumed = make_roles(tiny_base())
    load_role(resumed, Role.CRITIC, tmp_path)
    again = later(resumed.parameters(Role.CRITIC), lr=1e-2, eps=1e-5)
    load_optimizer(again, tmp_path / "optimizer.safetensors")
    step(resumed, again)
    expected = snapshot(roles, Role.CRITIC)
    rtol, atol = (0.0, 0.0) if later is kind else (1e-6, 1e-7)
    torch.testing.assert_close(snapshot(resumed, Role.CRITIC), expected, rtol=rtol, atol=atol)
    files = ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_an_optimiser_without_state_round_trips(tmp_path) -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    save_optimizer(optimizer, tmp_path / "new.safetensors")
    load_optimizer(optimizer, tmp_path / "new.safetensors")
    assert not optimizer.state_dict()["state"]


def test_another_optimisers_state_is_refused(tmp_path) -> None:
    def stepped(*shapes: int) -> torch.optim.Optimizer:
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer = torch.optim.Adam(parameters)
        optimizer.step()
        return optimizer

    path = tmp_path / "optimizer.safetensors"
    save_optimizer(stepped(2, 3), path)
    with pytest.raises(UserError, match="contains the state of 2 parameters, expected 3"):
        load_optimizer(stepped(2, 3, 4), path)


def test_a_missing_piece_of_an_optimiser_is_named(tmp_path) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.Adam(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    path = tmp_path / "optimizer.safetensors"
    save_optimizer(optimizer, path)
    write_tensors({name: tensor for name, tensor in read_tensors(path).items() if name != "1.exp_avg_sq"}, path)
    with pytest.raises(UserError, match=r"optimizer\.safetensors: 1\.exp_avg_sq not found: the optimiser cannot"):
        load_optimizer(optimizer, path)


def test_a_refused_adapter_leaves_no_trace(tiny_base, tmp_path) -> None:
    folder = saved(tiny_base, tmp_path, LoraConfig(rank=2, alpha=8))
    roles = Roles(tiny_base(), LORA)
    with pytest.raises(UserError):
        load_role(roles, Role.REFERENCE, folder)
    assert roles.present == {Role.POLICY}


@pytest.mark.parametrize("content", [b"", b"no safetensors"])
def test_a_damaged_optimiser_file_is_named(tmp_path, content) -> None:
    path = tmp_path / "optimizer.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"optimizer\.safetensors: not a readable safetensors file"):
        load_optimizer(torch.optim.Adam([torch.zeros(1, requires_grad=True)]), path)


def test_equal_weights_are_equal_files(tmp_path) -> None:
    """safetensors writes the entries of its header in random order."""
    tensors = {"b": torch.ones(2, 3), "a.lora": torch.zeros(1)}
    about = {"lowrank_rlhf": '{"base": "naïve 你好 \\"x\\""}'}
    files = [tmp_path / f"{number}.safetensors" for number in range(12)]
    for path in files:
        write_tensors(tensors, path, about)
    assert len({path.read_bytes() for path in files}) == 1
    with safe_open(files[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt", **about}
    assert read_tensors(files[0]).keys() == tensors.keys()
    assert torch.equal(read_tensors(files[0])["b"], tensors["b"])
