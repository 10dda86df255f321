"""The dashboard decides by keys, ids and exit codes, never by a text made for people."""

import ast

import pytest
from browser import ROOT

FOLDER = ROOT / "lowrank_rlhf" / "dashboard"
MODULES = (
    *("run_status", "served/exports", "chat_worker", "tabs/runs", "tabs/runs_html", "tabs/new_run", "tabs/plan_html"),
    *("tabs/talk", "talk/talk_html", "talk/chat_session", "tabs/result", "tabs/start"),
    *("guided/form", "guided/form_html"),
)
PARSERS = {
    *("partition", "rpartition", "split", "rsplit", "splitlines", "startswith", "endswith", "removeprefix"),
    *("removesuffix", "find", "rfind", "match", "search", "fullmatch", "findall"),
}


def parsing(source: str) -> list[str]:
    """Lines that take a text apart or compare an error's text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(name.name == "re" for name in node.names):
            found.append(f"{node.lineno}: import re")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PARSERS:
            found.append(f"{node.lineno}: {node.func.attr}")
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(isinstance(side, ast.Call) and ast.unparse(side.func) == "str" for side in sides):
                compared = [ast.unparse(side) for side in sides]
                if any("error" in text for text in compared):
                    found.append(f"{node.lineno}: {' ? '.join(compared)}")
            phrase = node.left.value if isinstance(node.left, ast.Constant) else None
            if isinstance(node.ops[0], ast.In | ast.NotIn) and isinstance(phrase, str) and " " in phrase:
                found.append(f"{node.lineno}: a phrase looked for in a text")
    return found


@pytest.mark.parametrize("name", MODULES)
def test_no_module_takes_a_text_apart(name) -> None:
    assert parsing((FOLDER / f"{name}.py").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import re",
        "settings, rest = said.partition('Stages, in ')",
        "str(error) in _KNOWN",
        "line.split()[2]",
        "'Stages, in ' in said",
    ],
)
def test_what_the_dashboard_once_did_is_found(line) -> None:
    assert parsing(line)
