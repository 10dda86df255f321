"""Jinja environments in which everything that a template prints is escaped, for HTML and for Markdown."""

import re
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from markupsafe import escape as escape_html

from lowrank_rlhf.errors import visible

TEMPLATES = Path(__file__).parent / "templates"
_PERCENT = "\N{NO-BREAK SPACE}%"


def html_environment() -> Environment:
    """Return the environment of HTML templates: autoescape, and a number stays on a line with its per cent sign."""
    environment = _environment(autoescape=True, finalize=_html)
    environment.filters["inline_code"] = inline_code
    return environment


def markdown_environment(*folders: Path) -> Environment:
    """Return the environment of Markdown templates, which escapes everything except `Markup`.

    Args:
        folders: template folders that come before this package's own.
    """
    environment = _environment(*folders, autoescape=False, finalize=_markdown)
    environment.filters |= {"cell": _cell, "code": code_span}
    return environment


def _environment(*folders: Path, autoescape: bool, finalize: Any) -> Environment:
    return Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=autoescape,  # noqa: S701 - `finalize` escapes for Markdown
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _html(value: Any) -> Any:
    """Spell out control and direction marks; jinja escapes the result."""
    return visible(value).replace(" %", _PERCENT) if isinstance(value, str) and not _is_markup(value) else value


def inline_code(text: str) -> Markup:
    """Mark text between backticks as code."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape_html(_html(text)))))  # noqa: S704 - escaped


def markdown_text(text: str) -> str:
    """Return text that Markdown shows unchanged: no markup, no HTML, no links, one line."""
    marked = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", escape(visible(text), quote=False))
    return re.sub(r"\s*\n\s*", " ", marked.strip())


def _markdown(value: Any) -> Any:
    return value if _is_markup(value) else markdown_text(str(value))


def _cell(text: str) -> Markup:
    """Return text for a cell of a pipe table, in which a line break is a tag."""
    return Markup("<br>".join(markdown_text(line) for line in text.strip().splitlines() if line.strip()))  # noqa: S704


def code_span(text: str) -> Markup:
    """Return an inline code span, fenced by more backticks than the text has in a row."""
    plain = visible(text).replace("\n", " ")
    fence = "`" * (1 + max((len(found) for found in re.findall("`+", plain)), default=0))
    padding = " " if "`" in plain else ""
    return Markup(f"{fence}{padding}{plain}{padding}{fence}")  # noqa: S704 - shown as code


def _is_markup(value: Any) -> bool:
    return isinstance(value, Markup)
