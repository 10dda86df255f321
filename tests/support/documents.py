"""Read Markdown: blocks, commands, tables, links and paths of the README and the documentation."""

import re
from pathlib import Path

import typer

from lowrank_rlhf.cli import app

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh-CN.md")
_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.M | re.S)
_GROUPS = ("presets", "data", "annotations")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pages() -> list[str]:
    """Every document that describes the code as it is now; the log and the changelog describe the code of their day."""
    found = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md") if path.parent.name != "log"]
    return sorted([*READMES, "CONTRIBUTING.md", "SECURITY.md", *found])


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return _FENCED.findall(text)


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return _FENCED.sub("", text)


def command_lines(text: str) -> list[list[str]]:
    """Words after `python -m lowrank_rlhf` of every command, in fenced blocks, indented blocks and backticks."""
    shell = "".join(content for language, content in blocks(text) if language in ("sh", "bash"))
    indented = "\n".join(re.findall(r"^ {4}(python -m .*)$", prose(text), re.M))
    inline = "\n".join(re.findall(r"`([^`\n]+)`", prose(text)))
    found = re.findall(r"python -m lowrank_rlhf (.+)", f"{shell}\n{indented}\n{inline}")
    return [line.partition("#")[0].split() for line in found if line != "..."]


def unknown_words(line: list[str]) -> list[str]:
    """Command and options of this line that the command line interface does not have."""
    commands = typer.main.get_command(app).commands
    if line[0] not in commands:
        return [line[0]]
    command = commands[line[0]]
    if len(line) > 1 and line[0] in _GROUPS and line[1] in getattr(command, "commands", {}):
        command = command.commands[line[1]]
    options = {option for parameter in command.params for option in parameter.opts}
    return [word for word in line if word.startswith("--") and word not in options]


def table_under(text: str, header: str) -> list[list[str]]:
    """Cells of the rows of the table whose first header cell is `header`."""
    found = re.search(rf"^\| {re.escape(header)} \|.*\n\|[-| ]+\n((?:\|.*\n?)+)", text, re.M)
    assert found, header
    return [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in found[1].splitlines()]


def missing_links(name: str) -> list[str]:
    """Local link targets of a document that do not exist."""
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose(read(name)))
    folder = (ROOT / name).parent
    return [link for link in links if "://" not in link and not (folder / link).exists()]


def missing_paths(name: str) -> list[str]:
    """Paths and module names of this repository in a document that do not exist, in blocks and in prose.

    A path is one that starts with a top folder (`tests/maths/`) or with a folder of the package (`models/roles.py`).
    """
    text = re.sub(r"\]\([^)]*\)", "]", read(name))
    tops = "lowrank_rlhf|tests|benchmarks|presets|tools|notebooks|examples|docs"
    paths = set(re.findall(rf"(?<![\w./-])(?:{tops})/[\w./*-]+", text))
    inner = "|".join(path.name for path in (ROOT / "lowrank_rlhf").iterdir() if path.is_dir() and path.name[0] != "_")
    paths |= {f"lowrank_rlhf/{path}" for path in re.findall(rf"(?<![\w./-])(?:{inner})/[\w/]+\.py\b", text)}
    modules = re.findall(r"\blowrank_rlhf(?:\.[a-z_0-9]+)+(?=[\s`;,)]|$)", text)
    gone = [path for path in paths if not list(ROOT.glob(path.rstrip("./")))]
    return sorted(gone + [module for module in modules if not _exists(module)])


def _exists(module: str) -> bool:
    """A file, a folder or a name of the package, such as `lowrank_rlhf.preferences.store.AnnotationStore`."""
    path = ROOT / module.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()
