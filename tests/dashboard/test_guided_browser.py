"""The guided path in a real Chromium: from forty pasted prompts to a run that is training, without YAML."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, page_server, wait_for
from dashboard_runs import make_run

from lowrank_rlhf.config.loading import load_config, parse_config
from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.text import t, table

SECONDS = 60_000
WORDS = ("the", "user", "asks", "question", "answer", "short", "kind", "point")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """Address of a page for a folder of runs, and that folder."""
    folder = tmp_path_factory.mktemp("guided") / "runs"
    with page_server(folder) as (url, _):
        yield url, folder


@pytest.fixture
def folder(server) -> Iterator[Path]:
    """The server's folder of runs, empty before and after a test."""
    yield server[1]
    shutil.rmtree(server[1], ignore_errors=True)


@pytest.fixture
def page(chromium, server, folder, request) -> Iterator[Any]:  # noqa: ARG001 - the folder is emptied
    """A page for the runs of the folder, in a language, that must not meet an error of its own."""
    errors: list[str] = []
    context = chromium.new_context(locale=getattr(request, "param", "en-GB"))
    opened = context.new_page()
    opened.set_default_timeout(SECONDS)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(server[0])
    opened.wait_for_selector("#run-list .runs, #run-list .empty")
    yield opened
    context.close()
    assert errors == []


def prompts() -> str:
    generator = random.Random(0)
    return "\n".join(f"question {number}: {' '.join(generator.choices(WORDS, k=4))}" for number in range(40))


@pytest.mark.parametrize("page", ["zh-CN"], indirect=True)
def test_forty_pasted_prompts_become_a_run(page, folder, tiny_folder) -> None:
    texts = table("zh")
    page.wait_for_function(f"document.querySelector('#own-prompts').innerText === '{texts['begin.own']}'")
    page.click("#own-prompts")
    page.click("#make-settings")
    page.wait_for_selector(f"#choices .note.bad:has-text('{texts['guided.prompts_first']}')")
    page.wait_for_timeout(1000)
    assert page.locator("#planned .note").count() == 0  # nothing was made, so nothing is planned
    page.fill("#paste textarea", prompts())
    page.wait_for_function("localStorage.getItem('lowrank-prompts')")
    page.reload()
    page.click("#own-prompts")
    wait_for(lambda: page.input_value("#paste textarea") == prompts(), 20)
    page.click("#use-pasted")
    page.wait_for_selector("#prompts-preview .note.good")
    counts = t("file.counts", "zh", rows=40, prompts=40, format="prompt-completion", responses=0, comparisons=0)
    assert counts in page.inner_text("#prompts-preview")
    assert page.locator("#prompts-preview tbody tr").count() == 3

    page.fill("#model input", str(tiny_folder()))
    page.press("#model input", "Enter")
    wait_for(lambda: "MiB" in page.input_value("#model input"), 20, lambda: page.input_value("#model input"))
    page.get_by_label(texts["judge.simulated_annotator"]).check()
    page.click("#make-settings")
    page.wait_for_selector("#start:not([disabled])")
    assert page.locator("#choices li").count() == 6
    assert "90 %" in page.inner_text("#choices")
    assert not (folder / "my-prompts").exists()

    page.click("#start")
    run = folder / "my-prompts"
    wait_for(lambda: jobs.holder(run), 60, lambda: page.inner_text("#planned"))
    config = load_config(run / "logs" / "start.yaml", ["name=my-prompts"])
    assert (config.data.prompts, config.data.held_out) == (str(folder / "_data" / "my-prompts.txt"), 8)
    assert (config.rank.judge, config.sft.source) == ("simulated-annotator", "base")
    assert texts["guided.human"] not in (run / "logs" / "start.yaml").read_text(encoding="utf-8")
    page.wait_for_selector('[data-run="my-prompts"] .badge.running')
    page.wait_for_selector(f"#run-about :text('{texts['runs.next']}')")
    wait_for(lambda: (run / "done" / "sample.json").exists(), 200, lambda: jobs.log_path(run).read_text())
    assert jobs.holder(run) is None or jobs.stop(run)
    wait_for(lambda: jobs.working(run) is None, 60)


def test_a_file_with_its_own_column_names(page, folder, tmp_path) -> None:
    file = tmp_path / "Meine Fragen.csv"
    rows = "".join(f"{line},answer {number},x\n" for number, line in enumerate(prompts().split("\n")))
    file.write_text(f"frage,antwort,label\n{rows}", encoding="utf-8")
    page.click("#own-prompts")
    page.set_input_files("#drop-prompts input", str(file))
    page.wait_for_selector("#prompts-preview .note.bad:has-text('unknown format')")
    choose(page, "#column-prompt", "frage")
    page.wait_for_selector("#prompts-preview .note.good")
    choose(page, "#column-response", "antwort")
    page.wait_for_function("document.querySelector('#prompts-preview').innerText.includes('With a response: 40')")
    page.click("#make-settings")
    page.wait_for_selector("#choices li")
    page.wait_for_selector("#planned .note")
    text = page.evaluate("window.loadedYaml")
    config = parse_config(text, "editor")
    assert config.data.columns == {"prompt": "frage", "response": "antwort", "label": None}
    assert (config.name, config.sft.source) == ("Meine-Fragen", "train")
    assert config.data.prompts == str(folder / "_data" / "Meine-Fragen.csv")

    page.set_input_files("#drop-prompts input", {"name": "a.exe", "mimeType": "x/y", "buffer": b"MZ"})
    page.wait_for_selector("#prompts-preview .note.bad:has-text('unknown file type')")
    page.wait_for_selector("#column-prompt", state="hidden")
    page.click("#make-settings")
    page.wait_for_selector("#choices .note.bad")


def test_the_example_is_planned_with_one_click(page) -> None:
    page.click("#try-example")
    page.wait_for_selector("#planned .plan")
    assert "python -m lowrank_rlhf run quickstart --runs" in page.inner_text("#planned")
    page.click("#rank-for")
    page.wait_for_selector("#start-outcome .note")
    assert page.locator("#tab-runs-button").get_attribute("aria-selected") == "true"


def test_edited_settings_are_kept_however_often_the_question_is_declined(page) -> None:
    """By each event that would replace them; and what could not be made unlocks no start."""
    asked: list[str] = []

    def decline(dialog: Any) -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    page.click("#own-prompts")
    english = page.input_value("#model input").partition(" · ")[0]
    page.fill("#paste textarea", "\n".join(f"{number} 请解释什么是天气，谢谢" for number in range(40)))
    page.click("#use-pasted")
    wait_for(lambda: page.input_value("#model input").startswith("Qwen/Qwen2.5-0.5B-Instruct · "), 20)
    page.fill("#paste textarea", prompts())
    page.click("#use-pasted")
    wait_for(lambda: page.input_value("#model input").startswith(f"{english} · "), 20)
    page.wait_for_selector("#prompts-preview .note.good")
    page.fill("#yaml .cm-content", "name: edited")
    page.wait_for_selector("#verdict .note")
    page.on("dialog", decline)
    buttons = ("#make-settings", "#try-example", "#copy-settings")
    clicks = [button for name in buttons for button in (name, "#make-settings")]
    for number, button in enumerate(clicks, 1):
        page.click(button)
        wait_for(lambda number=number: len(asked) == number, 20, lambda button=button: f"{button}: {asked}")
        page.wait_for_timeout(1500)
    choose(page, "#preset", "quickstart")
    wait_for(lambda: len(asked) == len(clicks) + 1, 20)
    page.wait_for_timeout(1500)
    page.click("#make-settings")
    wait_for(lambda: len(asked) == len(clicks) + 2, 20)
    assert page.inner_text("#yaml .cm-content").strip() == "name: edited"
    assert page.locator("#planned .note").count() == 0
    assert page.locator("#start:not([disabled])").count() == 0


def test_the_block_folds_when_there_are_runs_and_terms_explain_themselves(page, folder) -> None:
    page.focus("#start-about abbr >> nth=0")
    shown = page.evaluate("getComputedStyle(document.activeElement, '::after').content")
    assert table("en")["meaning.reward_model"][:30] in shown
    make_run(folder)
    page.wait_for_selector('[data-run="one"]')
    page.wait_for_selector("#start-about", state="hidden")


def choose(page: Any, dropdown: str, value: str) -> None:
    page.click(f"{dropdown} input")
    page.get_by_role("option", name=value, exact=True).click()
