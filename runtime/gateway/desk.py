"""The gateway's desk: keeps files, takes batches on and carries them out. An actor, one a gateway, where its state_dir is.

Replicas ask it over `ask`, so they may run anywhere and hold nothing. It has a router of its own in its process: a batch's
rows go the way of every request, to the tiers and the budget that the replicas use too.

`run` looks twice a second at what the shelf says and does what follows: begins, stops, writes down how far things are. So a batch
of which the last gateway died, one that another gateway on this state_dir has taken on, and one whose key was removed are
no special cases.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from actors.errors import ClusterError, RaycadeError
from actors.lane import Lane
from actors.messages import Request
from actors.observer.scene import JobScene
from actors.router.actor import RouterActor
from actors.router.flow import Router
from runtime.batch.journal import OutputError
from runtime.config import Config
from runtime.gateway.app import NOBODY
from runtime.gateway.asks import Asks
from runtime.gateway.batch_prompts import BatchPrompts
from runtime.gateway.batch_rules import (
    WINDOW_S,
    Batch,
    BatchAsk,
    Fault,
    Page,
    StoredFile,
    carried_on,
    failed,
    file_value,
    page_value,
    shown,
    told_to_cancel,
)
from runtime.gateway.batch_telemetry import BatchTelemetry
from runtime.gateway.carrying import Carrying, Means, Why
from runtime.gateway.errors import BUSY_S, HttpError
from runtime.gateway.keyfile import KeyFile
from runtime.gateway.keys import Key
from runtime.gateway.prompts import Prompts
from runtime.gateway.shelf import Shelf, new_id

__all__ = ["Desk"]

log = logging.getLogger("raycade.gateway")

LOOK_EVERY_S = 0.5
SWEEP_EVERY_S = 60.0
GRACE_S = 2.0
"""After a cancellation or at the end of the window, what rows in flight have left to end in."""
TRIES = 3
"""Of a batch that fails because something here is wrong."""
AGAIN_S = 5.0
UPLOADS_AT_ONCE = 64
FORGOTTEN_S = 1000.0
COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")


class _Upload:
    def __init__(self, owner: str, path: Path) -> None:
        self.owner, self.path = owner, path
        self.file = open(path, "xb", opener=_private)  # noqa: SIM115 (for as long as it arrives)
        self.size = 0
        self.touched = time.monotonic()


class Desk:
    """`folder`: where everything lies. `make` builds the router, when the first batch needs it."""

    def __init__(
        self,
        config: Config,
        folder: str,
        asks: Callable[[], Asks],
        make: Callable[..., Router],
        cluster: str = "",
        watch: Callable[[], Any] | None = None,
    ) -> None:
        """`cluster`: the name of its set of actors; `watch`: reaches their observer, None where there is none."""
        # no I/O here: Ray does not restart an actor whose __init__ failed
        self._config = config
        self._shelf = Shelf(folder)
        self._make_asks = asks
        self._watch = watch
        self._telemetry = BatchTelemetry(config, cluster, self._scenes)
        self._router = RouterActor(partial(make, on_attempt=self._telemetry.attempt))
        self._means: Means | None = None
        self._keyfile: KeyFile | None = None
        self._works: dict[str, tuple[Carrying, asyncio.Task[None]]] = {}
        self._trouble: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._uploads: dict[str, _Upload] = {}
        self._swept_at = float("-inf")
        self._closed = asyncio.Event()

    # ------------------------------------------------------------------ what replicas ask

    async def ask(self, method: str, *arguments: Any) -> Any:
        """One of the methods below that begin with `do_`. Raises HttpError."""
        try:
            self._shelf.open()
            return getattr(self, f"do_{method}")(*arguments)
        except (OSError, sqlite3.Error) as error:
            log.warning("%s: %s", method, error)
            said = "the gateway cannot use its files now"
            raised = HttpError(503, said, "server_error", "storage", None, BUSY_S)
        raise raised

    def do_begin_upload(self, owner: str) -> str:
        if len(self._uploads) >= UPLOADS_AT_ONCE:
            raise HttpError(429, "too many uploads at once", "rate_limit_error", "overloaded", None, BUSY_S)
        id = new_id("file-")
        path = self._shelf.upload_path(id)
        self._uploads[id] = _Upload(owner, path)
        return id

    def do_append(self, owner: str, id: str, data: bytes) -> None:
        upload = self._upload(owner, id)
        if not upload.size and data.startswith(COMPRESSED):
            raise HttpError(400, "expected plain JSONL, found a compressed file", code="invalid_file", param="file")
        upload.size += len(data)
        self._check_room(owner)
        upload.file.write(data)
        upload.touched = time.monotonic()

    def do_keep_upload(self, owner: str, id: str, filename: str, purpose: str, keep_s: int | None) -> dict[str, Any]:
        upload = self._upload(owner, id)
        now = time.time()
        upload.file.flush()
        os.fsync(upload.file.fileno())
        upload.file.close()
        del self._uploads[id]
        expires_at = int(now + (keep_s or self._keep_s))
        file = StoredFile(id, owner, filename, purpose, upload.size, int(now), expires_at)
        self._shelf.keep(self._shelf.upload_path(id), file)
        return file_value(file)

    def do_drop_upload(self, owner: str, id: str) -> None:
        self._drop(id, self._upload(owner, id))

    def do_file(self, owner: str, id: str) -> dict[str, Any]:
        return file_value(self._shelf.file(owner, id))

    def do_files(self, owner: str, page: Page, purpose: str | None) -> dict[str, Any]:
        files, more = self._shelf.files(owner, page, purpose)
        return page_value([file_value(file) for file in files], more)

    def do_delete_file(self, owner: str, id: str) -> dict[str, Any]:
        self._shelf.delete_file(owner, id)
        return {"id": id, "object": "file", "deleted": True}

    def do_read(self, owner: str, id: str, offset: int, length: int) -> bytes:
        with open(self._shelf.path(self._shelf.file(owner, id)), "rb") as file:
            return os.pread(file.fileno(), length, offset)

    def do_create_batch(self, owner: str, ask: BatchAsk) -> dict[str, Any]:
        file = self._shelf.file(owner, ask.input_file_id)
        if file.purpose != "batch":
            message = f"expected a file with the purpose batch; it has {file.purpose}"
            raise HttpError(400, message, code="invalid_field", param="input_file_id")
        now = int(time.time())
        batch = Batch(
            new_id("batch_"),
            owner,
            ask.endpoint,
            file.id,
            file.filename,
            new_id("file-"),
            new_id("file-"),
            now,
            now + WINDOW_S,
            ask.metadata,
            ask.output_expires_after.seconds if ask.output_expires_after else None,
        )
        self._shelf.add_batch(batch, file, self._config.gateway.batches.per_key)
        return shown(batch)

    def do_batch(self, owner: str, id: str) -> dict[str, Any]:
        batch = self._shelf.batch(owner, id)
        work = self._works.get(id)
        return shown(batch if work is None else work[0].up_to_now(batch))

    def do_batches(self, owner: str, page: Page) -> dict[str, Any]:
        batches, more = self._shelf.batches(owner, page)
        return page_value([shown(batch) for batch in batches], more)

    def do_cancel_batch(self, owner: str, id: str) -> dict[str, Any]:
        batch = self._shelf.batch(owner, id)
        return shown(self._shelf.change(batch, partial(told_to_cancel, now=time.time())))

    # ------------------------------------------------------------------ carrying out

    async def run(self) -> None:
        """Carry batches out until `close`."""
        while not self._closed.is_set():
            try:
                self._look()
            except (OSError, sqlite3.Error, RaycadeError) as error:
                log.warning("batches: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._closed.wait()

    async def close(self, grace_s: float) -> None:
        """Stop where things are: rows in flight have `grace_s` seconds to end, and the next gateway goes on."""
        self._closed.set()
        for carrying, _ in self._works.values():
            carrying.stop("paused", grace_s)
        if self._works:
            await asyncio.wait([task for _, task in self._works.values()])
        for id, upload in list(self._uploads.items()):
            self._drop(id, upload)
        await self._router.close()
        await self._telemetry.close()
        self._shelf.close()

    def _scenes(self) -> Iterator[JobScene]:
        """How far the batches are that are being carried out."""
        return (carrying.scene() for carrying, _ in self._works.values())

    def _look(self) -> None:
        self._shelf.open()
        now = time.time()
        self._drop_forgotten()
        if not self._shelf.is_ours():
            return
        if now - self._swept_at >= SWEEP_EVERY_S:
            self._swept_at = now
            self._shelf.sweep(self._keep_s, now)
        waiting: list[Batch] = []
        for batch in self._shelf.live():
            if batch.status != "cancelling" and batch.closing is None and self._key(batch.owner) is None:
                batch = self._shelf.change(batch, partial(told_to_cancel, now=now, note="the key is gone"))
            why: Why = "cancelled" if batch.status == "cancelling" else "expired" if now >= batch.expires_at else ""
            work = self._works.get(batch.id)
            if work is not None:
                if why:
                    work[0].stop(why, GRACE_S)
                work[0].count()
            elif now < self._not_before.get(batch.id, 0.0):
                continue
            elif why or batch.closing is not None:
                self._begin(batch, why)  # little is left to do: it waits for no other
            else:
                waiting.append(batch)
        running = [carrying.batch for carrying, _ in self._works.values()]
        for batch in carried_on(waiting, running, self._config.gateway.batches.at_once):
            self._begin(batch, "")

    def _begin(self, batch: Batch, why: Why) -> None:
        carrying = Carrying(self._carried_with(), batch, partial(self._rights, batch.owner))
        if why:
            carrying.stop(why, 0.0)
        task = asyncio.get_running_loop().create_task(self._carry(carrying))
        self._works[batch.id] = (carrying, task)
        task.add_done_callback(lambda _: self._works.pop(batch.id, None))

    async def _carry(self, carrying: Carrying) -> None:
        """Carry a batch out. What goes wrong with the disk is tried again; what is wrong here, a few times."""
        id = carrying.batch.id
        try:
            await self._router.open()
            if self._watch is not None:
                self._telemetry.open(self._router.look, self._watch())
            await carrying.run()
            self._trouble.pop(id, None)
            self._not_before.pop(id, None)
        except (OSError, sqlite3.Error, OutputError, ClusterError) as error:
            log.warning("%s waits: %s", id, error)
            self._not_before[id] = time.time() + AGAIN_S
        except Exception as error:
            log.exception("%s cannot be carried out", id)
            self._not_before[id] = time.time() + AGAIN_S
            self._trouble[id] = self._trouble.get(id, 0) + 1
            if self._trouble[id] >= TRIES:
                fault = Fault("internal_error", f"something went wrong inside the gateway: {type(error).__name__}")
                self._shelf.change(carrying.batch, partial(failed, faults=(fault,), now=time.time()))

    def _carried_with(self) -> Means:
        if self._means is None:
            settings, prompts = self._config.gateway, self._config.prompts
            self._means = Means(
                self._shelf,
                self._make_asks(),
                partial(BatchPrompts, Prompts(prompts), prompts),
                self._lanes,
                self._last_rows,
                time.time,
                self._config.coalesce.enabled,
                settings.batches.window,
                settings.batches.max_rows,
                int(settings.max_body_mb * 1_000_000),
                self._keep_s,
                self._telemetry.facts if self._watch is not None else None,
            )
        return self._means

    def _lanes(
        self, owner: str, on_note: Callable[[str, Any], None], weigh: Callable[[Request], int]
    ) -> list[Lane[Request, Any]]:
        """To the router in this process."""
        return [Lane(owner, self._router, name="router", on_note=partial(on_note, "router"), weigh=weigh)]

    def _last_rows(self, job: str) -> None:
        if self._config.router.hedge is not None:
            asyncio.get_running_loop().create_task(self._router.last_rows(job))

    # ------------------------------------------------------------------ keys, uploads

    def _key(self, owner: str) -> Key | None:
        """The rights of a key by its name; None: there is no such key any more."""
        file = self._config.gateway.keys_file
        if file is None:
            return NOBODY if owner == NOBODY.name else None
        if self._keyfile is None:
            self._keyfile = KeyFile(file, [tier.name for tier in self._config.tiers])
        return self._keyfile.ring().named(owner)

    def _rights(self, owner: str) -> Key:
        key = self._key(owner)
        return Key(owner, tiers=()) if key is None else key

    @property
    def _keep_s(self) -> float:
        return self._config.gateway.files.keep_days * 86400.0

    def _upload(self, owner: str, id: str) -> _Upload:
        upload = self._uploads.get(id)
        if upload is None or upload.owner != owner:
            raise HttpError(503, "the upload was lost; begin again", "server_error", "upload_lost", None, BUSY_S)
        return upload

    def _check_room(self, owner: str) -> None:
        most = self._config.gateway.files.max_total_mb * 1_000_000
        arriving = sum(upload.size for upload in self._uploads.values() if upload.owner == owner)
        if self._shelf.stored_bytes(owner) + arriving > most:
            message = f"the files of a key may have {most / 1e6:g} MB together: delete some first"
            raise HttpError(413, message, code="storage_full", param="file")

    def _drop_forgotten(self) -> None:
        """Uploads whose replica died."""
        for id, upload in list(self._uploads.items()):
            if time.monotonic() - upload.touched > FORGOTTEN_S:
                self._drop(id, upload)

    def _drop(self, id: str, upload: _Upload) -> None:
        self._uploads.pop(id, None)
        with contextlib.suppress(OSError):
            upload.file.close()
        with contextlib.suppress(OSError):
            upload.path.unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
