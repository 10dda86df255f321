"""Tables, plots and samples as one HTML page and as Markdown. Whatever a model or a person wrote is escaped."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lowrank_rlhf.reports.format import Table, number
from lowrank_rlhf.reports.plots import Plot
from lowrank_rlhf.reports.tables import scores

FEATURED = 3
_QUIET = "None of the automatic alarms went off."

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --ink: #1c1e21; --soft: #5b6068; --line: #dfe1e4;
  --one: #1f6fb2; --two: #c2570c; --good: #1a7f4b; --bad: #b42318; --warn: #fff4e5; --hero: #eaf3fb; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1d2026; --ink: #e8e9eb; --soft: #a3a8b0;
  --line: #363b44; --one: #6db3f2; --two: #f2a65a; --good: #5fcf92; --bad: #ff8a80; --warn: #33281a;
  --hero: #1b2a3a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; } .soft, figcaption, summary, td.wide { color: var(--soft); font-size: .9rem; }
.hero { background: var(--hero); border-left: 4px solid var(--one); padding: .8rem 1rem; border-radius: 6px; }
.hero p:first-child { font-size: 1.2rem; line-height: 1.4; margin-top: 0; }
.alarms { background: var(--warn); border-left: 4px solid var(--two); border-radius: 6px; margin: .5rem 0;
  padding: .8rem 1rem .8rem 2rem; }
.alarms li + li { margin-top: .5rem; }
table { width: 100%; border-collapse: collapse; background: var(--card); border: 1px solid var(--line); }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid var(--line); }
th { font-size: .85rem; color: var(--soft); font-weight: 600; } td { font-variant-numeric: tabular-nums; }
.yes { color: var(--good); } .no { color: var(--bad); font-weight: 700; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .6rem; }
figure b { display: block; font-size: .95rem; } figure svg { width: 100%; height: auto; display: block; }
svg text { font-family: system-ui, sans-serif; } svg * { stroke-linejoin: round; stroke-linecap: butt; }
.sample { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem;
  margin: .6rem 0; }
.sample .prompt { font-weight: 600; white-space: pre-wrap; } .answer { white-space: pre-wrap; }
.sides { display: grid; gap: .4rem 1.2rem; grid-template-columns: 1fr 1fr; margin-top: .4rem; }
.side { border-left: 3px solid var(--line); padding-left: .6rem; } .side + .side { border-color: var(--one); }
.distance { margin-top: .4rem; } .side b { font-size: .8rem; color: var(--soft); }
summary { cursor: pointer; padding: .5rem 0; }
@media (max-width: 640px) { .sides { grid-template-columns: 1fr; } body { padding: .7rem; }
  thead { display: none; } tr { display: block; padding: .4rem 0; border-bottom: 1px solid var(--line); }
  td { display: flex; gap: .6rem; border: 0; padding: .1rem .6rem; } td:first-child { font-weight: 600; }
  td:empty { display: none; }
  td::before { content: attr(data-name); flex: 0 0 7.5rem; color: var(--soft); font-weight: 400; font-size: .85rem; } }
"""


def _words(text: str) -> str:
    """Escaped text in which no per cent sign begins a line."""
    return escape(text).replace(" %", "&nbsp;%")


def _cell(name: str, text: str) -> str:
    kind = {"holds": text.lower(), "what it is": "wide"}.get(name, "")
    return f'<td data-name="{escape(name)}" class="{escape(kind)}">{_words(text)}</td>'


def html_table(table: Table) -> str:
    """A section with heading, lead and table; on a phone each row becomes a block that names its columns."""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    cells = ("".join(map(_cell, table.header, row)) for row in table.rows)
    body = "\n".join(f"<tr>{row}</tr>" for row in cells)
    lead = f'<p class="soft">{escape(table.lead)}</p>' if table.lead else ""
    return (
        f"<h2>{escape(table.title)}</h2>\n{lead}\n<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    )


def _side(row: Mapping[str, Any], side: str, label: str) -> str:
    return (
        f'<div class="side"><b>{label}</b><div class="answer">{escape(str(row[side]))}</div>'
        f'<div class="soft">{escape(scores(row, side))}</div></div>'
    )


def _sample(row: Mapping[str, Any]) -> str:
    distance = (
        "" if row.get("kl") is None else f'<div class="soft distance">KL of this answer: {number(row["kl"])} nats</div>'
    )
    return (
        f'<div class="sample"><div class="prompt">{escape(str(row["prompt"]))}</div><div class="sides">'
        f"{_side(row, 'sft', 'SFT (before)')}{_side(row, 'policy', 'Aligned (after)')}</div>{distance}</div>\n"
    )


def html_samples(rows: Sequence[Mapping[str, Any]]) -> str:
    """The first answers open, all others folded away; nothing without rows."""
    if not rows:
        return ""
    rest = rows[FEATURED:]
    folded = f"<details><summary>The other {len(rest)} prompts</summary>{''.join(map(_sample, rest))}</details>"
    return (
        '<h2>Answers side by side</h2>\n<p class="soft">The first prompts as they come, not a choice of good ones.</p>'
        + "".join(map(_sample, rows[:FEATURED]))
        + (folded if rest else "")
    )


def _figure(plot: Plot) -> str:
    title, caption = escape(plot.title), escape(plot.caption)
    return f"<figure><b>{title}</b>{plot.svg}<figcaption>{caption}</figcaption></figure>\n"


def html_plots(plots: Sequence[Plot]) -> str:
    """All plots in a grid; nothing without plots."""
    return f'<h2>Curves</h2>\n<div class="plots">{"".join(map(_figure, plots))}</div>' if plots else ""


def html_page(name: str, lines: Sequence[str], warnings: Sequence[str], sections: Sequence[str]) -> str:
    """The whole page: lines are headline and caveat, plain text like the warnings; sections are markup."""
    hero = "".join(f"<p>{_words(line)}</p>" for line in lines if line)
    items = "".join("<li>" + re.sub("`([^`]*)`", r"<code>\1</code>", _words(text)) + "</li>" for text in warnings)
    alarm = (
        f'<h2>Look at this first</h2>\n<ul class="alarms">{items}</ul>' if items else f'<p class="soft">{_QUIET}</p>'
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}: report</title>\n<style>{STYLE}</style></head>\n"
        f'<body>\n<h1>Report of run “{escape(name)}”</h1>\n<div class="hero">{hero}</div>\n{alarm}\n'
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def _plain(text: str) -> str:
    """Text that Markdown shows as it stands: no markup, no links, one line."""
    marked = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", escape(text, quote=False))
    return re.sub(r"\s*\n\s*", "<br>", marked.strip())


def markdown_table(table: Table) -> str:
    """Heading, lead and a pipe table."""
    lines = [table.header, tuple("---" for _ in table.header), *(tuple(map(_plain, row)) for row in table.rows)]
    lead = f"{_plain(table.lead)}\n\n" if table.lead else ""
    return f"## {_plain(table.title)}\n\n{lead}" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def samples_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """All samples as a table, the scores under each answer."""
    if not rows:
        return None
    cells = tuple(
        (str(row["prompt"]), *(f"{row[side]}\n({scores(row, side)})" for side in ("sft", "policy"))) for row in rows
    )
    return Table("Answers side by side", "", ("prompt", "SFT (before)", "aligned (after)"), cells)


def markdown_page(name: str, lines: Sequence[str], warnings: Sequence[str], tables: Sequence[Table]) -> str:
    """The page without its plots."""
    top = "".join(f"{_plain(line)}\n\n" for line in lines if line)
    alarm = "".join(f"- {_plain(text)}\n" for text in warnings) or f"{_QUIET}\n"
    sections = "\n".join(map(markdown_table, tables))
    return f"# Report of run “{_plain(name)}”\n\n{top}## Alarms\n\n{alarm}\n{sections}"
