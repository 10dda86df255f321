"""Token view of tab Watch: answers of PPO's rollouts, each token coloured by one of its figures."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import ValidationError

from lowrank_rlhf.dashboard.page import OF_RUN, DashboardPage, as_updates, delayed_update, updates_of
from lowrank_rlhf.dashboard.text import html, t
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.reports.format import number
from lowrank_rlhf.run.records import RolloutAnswer

_SCRIPT = Path(__file__).parents[1] / "static" / "tokens.js"
_LEVELS = 4
"""Shades of a colour, on either side of 0."""
_WITHIN = 0.9
"""Share of the tokens within the scale: the score at the end of an answer must not hide the other rewards."""
_SMALLEST_SCALE = 0.01

Figures = Sequence[float]
QUANTITIES: dict[str, Callable[[RolloutAnswer], Figures]] = {
    "log_ratio": lambda answer: [own - sft for own, sft in zip(answer.logprobs, answer.ref_logprobs, strict=True)],
    "advantage": lambda answer: answer.advantages,
    "value": lambda answer: answer.values,
    "reward": lambda answer: answer.rewards,
}
"""Figures of a token by which it can be coloured."""


def build(page: DashboardPage) -> None:
    """Lay out the view. It is drawn again for another run, step, quantity or language only."""
    with gr.Column(visible=False, elem_id="tokens") as column:
        title = gr.HTML("")
        with gr.Row(elem_classes="actions"):
            # Custom values are allowed: after a restart of the server Gradio would refuse each step of an open page.
            steps = gr.Dropdown([], allow_custom_value=True, elem_id="tokens-step", min_width=120, scale=0)
            step = page.texts.add(steps, label="tokens.step")
            quantity = page.texts.add(
                gr.Radio(list(QUANTITIES), value="log_ratio", elem_id="tokens-quantity", scale=2),
                label="tokens.quantity",
            )
        shown = gr.HTML("", js_on_load=_SCRIPT.read_text(encoding="utf-8"), elem_id="watch-tokens")
    seen = gr.State({})

    def refresh(run: str | None, language: str, at: int | None, by: str, before: dict[str, Any]) -> list[Any]:
        return as_updates(_refresh(page, run, language, at, by, before))

    inputs = [page.run, page.language, step, quantity, seen]
    events = [*page.while_shown, page.run.change, page.language.change, step.input, quantity.input]
    gr.on(events, refresh, inputs, [column, title, *map(updates_of, (step, quantity)), shown, seen], **OF_RUN)


def _refresh(
    page: DashboardPage, chosen: str | None, language: str, step: int | None, quantity: str, before: dict[str, Any]
) -> list[Any]:
    """Return column, title, choices, tokens and what they were made from; only parts that have changed."""
    try:
        run = page.runs.status(chosen) if chosen else None
    except UserError:
        run = None
    rows = page.runs.rows(run.round_dir.rollouts.path)[0] if run else []
    steps = sorted({row["step"] for row in rows if isinstance(row.get("step"), int)})
    place = (run.name, run.round_dir.number) if run and steps else None
    if place is None:
        return (
            [gr.skip()] * 6
            if before == {"place": None}
            else [gr.update(visible=False), *[gr.skip()] * 4, {"place": None}]
        )
    if step is None or step not in steps or before.get("place") != place:
        step = steps[-1]
    answers = list(_answers(rows, step))
    now = {"place": place, "language": language, "steps": steps, "shown": (place, language, quantity, answers)}
    if now == before:
        return [gr.skip()] * 6
    same_language = before.get("language") == language
    names = [(t(f"tokens.{name}", language), name) for name in QUANTITIES]
    return [
        gr.skip() if before.get("place") else gr.update(visible=True),
        gr.skip() if same_language else f"<h2>{html(t('tokens.title', language))}</h2>",
        gr.skip()
        if before.get("steps") == steps and before["place"] == place
        else delayed_update(choices=steps, value=step),
        gr.skip() if same_language else delayed_update(choices=names, value=quantity),
        gr.skip() if before.get("shown") == now["shown"] else tokens(answers, quantity, language),
        now,
    ]


def _answers(rows: Sequence[dict[str, Any]], step: int) -> Iterator[RolloutAnswer]:
    """Yield the answers of a step; a line that is none is skipped."""
    for row in rows:
        if row.get("step") == step:
            with suppress(ValidationError):
                yield RolloutAnswer.model_validate({key: row[key] for key in row if key not in ("stage", "step")})


def tokens(answers: Sequence[RolloutAnswer], quantity: str, language: str) -> str:
    """Return answers as HTML, each token coloured by the quantity, with a legend and a line for the figures."""
    figures = [QUANTITIES[quantity](answer) for answer in answers]
    sizes = sorted(abs(value) for row in figures for value in row)
    scale = max([_SMALLEST_SCALE, *sizes[int(_WITHIN * len(sizes)) :][:1]])
    cards = "".join(_card(answer, row, scale, language) for answer, row in zip(answers, figures, strict=True))
    note = html(t(f"tokens.{quantity}.note", language))
    return f'<p class="soft">{note}</p>{_legend(scale)}<div class="rollouts">{cards}</div>'


def _legend(scale: float) -> str:
    boxes = "".join(f'<i class="{_shade(level / _LEVELS)}">\u00a0</i>' for level in range(-_LEVELS, _LEVELS + 1))
    low, high = (html(_signed(sign * scale)) for sign in (-1, 1))
    return f'<p class="shades"><span>\u2264 {low}</span>{boxes}<span>\u2265 {high}</span></p>'


def _card(answer: RolloutAnswer, figures: Figures, scale: float, language: str) -> str:
    kl = sum(QUANTITIES["log_ratio"](answer))
    about = t("tokens.about", language, score=number(answer.score), kl=_signed(kl), count=len(answer.pieces))
    spans = "".join(
        f'<span role="option" aria-selected="false" tabindex="{-1 if i else 0}" class="{_shade(figures[i] / scale)}"'
        f' aria-label="{html(label)}">{_shown(answer.pieces[i])}</span>'
        for i, label in enumerate(_labels(answer, language))
    )
    return (
        f'<section><div class="question" dir="auto" tabindex="0">{html(answer.prompt)}</div>'
        f'<div class="answer" role="listbox" aria-label="{html(t("tokens.answer", language))}" dir="auto">{spans}</div>'
        f'<p class="soft">{html(about)}</p><p class="figures">{html(t("tokens.point", language))}</p></section>'
    )


def _labels(answer: RolloutAnswer, language: str) -> Iterator[str]:
    """Yield each token's text and figures in a line."""
    starts = [i for i, piece in enumerate(answer.pieces) if piece]
    ends = dict(zip(starts, [*starts[1:], len(answer.pieces)], strict=True))
    start = 0
    for i in range(len(answer.pieces)):
        start = i if i in ends else start
        part = ends.get(start, i + 1) - start
        yield t(
            "tokens.figures" if part == 1 else "tokens.figures_of_part",
            language,
            text=answer.pieces[start].replace("\n", "↵"),
            part=i - start + 1,
            parts=part,
            policy=f"{answer.logprobs[i]:.3f}",
            sft=f"{answer.ref_logprobs[i]:.3f}",
            **{name: _signed(of(answer)[i]) for name, of in QUANTITIES.items()},
        )


def _shown(piece: str) -> str:
    """Return a token's text as HTML; a line end, and the rest of a character of several tokens, have a mark."""
    return html(piece.replace("\n", "↵\n")) or "·"


def _shade(share: float) -> str:
    """Return the CSS class of a figure, given as a share of the scale: `up1` to `up4`, `down1` to `down4`, or none."""
    level = min(_LEVELS, round(abs(share) * _LEVELS))
    return f"{'up' if share > 0 else 'down'}{level}" if level else ""


def _signed(value: float) -> str:
    return f"{value:+.3f}"
