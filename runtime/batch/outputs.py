"""What `-o` names, and how the answers come to lie there.

A local JSONL file is what the writer appends to, line by line, and there is nothing else to do. Everything else (a folder
with one file for each input file, `.gz`, `.zst`, `.parquet`, an object behind a URL) cannot be appended to, or not so that
a torn end can be cut off again. Then the writer's file is `answers.jsonl` in a folder of its own, resumed like any
other, and at the end of each run every output that is complete is made from it, rows in the order of the input:

    rows -> writer -> answers.jsonl (+ its journal) -> publish.py -> part-0.jsonl.gz, part-1.parquet, s3://...

An output appears whole or not at all, is made again when it is missing or its rows have changed, and nothing is taken
away: a disk, bucket or network that fails costs no row, only the same command once more.
"""

import hashlib
import os
import posixpath
import re
from collections.abc import Sequence
from typing import NamedTuple

from actors.errors import ConfigError
from runtime.batch import remote
from runtime.batch.packing import check_packing

__all__ = ["Output", "errors_name", "output_of"]

_PACKED = (".gz", ".zst", ".parquet")
_ENDINGS = re.compile(r"(\.jsonl)?(\.gz|\.zst|\.parquet)?$")


class Output(NamedTuple):
    """Where answers and failures of one job go."""

    spec: str
    """As `-o` says it."""
    log: str
    """The file that grows, line by line."""
    errors: str
    """The file of failures that grows."""
    targets: tuple[str, ...]
    """What is made of `log`: one for each input file, or a single one for all of them, or nothing."""
    errors_target: str
    """Where `errors` is copied to; empty: it is in its place."""


def output_of(spec: str, errors: str | None, state_dir: str, files: Sequence[str]) -> Output:
    """What `-o` and `--errors` ask for, for these input files. Touches nothing but folders of its own making.

    Raises ConfigError when it cannot be done or would write over the input.
    """
    url = remote.is_url(spec)
    folder = spec.endswith("/") or (not url and os.path.isdir(spec))
    errors = errors or errors_name(spec)
    if not url and not folder and not spec.endswith(_PACKED) and not remote.is_url(errors):
        return Output(spec, spec, errors, (), "")
    base = spec.rstrip("/")
    targets = tuple(f"{base}/{name}" for name in _names(files)) if folder else (spec,)
    own = {file if remote.is_url(file) else os.path.realpath(file) for file in files}
    for target in targets:
        if (target if remote.is_url(target) else os.path.realpath(target)) in own:
            raise ConfigError("would be written over the input", file=target, key="-o")
        check_packing(target)
    if url:
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", base)[-60:]
        work = os.path.join(state_dir, "outputs", f"{name}-{hashlib.sha256(base.encode()).hexdigest()[:8]}")
    else:
        work = f"{base}.journal"
        parent = os.path.dirname(base) or "."
        if not os.path.isdir(parent):
            raise ConfigError("the folder does not exist", file=parent, key="-o")
    try:
        os.makedirs(work, exist_ok=True)
        if folder and not url:
            os.makedirs(base, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot be made: {error.strerror}", file=error.filename, key="-o") from None
    log = os.path.join(work, "answers.jsonl")
    if remote.is_url(errors):
        return Output(spec, log, os.path.join(work, "errors.jsonl"), targets, errors)
    return Output(spec, log, errors, targets, "")


def errors_name(spec: str) -> str:
    """Where failures go when nothing else is said."""
    return f"{_ENDINGS.sub('', spec.rstrip('/'))}.errors.jsonl"


def _names(files: Sequence[str]) -> list[str]:
    """What the outputs are called: as the input files, with the folders that tell them apart."""
    paths = ["stdin.jsonl" if file == "<stdin>" else file for file in files]
    names = [posixpath.basename(path) for path in paths]
    if len(set(names)) < len(names):
        common = posixpath.commonpath([posixpath.dirname(path) for path in paths])
        names = [posixpath.relpath(path, common) for path in paths]
    return names
