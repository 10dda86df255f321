"""Token view of tab Watch: colours, figures and texts of tokens, as HTML and in a real Chromium."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, page_server, shows
from dashboard_runs import NASTY, make_run, page_of
from html_tags import parse

from lowrank_rlhf.dashboard.tabs import tokens as view
from lowrank_rlhf.dashboard.text import LANGUAGES, html, t, table
from lowrank_rlhf.run.files import append_line
from lowrank_rlhf.run.records import RolloutAnswer


def answer(*pieces: str, logprobs: tuple[float, ...] = (), prompt: str = "ask", **figures: Any) -> RolloutAnswer:
    """An answer whose log-ratios are `logprobs` plus 1, and whose other figures are 0 unless given."""
    zeros = (0.0,) * len(pieces)
    plain = {"values": zeros, "advantages": zeros, "rewards": zeros, "ref_logprobs": (-1.0,) * len(pieces)}
    own = logprobs or plain["ref_logprobs"]
    row = plain | {"prompt_id": "a", "prompt": prompt, "finished": True, "score": 1.5} | figures
    return RolloutAnswer(pieces=pieces, logprobs=own, **row)


def write(run: Path, step: int, *answers: RolloutAnswer) -> None:
    for each in answers:
        append_line(run / "rollouts.jsonl", {"stage": "ppo", "step": step, **each.model_dump()})


def spans(shown: str) -> list[tuple[str, str, str]]:
    """Class, accessible name and text of each token."""
    return re.findall(r'<span role="option"[^>]*class="(\w*)" aria-label="([^"]*)">([^<]*)</span>', shown)


def test_colours_are_shares_of_the_scale_on_either_side_of_zero() -> None:
    """The scale is the figure that a tenth of the tokens exceed: of ten, the second largest."""
    ratios = (0.0, 0.1, -0.1, 0.2, -0.3, 0.4, -0.4, 0.4, 0.4, 9.0)
    found = spans(view.tokens([answer(*"abcdefghij", logprobs=tuple(each - 1 for each in ratios))], "log_ratio", "en"))
    largest = ["", *[""] * 2, *[""] * 6, "up4"]  # the largest is the scale of ten tokens
    assert [shade for shade, _, _ in found] == largest
    ratios = (*ratios, *(0.4,) * 10)
    letters = [chr(ord("a") + i) for i in range(20)]
    found = spans(view.tokens([answer(*letters, logprobs=tuple(each - 1 for each in ratios))], "log_ratio", "en"))
    assert [shade for shade, _, _ in found][:10] == [
        "",
        "up1",
        "down1",
        "up2",
        "down3",
        "up4",
        "down4",
        "up4",
        "up4",
        "up4",
    ]


def test_rounding_errors_have_no_colour() -> None:
    """At step 1 policy and SFT are equal but for the last bits."""
    found = spans(view.tokens([answer("a", "b", logprobs=(-1 + 1e-7, -1 - 1e-7))], "log_ratio", "en"))
    assert [shade for shade, _, _ in found] == ["", ""]


@pytest.mark.parametrize("quantity", view.QUANTITIES)
def test_each_quantity_colours_by_its_own_figures(quantity) -> None:
    figures = {"values": (1.0, 0.0), "advantages": (0.0, -1.0), "rewards": (-1.0, 1.0)}
    found = spans(view.tokens([answer("a", "b", logprobs=(0.0, -1.5), **figures)], quantity, "en"))
    expected = {
        "log_ratio": ["up4", "down2"],
        "value": ["up4", ""],
        "advantage": ["", "down4"],
        "reward": ["down4", "up4"],
    }
    assert [shade for shade, _, _ in found] == expected[quantity]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_name_of_a_token_has_all_its_figures(language) -> None:
    row = answer(" the", logprobs=(-0.5,), values=(0.25,), advantages=(-0.75,), rewards=(2.0,))
    ((_, label, text),) = spans(view.tokens([row], "value", language))
    assert text == " the"
    assert all(figure in label for figure in ("“ the”", "+0.500", "-0.500", "-1.000", "+0.250", "-0.750", "+2.000"))


def test_a_character_of_several_tokens_is_shown_once() -> None:
    found = spans(view.tokens([answer("a", "你", "", "", "\n")], "value", "en"))
    assert [text for _, _, text in found] == ["a", "你", "·", "·", "↵\n"]
    assert [label.partition(" · ")[0] for _, label, _ in found] == [
        *("“a”", "“你” (token 1 of 3)", "“你” (token 2 of 3)", "“你” (token 3 of 3)", "“↵”")
    ]  # fmt: skip


def test_what_a_model_wrote_is_text() -> None:
    hostile = '"><img src=x onerror=alert(1)>'
    shown = view.tokens([answer(NASTY, hostile, "'", "\u202e", prompt=NASTY + hostile)], "reward", "en")
    seen = parse(shown)
    assert not {"script", "img"} & set(seen.seen)
    assert not any(name.startswith("on") for name, _ in seen.attributes)
    assert shown.count(html(NASTY)) == 3  # the prompt, the token, and its name
    assert "\u202e" not in shown


def refreshed(
    folder: Path, before: dict[str, Any], step: int | None = None, by: str = "value", language: str = "en"
) -> Any:
    return view._refresh(page_of(folder), "one", language, step, by, before)


def skipped(update: Any) -> bool:
    return isinstance(update, dict) and update.get("__type__") == "update" and len(update) == 1


def test_only_another_step_quantity_or_language_draws_the_tokens_again(tmp_path) -> None:
    run = make_run(tmp_path)
    *_, seen = hidden = refreshed(tmp_path, {})
    assert hidden[0]["visible"] is False
    assert all(map(skipped, refreshed(tmp_path, seen)))
    write(run, 1, answer("one"))
    (run / "rollouts.jsonl").open("a").write('{"stage": "ppo", "step": 2, "pieces": 3}\n{"step": "x"}\nnot JSON\n')
    write(run, 5, answer("five"), answer("also"))
    column, title, step, _, shown, seen = refreshed(tmp_path, seen)
    assert (column["visible"], step["choices"], step["value"]) == (True, [1, 2, 5], 5)
    assert [text for _, _, text in spans(shown)] == ["five", "also"]
    assert t("tokens.title", "en") in title
    write(run, 9, answer("nine"))
    found = refreshed(tmp_path, seen, 5)
    assert [skipped(part) for part in found[:5]] == [True, True, False, True, True]
    assert found[2]["value"] == 5
    for changed, expected in (((5, "reward"), ["five", "also"]), ((9, "value"), ["nine"]), ((2, "value"), [])):
        assert [text for _, _, text in spans(refreshed(tmp_path, seen, *changed)[4])] == expected
    chinese = refreshed(tmp_path, seen, 5, language="zh")
    assert t("tokens.value.note", "zh") in chinese[4]
    assert [name for name, _ in chinese[3]["choices"]] == [t(f"tokens.{name}", "zh") for name in view.QUANTITIES]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


def test_figures_under_the_pointer_and_at_the_focus(tmp_path, chromium) -> None:
    folder, language, width = tmp_path / "runs", "zh", 390
    run = make_run(folder)
    write(run, 1, answer("one"))
    write(run, 5, answer("a", " b", " c", "<b>d</b>", values=(0.125, 0.25, 0.5, 1.0)), answer("second"))
    with page_server(folder) as (url, _):
        page = chromium.new_page(locale=language, viewport={"width": width, "height": 800}, has_touch=True)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}/?run=one&tab=watch")
        card = page.locator("#watch-tokens section").first
        line, token = card.locator(".figures"), card.locator('[role="option"]')
        card.wait_for()
        assert line.inner_text() == table(language)["tokens.point"]
        token.nth(1).hover()
        assert "“ b”" in line.inner_text()
        assert "+0.250" in line.inner_text()
        page.mouse.move(0, 0)
        token.first.focus()
        assert "+0.125" in line.inner_text()
        for key, figure in (("ArrowRight", "+0.250"), ("End", "+1.000"), ("ArrowLeft", "+0.500"), ("Home", "+0.125")):
            page.keyboard.press(key)
            assert figure in line.inner_text()
        token.nth(3).tap()
        assert "“<b>d</b>”" in line.inner_text()
        assert page.locator("#watch-tokens b").count() == 0
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('section') !== document.querySelector('#tokens section')")

        write(run, 9, answer("nine"))
        append_line(run / "metrics.jsonl", {"stage": "ppo", "step": 9, "objective/scores": 1.0})
        page.wait_for_selector("#watch-curves svg", timeout=20_000)  # the page has polled
        page.wait_for_timeout(2500)
        assert "“<b>d</b>”" in line.inner_text()  # the view drawn again would ask to point at a token
        page.locator("#tokens-quantity label").last.click()
        shows(page, "#watch-tokens .prose > p.soft", table(language)["tokens.reward.note"])
        page.locator("#tokens-step input").click()
        page.get_by_role("option", name="9", exact=True).click()
        page.wait_for_function("document.querySelector('#watch-tokens [role=option]').textContent == 'nine'")
        assert line.inner_text() == table(language)["tokens.point"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()
    assert errors == []
