"""Fetch one published file: checked by its hash, resumed where it was cut off, never left half-written under its name."""

import hashlib
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from base.errors import Refused
from base.files import sync_folder

CHUNK = 1 << 20  # bytes
TIMEOUT = 30  # seconds without a byte


def fetch(url: str, path: Path, digest: str, kind: str = "md5") -> None:
    """Bring `url` to `path`. What has come so far stays in `path`.part, and a second call goes on from there.

    digest: what its hash of this kind begins with. Raises Refused: cut off, another hash (what came is then removed), or
    no network, with the file to put where.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _receive(url, part)
    except (OSError, urllib.error.URLError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise Refused(f"cannot fetch {url} ({reason}): try again to go on, or put {path.name} into {path.parent}") from None
    found = digest_of(part, kind)
    if not found.startswith(digest):
        part.unlink()
        raise Refused(
            f"{url} came with {kind} {found}, not {digest}: it was removed; try again, or put {path.name} into {path.parent}"
        )
    part.replace(path)
    sync_folder(path.parent)


def _receive(url: str, part: Path) -> None:
    """Append to `part` what is missing of `url`, or all of it where the server cannot send a part."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # all of it is here
            return
        raise
    with answer, part.open("ab" if answer.status == 206 else "wb") as file:
        length = answer.headers.get("Content-Length")
        total = int(length) if length else None
        with tqdm(total=total, desc=part.stem, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            received = 0
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                received += len(chunk)
                bar.update(len(chunk))
    if total is not None and received < total:
        raise OSError(f"cut off after {received} of {total} bytes")


def digest_of(path: Path, kind: str = "md5") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
