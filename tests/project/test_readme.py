"""Check the facts in both READMEs: commands, configs, links, folders, output."""

import re
from pathlib import Path

import pytest
from documents import (
    READMES,
    ROOT,
    blocks,
    command_lines,
    missing_links,
    prose,
    read,
    table_under,
    unknown_words,
)

from lowrank_rlhf.config.loading import load_config, preset_names
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.stages import STAGES

LONGEST = 260

both = pytest.mark.parametrize("name", READMES)


def tree(text: str) -> list[str]:
    """Paths in the block that draws the folders."""
    (drawing,) = [content for _, content in blocks(text) if content.startswith("lowrank_rlhf/\n")]
    paths: list[str] = []
    for line in drawing.splitlines():
        entry, depth = line.split()[0], (len(line) - len(line.lstrip())) // 4
        paths.append(f"lowrank_rlhf/{entry}" if depth else entry)
    return paths


@both
def test_readme_is_short(name: str) -> None:
    assert len(read(name).splitlines()) <= LONGEST


@both
def test_the_tree_has_every_folder_and_no_file(name: str) -> None:
    folders = {
        f"{path.relative_to(ROOT).as_posix()}/"
        for path in [*ROOT.iterdir(), *(ROOT / "lowrank_rlhf").iterdir()]
        if path.is_dir() and (any(path.glob("*.py")) or path.name in ("docs", "presets", "tests"))
    }
    assert sorted(tree(read(name))) == sorted(folders - {"build/"})


@both
def test_links_lead_to_files(name: str) -> None:
    assert missing_links(name) == []


@both
def test_every_command_and_option_exists(name: str) -> None:
    lines = command_lines(read(name))
    assert {"run", "plan", "presets", "chat", "dashboard"} <= {line[0] for line in lines}
    assert [words for line in lines if (words := unknown_words(line))] == []


@both
def test_the_configs_of_the_commands_are_valid(name: str) -> None:
    checked = 0
    for line in command_lines(read(name)):
        if line[0] in ("run", "plan") and line[1] != "CONFIG":
            preset = "quickstart" if line[1] == "my.yaml" else Path(line[1]).stem
            assert preset in preset_names()
            load_config(Path(preset), [word for word in line[2:] if re.match(r"[\w.]+=", word)])
            checked += 1
    assert checked == 4


@both
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.M))
    used = set(re.findall(r"(?:^|`|cpu )make ([\w-]+)", read(name), re.M))
    assert used == {"run", "test", "docs"}
    assert used <= targets


@pytest.mark.parametrize(("name", "header"), zip(READMES, ("role", "角色"), strict=True))
def test_the_table_of_roles_is_the_programs(name: str, header: str) -> None:
    rows = table_under(read(name), header)
    assert {row[0]: row[1] for row in rows} == {role.name: role.value for role in Role}
    stages = {word for row in rows for word in re.findall(r"[a-z]+", row[4])} - {"never"}
    assert stages == {"sft", "reward", "ppo"}


def test_both_readmes_have_the_same_sections_commands_links_and_output() -> None:
    first, second = map(read, READMES)
    headings = [re.findall(r"^(#+) ", prose(text), re.M) for text in (first, second)]
    assert headings[0] == headings[1]
    assert command_lines(first) == command_lines(second)
    assert tree(first) == tree(second)
    assert blocks(first)[1] == blocks(second)[1]
    links = [re.findall(r"\]\(((?:docs/[^)]+|SECURITY|CONTRIBUTING)\.md)\)", text) for text in (first, second)]
    assert len(links[0]) > 15
    assert links[0] == [link for link in links[1] if link != "docs/zh.md"]
    rows = [len(re.findall(r"^(?:\||- |\d\. )", prose(text), re.M)) for text in (first, second)]
    assert rows[0] == rows[1]


@both
def test_the_output_shows_every_stage_in_order(name: str) -> None:
    text = read(name)
    assert text.count("<!-- quickstart output -->\n```text\n") == 1
    shown = text.split("<!-- quickstart output -->\n```text\n")[1].split("\n```")[0]
    assert 20 <= len(shown.splitlines()) <= 30
    positions = [
        shown.find(f"[{number}/{len(STAGES)}] {stage.name}: {stage.does}") for number, stage in enumerate(STAGES, 1)
    ]
    assert -1 not in positions
    assert positions == sorted(positions)
    assert "report.html" in shown
