"""Fetch one published file: checked by its hash, resumed where it was cut off, never half-written
under its name.
"""

import hashlib
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tqdm import tqdm

from base.errors import Refused
from base.files import sync_folder

# Bytes.
CHUNK = 1 << 20
# Seconds without a byte.
TIMEOUT = 30


def fetch(url: str, path: Path, digest: str, kind: str = "md5") -> None:
    """Bring `url` to `path`.

    What has come so far stays in `path`.part, and a second call resumes there.

    digest: what its hash of this kind begins with. Raises Refused: cut off, another hash (what came
    is then removed), or no network, with the file to put where.
    """
    part = path.with_name(path.name + ".part")
    by_hand = f"put {path.name} into {path.parent}"
    path.parent.mkdir(parents=True, exist_ok=True)

    try:
        _receive(url, part)
    except (OSError, urllib.error.URLError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise Refused(f"cannot fetch {url} ({reason}): try again to resume, or {by_hand}") from None

    found = digest_of(part, kind)
    if not found.startswith(digest):
        part.unlink()
        came = f"{url} came with {kind} {found}, not {digest}"
        raise Refused(f"{came}: it was removed; try again, or {by_hand}")

    part.replace(path)
    sync_folder(path.parent)


def _receive(url: str, part: Path) -> None:
    """Append to `part` what is missing of `url`, or all of it where no part can be sent."""
    # What came before the connection broke is not fetched again.
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})

    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        # 416: nothing lies beyond what we have, so all of it is here.
        if error.code == 416:
            return
        raise

    # 206 is the part that was asked for; 200 is all of it, from the start.
    with answer, part.open("ab" if answer.status == 206 else "wb") as file:
        length = answer.headers.get("Content-Length")
        total = int(length) if length else None
        with bytes_bar(total, part.stem) as bar:
            received = 0
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                received += len(chunk)
                bar.update(len(chunk))
    if total is not None and received < total:
        raise OSError(f"cut off after {received} of {total} bytes")


def bytes_bar(total: int | None, title: str) -> "tqdm[Any]":
    """Return a progress bar of bytes."""
    return tqdm(total=total, desc=title, unit="B", unit_scale=True, leave=False, disable=None)


def digest_of(path: Path, kind: str = "md5") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
