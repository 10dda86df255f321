"""Ranking page as a Gradio component."""

import getpass
import json
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from lowrank_rlhf.dashboard import wording
from lowrank_rlhf.dashboard.access.login import user_name
from lowrank_rlhf.dashboard.browser.storage import with_storage
from lowrank_rlhf.dashboard.ranking.screen import Reply
from lowrank_rlhf.dashboard.ranking.session import error_text, ranking_handler, run_folder, sign
from lowrank_rlhf.dashboard.ranking.text import LANGUAGES, say, texts
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.labelling import annotator_name
from lowrank_rlhf.preferences.project import open_project

_STATIC = Path(__file__).parents[1] / "static"
_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}

# The name typed last in this browser, else the server's login.
_RESTORE_NAME = with_storage("""() => {
  return stored((storage) => storage.getItem('lowrank-annotator')) || %s;
}""")
_KEEP_NAME = with_storage("""(run, before, name) => {
  stored((storage) => storage.setItem('lowrank-annotator', name));
  return [run, before, name];
}""")


def build(
    runs: Path,
    run: Any,
    language: Any,
    resume: Callable[[str], str] | None = None,
) -> gr.HTML:
    """Add the ranking page to the open `gr.Blocks`.

    Rankings are saved under the name of the login; without a login the page asks for one.

    Args:
        runs: folder of the runs.
        run: component or state with a run's name.
        language: component or state with `en` or `zh`.
        resume: resumes a run by name and returns a message; without it the page shows the command instead.
    """
    secret = secrets.token_bytes(32)
    name, who = _name_box(_login()), gr.State(None)  # unknown until the browser has sent the name that it keeps
    page = gr.HTML(
        value=None,
        html_template=(_STATIC / "ranking.html").read_text(encoding="utf-8"),
        css_template=(_STATIC / "ranking.css").read_text(encoding="utf-8"),
        js_on_load=_script(owner=resume is not None),
        apply_default_css=False,
        server_functions=[_step_function(runs, secret, owner=resume is not None)],
        elem_id="ranking",
    )

    def open_page(run_name: str | None, chosen: str, given: str | None, request: gr.Request) -> tuple[Any, Any]:
        shown = chosen if chosen in LANGUAGES else LANGUAGES[0]
        asked = not user_name(request)
        if given is None and asked:  # nor is the language that the browser keeps
            return gr.skip(), gr.skip()
        box = gr.update(label=say("page.name", shown), info=say("page.name.info", shown), visible=asked)
        value = {"language": shown, "texts": texts(shown), "may_resume": resume is not None, "run": run_name or ""}
        try:
            person = annotator_name(user_name(request) or given or "")
            person = open_project(run_folder(runs, run_name or "")).store.spelling(person)
        except UserError as error:
            problem = error_text(error, shown, owner=resume is not None)
            return box, value | {"badge": {"run": "", "annotator": "", "signature": ""}, "problem": problem}
        return box, value | {"badge": sign(secret, run_name or "", person)}

    opening = _QUIET | {"preprocess": False}
    gr.on(None, open_page, [run, language, who], [name, page], **opening)
    page.reopen(open_page, [run, language, who], [name, page], **opening)

    def rename(run_name: str | None, before: str | None, given: str, request: gr.Request) -> str:
        """Release the item that was leased under the previous name."""
        if before is not None and given != before and not user_name(request):
            with suppress(UserError):
                open_project(run_folder(runs, run_name or "")).store.release(annotator_name(before))
        return given

    restored = gr.on(None, None, None, name, js=_RESTORE_NAME % json.dumps(_login()), **_QUIET)
    restored.then(rename, [run, who, name], who, **_QUIET)
    gr.on([name.submit, name.blur], rename, [run, who, name], who, js=_KEEP_NAME, **_QUIET)
    if resume is not None:
        _resume_button(page, run, language, resume)
    return page


def _script(owner: bool) -> str:
    names = ("stored.js", "ranking_draw.js", *(["ranking_owner.js"] if owner else []), "ranking.js")
    return "\n".join((_STATIC / name).read_text(encoding="utf-8") for name in names)


def _step_function(runs: Path, secret: bytes, owner: bool) -> Callable[[Any, gr.Request], Reply]:
    apply_step = ranking_handler(runs, secret, owner)

    def rank(sent: Any, request: gr.Request) -> Reply:  # the page calls it by this name
        return apply_step(sent, user_name(request))

    return rank


def _name_box(value: str) -> gr.Textbox:
    return gr.Textbox(
        value=value,
        label=say("page.name", LANGUAGES[0]),
        info=say("page.name.info", LANGUAGES[0]),
        max_lines=1,
        max_length=100,
        visible=False,
        elem_id="ranking-name",
    )


def _resume_button(page: gr.HTML, run: Any, language: Any, resume: Callable[[str], str]) -> None:
    def continue_run(name: str, chosen: str) -> None:
        try:
            gr.Info(resume(name))
        except UserError as error:
            raise gr.Error(wording.error_text(error, chosen), print_exception=False) from None

    page.resume(continue_run, [run, language], None, **_QUIET)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without a name
        return ""
