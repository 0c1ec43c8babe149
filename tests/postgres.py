"""A PostgreSQL of our own for tests, from the system's package: made when first asked for, gone with the test run.

    def test_...(postgres_server: Postgres) -> None: ...        # a server
    postgres_server.new_database()                              # the address of an empty database in it
    def test_...(ledger_place: str) -> None: ...                # once with a folder, once with a database

Where the package is missing, such tests are skipped; under RAYCADE_TEST_POSTGRES=require (continuous integration) they fail.
"""

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

__all__ = ["Postgres", "ledger_place", "postgres_server"]

USER = "raycade"


class Postgres:
    """A running server; `stop` and `start` are for tests of what happens without it."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries, self._folder = binaries, folder
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        # PostgreSQL refuses to run as root
        self._user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if not os.geteuid() else []
        if self._user:
            shutil.chown(folder, "postgres", "postgres")
        self._run("initdb", "-D", str(folder / "data"), "-U", USER, "-A", "trust", "-N", "-E", "UTF8", "--locale=C")

    def _run(self, program: str, *options: str) -> None:
        done = subprocess.run(
            [*self._user, str(self._binaries / program), *options],
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}"

    def start(self) -> None:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self._folder,
            "fsync": "off",
            "max_connections": 40,
            "shared_buffers": "16MB",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._user, str(self._binaries / "postgres"), "-D", str(self._folder / "data"), *options],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < deadline, "PostgreSQL does not answer"
                time.sleep(0.05)

    def stop(self) -> None:
        """At once, as a crash would: connections break."""
        if self._process is not None:
            self._process.send_signal(3)  # SIGQUIT: an immediate shutdown, which ends its own children too
            self._process.wait(20)
        self._process = None

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)


def _binaries() -> Path | None:
    found = shutil.which("postgres")
    if found and shutil.which("initdb", path=str(Path(found).parent)):
        return Path(found).parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/postgres")  # where Debian keeps them, off the PATH
    return max((path.parent for path in versions), default=None, key=lambda path: int(path.parent.name))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    binaries = _binaries()
    if binaries is None:
        reason = "PostgreSQL is not installed (on Debian: apt-get install postgresql)"
        if os.environ.get("RAYCADE_TEST_POSTGRES") == "require":
            pytest.fail(reason)
        pytest.skip(reason)
    # as root another user runs it, who may not be let into our own folder for temporary files
    folder = Path(tempfile.mkdtemp(prefix="pg.", dir=None if os.geteuid() else "/tmp"))
    try:
        server = Postgres(binaries, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for a ledger, as BudgetActor and open_store take it."""
    if request.param == "sqlite":
        return str(tmp_path / "state")
    server: Postgres = request.getfixturevalue("postgres_server")
    return server.new_database()
