"""Bad input: one clear line each, nothing else lost because of it, and no secret in anything that is written."""

import gzip
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest

from runtime.mock.process import MockProcess
from tests.e2e.jobs import ROOT, Job, chat, descendants, end, wait_until

CANARY = "sk-canary-7f3a9b2c4d5e6f708192a3b4c5d6e7f8"
OK: dict[str, Any] = {"name": "main", "base_url": "http://127.0.0.1:9/v1"}


@pytest.fixture(scope="module")
def mock() -> Iterator[MockProcess]:
    with MockProcess("ok") as process:
        yield process


# -- the configuration and the command: exit 2, before any call, with no traceback ----------------------------------


def refused(job: Job, *options: str) -> str:
    """What a job that must not start says: exit 2, and a line that is no traceback."""
    ended = job.run(*options, timeout_s=30)
    assert ended.returncode == 2, ended.stdout
    assert "Traceback" not in ended.stdout
    assert not job.out.exists()
    return ended.stdout


def test_an_unknown_key_is_named_with_its_line(tmp_path: Path) -> None:
    """A misspelt key of raycade.yaml is told with file, line and the key that was meant."""
    job = Job(tmp_path, [{**OK, "concurency": 4}])
    job.rows([chat(0)])
    said = refused(job)
    assert re.search(r"raycade\.yaml:\d+: tiers\[0\]\.concurency: .*concurrency", said)


def test_two_tiers_of_one_name_are_refused(tmp_path: Path) -> None:
    """Two tiers of one name could not be told apart in any metric or budget."""
    job = Job(tmp_path, [dict(OK), dict(OK)])
    job.rows([chat(0)])
    assert "main" in refused(job)


def test_a_missing_key_variable_is_named(tmp_path: Path) -> None:
    """The variable's name is told, with file and line."""
    job = Job(tmp_path, [{**OK, "api_key_env": "RAYCADE_TEST_NO_SUCH_KEY"}])
    job.rows([chat(0)])
    assert re.search(r"raycade\.yaml:\d+: .*RAYCADE_TEST_NO_SUCH_KEY", refused(job))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--min-quality", "best"), "basic, medium or high"),
        (("--progress", "loud"), "auto, bar, log or none"),
        (("--limit", "0"), "--limit"),
        (("--schema", "nosuch.json"), "nosuch.json"),
        (("--prompt", "nosuch"), "nosuch"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_a_wrong_option_is_told(tmp_path: Path, options: tuple[str, ...], word: str) -> None:
    """A wrong option ends in exit 2 with what was expected."""
    job = Job(tmp_path, [dict(OK)], prompts={"dir": str(ROOT / "prompts")})
    job.rows([chat(0)])
    assert word in refused(job, *options)


def test_an_empty_or_absent_input_is_told(tmp_path: Path) -> None:
    """An empty file and no file are told by name."""
    job = Job(tmp_path, [dict(OK)])
    assert "in.jsonl" in refused(job)
    job.input.touch()
    assert "empty" in refused(job)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """OUT in a folder that cannot be written is found before any call."""
    job = Job(tmp_path, [dict(OK)])
    job.rows([chat(0)])
    job.out = tmp_path / "no" / "such" / "out.jsonl"
    assert "no/such" in refused(job)


def test_a_state_dir_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """The ledger is opened before Ray starts and before any call."""
    job = Job(tmp_path, [dict(OK)])
    job.rows([chat(0)])
    job.state.write_text("")
    ended = job.run(timeout_s=30)
    assert ended.returncode == 1, ended.stdout
    assert "state/ledger.sqlite3: the ledger's store cannot be opened" in ended.stdout
    assert "starting Ray" not in ended.stdout


def test_a_dry_run_of_a_damaged_input_is_no_success(tmp_path: Path) -> None:
    """A script that asks first must learn it: exit 2, with file and line."""
    job = Job(tmp_path, [{**OK}])
    job.input = tmp_path / "in.jsonl.gz"
    whole = gzip.compress(b"".join(orjson.dumps(chat(number)) + b"\n" for number in range(50)))
    job.input.write_bytes(whole[:-20])
    ended = job.run("--dry-run", timeout_s=30)
    assert ended.returncode == 2
    assert "in.jsonl.gz:" in ended.stdout
    assert "the compressed data ends early" in ended.stdout


def test_a_dry_run_counts_and_calls_nothing(tmp_path: Path) -> None:
    """--dry-run needs no endpoint and no key; it counts rows and tells bad ones by file and line."""
    job = Job(tmp_path, [{**OK, "api_key_env": "RAYCADE_TEST_NO_SUCH_KEY"}])
    job.rows([chat(0), chat(1), b"{not json"])
    ended = job.run("--dry-run", timeout_s=30)
    assert ended.returncode == 0, ended.stdout
    assert "in.jsonl:3" in ended.stdout
    assert not job.out.exists()


# -- rows ----------------------------------------------------------------------------------------------------------

BAD_ROWS: list[tuple[str, bytes]] = [
    ("invalid_json", b'{"custom_id": "x1", "body": '),
    ("invalid_json", b"[1, 2, 3"),
    ("invalid_utf8", b'{"custom_id": "\xff\xfe", "body": {}}'),
    ("missing_custom_id", b'{"url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "a"}]}}'),
    (
        "duplicate_custom_id",
        b'{"custom_id": "row-0", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "a"}]}}',
    ),
    ("unknown_url", b'{"custom_id": "x2", "url": "/v1/images", "body": {"messages": []}}'),
    ("invalid_body", b'{"custom_id": "x3", "url": "/v1/chat/completions", "body": {"messages": "hello"}}'),
    ("invalid_body", b'{"custom_id": "x4", "url": "/v1/chat/completions", "body": []}'),
    (
        "unknown_model",
        b'{"custom_id": "x5", "url": "/v1/chat/completions", "body": {"model": "gpt-99", "messages": [{"role": "user", "content": "a"}]}}',
    ),
]


def test_bad_rows_become_error_lines_and_the_rest_is_done(mock: MockProcess, tmp_path: Path) -> None:
    """Each bad row has one error line with its place; a 10 MB prompt and rows with odd line ends pass; exit 3."""
    job = Job(tmp_path, [{**OK, "base_url": mock.url}])
    good = [chat(0), chat(1, "[[tag:u]] line\u2028separator \u0085 and \r return"), chat(2, "long " * 2_000_000)]
    bad = [line for _, line in BAD_ROWS]
    job.rows([*good, *bad, b"", b"   ", chat(3)])
    ended = job.run()
    assert ended.returncode == 3, ended.stdout
    assert "Traceback" not in ended.stdout
    assert sorted(line["custom_id"] for line in job.lines()) == ["row-0", "row-1", "row-2", "row-3"]
    failed = job.failed()
    assert sorted(line["error"]["code"] for line in failed) == sorted(code for code, _ in BAD_ROWS)
    for line in failed:
        place = re.match(r".*in\.jsonl:(\d+): ", line["error"]["message"])
        assert place, line
        assert BAD_ROWS[int(place[1]) - 4][0] == line["error"]["code"]
        assert "\n" not in line["error"]["message"]
        assert line["response"] is None


def test_nobody_listening_is_told_and_costs_no_row(tmp_path: Path) -> None:
    """Calls to a port nobody listens on: the job says what fails, and each row ends with its reason in the errors file."""
    job = Job(tmp_path, [dict(OK)], router={"deadline_s": 3})
    job.rows(chat(number) for number in range(30))
    ended = job.run()
    assert ended.returncode == 3, ended.stdout
    failed = job.failed()
    assert len(failed) == 30
    assert any("127.0.0.1:9" in line["error"]["message"] or "connection" in line["error"]["message"] for line in failed)
    assert "main keeps failing" in ended.stdout


def test_a_full_disk_stops_the_job_and_loses_nothing(mock: MockProcess, tmp_path: Path) -> None:
    """OUT on a full file system: exit 1 with the reason, only whole lines in OUT; with room again the job finishes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs to be root")
    try:
        job = Job(tmp_path, [{**OK, "base_url": mock.url}])
        job.out, job.errors = disk / "out.jsonl", disk / "out.errors.jsonl"
        job.rows(chat(number) for number in range(2000))
        ended = job.run()
        assert ended.returncode == 1, ended.stdout
        assert "No space left on device" in ended.stdout
        assert "Traceback" not in ended.stdout
        kept = job.out.read_bytes()
        assert kept.endswith(b"\n")
        assert 0 < len(job.lines()) < 2000
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        ended = job.run()
        assert ended.returncode == 0, ended.stdout
        assert job.out.read_bytes().startswith(kept)
        job.check_answers(2000)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# -- secrets -------------------------------------------------------------------------------------------------------


class _Gossip(BaseHTTPRequestHandler):
    """An endpoint that tells the caller's own key back in its error, as some do."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        told = self.headers.get("authorization", "none")
        body = b'{"error": {"message": "Incorrect API key provided: %s", "code": "bad_thing"}}' % told.encode()
        self.send_response(400)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def test_a_key_is_in_nothing_that_is_written(tmp_path: Path) -> None:
    """A canary key, sent to an endpoint that tells it back: not in output, errors, journal, ledger, or Ray's own logs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Gossip)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        job = Job(tmp_path, [{**OK, "base_url": url, "api_key_env": "RAYCADE_CANARY"}])
        job.env["RAYCADE_CANARY"] = CANARY
        job.rows(chat(number) for number in range(40))
        process = job.start()
        sessions: set[str] = set()
        try:

            def seen() -> bool:
                told = " ".join(descendants(process.pid).values())
                sessions.update(re.findall(r"/[^\s=,:]*/session_\d[\w-]+", told))
                return bool(sessions)

            wait_until(seen, process)
            said, _ = process.communicate(timeout=100)
        finally:
            end(process)
    finally:
        server.shutdown()
        server.server_close()
    assert process.returncode == 3, said
    assert len(job.failed()) == 40
    assert "Incorrect API key provided" in job.failed()[0]["error"]["message"]
    assert CANARY not in said
    looked_at = 0
    for folder in (tmp_path, *map(Path, sessions)):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                looked_at += 1
                assert CANARY.encode() not in path.read_bytes(), f"the key stands in {path}"
    assert looked_at > 10
