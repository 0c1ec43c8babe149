"""The gateway on Ray Serve: its replicas, the proxy before them, start and end.

HAProxy, which comes with Ray Serve, takes the connections; the replicas answer its requests directly. Measured on two
cores with a bare application: Serve's own proxy 189 requests/s and 8.7 ms, this way 1,400/s and 1.0 ms. What it changes:

- A replica's port listens on all interfaces when the gateway does. So every request is authenticated in the application,
  and the README says what to firewall.
- Its flags are read when Serve's processes start: `prepare` sets them before Ray starts. A cluster that is joined brings
  its own.

Each replica has a Router of its own (actors/router/flow.py), so a request crosses no router actor. A gateway of one
replica is the only router of its actors, so it keeps the coalescer's table too: the way to another process and back was a
third of what the gateway added to a first token.
"""

import asyncio
import atexit
import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

from actors.errors import ClusterError
from actors.router.flow import Router
from runtime.cluster import Cluster, Watching
from runtime.config import Config
from runtime.gateway.app import GatewayApp
from runtime.gateway.asks import Asks
from runtime.gateway.browsers import for_browsers
from runtime.gateway.doors import doors
from runtime.gateway.files import Ask
from runtime.gateway.haproxy import haproxy_script
from runtime.gateway.hosting import DeskHost, asker
from runtime.gateway.keyfile import KeyFile
from runtime.gateway.limits import Gate
from runtime.gateway.prompts import Prompts
from runtime.gateway.telemetry import Telemetry, Watched

__all__ = ["GAP_S", "make_asks", "prepare", "start", "start_desk", "stop"]

GAP_S = 0.003
"""Of a gateway's lanes: callers wait for every word."""
APP = "raycade"
FLAGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # Serve would wait 30 s for balancers further out before a replica may end, though nobody asks it any more.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    # Ray starts its workers with nice 15: whatever else the machine does would come before every answer.
    "RAY_worker_niceness": "0",
}
PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    # Where HAProxy turns to while no replica is up. Several processes can listen on Serve's 8500 at once, so a request to
    # one gateway would come to another one's, with other keys, tiers and budgets.
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
HEADROOM = 64
"""Beyond max_queued a replica takes so many requests more, to refuse them itself: at once, and in OpenAI's shape."""


def prepare() -> None:
    """Choose Serve's fast way, before Ray starts. What the environment says already stays."""
    for name, value in FLAGS.items():
        os.environ.setdefault(name, value)
    # Its defaults are fixed names in /tmp and fixed ports: a second gateway on the machine would meet the first one's.
    folder = tempfile.mkdtemp(prefix="rcgw-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, file in (
        ("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", "haproxy.cfg"),
        ("RAY_SERVE_HAPROXY_SOCKET_PATH", "admin.sock"),
        ("RAY_SERVE_HAPROXY_SERVER_STATE_BASE", ""),
        ("RAY_SERVE_HAPROXY_SERVER_STATE_FILE", "server-state"),
    ):
        os.environ.setdefault(name, os.path.join(folder, file))
    os.environ.setdefault("RAY_SERVE_HAPROXY_BINARY_PATH", haproxy_script(folder))
    for name in PORTS:
        os.environ.setdefault(name, str(_free_port()))


def start(cluster: Cluster, config: Config, prices: dict[str, Any], host: str, port: int) -> None:
    """Run the gateway's replicas and wait until they answer. Call it outside of an event loop. Raises ClusterError."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    gateway = config.gateway
    most = gateway.max_replicas or gateway.replicas
    options: dict[str, Any] = {
        "name": "gateway",
        "max_ongoing_requests": gateway.max_queued + HEADROOM,
        "max_queued_requests": -1,
        "ray_actor_options": {"num_cpus": 0},
        "graceful_shutdown_timeout_s": gateway.drain_s,
        "graceful_shutdown_wait_loop_s": 0.25,
        "logging_config": {"enable_access_log": False},
    }
    if most > gateway.replicas:
        options["autoscaling_config"] = {
            "min_replicas": gateway.replicas,
            "max_replicas": most,
            "target_ongoing_requests": max(1, gateway.max_queued // 4),
        }
    else:
        options["num_replicas"] = gateway.replicas
    try:
        serve.start(http_options={"host": host, "port": port}, proxy_location="EveryNode")
        deployment = serve.deployment(**options)(serve.ingress()(_Replica))
        watch, ask = cluster.watching_maker(), asker(cluster.name)
        # With one replica, and actors of its own, there is no router beside it that answers live requests.
        make = partial(cluster.router_maker(prices), alone=most == 1 and not cluster.stays)
        bound = deployment.bind(make, watch, config, cluster.name, ask)
        serve.run(bound, name=APP, route_prefix="/")
    except Exception as error:  # Serve raises RuntimeError and Ray's own for whatever went wrong in its processes
        reason = next(iter(str(error).splitlines()), "")
        raise ClusterError(f"the gateway did not start: {type(error).__name__}: {reason}"[:300]) from None


def start_desk(cluster: Cluster, config: Config, prices: dict[str, Any]) -> DeskHost:
    """Make the actor that keeps files and carries batches out."""
    folder = os.path.join(os.path.abspath(config.state_dir), "gateway")
    make = partial(cluster.router_maker(prices), f"gateway/desk/{cluster.name}")
    return DeskHost(cluster.name, config, folder, partial(make_asks, config), make, cluster.watching_maker())


def stop() -> None:
    """Let the answers under way end, at most `drain_s`, and end the replicas. Call it outside of an event loop."""
    from ray import serve

    with contextlib.suppress(Exception):
        serve.delete(APP)
    with contextlib.suppress(Exception):
        serve.shutdown()


class _Replica:
    """One replica, as Serve makes it: a Router of its own behind the application."""

    def __init__(
        self,
        make: Callable[..., Router],
        watch: Callable[[], Watching] | None,
        config: Config,
        cluster: str,
        ask: Ask,
    ) -> None:
        self._make, self._watch, self._config, self._cluster, self._ask = make, watch, config, cluster, ask
        gateway = config.gateway
        replicas = gateway.max_replicas or gateway.replicas
        self._gate = Gate(gateway.max_queued, 1.0 / replicas)
        self._prompts = Prompts(config.prompts, replicas)
        self._telemetry = Telemetry(config, self._gate, self._prompts)
        self._router: Router | None = None
        self._opening = asyncio.Lock()

    def __serve_build_asgi_app__(self) -> Any:
        config, gateway = self._config, self._config.gateway
        keyfile = KeyFile(gateway.keys_file, [tier.name for tier in config.tiers]) if gateway.keys_file else None
        asks = make_asks(config, self._prompts)
        app = GatewayApp(
            self._watched,
            asks,
            keyfile.ring if keyfile is not None else lambda: None,
            self._gate,
            int(gateway.max_body_mb * 1_000_000),
            self._scrape if self._watch is not None else None,
            self._live if self._watch is not None else None,
            self._telemetry.refused,
            doors(asks, self._ask, gateway, metrics=self._watch is not None),
        )
        return for_browsers(app.asgi, gateway.cors_origins, keyed=keyfile is not None)

    async def __del__(self) -> None:
        """Serve awaits this once the replica's requests have ended: what is held of the budget goes back."""
        if self._router is not None:
            router, self._router = self._router, None
            await router.close()
            await self._telemetry.close()

    async def _watched(self) -> Watched:
        return Watched(await self._opened(), self._telemetry)

    async def _live(self) -> bytes:
        await self._opened()
        return await self._telemetry.live()

    async def _scrape(self, accept: str) -> tuple[bytes, str]:
        await self._opened()
        return await self._telemetry.scrape(accept)

    async def _opened(self) -> Router:
        if self._router is None:
            async with self._opening:
                if self._router is None:
                    from ray.serve import get_replica_context

                    replica = get_replica_context().replica_id.unique_id
                    router = self._make(f"gateway/{replica}", max_gap_s=GAP_S, on_attempt=self._telemetry.attempt)
                    await router.open()
                    watching = None if self._watch is None else self._watch()
                    self._telemetry.open(replica, f"{self._cluster}/gateway/{replica}", router, watching)
                    self._router = router
        return self._router


def make_asks(config: Config, prompts: Prompts | None = None) -> Asks:
    """What reads bodies, in each replica and for batches."""
    return Asks(
        config.tiers,
        min_quality=config.router.min_quality,
        deadline_s=config.router.deadline_s,
        share=config.coalesce.enabled,
        structured=config.structured,
        prompts=prompts,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
