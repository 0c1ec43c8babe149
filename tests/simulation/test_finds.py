"""What the simulation has found, each as small as it gets."""

import asyncio
from typing import Any

from actors import lane as lane_module
from actors.lane import Lane, LaneServer
from tests.simulated import Clock, LocalPeer, simulate


class SetBack(Clock):
    """A wall clock that somebody sets back by an hour."""

    back_s = 0.0

    def time_ns(self) -> int:
        return super().time_ns() - int(self.back_s * 1e9)


def test_a_lane_reopens_at_once_after_the_clock_was_set_back(monkeypatch: Any) -> None:
    """A stream breaks and the serving half does not hear of it; the lane's next generation is newer all the same."""

    async def lives() -> None:
        clock = SetBack(asyncio.get_running_loop())
        monkeypatch.setattr(lane_module, "time", clock)
        server: LaneServer[str, str] = LaneServer(lambda lane, item, complete: complete(item))
        peer = LocalPeer(server)
        peer.deaf = True
        lane: Lane[str, str] = Lane("owner", peer)
        await lane.open()
        clock.back_s = 3_600.0
        for stream in peer._streams:
            stream.put_nowait(ConnectionError("the stream broke"))
        await asyncio.sleep(1.0)
        assert lane.up
        assert await lane.call("hello", 5.0) == "hello"
        await lane.close()
        server.close()

    simulate(lives(), lane_module)
