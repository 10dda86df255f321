"""Marks for tests that some systems cannot run."""

import sys

import pytest

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs fork, signals or a shell, which Windows lacks")
