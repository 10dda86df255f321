"""Invitations: a link with its own token for each annotator, so that nobody ranks under another's name."""

import hashlib
import hmac
import secrets
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.files import write_atomic

FILE = "invitations.json"
_DIGESTS: TypeAdapter[dict[str, str | None]] = TypeAdapter(dict[str, str | None])


class Invitation(NamedTuple):
    """A person who may rank by link only; `revoked` after the link was withdrawn and before a new one."""

    annotator: str
    revoked: bool


class Invitations:
    """Invitations of one folder with answers to rank, in its `invitations.json`.

    The file has the SHA-256 of each token, never the token. A token has 256 random bits, so it needs no salt. The name
    of an invited person stays reserved after the link is revoked. Raises `UserError` for a damaged file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def invite(self, annotator: str) -> str:
        """Return a new token for this person; an earlier one and its sessions end."""
        token = secrets.token_urlsafe(32)
        with self._change() as digests:
            digests[_known(digests, annotator) or annotator] = digest_of(token)
        return token

    def revoke(self, annotator: str) -> bool:
        """Withdraw a person's link and end the sessions that it opened; return False if there is none."""
        with self._change() as digests:
            name = _known(digests, annotator)
            if name is None or digests[name] is None:
                return False
            digests[name] = None
        return True

    def all(self) -> list[Invitation]:
        """Return all invitations by name."""
        return [Invitation(name, digest is None) for name, digest in sorted(self._read().items())]

    def annotator_of(self, token: str) -> str | None:
        """Return the person whose token this is. Takes the same time for every wrong token."""
        given, found = digest_of(token), None
        for name, digest in self._read().items():
            if hmac.compare_digest(given, digest or ""):
                found = name
        return found

    def admits(self, annotator: str, digest: str = "") -> bool:
        """Return True if a session of this person may continue.

        `digest` is of the token that opened it; empty for one opened by the password, which an invited name ends.
        """
        digests = self._read()
        name = _known(digests, annotator)
        if name is None:
            return not digest
        return bool(digest) and hmac.compare_digest(digest, digests[name] or "")

    def _read(self) -> dict[str, str | None]:
        try:
            return _DIGESTS.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from None
        except ValidationError:
            raise UserError(f"{self.path}: damaged. Delete it and invite everybody again") from None

    @contextmanager
    def _change(self) -> Iterator[dict[str, str | None]]:
        with FileLock(self.path.with_name(f".{FILE}.lock")):
            digests = self._read()
            yield digests
            try:
                write_atomic(self.path, _DIGESTS.dump_json(digests, indent=2).decode() + "\n")
            except OSError as error:
                raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None


def digest_of(token: str) -> str:
    """Return the form in which a token is kept."""
    return hashlib.sha256(token.encode()).hexdigest()


def _known(digests: dict[str, str | None], annotator: str) -> str | None:
    """Return the invited name that this one equals, ignoring case and width."""
    return next((name for name in digests if _folded(name) == _folded(annotator)), None)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()
