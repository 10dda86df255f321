"""Markdown as a tree of elements that the page builds itself: no text is ever parsed as HTML."""

from typing import Any

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from lowrank_rlhf.dashboard.ranking.screen import shown

Node = str | dict[str, Any]
"""Text, or an element with its children: `{"tag": "li", "inside": [...]}`, a link also with `href`."""

_TAGS = {"p", "ul", "ol", "li", "strong", "em", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "br", "a"}
_TEXTS = {"code_inline": "code", "fence": "pre", "code_block": "pre"}
_LINKS = ("https://", "http://", "mailto:")
# CommonMark without HTML. An image, which would tell another server who reads the page, becomes a link.
_PARSER = MarkdownIt("commonmark", {"html": False}).disable(["image", "html_block", "html_inline"])


def tree(text: str) -> list[Node]:
    """Return the elements of a Markdown text, with control characters escaped.

    Links lead to web and mail addresses only; other ones are text.
    """
    return _inside(SyntaxTreeNode(_PARSER.parse(shown(text))))


def _inside(node: SyntaxTreeNode) -> list[Node]:
    found: list[Node] = []
    for child in node.children:
        if child.type == "inline" or child.hidden:  # hidden: the paragraph of an item in a list without blank lines
            found += _inside(child)
        elif child.type == "softbreak":
            found.append("\n")
        elif child.type in _TEXTS:
            found.append({"tag": _TEXTS[child.type], "inside": [child.content]})
        elif child.tag in _TAGS:
            found += _element(child)
        else:
            found.append(child.content)
    return found


def _element(node: SyntaxTreeNode) -> list[Node]:
    if node.tag != "a":
        return [{"tag": node.tag, "inside": _inside(node)}]
    href = str(node.attrs.get("href", ""))
    return [{"tag": "a", "href": href, "inside": _inside(node)}] if href.startswith(_LINKS) else _inside(node)
