"""Rules of axe-core on a page in a real browser."""

from typing import Any

import pytest


def findings(page: Any) -> list[str]:
    """The page's serious and critical findings, each with its elements and reasons."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    return [
        f"{found['id']} ({found['impact']}): {node['target']} {node['failureSummary']}"
        for found in axe.Axe().run(page).response["violations"]
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]
