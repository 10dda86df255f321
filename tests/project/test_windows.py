"""Support for tests that Windows cannot run."""

import importlib.util
import sys
from pathlib import Path

import pytest


def test_tests_that_fork_are_skipped_on_windows(monkeypatch) -> None:
    """A module that imports `forked` is skipped as a whole, and does not fail to be collected."""
    path = Path(__file__).parents[1] / "support/forked.py"
    spec = importlib.util.spec_from_file_location("forked_on_windows", path)
    assert spec
    assert spec.loader
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(pytest.skip.Exception) as caught:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert caught.value.allow_module_level
