"""Ranking page for annotators: one run's answers, behind a login, without access to anything else."""

from collections.abc import Callable
from pathlib import Path

import gradio as gr

from lowrank_rlhf.dashboard import server
from lowrank_rlhf.dashboard.access.password import check_length
from lowrank_rlhf.dashboard.ranking.text import LANGUAGES, language_of, say
from lowrank_rlhf.dashboard.server import Address
from lowrank_rlhf.dashboard.tabs import rank
from lowrank_rlhf.dashboard.text import LANGUAGE_LABEL
from lowrank_rlhf.preferences.labelling import annotator_name
from lowrank_rlhf.preferences.team.invitations import Invitations

_NAMES = {"en": "English", "zh": "中文"}
_CSS = """
.gradio-container .main.fillable { max-width: 1180px !important; margin: 0 auto; padding: .6rem .8rem !important; }
.gradio-container .html-container { padding: 0 !important; }
#ranking-top { align-items: center; gap: .6rem; flex-wrap: nowrap; }
#ranking-top h1 { font-size: 1.15rem; margin: 0; }
#ranking-language .wrap { flex-wrap: nowrap; gap: .3rem; } #ranking-language label { padding: .3rem .6rem; }
"""


def build(folder: Path) -> gr.Blocks:
    """Return the page for one folder with answers to rank."""
    with gr.Blocks(title="lowrank_rlhf", analytics_enabled=False, fill_width=True) as blocks:
        with gr.Row(elem_id="ranking-top"):
            title = gr.HTML(_title(LANGUAGES[0]), min_width=120)
            language = gr.Radio(
                [(_NAMES[code], code) for code in LANGUAGES],
                value=LANGUAGES[0],
                label=LANGUAGE_LABEL,
                show_label=False,
                container=False,
                min_width=190,
                scale=0,
                elem_id="ranking-language",
            )
        rank.build(folder.parent, gr.State(folder.name), language)

        def browsers_language(request: gr.Request) -> str:
            return language_of(request.headers.get("accept-language", ""))

        blocks.load(browsers_language, None, language, api_visibility="private", show_progress="hidden")
        language.change(_title, language, title, api_visibility="private", show_progress="hidden")
    return blocks


def _title(language: str) -> str:
    return f"<h1>{say('page.title', language)}</h1>"


def serve(folder: Path, address: Address, password: str, on_ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C. `on_ready` gets its URL.

    Each annotator logs in with the password and a name, or by a personal link.

    Raises `UserError` if the password is too short or the address cannot be used.
    """
    check_length(password)
    address = address.checked()
    protection = server.middleware(address, password, annotator_name, invitations=Invitations(folder))
    server.serve(build(folder), address, protection, _CSS, lambda: on_ready(address.url))
