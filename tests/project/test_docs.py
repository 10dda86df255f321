"""Check the facts in the documentation, and build the site with strict links."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import typer
from documents import ROOT, command_lines, missing_links, missing_paths, pages, read, table_under, unknown_words

from lowrank_rlhf.cli import app
from lowrank_rlhf.config.loading import load_config, preset_names
from lowrank_rlhf.errors import ExitCode
from lowrank_rlhf.reports.alarms import AlarmId
from lowrank_rlhf.stages import STAGES

every_page = pytest.mark.parametrize("name", pages())
TROUBLES = "docs/guides/troubleshooting.md"


def test_the_site_builds_with_strict_links_and_asks_no_other_server(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert built.returncode == 0, built.stdout + built.stderr
    home = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<(?:script|img)[^>]+src="https?://|<link[^>]+href="https?://[^"]+css', home) == []
    assert "masked_mean" in (tmp_path / "api/maths.html").read_text(encoding="utf-8")
    assert "acting_as" in (tmp_path / "api/roles.html").read_text(encoding="utf-8")


@every_page
def test_links_lead_to_files(name: str) -> None:
    assert missing_links(name) == []


@every_page
def test_paths_and_modules_exist(name: str) -> None:
    assert missing_paths(name) == []


@every_page
def test_every_command_and_option_exists(name: str) -> None:
    assert [words for line in command_lines(read(name)) if (words := unknown_words(line))] == []


@every_page
def test_no_page_cites_a_document_that_is_not_in_the_repository(name: str) -> None:
    assert re.findall(r"\b(?:FACTS|DESIGN)\b.*", read(name)) == []


@pytest.mark.parametrize("name", ["docs/guides/quickstart.md", "docs/guides/data.md", "docs/guides/model.md"])
def test_the_configs_of_the_guides_are_valid(name: str) -> None:
    runs = [line for line in command_lines(read(name)) if line[0] == "run"]
    assert runs
    for line in runs:
        preset = "quickstart" if line[1] == "my.yaml" else Path(line[1]).stem
        assert preset in preset_names()
        load_config(Path(preset), [word for word in line[2:] if re.match(r"[\w.]+=", word)])


def test_every_command_is_on_its_page() -> None:
    commands = typer.main.get_command(app).commands
    assert {line[0] for line in command_lines(read("docs/commands.md"))} == set(commands)


def test_every_exit_code_is_in_troubleshooting() -> None:
    rows = table_under(read(TROUBLES), "exit code")
    assert {int(row[0]): row[1] for row in rows} == {int(code): code.name for code in ExitCode}
    assert all(len(row) == 4 and all(row) for row in rows)


def test_every_preset_is_in_the_gpu_guide() -> None:
    assert {row[0] for row in table_under(read("docs/guides/gpu.md"), "preset")} == set(preset_names())


def test_the_table_of_stages_says_what_each_writes() -> None:
    rows = table_under(read("docs/guides/quickstart.md"), "stage")
    assert [row[0] for row in rows] == [stage.name for stage in STAGES]
    for row, stage in zip(rows, STAGES, strict=True):
        assert set(re.findall(r"[\w/.-]+", row[2])) == set(stage.writes)


def test_the_tabs_of_the_dashboard_are_listed_in_order() -> None:
    texts = json.loads(read("lowrank_rlhf/dashboard/locales/en.json"))
    listed = re.findall(r"^- \*\*(\w+)\*\*:", read("docs/guides/dashboard.md"), re.M)
    assert listed == [text for key, text in texts.items() if key.startswith("tab.")]


@pytest.mark.parametrize(("folder", "pattern"), [("decisions", "0*.md"), ("log", "2*.md")])
def test_every_decision_and_every_day_of_the_log_is_in_its_index(folder: str, pattern: str) -> None:
    files = {path.name for path in (ROOT / "docs" / folder).glob(pattern)}
    assert files
    assert set(re.findall(r"\]\(([^)]+)\)", read(f"docs/{folder}/index.md"))) == files


def test_the_log_is_newest_first() -> None:
    days = [row[0] for row in table_under(read("docs/log/index.md"), "date")]
    assert days == sorted(days, reverse=True)


def test_every_term_of_the_glossary_stands_once_with_its_chinese() -> None:
    rows = table_under(read("docs/glossary.md"), "term")
    terms = [row[0] for row in rows]
    assert len(set(terms)) == len(terms) > 40
    assert terms == sorted(terms, key=str.lower)
    assert [row for row in rows if len(row) != 3 or not re.search(r"[\u4e00-\u9fff]", row[1])] == []


def test_the_site_has_every_page_of_docs() -> None:
    """Pages outside of the navigation are reachable through the two index pages only."""
    listed = set(re.findall(r"([\w/.-]+\.md)$", read("mkdocs.yml"), re.M))
    files = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {name for name in files - listed if not re.match(r"(decisions/0|log/2)", name)} == set()


def test_every_alarm_is_in_troubleshooting() -> None:
    assert {row[0] for row in table_under(read(TROUBLES), "alarm")} == set(get_args(AlarmId))
