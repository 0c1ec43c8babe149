"""Exactly one line a row, wherever a batch job is killed and whatever of its files' ends is lost.

A crash is played by leaving everything open as it is, taking away any number of bytes from the end of any file, and
opening the job again. This is more than a kill does (the kernel keeps what was written) and as much as a power cut may.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.batch.journal import Journal, id_prefix
from runtime.batch.reader import Row
from runtime.batch.writer import OutputWriter

ROWS = 40
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # hundreds of jobs, each with its fsyncs

# What a run does, step by step: (what, with how many rows).
STEPS = st.lists(
    st.tuples(st.sampled_from(["intend", "succeed", "fail", "flush", "checkpoint"]), st.integers(1, 6)), max_size=25
)
# How much of each file's end is lost, in permille of it; mostly a little, since the end is where the interesting is.
LOST = st.one_of(st.just(0), st.integers(1, 60), st.integers(0, 1000))
FILES = ("out.jsonl", "out.errors.jsonl", "out.jsonl.journal/checkpoint", "out.jsonl.journal/intent")
CRASH = st.tuples(*[LOST] * len(FILES))


class Run:
    """One life of a job."""

    def __init__(self, folder: Path) -> None:
        self.out, self.errors = str(folder / FILES[0]), str(folder / FILES[1])
        self.journal = Journal.open(self.out, self.errors, "input", "config")
        self.writer = OutputWriter(self.out, self.errors, self.journal)
        self.queued = set[int]()

    def open_rows(self) -> Iterator[int]:
        return (row for row in range(ROWS) if row not in self.journal.done and row not in self.queued)

    def step(self, what: str, count: int) -> None:
        if what == "intend":
            self.journal.intend(min(ROWS - 1, self.journal.mark + count))
        elif what == "flush":
            self.queued -= {written.number for written in self.writer.flush()}
        elif what == "checkpoint":
            self.writer.checkpoint()
        else:
            for row in list(self.open_rows())[:count]:
                self.answer(row, what == "succeed")

    def answer(self, row: int, ok: bool) -> None:
        self.queued.add(row)
        if ok:
            body = b'{"answer":"%d","x":"%s"}' % (row, b"\xc3\xa9" * (row % 7))
            assert self.writer.add_result(Row(row, "in", row, f"r{row}", "/c", {}, None), body, 200, "r", {"tier": "t"})
        else:
            assert self.writer.add_error(row, f"r{row}", "timeout", "late")

    def finish(self) -> None:
        self.journal.intend(ROWS - 1)
        for row in list(self.open_rows()):
            self.answer(row, row % 3 > 0)
        self.writer.close()
        self.journal.close()

    def abandon(self) -> None:
        """What a SIGKILL leaves: files as they are, locks gone."""
        self.writer._out.close()
        self.writer._errors.close()
        self.journal.close()


def whole_lines(path: Path) -> list[bytes]:
    data = path.read_bytes() if path.exists() else b""
    return data.split(b"\n")[:-1]


def rows_in(lines: list[bytes], run: str) -> list[int]:
    prefix = id_prefix(run)
    return [int(line.removeprefix(prefix).partition(b'"')[0]) for line in lines]


def check(run: Run, folder: Path) -> None:
    """What holds after every opening: a row is done exactly when it has its line, and it has one."""
    lines = [whole_lines(folder / name) for name in FILES[:2]]
    rows = [rows_in(of_file, run.journal.run) for of_file in lines]
    assert max(Counter(rows[0] + rows[1]).values(), default=1) == 1
    assert set(rows[0] + rows[1]) == {row for row in range(ROWS * 2) if row in run.journal.done}
    assert (run.journal.succeeded, run.journal.failed) == (len(rows[0]), len(rows[1]))
    assert run.journal.in_doubt == len([row for row in range(run.journal.mark + 1) if row not in run.journal.done])
    for path in FILES[:2]:
        assert (folder / path).read_bytes()[-1:] in (b"", b"\n")
    for line in (*lines[0], *lines[1]):
        orjson.loads(line)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(STEPS, CRASH), min_size=1, max_size=4))
def test_any_crash_can_be_resumed(lives: list[tuple[list[tuple[str, int]], tuple[int, ...]]]) -> None:
    """After any crashes every row is done at most once, earlier whole lines stay, and in the end each row has one."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        folder = Path(name)
        for steps, lost in lives:
            run = Run(folder)
            check(run, folder)
            for what, count in steps:
                run.step(what, count)
            run.abandon()
            for file, permille in zip(FILES, lost, strict=True):
                path = folder / file
                if path.exists():
                    size = path.stat().st_size
                    os.truncate(path, size - min(size, -(-size * permille // 1000)))
            before = [whole_lines(folder / file) for file in FILES[:2]]
            run = Run(folder)
            check(run, folder)
            for file, lines in zip(FILES[:2], before, strict=True):
                assert whole_lines(folder / file) == lines
            run.abandon()
        run = Run(folder)
        run.finish()
        answered = rows_in(whole_lines(folder / FILES[0]), run.journal.run)
        failed = rows_in(whole_lines(folder / FILES[1]), run.journal.run)
        assert sorted(answered + failed) == list(range(ROWS))
        for line, row in zip(whole_lines(folder / FILES[0]), answered, strict=True):
            value = orjson.loads(line)
            assert (value["custom_id"], value["response"]["body"]["answer"]) == (f"r{row}", str(row))


@settings(max_examples=150, deadline=None)
@given(STEPS, st.data())
def test_a_cut_at_every_byte_of_the_last_lines(steps: list[tuple[str, int]], data: st.DataObject) -> None:
    """OUT cut at exactly any byte: the lines before the cut stay and count, whatever the checkpoint says."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        folder = Path(name)
        run = Run(folder)
        for what, count in (*steps, ("succeed", 3), ("flush", 1)):
            run.step(what, count)
        run.abandon()
        path = folder / FILES[0]
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        run = Run(folder)
        check(run, folder)
        assert path.read_bytes() == whole[: whole.rfind(b"\n", 0, cut) + 1]
        run.abandon()


KILLED = """
import sys
from runtime.batch.journal import Journal
from runtime.batch.reader import Row
from runtime.batch.writer import OutputWriter

out, errors, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
journal = Journal.open(out, errors, "input", "config")
writer = OutputWriter(out, errors, journal)
for start in range(0, rows, 16):
    todo = [row for row in range(start, start + 16) if row not in journal.done]
    journal.intend(start + 15)
    for row in todo:
        if row % 5:
            writer.add_result(Row(row, "in", row, f"r{row}", "/c", {}, None), b'{"a":%d}' % row, 200, "r", {"t": 1})
        else:
            writer.add_error(row, f"r{row}", "timeout", "late")
    writer.flush()
    if start % 640 == 0:
        writer.checkpoint()
writer.close()
print("finished")
"""


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_process_is_resumed(tmp_path: Path, seed: int) -> None:
    """A real process, killed with SIGKILL again and again: each row has one line, and no line that stood has changed."""
    out, errors, rows = tmp_path / "out.jsonl", tmp_path / "e.jsonl", 40_000
    command = [sys.executable, "-c", KILLED, str(out), str(errors), str(rows)]
    before, killed = b"", 0
    for kill in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        wanted = len(before) + (1 + seed) * 200_000 * (kill + 1)
        while process.poll() is None and not (out.exists() and out.stat().st_size > wanted):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        now = out.read_bytes()
        assert now.startswith(before)
        before = now[: now.rfind(b"\n") + 1]
    assert killed
    assert b"finished" in subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    assert out.read_bytes().startswith(before)
    lines = whole_lines(out) + whole_lines(errors)
    assert sorted(orjson.loads(line)["custom_id"] for line in lines) == sorted(f"r{row}" for row in range(rows))
