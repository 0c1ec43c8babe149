"""The outputs of a batch that cannot be appended to, made from the file that can (runtime/batch/outputs.py says why).

    answers.jsonl -> the lines of one output, in the order of the input -> pack -> put in its place, whole

`published.json` beside answers.jsonl remembers what was made of which lines: so a run that changes nothing makes nothing,
and nothing is replaced that another made.
"""

import contextlib
import os
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import orjson

from actors.errors import ConfigError, RaycadeError
from runtime.batch import remote
from runtime.batch.journal import Journal, replace_file, scan, sync_folder
from runtime.batch.outputs import Output
from runtime.batch.packing import pack
from runtime.batch.reader import InputSet
from runtime.batch.sources import AT_ONCE

__all__ = ["Publisher"]


class Publisher:
    """Makes the outputs of one job. Not used for a plain local file."""

    def __init__(self, output: Output, fresh: bool) -> None:
        """The job's journal is open: nobody else makes these. Raises ConfigError for a file that is not ours to replace."""
        self._output = output
        self._place = Path(output.log).parent / "published.json"
        self._made: dict[str, int] = self._read()
        known = set(self._made)
        others = sorted({*output.targets, output.errors_target} - known - {""})
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for target, there in zip(others, pool.map(_exists, others), strict=True):
                if there and not fresh:
                    raise ConfigError("exists and is not this job's; --fresh replaces it", file=target, key="-o")
        if fresh:
            for target in known:
                _remove(target)
            self._made = {}
            self._place.unlink(missing_ok=True)

    def forget(self) -> None:
        """The lines have changed: make everything again."""
        self._made = dict.fromkeys(self._made, -1)

    def publish_run(self, journal: Journal, inputs: InputSet, limit: int | None, finished: bool) -> tuple[int, int]:
        """Make the outputs that are complete after a run, and say so; what `publish` gives. Raises RaycadeError."""
        output = self._output
        bounds = inputs.starts + ([inputs.rows] if inputs.rows is not None else [])
        if limit is not None:
            end = limit if inputs.rows is None else min(limit, inputs.rows)
            bounds = [start for start in inputs.starts if start < end] + ([end] if finished else [])
        if len(output.targets) == 1 and not finished:
            bounds = []

        def is_done(first: int, end: int) -> bool:
            return journal.done.count_upto(end - 1) - journal.done.count_upto(first - 1) == end - first

        def tell(target: str) -> None:
            print(f"writing {target} ...", file=sys.stderr)

        made, there = self.publish(journal.run, bounds, is_done, tell)
        if len(output.targets) > 1:
            print(
                f"outputs  {output.spec}: {there:,} of {len(output.targets):,} files are complete, {made:,} of them new"
            )
        elif there:
            print(f"output   {output.targets[0]}")
        else:
            print(f"output   {output.targets[0]} is made when every row is done; until then see {output.log}")
        return made, there

    def publish(
        self, run: str, bounds: Sequence[int], is_done: Callable[[int, int], bool], tell: Callable[[str], None]
    ) -> tuple[int, int]:
        """Make what is complete and not there yet: how many were made now, and how many are there in all.

        `bounds`: where the rows of each input file begin, and where the last of them ends, as far as that is known.
        `is_done(first, end)`: whether all these rows have their line. Raises RaycadeError when one cannot be made.
        """
        output = self._output
        single = len(output.targets) == 1
        spans = [(bounds[0], bounds[-1])] if single and bounds else list(pairwise(bounds))
        offsets, lengths = _places(output.log, run, bounds[-1] if bounds else 0)
        made = there = 0
        for target, (first, end) in zip(output.targets, spans, strict=False):
            if not is_done(first, end):
                continue
            there += 1
            mark = zlib.crc32(lengths[first:end].tobytes(), zlib.crc32(offsets[first:end].tobytes()))
            if self._made.get(target) == mark and _exists(target):
                continue
            tell(target)
            self._make(target, _lines_at(output.log, offsets[first:end], lengths[first:end]))
            self._keep(target, mark)
            made += 1
        failures = os.path.getsize(output.errors) if output.errors_target and os.path.exists(output.errors) else 0
        if failures and (self._made.get(output.errors_target) != failures or not _exists(output.errors_target)):
            self._put(output.errors, output.errors_target)
            self._keep(output.errors_target, failures)
        return made, there

    def _make(self, target: str, lines: Iterator[bytes]) -> None:
        url = remote.is_url(target)
        draft = f"{self._place.with_name('draft') if url else target}.tmp"
        try:
            if not url:
                os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
            pack(lines, draft, target)
            if url:
                self._put(draft, target)
            else:
                os.replace(draft, target)
                sync_folder(os.path.dirname(target) or ".")
        except OSError as error:
            raise self._failed(target, error.strerror or str(error)) from None
        finally:
            with contextlib.suppress(OSError):
                os.remove(draft)

    def _put(self, local: str, target: str) -> None:
        try:
            remote.put(local, target)
        except OSError as error:
            raise self._failed(target, str(error)) from None

    def _failed(self, target: str, why: str) -> RaycadeError:
        kept = f"no answer is lost, they are in {self._output.log}; the same command writes it again"
        return RaycadeError(f"{target}: cannot be written: {why}; {kept}")

    def _keep(self, target: str, mark: int) -> None:
        self._made[target] = mark
        try:
            replace_file(self._place, orjson.dumps(self._made))
        except OSError as error:
            raise self._failed(str(self._place), error.strerror or str(error)) from None

    def _read(self) -> dict[str, int]:
        try:
            return dict(orjson.loads(self._place.read_bytes()))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError):
            raise ConfigError("is damaged; start over with --fresh", file=str(self._place)) from None


def _lines_at(log: str, offsets: "array[int]", lengths: "array[int]") -> Iterator[bytes]:
    fd = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for offset, length in zip(offsets, lengths, strict=True):
            if length:
                yield os.pread(fd, length, offset)
    finally:
        os.close(fd)


def _places(log: str, run: str, rows: int) -> "tuple[array[int], array[int]]":
    """Where the line of each row begins, and how long it is: nothing for rows that have none."""
    offsets, lengths = array("q", bytes(8 * rows)), array("q", bytes(8 * rows))
    if rows and os.path.exists(log):
        for number, offset, length in scan(log, run):
            if number < rows:
                offsets[number], lengths[number] = offset, length
    return offsets, lengths


def _exists(target: str) -> bool:
    return remote.exists(target) if remote.is_url(target) else os.path.lexists(target)


def _remove(target: str) -> None:
    """What is not there need not be removed."""
    try:
        if not remote.is_url(target):
            os.remove(target)
        elif remote.exists(target):
            remote.remove(target)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(f"cannot be removed: {error.strerror or error}", file=target) from None
