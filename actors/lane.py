"""The lane: a two-way pipe between two processes that carries many small items in few actor calls.

An actor call costs about half a millisecond of CPU; a row costs a few microseconds. So no row pays for a call of its own:

    calling half (Lane)                            serving half (LaneServer), in an actor
    post/call ─ waiting ─ submit(block) ────────►  start(item) ... complete(done)
    on_done  ◄─────────── completions() ◄───────── outbox, everything that has finished since the last yield

Objects and their lifetimes
- An item has a number, unique in its lane. It ends exactly once: with its completion, or as ActorLost, LaneTimeout or LaneClosed.
- A lane is named after its owner, and opens under a generation (wall-clock nanoseconds, so a restarted owner is always
  newer). Opening a newer generation ends the older one: its unfinished items are cancelled, its completions go nowhere.
- `submit` returns as soon as the block is taken; there is never more than one under way, so items gather by themselves
  while it is. `completions` is one long-lived stream of lists.
- An item may say things before it ends: `complete(Part(...))`, as often as it likes, reaches the calling half in order and
  before the completion. All streams of a lane share its yields, so a token costs no actor call of its own either.
- Pace: an idle lane sends at once. Under load the two halves leave a gap between sends that grows with the rate of items
  (`Gap`), and a good block goes without waiting: `FAR`, at 2,000 items/s a call carries about 50 of them, at 4,000 about 100; at
  100 items/s the gap is about a millisecond. To a peer that is near a send costs a twentieth, and gaps beyond those of `NEAR` were
  measured to save nothing. A lane whose callers wait for every word has a smaller `max_gap_s`. The calling half chooses for both.
- A peer that stops raises nothing by itself. So items have deadlines, an unanswered submit fails the lane after
  `ack_timeout_s`, an idle calling half sends a sign of life, and a serving half that hears none for `LEASE_S` closes the lane.

The module knows asyncio but not Ray: `Peer` is what it needs of the other side. actors/lane_peers.py has that for an actor, over
Ray's calls and, on one machine, over a socket.
"""

import asyncio
import contextlib
import gc
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from actors.errors import ActorLost, LaneClosed, LaneTimeout, RaycadeError
from actors.messages import pickled_flat

__all__ = [
    "FAR",
    "MAX_GAP_S",
    "NEAR",
    "SWEEP_S",
    "Batch",
    "Cancel",
    "Complete",
    "Gap",
    "Lane",
    "LaneServer",
    "LaneStream",
    "Part",
    "Peer",
    "as_tasks",
    "calm_gc",
    "resolve",
    "tell",
]

MAX_GAP_S = 0.025
GOOD_BLOCK_ITEMS = 100
"""More items in a call make it no cheaper per item, so nothing waits for more."""
BLOCK_BYTES = 90_000
"""Ray carries arguments and results below 100 KiB inline; above, they go through the object store at half the speed."""
BLOCK_ITEMS = 1_024
CALM_GC = (50_000, 20, 50)
"""A process that serves lanes has thousands of live items, which Python's default collector would scan over and over:
a fifth of a router's CPU."""
KEEPALIVE_S = 5.0
LEASE_S = 30.0
NOTE_S = 1.0
SWEEP_S = 0.5

Item = TypeVar("Item")
Done = TypeVar("Done")
Cancel = Callable[[], object]
Complete = Callable[[Done], None]
Batch = tuple[object, list[tuple[int, Any]]]
"""What one yield carries: the serving actor's note (its health, say) and the completions as (number, done)."""


class Gap(NamedTuple):
    """What is left between two sends, in seconds: so much for each item a second, up to a bound."""

    per_item_s: float
    max_s: float

    def within(self, max_s: float) -> "Gap":
        """The same with a bound that is no greater."""
        return self if self.max_s <= max_s else Gap(self.per_item_s, max_s)


FAR = Gap(12.5e-6, MAX_GAP_S)
NEAR = Gap(1.25e-6, 0.005)


class Part(NamedTuple):
    """What an item says before it ends."""

    value: Any


pickled_flat(Part)


class Peer(Protocol):
    """The serving half as the calling half reaches it."""

    @property
    def is_near(self) -> bool:
        """Whether a send costs little. Known once the lane is open, and may change when it is opened again."""
        ...

    async def submit(self, lane: str, generation: int, items: list[tuple[int, Any]], cancel: list[int]) -> bool:
        """Hand over a block; True when taken, False when the lane is not open there (any more)."""
        ...

    def completions(self, lane: str, generation: int, gap: Gap = FAR) -> AsyncGenerator[Batch, None]:
        """Open the lane: the first batch is a greeting without completions. Ends or raises when the lane is lost."""
        ...


def calm_gc() -> None:
    """Make Python's collector look less often, and not at what stands already. For processes at the ends of lanes."""
    gc.freeze()
    gc.set_threshold(*CALM_GC)


class _Pace:
    """How long to leave between two sends, from the rate of items (see the header)."""

    __slots__ = ("_full", "_last", "_rate", "gap")

    def __init__(self, gap: Gap) -> None:
        self.gap = gap
        self._rate = 0.0
        self._last = 0.0
        self._full = asyncio.Event()

    def gathered(self, items: int) -> None:
        """So many items wait to be sent; a good block of them goes without a pause."""
        if items >= GOOD_BLOCK_ITEMS:
            self._full.set()

    async def pause(self, items: int) -> None:
        """Wait until it is time for the next send, `items` of which wait for it now."""
        self._full.clear()
        delay = self._last + min(self.gap.max_s, self._rate * self.gap.per_item_s) - time.monotonic()
        if delay <= 0 or items >= GOOD_BLOCK_ITEMS:
            await asyncio.sleep(0)  # one turn of the loop at least: what is posted in the same turn leaves together
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._full.wait()

    def sent(self, items: int) -> None:
        now = time.monotonic()
        elapsed = max(now - self._last, 1e-4)
        weight = min(1.0, elapsed / 0.05)  # a time constant of about 50 ms, whatever the number of sends
        self._rate += weight * (items / elapsed - self._rate)
        self._last = now


class _Outbox:
    """One lane in the serving half: what runs, and what has finished and was not yet yielded."""

    __slots__ = ("closed", "finished", "generation", "heard_at", "name", "pace", "running", "wake")

    def __init__(self, name: str, generation: int, gap: Gap, now: float) -> None:
        self.name = name
        self.generation = generation
        self.running: dict[int, Cancel | None] = {}
        self.finished: list[tuple[int, Any]] = []
        self.wake = asyncio.Event()
        self.closed = False
        self.heard_at = now
        self.pace = _Pace(gap)

    def complete(self, number: int, done: Any) -> None:
        """End an item, or pass on a part. What comes after its end, or after the lane closed, changes nothing."""
        if number in self.running and not self.closed:
            if type(done) is not Part:
                del self.running[number]
            self.finished.append((number, done))
            self.wake.set()
            self.pace.gathered(len(self.finished))


class LaneServer(Generic[Item, Done]):
    """The serving half. An actor owns one and forwards its methods `submit` and `completions` to it.

    `start(lane, item, complete)` begins the work of one item and returns at once; it calls `complete(done)` exactly
    once, now or later, any number of Parts before, and returns what cancels the work (or None). `note()` rides on every yield. `on_closed(lane)`
    is told when a lane ends, so that what its owner held can be taken back.
    """

    def __init__(
        self,
        start: Callable[[str, Item, Complete[Done | Part]], Cancel | None],
        note: Callable[[], object] = lambda: None,
        on_closed: Callable[[str], None] = lambda lane: None,
        weigh: Callable[[Done], int] = lambda done: 200,
    ) -> None:
        self._start = start
        self._note = note
        self._on_closed = on_closed
        self._weigh = weigh
        self._lanes: dict[str, _Outbox] = {}
        self._reaper: asyncio.Task[None] | None = None

        calm_gc()

    @property
    def outstanding(self) -> int:
        """Items taken and not finished, over all lanes."""
        return sum(len(box.running) for box in self._lanes.values())

    async def submit(self, lane: str, generation: int, items: list[tuple[int, Item]], cancel: list[int]) -> bool:
        """See Peer."""
        return self.take(lane, generation, items, cancel)

    def take(self, lane: str, generation: int, items: list[tuple[int, Item]], cancel: list[int]) -> bool:
        """`submit`, which has nothing to wait for."""
        box = self._lanes.get(lane)
        if box is None or box.generation != generation:
            return False
        box.heard_at = time.monotonic()
        running, start = box.running, self._start
        for number, item in items:
            running[number] = None  # before start(): it may complete at once
            stop = start(lane, item, partial(box.complete, number))
            if stop is not None and number in running:
                running[number] = stop
        for number in cancel:
            stop = running.pop(number, None)
            if stop is not None:
                stop()
        return True

    async def completions(self, lane: str, generation: int, gap: Gap = FAR) -> AsyncGenerator[Batch, None]:
        old = self._lanes.get(lane)
        if old is not None:
            if old.generation >= generation:
                return
            self._close(old)
        box = self._lanes[lane] = _Outbox(lane, generation, gap, time.monotonic())
        if self._reaper is None:
            self._reaper = asyncio.create_task(self._reap())
        pace = box.pace
        try:
            yield self._note(), []
            while True:
                if not box.finished:
                    if box.closed:
                        return
                    box.wake.clear()
                    try:
                        async with asyncio.timeout(NOTE_S):
                            await box.wake.wait()
                    except TimeoutError:
                        yield self._note(), []  # idle, but what it has to say of itself may have changed
                    continue
                await pace.pause(len(box.finished))
                block = self._take(box)
                pace.sent(len(block))
                yield self._note(), block
        finally:
            self._close(box)

    def _take(self, box: _Outbox) -> list[tuple[int, Done]]:
        finished = box.finished
        weight = 0
        for position, (_, done) in enumerate(finished):
            weight += self._weigh(done.value if type(done) is Part else done)
            if (weight > BLOCK_BYTES and position) or position >= BLOCK_ITEMS:
                box.finished = finished[position:]
                return finished[:position]
        box.finished = []
        return finished

    def _close(self, box: _Outbox) -> None:
        if box.closed:
            return
        box.closed = True
        box.wake.set()
        if self._lanes.get(box.name) is box:
            del self._lanes[box.name]
        running, box.running = box.running, {}
        for stop in running.values():
            if stop is not None:
                stop()
        self._on_closed(box.name)

    async def _reap(self) -> None:
        """Close the lanes whose owner has fallen silent: a dropped Ray generator does not tell its producer."""
        while True:
            await asyncio.sleep(LEASE_S / 6)
            now = time.monotonic()
            for box in list(self._lanes.values()):
                if now - box.heard_at > LEASE_S:
                    self._close(box)

    def close(self) -> None:
        """End all lanes: their calling halves see them lost."""
        for box in list(self._lanes.values()):
            self._close(box)
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None


def as_tasks(
    handle: Callable[[Item, Complete[Part]], Any], failed: Callable[[Exception], Done]
) -> Callable[[str, Item, Complete[Done | Part]], Cancel | None]:
    """A `start` for LaneServer that runs the coroutine function `handle(item, say)` as one task an item.

    `say(Part(...))` passes a part on. Whatever it raises becomes `failed(error)`, so an item completes also when the code that serves it is wrong.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def run(item: Item, complete: Complete[Done | Part]) -> None:
        try:
            done = await handle(item, complete)
        except asyncio.CancelledError:
            # Cancelled by the lane, its item has ended and this changes nothing. But what `handle` waited for can be
            # cancelled as well, and then somebody still waits.
            complete(failed(RaycadeError("the work was cancelled")))
            raise
        except Exception as error:
            done = failed(error)
        complete(done)

    def start(lane: str, item: Item, complete: Complete[Done | Part]) -> Cancel:
        task = asyncio.get_running_loop().create_task(run(item, complete))
        tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(tasks.discard)
        return task.cancel

    return start


class Lane(Generic[Item, Done]):
    """The calling half. `open()` before use; `close()` at the end."""

    def __init__(
        self,
        owner: str,
        peer: Peer,
        *,
        name: str = "",
        max_outstanding: int = 100_000,
        ack_timeout_s: float = 20.0,
        on_note: Callable[[Any], None] = lambda note: None,
        on_up: Callable[[bool], None] = lambda up: None,
        weigh: Callable[[Item], int] = lambda item: 200,
        keep_waiting: bool = True,
        max_gap_s: float = MAX_GAP_S,
    ) -> None:
        """`keep_waiting`: when the peer is lost, items that had not left go to the next one; else they end too, as not sent."""
        self.owner = owner
        self.name = name or owner
        self.up = False
        """Whether the lane is open now. While it is not, items wait for it to open again."""
        self._peer = peer
        self._max_outstanding = max_outstanding
        self._ack_timeout_s = ack_timeout_s
        self._on_note = on_note
        self._on_up = on_up
        self._weigh = weigh
        self._keep_waiting = keep_waiting
        self._generation = 0
        self._number = 0
        self._handed_over = 0  # numbers up to here were given to submit()
        self._waiting: deque[tuple[int, Item]] = deque()
        self._entries: dict[int, tuple[Callable[[Any], None], float]] = {}
        self._cancel: list[int] = []
        self._max_gap_s = max_gap_s
        self._pace = _Pace(FAR)
        self._wake = asyncio.Event()
        self._room: asyncio.Event | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def outstanding(self) -> int:
        """Items posted and not ended."""
        return len(self._entries)

    @property
    def has_room(self) -> bool:
        return len(self._entries) < self._max_outstanding

    async def open(self, timeout_s: float | None = None) -> None:
        """Open the lane and keep it open until close(): a lost one is opened again under a new generation.

        Raises TimeoutError when the first opening takes longer than `timeout_s` seconds.
        """
        if self._keeper is None:
            self._opened = asyncio.Event()
            self._keeper = asyncio.create_task(self._keep())
        async with asyncio.timeout(timeout_s):
            await self._opened.wait()

    def post(self, item: Item, on_done: Callable[[Any], None], timeout_s: float) -> int:
        """Send an item; `on_done` is called later, with each of its Parts and then exactly once with its completion or with
        an instance of ActorLost, LaneTimeout or LaneClosed. Returns the item's number, for cancel()."""
        if self._closed:
            raise LaneClosed(self.name)
        self._number += 1
        number = self._number
        self._entries[number] = (on_done, time.monotonic() + timeout_s)
        self._waiting.append((number, item))
        self._wake.set()
        self._pace.gathered(len(self._waiting))
        return number

    async def call(self, item: Item, timeout_s: float, on_withdrawn: Callable[[], object] = lambda: None) -> Done:
        """Send an item and wait for its completion. Cancelling the wait cancels the item at the other end.

        Raises ActorLost, LaneTimeout or LaneClosed. Waits for room when `max_outstanding` items are under way.
        `on_withdrawn` is called when the wait is cancelled before the item has left: it surely did not run.
        """
        try:
            while not self.has_room:
                if self._room is None:
                    self._room = asyncio.Event()
                await self._room.wait()
        except asyncio.CancelledError:
            on_withdrawn()
            raise
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        number = self.post(item, partial(resolve, future), timeout_s)
        try:
            return await future
        except asyncio.CancelledError:
            if self.cancel(number):
                on_withdrawn()
            raise

    def stream(self, item: Item, timeout_s: float) -> "LaneStream[Done]":
        """Send an item and read what it says. Close the stream to cancel the item. Raises LaneClosed."""
        stream: LaneStream[Done] = LaneStream(self)
        stream.number = self.post(item, stream.take, timeout_s)
        return stream

    def cancel(self, number: int) -> bool:
        """Give an item up. Its `on_done` is not called any more; the other end is told. True: it had not left yet."""
        if self._entries.pop(number, None) is None:
            return False
        self._ended()
        if number > self._handed_over:
            return True
        self._cancel.append(number)
        self._wake.set()
        return False

    async def close(self) -> None:
        """Close the lane; whatever is outstanding ends as LaneClosed."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        self._end(list(self._entries), lambda number: LaneClosed(self.name))

    # ------------------------------------------------------------------ inside

    async def _keep(self) -> None:
        backoff_s = 0.05
        sweeper = asyncio.create_task(self._sweep())
        try:
            while True:
                # newer than the last one also when the clock was set back, or the other end would take it for an old one
                self._generation = generation = max(time.time_ns(), self._generation + 1)
                stream = self._peer.completions(self.owner, generation, FAR.within(self._max_gap_s))
                try:
                    async with asyncio.timeout(self._ack_timeout_s):
                        note, _ = await anext(stream)
                    backoff_s = 0.05
                    self._pace.gap = (NEAR if self._peer.is_near else FAR).within(self._max_gap_s)
                    self._on_note(note)
                    self._set_up(True)
                    await _first_of(self._receive(stream), self._send(generation))
                except Exception:  # whatever the transport raises means one thing: the peer is lost
                    backoff_s = min(1.0, backoff_s * 2)
                finally:
                    self._set_up(False)
                    self._lose()
                    await _close_stream(stream)
                await asyncio.sleep(backoff_s)
        finally:
            sweeper.cancel()

    def _set_up(self, up: bool) -> None:
        if up != self.up:
            self.up = up
            if up:
                self._opened.set()
            self._on_up(up)

    async def _send(self, generation: int) -> None:
        pace = self._pace
        while True:
            if not self._waiting and not self._cancel:
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(KEEPALIVE_S):
                        await self._wake.wait()
            else:
                await pace.pause(len(self._waiting))
            block = self._take()
            cancel, self._cancel = self._cancel, []
            pace.sent(len(block))
            async with asyncio.timeout(self._ack_timeout_s):
                if not await self._peer.submit(self.owner, generation, block, cancel):
                    return

    def _take(self) -> list[tuple[int, Item]]:
        block: list[tuple[int, Item]] = []
        waiting, entries, weight = self._waiting, self._entries, 0
        while waiting and len(block) < BLOCK_ITEMS:
            number, item = waiting[0]
            if number in entries:  # else it was cancelled or timed out while it waited
                weight += self._weigh(item)
                if weight > BLOCK_BYTES and block:
                    break
                block.append((number, item))
            waiting.popleft()
            self._handed_over = number
        return block

    async def _receive(self, stream: AsyncIterator[Batch]) -> None:
        entries = self._entries
        async for note, batch in stream:
            self._on_note(note)
            for number, done in batch:
                entry = entries.get(number) if type(done) is Part else entries.pop(number, None)
                if entry is not None:
                    tell(entry[0], done)
            if self._room is not None:
                self._ended()

    def _lose(self) -> None:
        """The peer is gone: what was handed over ends as ActorLost; what still waits goes to the next one, or ends as not sent."""
        self._cancel.clear()
        if not self._closed:
            sent = self._handed_over
            lost = [number for number in self._entries if number <= sent or not self._keep_waiting]
            self._end(lost, lambda number: ActorLost(self.name, sent=number <= sent))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            late = [number for number, (_, deadline) in self._entries.items() if deadline <= now]
            if late:
                self._cancel += [number for number in late if number <= self._handed_over]
                self._wake.set()
                self._end(late, lambda number: LaneTimeout(self.name, sent=number <= self._handed_over))

    def _end(self, numbers: Iterable[int], why: Callable[[int], RaycadeError]) -> None:
        for number in numbers:
            entry = self._entries.pop(number, None)
            if entry is not None:
                tell(entry[0], why(number))
        self._ended()

    def _ended(self) -> None:
        if self._room is not None and self.has_room:
            self._room.set()
            self._room = None


class _Cancels(Protocol):
    """A calling half, as a stream of it needs it."""

    def cancel(self, number: int) -> bool: ...


class LaneStream(Generic[Done]):
    """The parts of one item as its one reader takes them. Whoever reads slower than they come gets several at once."""

    __slots__ = ("_ended", "_lane", "_parts", "_reader", "number")

    def __init__(self, lane: _Cancels) -> None:
        self.number = 0
        self._lane = lane
        self._parts: list[Any] = []
        self._ended: list[Any] = []
        self._reader: asyncio.Future[None] | None = None

    def take(self, done: Any) -> None:
        """What the lane calls: a Part, or the end."""
        if type(done) is Part:
            self._parts.append(done.value)
        else:
            self._ended.append(done)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def read(self) -> "list[Any] | Done":
        """The values of the parts that have come since the last read, at least one; after them the completion.

        Raises ActorLost, LaneTimeout or LaneClosed in place of a completion.
        """
        while not self._parts and not self._ended:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if self._parts:
            parts, self._parts = self._parts, []
            return parts
        done = self._ended[0]
        if isinstance(done, Exception):
            raise done
        ended: Done = done
        return ended

    def close(self) -> bool:
        """Give the item up if it has not ended. True: it had not left yet, so it surely did not run."""
        return not self._ended and self._lane.cancel(self.number)


def tell(on_done: Callable[[Any], None], done: Any) -> None:
    """End an item, or pass a part on. A callback that raises is its owner's defect: the items beside it must not suffer for it."""
    try:
        on_done(done)
    except Exception as error:
        context = {"message": "a lane's on_done raised", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)


def resolve(future: "asyncio.Future[Any]", done: Any) -> None:
    """An `on_done` for whoever awaits a future."""
    if not future.done():
        if isinstance(done, Exception):
            future.set_exception(done)
        else:
            future.set_result(done)


async def _first_of(*coroutines: Any) -> None:
    """Run together until one ends or fails; end the others, and raise what it raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _close_stream(stream: AsyncGenerator[Batch, None]) -> None:
    with contextlib.suppress(Exception):
        await stream.aclose()
