"""Files of the chosen run that the browser may fetch: its report, and its exports as zips."""

from collections.abc import Callable
from pathlib import Path

from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from lowrank_rlhf.dashboard import exports, run_status
from lowrank_rlhf.errors import UserError

REPORTS = {"report.html": "text/html; charset=utf-8", "report.md": "text/markdown; charset=utf-8"}
# A report is a page that a model had a hand in: it may run nothing, load nothing and ask nothing.
_HARMLESS = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'self'"


def routes(folder: Path) -> list[BaseRoute]:
    """The addresses below `/runs/` for the runs in a folder."""

    def report(request: Request) -> Response:
        name = request.path_params["file"]
        path = run_status.run_path(folder, request.path_params["run"]) / name
        if name not in REPORTS or path.is_symlink() or not path.is_file():
            return _missing()
        return FileResponse(path, media_type=REPORTS[name], headers={"Content-Security-Policy": _HARMLESS})

    def archive(request: Request) -> Response:
        run, what = run_status.run_path(folder, request.path_params["run"]), request.path_params["what"]
        name = f"{run.name}-{what}.zip"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        pieces = iterate_in_threadpool(exports.zipped(run, what))
        return StreamingResponse(pieces, media_type="application/zip", headers=headers)

    def safely(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
        def answered(request: Request) -> Response:
            try:
                return answer(request)
            except UserError:
                return _missing()

        return answered

    return [
        Route("/runs/{run}/exports/{what}.zip", safely(archive)),
        Route("/runs/{run}/{file}", safely(report)),
    ]


def _missing() -> Response:
    return PlainTextResponse("There is nothing here.\n", 404)
