"""Models and data files of ModelScope, downloaded once into this package's cache; the library is imported only then."""

import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.sources.checksums import cache_folder

SCHEME = "modelscope:"
_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt")
_SOURCE = re.compile(r"modelscope:(?P<name>[\w.-]+/[\w.-]+)(/(?P<file>[\w./-]+))?(@(?P<revision>[\w./-]+))?")


class ModelScopeSource(NamedTuple):
    """Parts of `modelscope:OWNER/NAME` or `modelscope:OWNER/NAME/FILE@REVISION`."""

    name: str
    file: str | None
    revision: str | None

    @property
    def cached(self) -> Path:
        """Folder or file in the cache, complete if it exists."""
        kind = "data" if self.file else "models"
        folder = cache_folder() / "modelscope" / kind / f"{self.name.replace('/', '--')}@{self.revision or 'latest'}"
        return folder / self.file if self.file else folder


def model_source(source: str, revision: str | None) -> ModelScopeSource:
    """Parse `model.source`. Raises `UserError` for another form."""
    match = _SOURCE.fullmatch(source)
    if not match or match["file"] or match["revision"]:
        raise UserError(f"model.source: {source}: expected modelscope:OWNER/NAME. Set model.revision for a revision")
    if not _inside(revision):
        raise UserError(f"model.revision: {revision}: expected a branch, tag or commit, without `..` and a leading /")
    return ModelScopeSource(match["name"], None, revision)


def data_source(source: str) -> ModelScopeSource:
    """Parse a data source. Raises `UserError` for another form."""
    match = _SOURCE.fullmatch(source)
    if not match or not match["file"] or not _inside(match["file"], match["revision"]):
        raise UserError(
            f"{source}: expected modelscope:OWNER/NAME/FILE[@REVISION], such as modelscope:anna/questions/train.jsonl"
        )
    return ModelScopeSource(match["name"], match["file"], match["revision"])


def _inside(*paths: str | None) -> bool:
    """Return True if relative paths stay inside the folder that they are joined to."""
    parts = [re.split(r"[/\\]", path) for path in paths if path is not None]
    return not any(part[0] == "" or ".." in part for part in parts)


def modelscope_folder(wanted: ModelScopeSource) -> Path:
    """Return the folder of a model, downloaded if missing; pickles and code are never downloaded.

    Raises:
        UserError: The package modelscope is missing, or the download failed.
    """
    if wanted.cached.is_dir():
        return wanted.cached
    _check_package(f"{SCHEME}{wanted.name}")
    from modelscope.hub.snapshot_download import snapshot_download

    unfinished = wanted.cached.with_name(f"{wanted.cached.name}.unfinished")  # a later try resumes it
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{unfinished}.lock"):
        if not wanted.cached.is_dir():
            settings = {"revision": wanted.revision, "local_dir": str(unfinished)}
            _download(wanted, snapshot_download, wanted.name, allow_patterns=list(_PATTERNS), **settings)
            unfinished.rename(wanted.cached)
    return wanted.cached


def modelscope_file(source: str) -> Path:
    """Return a file of a data set, downloaded if missing. Raises `UserError` as `modelscope_folder`."""
    wanted = data_source(source)
    if wanted.file and not wanted.cached.is_file():
        _check_package(source)
        from modelscope.hub.file_download import dataset_file_download

        folder = wanted.cached.parents[len(Path(wanted.file).parents) - 1]
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"revision": wanted.revision, "local_dir": str(folder)}
        _download(wanted, dataset_file_download, wanted.name, wanted.file, **settings)
        if not wanted.cached.is_file():
            raise UserError(f"{source}: file not found at ModelScope. Correct the name")
    return wanted.cached


def _check_package(source: str) -> None:
    if importlib.util.find_spec("modelscope") is None:
        raise UserError(
            f"{source}: requires the package modelscope. Run `pip install modelscope`, or download the files elsewhere "
            "and set their path"
        )


def _download(wanted: ModelScopeSource, function: Any, *arguments: str, **settings: Any) -> None:
    try:
        function(*arguments, **settings)
    except Exception as error:  # whatever its HTTP library raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{SCHEME}{wanted.name}: cannot be downloaded ({reason}). Check name, revision and network; a private one "
            "requires `modelscope login`"
        ) from None
