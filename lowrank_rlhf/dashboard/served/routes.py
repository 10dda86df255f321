"""What the browser may fetch of runs: reports, exports as zips, and the comparison of several runs."""

from collections.abc import Callable

from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.served import comparison, exports
from lowrank_rlhf.dashboard.served.curves import POLICY, with_curves
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.results.rounds import split

REPORTS = {"report.html": "text/html; charset=utf-8", "report.md": "text/markdown; charset=utf-8"}


def routes(runs: RunsFolder) -> list[BaseRoute]:
    """Return the routes `/compare` and those below `/runs/`."""

    def report(request: Request) -> Response:
        number, name = split(request.path_params["file"])
        run_dir = RunDir(runs.path(request.path_params["run"]), number)
        path = run_dir.artifact(name)
        if name not in REPORTS or path.is_symlink() or run_dir.path.is_symlink() or not path.is_file():
            return _not_found()
        run_dir.check_outputs(name)
        headers = {"Content-Security-Policy": POLICY}
        if name == "report.html":
            return HTMLResponse(with_curves(path.read_text(encoding="utf-8")), headers=headers)
        return FileResponse(path, media_type=REPORTS[name], headers=headers)

    def compare(request: Request) -> Response:
        names = request.query_params.get("runs", "").split(comparison.SEPARATOR)
        page = comparison.page_of(runs, names)
        shown = page if "saved" in request.query_params else with_curves(page)
        return HTMLResponse(shown, headers={"Content-Security-Policy": POLICY})

    def archive(request: Request) -> Response:
        run, kind = runs.path(request.path_params["run"]), request.path_params["kind"]
        name = f"{run.name}-{kind}.zip"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        chunks = iterate_in_threadpool(exports.zipped(run, kind))
        return StreamingResponse(chunks, media_type="application/zip", headers=headers)

    def or_not_found(endpoint: Callable[[Request], Response]) -> Callable[[Request], Response]:
        def respond(request: Request) -> Response:
            try:
                return endpoint(request)
            except UserError:
                return _not_found()

        return respond

    return [
        Route("/compare", or_not_found(compare)),
        Route("/runs/{run}/exports/{kind}.zip", or_not_found(archive)),
        Route("/runs/{run}/{file:path}", or_not_found(report)),
    ]


def _not_found() -> Response:
    return PlainTextResponse("Not found.\n", 404)
