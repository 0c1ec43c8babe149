"""The failure log: every reply that did not parse or did not satisfy its schema, for whoever improves the prompt.

`state_dir/failures.jsonl`, on the disk of the node where the router runs, one line a reply. All routers of a machine append
to it: each line is one `write` to a file opened for appending, which the kernel does not mix with another's. When it has
grown to `MAX_BYTES` it becomes `failures.1.jsonl`, and the one before that is gone: never more than twice MAX_BYTES. What
looks like a key is masked; otherwise a reply may quote its prompt, so the file is readable by its owner only.
"""

import contextlib
import fcntl
import logging
import os
from datetime import UTC, datetime

import orjson

from actors.messages import Request
from actors.tier.redact import redact

__all__ = ["FILES", "FailureLog"]

FILES = ("failures.1.jsonl", "failures.jsonl")
"""Older, newer."""
MAX_BYTES = 16 << 20
MAX_REPLY_CHARS = 4_000

_log = logging.getLogger("raycade.failures")


class FailureLog:
    """Appends to the log of one folder. Never raises: a log that cannot be written costs no row."""

    def __init__(self, folder: str, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._older, self._newer = (os.path.join(folder, name) for name in FILES)
        self._max_bytes = max_bytes
        self._trouble = ""

    def write(self, request: Request, tier: str, reply: str, errors: list[str]) -> None:
        """Note a refused reply."""
        line = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "prompt": request.prompt,
            "tier": tier,
            "id": _fit(request.id, 200),
            "job": request.job,
            "digest": request.digest.hex(),
            "errors": [_fit(error, 400) for error in errors],
            "reply": _fit(reply, MAX_REPLY_CHARS),
        }
        try:
            self._append(orjson.dumps(line) + b"\n")
        except OSError as error:
            if self._trouble != str(error):
                self._trouble = str(error)
                _log.warning("refused replies are not logged: %s", error)

    def _append(self, line: bytes) -> None:
        os.makedirs(self._folder, exist_ok=True)
        fd = os.open(self._newer, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size + len(line) > self._max_bytes:
                self._rotate(fd)
                os.close(fd)
                fd = os.open(self._newer, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.write(fd, line)
        finally:
            os.close(fd)

    def _rotate(self, fd: int) -> None:
        """Make the file the older one, unless another router just has: then it is not this file any more."""
        fcntl.flock(fd, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self._newer).st_ino == os.fstat(fd).st_ino:
                os.replace(self._newer, self._older)


def _fit(text: str, length: int) -> str:
    """Masked before it is cut, so that no half of a key is left, and without half characters."""
    return redact(text[: length + 200]).encode(errors="replace").decode()[:length]
