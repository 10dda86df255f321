"""What the source must not contain: pickles, shells, code from data, remote code, servers open to everybody."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("lowrank_rlhf", "examples", "benchmarks", "tools")
SOURCES = [*(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")), ROOT / "app.py"]
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
CALLS = {
    *("torch.load", "torch.save", "np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle"),
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp"),
    *("subprocess.getoutput", "subprocess.getstatusoutput"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"),
}
FLAGS = {"trust_remote_code", "shell", "allow_pickle"}
"""Keywords that may only be False; so may `share` where a page is launched."""
EVERYBODY = {"0.0.0.0", "::"}  # noqa: S104 - what is looked for


def mistakes(tree: ast.AST) -> Iterator[str]:
    """What is forbidden in a file, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"{node.lineno}: import {name.name}" for name in node.names if _root(name.name) in MODULES)
        elif isinstance(node, ast.ImportFrom) and _root(node.module or "") in MODULES:
            yield f"{node.lineno}: from {node.module}"
        elif isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {found}" for found in _in_call(node))


def _root(module: str) -> str:
    return module.partition(".")[0]


def _in_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    if name in CALLS:
        yield name
    flags = FLAGS | ({"share"} if name.endswith("launch") else set())
    for keyword in call.keywords:
        if keyword.arg in flags and ast.unparse(keyword.value) != "False":
            yield f"{keyword.arg}={ast.unparse(keyword.value)}"
    for given in (*call.args, *(keyword.value for keyword in call.keywords)):
        if any(isinstance(inner, ast.Constant) and inner.value in EVERYBODY for inner in ast.walk(given)):
            yield f"{name} of an address that everybody reaches"


def test_the_sources_are_there() -> None:
    assert len(SOURCES) > 100


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_file_has_nothing_of_it(path: Path) -> None:
    assert list(mistakes(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path, weights_only=False)",
        "eval(text)",
        "os.system('ls')",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=wanted)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "np.load(path, allow_pickle=True)",
        "blocks.launch(server_name='0.0.0.0')",
        "server.bind(('0.0.0.0', 80))",
        "blocks.launch(share=True)",
    ],
)
def test_it_would_be_seen(code: str) -> None:
    assert list(mistakes(ast.parse(code)))
