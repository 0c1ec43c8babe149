"""Is a key written anywhere? Every tier has one that is searched for in everything a job leaves behind.

PLACES is the list of where to look: what a job writes anew belongs there.
"""

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

__all__ = ["CANARIES", "KEY_OF", "PLACES", "leaks"]

KEY_OF = {"first": "FAULTS_KEY_FIRST", "second": "FAULTS_KEY_SECOND"}
"""The variable with a tier's key."""
CANARIES = {
    # Characters that JSON, URLs and HTML each write in another way, around a middle that all write alike.
    KEY_OF["first"]: 'sk-first/"+=7f3a9b2c4d5e6f70\\8192a3b4c5d6e7f8',
    KEY_OF["second"]: 'sk-second/"+=1b9e3c7a5d2f8046\\c0ffee4dadbeef27',
}


def _forms(key: str) -> Iterator[bytes]:
    """The key as it is, its middle as everyone writes it, in JSON, in a URL, in hex, and in base64 wherever it begins."""
    raw = key.encode()
    yield raw
    yield raw.split(b"=")[1].split(b"\\")[0]
    yield orjson.dumps(key)[1:-1]
    yield quote(key, safe="").encode()
    yield quote(key).encode()
    yield raw.hex().encode()
    for lead in range(3):
        # What stands before and after changes the first and last characters.
        coded = base64.b64encode(b"\0" * lead + raw)
        kept = coded[-(-lead * 8 // 6) : len(raw) * 8 // 6]
        yield kept
        yield kept.replace(b"+", b"-").replace(b"/", b"_")


FORMS = sorted({form for key in CANARIES.values() for form in _forms(key)})


def _below(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _written(scene: Any) -> Iterable[Path]:
    """OUT, ERRORS, journal, ledger, configuration, and what /metrics and /status said: all that lies in the job's folders."""
    return [*_below(scene.job.folder), *(path for path in (scene.job.out, scene.job.errors) if path.exists())]


def _rays(scene: Any) -> Iterable[Path]:
    """All files of Ray's session: logs of every process, events, configuration."""
    return _below(scene.ray_folder)


PLACES = {"what the job wrote": _written, "Ray's session": _rays}


def leaks(scene: Any, searched: dict[Path, int]) -> list[str]:
    """Where a key was found. Files that only grow are searched from where the last search ended."""
    found = [f"{scene.job.folder}: standard output" for form in FORMS if form in scene.said.encode()]
    for name, files in PLACES.items():
        for path in files(scene):
            begin = max(0, searched.get(path, 0) - 200)
            try:
                with path.open("rb") as file:
                    file.seek(begin)
                    data = file.read()
            except OSError:
                continue
            searched[path] = begin + len(data)
            found += [f"{name}: {path}" for form in FORMS if form in data]
    return found
