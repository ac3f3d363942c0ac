"""Fetching one file: into a draft that a later call can continue, verified as a whole before it gets its name."""

import errno
import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from experiments.run import BadRequest
from mgu_jax.training.lock import lock_file


def fetch(url: str, path: Path, good: Callable[[bytes], bool], timeout: float = 30.0) -> None:
    """Download ``url`` to ``path``, or continue the draft that an earlier call left beside it.

    Args:
        url: the address.
        path: of the file once it is whole and verified; until then ".part" is appended.
        good: whether some bytes are the file; if they are not, they are deleted.
        timeout: seconds without a byte after which the address counts as not reached.

    Raises:
        BadRequest: the address cannot be reached, stopped sending, or holds another file; the disk is full; or another
            process downloads the same file.
    """
    draft = path.with_name(path.name + ".part")
    had = draft.stat().st_size if draft.exists() else 0
    ask = urllib.request.Request(url, headers={"Range": f"bytes={had}-"} if had else {})
    print(f"{'continuing' if had else 'fetching'} {url}", flush=True)
    try:
        with urllib.request.urlopen(ask, timeout=timeout) as answer:
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("ab") as file:
                if lock_file(file) is False:
                    raise BadRequest(f"--download must run once at a time; another process is writing {draft}.")
                if answer.status != 206:  # the answer is the whole file, from its beginning
                    file.truncate(0)
                shutil.copyfileobj(answer, file)
            wanted, came = answer.headers.get("Content-Length"), draft.stat().st_size
            if wanted is not None and came < int(wanted) + (had if answer.status == 206 else 0):
                raise http.client.IncompleteRead(b"")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the draft already holds the whole file
            raise BadRequest(f"--download got status {error.code} from {url}; nothing was written.") from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
            raise BadRequest(f"--download cannot write {draft} ({error.strerror}).") from error
        reason = getattr(error, "reason", error)
        host, kept = urlsplit(url).hostname, draft.exists() and draft.stat().st_size
        rest = f"{kept:,} bytes are kept for the next attempt" if kept else "nothing was written"
        raise BadRequest(
            f"--download needs {host}, which could not be reached or gave up on the way ({reason}); {rest}."
        ) from error
    if not good(draft.read_bytes()):
        draft.unlink()
        raise BadRequest(f"--download got another file than the published one from {url}; it was removed.")
    draft.replace(path)
