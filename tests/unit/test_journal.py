"""The journal: who may take a job up, what is recovered from OUT, ERRORS and the checkpoint, and what is refused."""

import multiprocessing
import os
import pickle
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import ConfigError, RaycadeError
from runtime.batch.journal import DoneRows, Journal, OutputError, id_prefix, scan


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "out.jsonl")


def errors_of(out: str) -> str:
    return out.replace(".jsonl", ".errors.jsonl")


def opened(out: str, fingerprint: str = "in (3 bytes)", config: str = "c1", fresh: bool = False) -> Journal:
    return Journal.open(out, errors_of(out), fingerprint, config, fresh)


def line(journal: Journal, row: int, text: str = "x") -> bytes:
    return id_prefix(journal.run) + b'%d","custom_id":"r%d","body":"%s"}\n' % (row, row, text.encode())


def write(path: str, *lines: bytes) -> None:
    with open(path, "ab") as file:
        file.write(b"".join(lines))


def refusal(out: str, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        opened(out, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- done rows -----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 70)), max_size=120))
def test_done_rows_behave_like_a_set(steps: list[tuple[bool, int]]) -> None:
    """Adding and taking away, in any order, gives the members, counts and first open row that a set would."""
    done, model = DoneRows(), set[int]()
    for add, row in steps:
        if add:
            assert done.add(row) == (row not in model)
            model.add(row)
        else:
            done.discard(row)
            model.discard(row)
        assert len(done) == len(model)
        assert done.first_open == next(n for n in range(100) if n not in model)
        assert done.count_upto(row) == sum(n <= row for n in model)
    assert [row in done for row in range(100)] == [row in model for row in range(100)]
    again = DoneRows(done.to_bytes())
    assert len(again) == len(model)
    assert again.first_open == done.first_open


# -- taking a job up -----------------------------------------------------------------------------------------------


def test_a_new_job_has_nothing_done(out: str) -> None:
    """The first run starts at row 0, with nothing in doubt."""
    with opened(out) as journal:
        assert (len(journal.done), journal.succeeded, journal.failed, journal.in_doubt) == (0, 0, 0, 0)
        assert journal.removed == ()


def test_done_rows_are_read_from_the_lines(out: str) -> None:
    """Without any checkpoint the lines of OUT and ERRORS alone say which rows are done."""
    with opened(out) as journal:
        run = journal.run
        write(out, line(journal, 3), line(journal, 0))
        write(errors_of(out), line(journal, 1))
    with opened(out) as journal:
        assert journal.run == run
        assert [row for row in range(9) if row in journal.done] == [0, 1, 3]
        assert (journal.succeeded, journal.failed, journal.done.first_open) == (2, 1, 2)


def test_a_resume_reads_only_what_came_after_the_checkpoint(out: str) -> None:
    """Lines before the checkpoint are not read again: proven by one whose middle has been changed since."""
    with opened(out) as journal:
        write(out, line(journal, 0, "changed"), *(line(journal, row, "x" * 5000) for row in range(1, 4)))
        for row in range(4):
            journal.done.add(row)
        journal.succeeded = 4
        journal.store(journal.snapshot(os.path.getsize(out), 0))
        write(out, line(journal, 7))
    with open(out, "r+b") as file:
        file.write(b"#")
    with opened(out) as journal:
        assert [row for row in range(9) if row in journal.done] == [0, 1, 2, 3, 7]
        assert journal.succeeded == 5
        assert journal.out_bytes == os.path.getsize(out)


def test_a_checkpoint_that_the_files_contradict_is_not_believed(out: str) -> None:
    """Deleting lines (to have the rows done again), or the whole errors file (to retry the failed), just works."""
    with opened(out) as journal:
        lines = [line(journal, row) for row in range(4)]
        write(out, *lines)
        write(errors_of(out), line(journal, 4))
        for row in range(5):
            journal.done.add(row)
        journal.succeeded, journal.failed = 4, 1
        journal.store(journal.snapshot(os.path.getsize(out), os.path.getsize(errors_of(out))))
        write(out, line(journal, 5), line(journal, 6), line(journal, 7))
    os.remove(errors_of(out))
    with opened(out) as journal:
        assert (journal.succeeded, journal.failed, 4 in journal.done) == (7, 0, False)
    Path(out).write_bytes(Path(out).read_bytes().replace(lines[1], b""))
    with opened(out) as journal:
        assert [row for row in range(9) if row in journal.done] == [0, 2, 3, 5, 6, 7]


@pytest.mark.parametrize("damage", [b"", b"rubbish", b'{"format":1}\n' + bytes(32)])
def test_a_damaged_checkpoint_only_costs_time(out: str, damage: bytes) -> None:
    """Whatever the checkpoint file holds, the done rows are right."""
    with opened(out) as journal:
        write(out, line(journal, 2))
        Path(f"{out}.journal/checkpoint").write_bytes(damage)
    with opened(out) as journal:
        assert 2 in journal.done
        assert len(journal.done) == 1


# -- torn ends -----------------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_cut_off(out: str) -> None:
    """However little is missing of the last line, its row is open again, and the lines before stay byte for byte."""
    with opened(out) as journal:
        whole, torn = line(journal, 0), line(journal, 1)
    for cut in range(1, len(torn) + 1):
        Path(out).write_bytes(whole + torn[:-cut])
        with opened(out) as journal:
            assert Path(out).read_bytes() == whole
            assert (len(journal.done), journal.cut_bytes) == (1, len(torn) - cut)


@pytest.mark.parametrize(
    "tail",
    [bytes(100), b'{"id":"batch' + bytes(40), b"\0" * 50 + b"\n", b'%s1","custom_id":"r\0\0\0"}\n', b'%s1","body":}\n'],
)
def test_what_a_power_cut_leaves_is_cut_off(out: str, tail: bytes) -> None:
    """A page that never reached the disk reads as zeros; a last line that is no JSON does not make its row done."""
    with opened(out) as journal:
        whole, tail = line(journal, 0), tail.replace(b"%s", id_prefix(journal.run))
    Path(out).write_bytes(whole + tail)
    with opened(out) as journal:
        assert Path(out).read_bytes() == whole
        assert (len(journal.done), journal.succeeded) == (1, 1)


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("foreign", [b"hello\n", b'{"id":"batch_req_00000000_5","custom_id":null}\n', b"\n", b"hello"])
def test_a_line_that_is_not_ours_is_named(out: str, foreign: bytes) -> None:
    """A line of somebody else in OUT stops the job with file and line, and nothing is cut."""
    with opened(out) as journal:
        data = line(journal, 0) + line(journal, 1) + foreign
    Path(out).write_bytes(data)
    assert refusal(out).startswith(f"{out}:3: ")
    assert Path(out).read_bytes() == data


def test_a_damaged_line_between_others_is_named_also_after_a_checkpoint(out: str) -> None:
    """The line number is the file's own, though the scan starts at the checkpoint."""
    with opened(out) as journal:
        write(out, line(journal, 0), line(journal, 1))
        journal.done.add(0)
        journal.done.add(1)
        journal.succeeded = 2
        journal.store(journal.snapshot(os.path.getsize(out), 0))
        write(out, line(journal, 2), line(journal, 3, "\0\0"), line(journal, 4))
    assert refusal(out).startswith(f"{out}:4: ")


def test_two_lines_of_one_row_are_refused(out: str) -> None:
    """A row with a line in both files, or twice in one, is for a person to decide; the second one is named."""
    with opened(out) as journal:
        write(out, line(journal, 0), line(journal, 1))
        write(errors_of(out), line(journal, 1))
    assert refusal(out).startswith(f"{errors_of(out)}:1: row 1 has a second line here")
    os.remove(errors_of(out))
    Path(out).write_bytes(Path(out).read_bytes() * 2)
    assert refusal(out).startswith(f"{out}:3: row 0 has a second line here")


def test_another_input_or_config_is_refused(out: str) -> None:
    """The refusal says what was and what is, and that --fresh starts over."""
    opened(out).close()
    text = refusal(out, fingerprint="in (4 bytes)")
    assert "another input: it was in (3 bytes), now it is in (4 bytes)" in text
    assert "--fresh" in text
    assert "another config: it was c1, now it is c2" in refusal(out, config="c2")
    with pytest.raises(ConfigError, match=r"another errors file: it was out\.errors\.jsonl, now it is e\.jsonl"):
        Journal.open(out, os.path.join(os.path.dirname(out), "e.jsonl"), "in (3 bytes)", "c1")


def test_a_moved_job_can_be_resumed(tmp_path: Path) -> None:
    """Outputs and journal may be moved together, and named by a relative or an absolute path."""
    (tmp_path / "a").mkdir()
    with opened(str(tmp_path / "a" / "out.jsonl")) as journal:
        write(journal.out, line(journal, 0))
    (tmp_path / "a").rename(tmp_path / "b")
    with opened(os.path.relpath(tmp_path / "b" / "out.jsonl")) as journal:
        assert 0 in journal.done


def test_a_file_without_a_journal_is_not_touched(out: str) -> None:
    """An OUT or ERRORS that no journal knows is refused; an empty one is nobody's loss."""
    for path in (out, errors_of(out)):
        Path(path).write_bytes(b"precious\n")
        assert "exists and is not known to a journal" in refusal(out)
        assert not os.path.exists(f"{out}.journal")
        assert Path(path).read_bytes() == b"precious\n"
        Path(path).write_bytes(b"")
    opened(out).close()


def test_fresh_removes_the_old_job_and_says_so(out: str) -> None:
    """With fresh there is a new run with nothing done, and `removed` names the results that are gone."""
    with opened(out) as journal:
        old = journal.run
        write(out, line(journal, 0))
        write(errors_of(out), line(journal, 1))
        journal.intend(5)
    with opened(out, fingerprint="other", fresh=True) as journal:
        assert journal.run != old
        assert (len(journal.done), journal.in_doubt) == (0, 0)
        assert set(journal.removed) >= {out, errors_of(out)}
    assert not os.path.exists(out)
    with opened(out, fingerprint="other"):
        pass


def test_fresh_takes_a_foreign_file_away_too(out: str) -> None:
    """--fresh is the word that an unknown OUT may go."""
    Path(out).write_bytes(b"foreign\n")
    with opened(out, fresh=True) as journal:
        assert journal.removed == (out,)


def test_a_damaged_meta_is_refused(out: str) -> None:
    """Without its meta a journal vouches for nothing, so the results are left alone."""
    with opened(out) as journal:
        write(out, line(journal, 0))
    for damage in (b"", b"[1]", b'{"format":1}'):
        Path(f"{out}.journal/meta.json").write_bytes(damage)
        assert "is damaged; start over with --fresh" in refusal(out)
        assert os.path.getsize(out)


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/null", "/proc/self/fd/1"])
def test_a_pipe_or_device_is_no_output(name: str, tmp_path: Path) -> None:
    """Resuming needs a file, so OUT cannot be a pipe or a device."""
    with pytest.raises(ConfigError, match=r"-o: (a batch writes to files|is not a regular file)|regular file"):
        Journal.open(name, str(tmp_path / "e"), "f", "c")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A missing folder, a folder as OUT, and one file for both outputs each get their line."""
    assert "-o: the folder does not exist" in refusal(str(tmp_path / "no" / "out.jsonl"))
    (tmp_path / "out.jsonl").mkdir()
    assert "is not a regular file" in refusal(str(tmp_path / "out.jsonl"))
    with pytest.raises(ConfigError, match="results and errors need two files"):
        Journal.open(str(tmp_path / "o"), str(tmp_path / "." / "o"), "f", "c")
    (tmp_path / "o.journal").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot keep a journal: File exists"):
        Journal.open(str(tmp_path / "o"), str(tmp_path / "e"), "f", "c")


def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    """A user who may not write there is told so before any call (tried as another user when we are root)."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    script = (
        "import os, sys; from runtime.batch.journal import Journal; from actors.errors import ConfigError\n"
        "os.chdir(sys.argv[1]); os.getuid() or os.setuid(65534)\n"
        "try: Journal.open('o', 'e', 'f', 'c')\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=False)
    assert done.stdout == "o.journal: cannot keep a journal: Permission denied\n", done.stderr


# -- two jobs ------------------------------------------------------------------------------------------------------


def _held(out: str, pipe: Connection) -> None:
    with opened(out):
        pipe.send(os.getpid())
        pipe.recv()


def test_two_jobs_cannot_write_one_out(out: str) -> None:
    """The second job is refused with the first one's process id, --fresh or not; after a SIGKILL the lock is free."""
    here, there = multiprocessing.Pipe()
    other = multiprocessing.get_context("spawn").Process(target=_held, args=(out, there))
    other.start()
    pid = here.recv()
    assert refusal(out) == f"{out}: another job (process {pid}) is writing it"
    assert "another job" in refusal(out, fresh=True)
    other.kill()
    other.join()
    opened(out).close()


# -- intent --------------------------------------------------------------------------------------------------------


def test_rows_handed_out_and_not_done_are_in_doubt(out: str) -> None:
    """After a death the rows up to the mark without a line are counted: they may have been called."""
    with opened(out) as journal:
        for mark in range(1, 100, 3):
            journal.intend(mark)
        journal.intend(5)  # never back
        write(out, line(journal, 7), line(journal, 97))
    with opened(out) as journal:
        assert journal.mark == 97
        assert journal.in_doubt == 96
        journal.intend(200)
    with opened(out) as journal:
        assert journal.mark == 200


def test_a_torn_intent_leaves_the_one_before(out: str) -> None:
    """A record that a crash has torn, or a file cut short, is ignored; the mark before it still holds."""
    with opened(out) as journal:
        for mark in range(40):
            journal.intend(mark)
    path = Path(f"{out}.journal/intent")
    data = path.read_bytes()
    last = 40 % 32 * 16
    path.write_bytes(data[: last + 3] + b"\xff" + data[last + 4 :])
    with opened(out) as journal:
        assert journal.mark == 38
        journal.intend(60)
    path.write_bytes(path.read_bytes()[:100])
    with opened(out) as journal:
        assert -1 <= journal.mark <= 60


def test_the_journal_stays_small(out: str) -> None:
    """A million rows handed out and done: the folder stays under a megabyte."""
    with opened(out) as journal:
        for mark in range(0, 1_000_000, 64):
            journal.intend(mark + 63)
        for row in range(1_000_000):
            journal.done.add(row)
        journal.store(journal.snapshot(0, 0))
    assert sum(file.stat().st_size for file in Path(f"{out}.journal").iterdir()) < 1 << 20


# -- the rest ------------------------------------------------------------------------------------------------------


def test_scan_says_where_every_line_stands(out: str) -> None:
    """(row, offset, length) in the order of the file, across the borders of blocks, without the torn end."""
    with opened(out) as journal:
        lines = [line(journal, 9 - row, "y" * 700_000) for row in range(9)]
        write(out, *lines, line(journal, 50)[:-1])
    got = list(scan(out, journal.run))
    assert [row for row, _, _ in got] == [9 - row for row in range(9)]
    data = Path(out).read_bytes()
    assert [data[offset : offset + length] for _, offset, length in got] == lines


def test_meta_can_be_read_by_a_person(out: str) -> None:
    """meta.json says of what the journal is."""
    with opened(out) as journal:
        meta = orjson.loads(Path(f"{out}.journal/meta.json").read_bytes())
        assert (meta["run"], meta["input"], meta["config"]) == (journal.run, "in (3 bytes)", "c1")
        assert meta["errors"] == "out.errors.jsonl"


def test_output_error_is_one_line_and_survives_pickling() -> None:
    """It names file and reason and says that the job can be resumed."""
    error = pickle.loads(pickle.dumps(OutputError("out.jsonl", "No space left on device")))
    assert isinstance(error, RaycadeError)
    assert str(error).startswith("out.jsonl: cannot write: No space left on device; ")
    assert "resumed" in str(error)
