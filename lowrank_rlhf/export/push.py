"""Upload of an exported folder to the Hugging Face hub, or to a mirror of it. Imports no torch."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lowrank_rlhf.errors import UserError

ALLOWED = (
    "README.md",
    "Modelfile",
    "*.safetensors",
    "*.gguf",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "reward.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
"""Names of the files that `export` writes. Other files are never uploaded."""


@dataclass(frozen=True)
class Upload:
    """Files to upload and files to leave out: names relative to the folder, sorted."""

    folder: Path
    files: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes to upload."""
        return sum((self.folder / name).stat().st_size for name in self.files)


def list_upload(folder: Path) -> Upload:
    """List an exported folder. Raises `UserError` if weights or card are missing."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; `export` writes one from a run")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    sent: list[str] = []
    kept: list[str] = []
    for path in paths:
        (sent if _may_go(path, folder) else kept).append(path.relative_to(folder).as_posix())
    if not any(name.endswith((".safetensors", ".gguf")) for name in sent) or "README.md" not in sent:
        raise UserError(
            f"{folder}: no weights (*.safetensors, *.gguf) with a card (README.md) there; `export` writes both"
        )
    return Upload(folder, tuple(sent), tuple(kept))


def _may_go(path: Path, folder: Path) -> bool:
    """Return True for a file that `export` writes and that is no link: links may lead anywhere on this machine."""
    inside = path.resolve().is_relative_to(folder.resolve()) and not path.is_symlink()
    return inside and any(fnmatchcase(path.name, pattern) for pattern in ALLOWED)


def send(upload: Upload, repository: str, public: bool) -> str:
    """Create the repository if needed, upload the files as one commit, and return the commit's address.

    The token is the hub library's own: its environment variable, or its saved login. Raises `UserError` with the
    reason, also if the repository exists and its visibility is not `public`.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(library_name="lowrank_rlhf")
    operations = [CommitOperationAdd(name, upload.folder / name) for name in upload.files]
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        _check_visibility(api, repository, public)
        return str(api.create_commit(repository, operations, commit_message="Made with lowrank_rlhf").commit_url)
    except UserError:
        raise
    except Exception as error:  # whatever its HTTP library raises, which differs between versions
        raise UserError(_refusal(repository, error)) from None


def _check_visibility(api: Any, repository: str, public: bool) -> None:
    private = bool(api.repo_info(repository).private)
    if private == public:
        there, wanted = ("private", "leave out --public") if private else ("public", "add --public if that is meant")
        raise UserError(f"{repository}: exists already and is {there}; {wanted}, or name another. Nothing was sent")


def _refusal(repository: str, error: Exception) -> str:
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return f"{repository}: not a valid repository name: expected OWNER/NAME of letters, digits, -, _ and ."
    if isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
        return f"{repository}: {constants.ENDPOINT} does not know who you are; `hf auth login`, then the same command"
    if status == 403:
        return f"{repository}: your login may not write there; use a token with write access, or your own name as OWNER"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{repository}: offline mode is on (HF_HUB_OFFLINE); nothing can be sent"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{repository}: {constants.ENDPOINT} did not take it ({reason}); the same command may be tried again"
