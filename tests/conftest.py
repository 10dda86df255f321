"""Tiny models, made once per session; every test gets a base of its own, for Roles wraps it in place.

Imports that bring torch stay inside the fixtures: most tests need none of it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from garbage import collect_nothing

pytest.register_assert_rewrite("role_laws")

if TYPE_CHECKING:
    from lowrank_rlhf.models.base import Base


if os.environ.get("LOWRANK_RLHF_TEST_BACKEND") == "unsloth":
    # `make test-unsloth`: the same tests of the roles on models that unsloth loads; it has to come before transformers.
    import unsloth  # noqa: F401

collect_nothing()


def pytest_collection_finish() -> None:
    """Exempt what the imports made from Python's own collections."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`command(*arguments)`: runs the command line in this process; its exit code, stdout and stderr."""
    from lowrank_rlhf import cli

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_folder(architecture)`: the folder of that tiny model; don't write there."""
    from tiny import make_tiny_model

    return cache(lambda architecture="llama": make_tiny_model(tmp_path_factory.mktemp(architecture), architecture))


@pytest.fixture
def tiny_base(tiny_folder: Callable[..., Path]) -> Callable[..., Base]:
    """`tiny_base(quantization, checkpointing, architecture=, merged=, compute_dtype=)`: a freshly loaded base."""
    from tiny import bfloat16_works, load_tiny

    def load(
        quantization: str = "none",
        checkpointing: bool = False,
        *,
        architecture: str = "llama",
        merged: bool = True,
        compute_dtype: str = "float32",
    ) -> Base:
        if compute_dtype == "bfloat16" and not bfloat16_works():
            pytest.skip("this machine's CPU announces bfloat16 and dies of it")
        return load_tiny(tiny_folder(architecture), quantization, checkpointing, merged, compute_dtype)

    return load
