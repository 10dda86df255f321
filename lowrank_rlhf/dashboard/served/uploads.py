"""Files of prompts that the browser sends: the body is the file, the path's last part its name."""

from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from lowrank_rlhf.dashboard.guided import prompt_files
from lowrank_rlhf.dashboard.runs_folder import cannot_write
from lowrank_rlhf.errors import UserError, error_record

PREFIX = "/data/"


def upload_routes(runs: Path) -> list[BaseRoute]:
    """Return the route below `PREFIX`, which answers with the name of the kept file, or an `error_record`."""

    async def upload(request: Request) -> Response:
        content = await request.body()  # the guard limits its size
        try:
            path = await run_in_threadpool(prompt_files.keep, runs, request.path_params["name"], content)
        except UserError as error:
            return JSONResponse(error_record(error), 415)
        except OSError as error:
            return JSONResponse(error_record(cannot_write(runs, error)), 507)
        return PlainTextResponse(path.name)

    return [Route(f"{PREFIX}{{name}}", upload, methods=["POST"])]
