"""Scripts that use the browser's storage, which may be blocked or full."""

from pathlib import Path

STORED = (Path(__file__).parents[1] / "static" / "stored.js").read_text(encoding="utf-8")
"""Function `stored` of scripts: `stored((storage) => storage.getItem(name))`."""


def with_storage(script: str) -> str:
    """Return a JavaScript function with `stored` in reach."""
    return f"(...given) => {{\n{STORED}return ({script})(...given);\n}}"
