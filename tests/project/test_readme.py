"""What both READMEs say about files, commands, stages and exit codes is so."""

import json
import re
from pathlib import Path

import pytest
import typer

from lowrank_rlhf.cli import app
from lowrank_rlhf.config.loading import load_config, preset_names
from lowrank_rlhf.errors import ExitCode
from lowrank_rlhf.stages import STAGES

ROOT = Path(__file__).parents[2]
NAMES = ("README.md", "README.zh-CN.md")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)

both = pytest.mark.parametrize("name", NAMES)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return FENCED.findall(text)


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return FENCED.sub("", text)


def tree(text: str) -> list[str]:
    """Paths in the block that draws the file tree; a folder ends with a slash."""
    (drawing,) = [content for _, content in blocks(text) if content.startswith("lowrank_rlhf/\n")]
    paths: list[str] = []
    folders: list[str] = []
    for line in drawing.splitlines():
        entry = line.split()[0]
        depth, rest = divmod(len(line) - len(line.lstrip()), 4)
        assert rest == 0, line
        del folders[depth:]
        paths.append("".join(folders) + entry)
        if entry.endswith("/"):
            folders.append(entry)
    return paths


def command_lines(text: str) -> list[list[str]]:
    """The words after `python -m lowrank_rlhf` of every command, in blocks and in backticks; the tree has another."""
    shell = "".join(content for language, content in blocks(text) if language == "sh")
    inline = "\n".join(re.findall(r"`([^`\n]+)`", prose(text)))
    return [
        found.split() for found in re.findall(r"python -m lowrank_rlhf (.+)", f"{shell}\n{inline}") if found != "..."
    ]


def table_under(text: str, header: str) -> list[list[str]]:
    """Cells of the rows of the table whose first header cell is that."""
    found = re.search(rf"^\| {header} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)
    assert found, header
    return [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in found[1].splitlines()]


@both
def test_every_path_in_the_tree_exists(name) -> None:
    paths = tree(read(name))
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert len(paths) == len(set(paths))


@both
def test_every_python_file_every_preset_and_every_page_is_in_the_tree(name) -> None:
    files = [*ROOT.glob("lowrank_rlhf/**/*.py"), *ROOT.glob("presets/*.yaml"), *ROOT.glob("docs/*")]
    missing = {path.relative_to(ROOT).as_posix() for path in files} - {path.rstrip("/") for path in tree(read(name))}
    assert missing == set()


@pytest.mark.parametrize(("name", "language"), zip(NAMES, ("en", "zh"), strict=True))
def test_every_tab_of_the_dashboard_is_told_in_order(name, language) -> None:
    texts = json.loads((ROOT / f"lowrank_rlhf/dashboard/locales/{language}.json").read_text(encoding="utf-8"))
    told = re.findall(r"^- \*\*(\w+)\*\*[:：]", read(name), re.M)
    assert told == [text for key, text in texts.items() if key.startswith("tab.")]


@both
def test_every_line_of_the_tree_says_something(name) -> None:
    (drawing,) = [content for _, content in blocks(read(name)) if content.startswith("lowrank_rlhf/\n")]
    silent = [line for line in drawing.splitlines() if len(line.split()) < 2 and not line.endswith("/")]
    assert silent == []


@both
def test_links_lead_to_files(name) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", prose(read(name)))
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


@both
def test_every_command_and_option_exists(name) -> None:
    lines = command_lines(read(name))
    commands = typer.main.get_command(app).commands
    assert {line[0] for line in lines} == set(commands)
    for line in lines:
        command = commands[line[0]]
        if len(line) > 1 and line[0] in ("presets", "data", "annotations"):
            command = command.commands[line[1]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert [word for word in line if word.startswith("--") and word not in options] == []


@both
def test_the_configs_of_the_commands_are_valid(name) -> None:
    checked = 0
    for line in command_lines(read(name)):
        if line[0] in ("run", "validate") and line[1] != "CONFIG":
            overrides = [word for word in line[2:] if re.match(r"[\w.]+=", word)]
            preset = "quickstart" if line[1] == "my.yaml" else Path(line[1]).stem
            assert preset in preset_names()
            load_config(Path(preset), overrides)
            checked += 1
    assert checked > 5


@both
def test_make_targets_exist(name) -> None:
    text = read(name)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    used = set(re.findall(r"(?:^|`|cpu )make ([\w-]+)", text, re.M))
    assert used == {"run", "test", "test-unsloth", "notebooks", "gpu-check"}
    assert used <= targets


@pytest.mark.parametrize(("name", "header"), zip(NAMES, ("exit code", "退出码"), strict=True))
def test_exit_codes_are_those_of_the_program(name, header) -> None:
    documented = {int(code): word for code, word, _ in table_under(read(name), header)}
    assert documented == {int(code): code.name for code in ExitCode}


@pytest.mark.parametrize(("name", "header"), zip(NAMES, ("stage", "阶段"), strict=True))
def test_the_table_of_stages_says_what_each_writes(name, header) -> None:
    rows = table_under(read(name), header)
    assert [row[0] for row in rows] == [stage.name for stage in STAGES]
    for row, stage in zip(rows, STAGES, strict=True):
        assert set(re.findall(r"[\w/.-]+", row[2])) == set(stage.writes)


def test_both_readmes_have_the_same_structure() -> None:
    first, second = map(read, NAMES)
    headings = [re.findall(r"^(#+) ", prose(text), re.M) for text in (first, second)]
    assert headings[0] == headings[1]
    assert [language for language, _ in blocks(first)] == [language for language, _ in blocks(second)]
    assert command_lines(first) == command_lines(second)
    rows = [len(re.findall(r"^(?:\||- |\d\. )", prose(text), re.M)) for text in (first, second)]
    assert rows[0] == rows[1]
    assert [tree(first), blocks(first)[1]] == [tree(second), blocks(second)[1]]


@both
def test_one_block_holds_the_output_of_the_quickstart(name) -> None:
    text = read(name)
    assert text.count("<!-- quickstart output -->\n```text\n") == 1
    shown = text.split("<!-- quickstart output -->\n```text\n")[1].split("\n```")[0]
    positions = [shown.find(f"[{number}/{len(STAGES)}] {stage.name}: ") for number, stage in enumerate(STAGES, 1)]
    assert -1 not in positions
    assert positions == sorted(positions)
    assert "report.html" in shown
