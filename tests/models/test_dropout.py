"""Dropout in a base's config is disabled: a training forward equals an eval forward."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import ARCHITECTURES, load_tiny, make_batch, make_roles
from torch import nn

from lowrank_rlhf.models.roles import Role

DROPOUT = {"attention_dropout": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}


@pytest.fixture
def with_dropout(tiny_folder, tmp_path):
    """`with_dropout(architecture)`: the folder of that tiny model, with dropout in its config."""

    def make(architecture: str) -> Path:
        folder = shutil.copytree(tiny_folder(architecture), tmp_path / architecture)
        config = json.loads((folder / "config.json").read_text())
        named = {name: share for name, share in DROPOUT.items() if name in config}
        assert "attention_dropout" in named
        (folder / "config.json").write_text(json.dumps(config | named))
        return folder

    return make


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_training_and_reading_give_the_same_numbers(with_dropout, architecture, quantization) -> None:
    roles, batch = make_roles(load_tiny(with_dropout(architecture), quantization)), make_batch()
    assert not [module for module in roles.peft.modules() if isinstance(module, nn.Dropout) and module.p]
    with roles.acting_as(Role.POLICY):
        read = roles.logprobs(batch, 0.8).logprobs
    for _ in range(2):
        with roles.acting_as(Role.POLICY, train=True):
            assert torch.equal(roles.logprobs(batch, 0.8).logprobs.detach(), read)
