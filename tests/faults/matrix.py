"""The table: every fault that is tried, how it is made, and what must hold beside what always holds.

`Fault` in scene.py says what each field means; making.py has the faults that are more than a setting of the mock.
"""

from functools import partial
from typing import Any, Literal

import orjson

from runtime.mock.proxy import Faults
from tests.e2e.test_bad_input import BAD_ROWS
from tests.faults import making as make
from tests.faults.scene import Fault

__all__ = ["FAULTS"]

OPEN = 60
"""Calls that a tier without answers gets at most: those in flight when its breaker opens, and its probes."""
RECOVERS: dict[str, Any] = {
    "rows": 1500,
    "options": ("--window", "20"),
    "second": {"latency": 0.1},
    "tier": {"breaker": {"recovery_timeout_s": 1.5}},
    "recovers_s": 1.5 + 2 + 2,  # and two more for a busy machine
}
"""A job that is still at work when the first tier is well again."""
LONG: dict[str, Any] = {"rows": 800, "mock": {"latency": 0.15}, "second": None, "options": ("--window", "100")}
"""A job of some seconds whose only tier is well: what is done to it, it must bear."""
HOW_NODES_GO: tuple[Literal["remove", "drain"], ...] = ("remove", "drain")
QUICK_HEALTH = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


def _share(status: int, fraction: float = 1.0, **more: object) -> dict[str, Any]:
    return {"errors": [{"fraction": fraction, "status": status, **more}]}


def _losing(**odds: int) -> dict[str, str]:
    failures = {"num_failures": 40, "req_failure_prob": 0, "in_flight_failure_prob": 0, "resp_failure_prob": 0, **odds}
    failing = orjson.dumps({"CoreWorkerService.grpc_client.PushTask": failures}).decode()
    return {"RAY_testing_rpc_failure": failing, "RAYCADE_LANES": "ray"}  # or few calls would be there to fail


LOSING: dict[str, Any] = {
    "ray": "own",
    "slow": True,
    "rows": 2000,
    "config": {"router": {"max_attempts": 30, "deadline_s": 240}},
}
"""Rows of such a job may lose their actor again and again, for up to a minute and a half as chance has it: no deadline of theirs
is what is looked at."""


ENDPOINT = (
    Fault("status-500", "endpoint", mock={"status": 500}, calls=OPEN, known=True, says=("first keeps failing",)),
    Fault("status-502", "endpoint", mock={"status": 502}, calls=OPEN, known=True, slow=True),
    Fault("status-503", "endpoint", mock={"status": 503}, calls=OPEN, known=True, slow=True),
    Fault("status-529", "endpoint", mock={"status": 529}, calls=OPEN, known=True, slow=True),
    Fault("status-429", "endpoint", mock=_share(429), calls=OPEN, known=True, slow=True),
    Fault("status-429-retry-after", "endpoint", mock=_share(429, retry_after_s=1), calls=OPEN, known=True, slow=True),
    Fault("status-429-some", "endpoint", mock=_share(429, 0.3, retry_after_s=0.2), known=True, second=None),
    Fault("status-401", "endpoint", mock={"status": 401}, calls=OPEN, known=True, slow=True),
    Fault("model-vanished", "endpoint", mock=_share(404, code="model_not_found"), calls=OPEN, known=True, slow=True),
    Fault("some-500s", "endpoint", mock=_share(500, 0.2), known=True, slow=True),
    Fault("hang", "endpoint", mock={"hang": 1}, calls=OPEN, says=("first keeps failing",)),
    Fault("stall", "endpoint", mock={"stall": 1}, calls=OPEN, slow=True),
    Fault("slow-loris", "endpoint", mock={"trickle": 1}, calls=OPEN, slow=True),
    Fault("some-hang", "endpoint", mock={"hang": 0.05, "latency": 0.02}, slow=True),
    Fault("reset", "endpoint", mock={"reset": 1}, calls=OPEN, slow=True),
    Fault("reset-in-body", "endpoint", mock={"reset_mid_body": 1}, calls=OPEN, slow=True),
    Fault("malformed", "endpoint", mock={"malformed": 1}, calls=OPEN, slow=True),
    Fault("truncated", "endpoint", mock={"truncated": 1}, calls=OPEN, slow=True),
    Fault("html-page", "endpoint", mock={"html": 1}, calls=OPEN, slow=True),
    Fault("wrong-content-type", "endpoint", mock={"mislabeled": 1}, known=True, slow=True),
    # One reply may take 32 MB before it is refused, and 20 are under way.
    Fault("huge", "endpoint", mock={"huge": 1}, calls=OPEN, tier={"timeout_s": 20}, actor_mb=900, slow=True),
    Fault("redirect", "endpoint", mock={"redirect": 1}, calls=OPEN, known=True, slow=True),
    Fault("answers-swapped", "endpoint", mock={"swapped": 1}, strays=True, slow=True),
    Fault("answers-twice", "endpoint", around=make.two_answers(0), second=None, slow=True),
    Fault("answers-twice-later", "endpoint", around=make.two_answers(0.003), second=None, strays=True, slow=True),
    Fault(
        "tells-the-key",
        "endpoint",
        around=make.served(make.gossips("500 Oops", "application/json")),
        known=True,
        says=("No such key",),
    ),
    Fault("tells-the-key-in-html", "endpoint", around=make.served(make.gossips("502 Bad", "text/html")), slow=True),
    Fault(
        "tells-the-key-to-a-row",
        "endpoint",
        around=make.served(make.gossips("400 Bad", "application/json")),
        second=None,
        exit=3,
        failed=("bad_request",),
        slow=True,
    ),
    Fault(
        "outage",
        "endpoint",
        mock={"phases": [{"until_s": 1, "status": 503}, {}]},
        act=make.outage_of(1),
        known=True,
        **RECOVERS,
    ),
)

NETWORK = (
    Fault("latency", "network", around=make.proxied(Faults(latency_s=0.3)), known=True, second=None, slow=True),
    Fault("thin-line", "network", around=make.proxied(Faults(bytes_per_s=150)), calls=OPEN, slow=True),
    Fault("refused", "network", around=make.proxied(Faults(), listens=False), calls=0, known=True),
    Fault("reset-in-request", "network", around=make.proxied(Faults(reset_after_up=200)), calls=OPEN, slow=True),
    Fault("reset-in-reply", "network", around=make.proxied(Faults(reset_after_down=300)), calls=OPEN, slow=True),
    Fault("cut-in-reply", "network", around=make.proxied(Faults(cut_after_down=300)), calls=OPEN, slow=True),
    Fault("half-close", "network", around=make.proxied(Faults(half_close_after_down=300)), calls=OPEN, slow=True),
    Fault("black-hole", "network", around=make.proxied(Faults(black_hole=True)), calls=0, slow=True),
    Fault(
        "black-hole-for-a-while",
        "network",
        around=make.proxied(Faults()),
        act=make.network_back_after(3, Faults(black_hole=True)),
        slow=True,
        **RECOVERS,
    ),
    Fault(
        "down-for-a-while",
        "network",
        around=make.proxied(Faults()),
        act=make.network_back_after(1),
        slow=True,
        **RECOVERS,
    ),
    Fault(
        "pause",
        "network",
        around=make.proxied(Faults()),
        act=make.network_back_after(1, Faults(paused=True)),
        known=True,
        slow=True,
        **LONG | {"tier": {"timeout_s": 20}},
    ),
    Fault(
        "all-reset",
        "network",
        around=make.proxied(Faults()),
        act=make.reset_all(3),
        slow=True,
        **LONG | {"tier": {"breaker": {"failure_threshold": 1000, "failure_rate": 1.0}}},
    ),
    Fault("untrusted-certificate", "network", around=make.served(make.hangs, make.untrusted_tls), calls=0, known=True),
    Fault("tls-to-plain-http", "network", around=make.address("https://127.0.0.1:{port}/v1"), known=True, slow=True),
    Fault("no-such-name", "network", around=make.address("http://nobody.invalid/v1"), calls=0, known=True, slow=True),
    Fault(
        "nobody-at-all",
        "network",
        around=make.proxied(Faults(), listens=False),
        second=None,
        rows=30,
        config={"router": {"deadline_s": 3}},
        exit=3,
        failed=("deadline", "all_tiers_exhausted"),
        known=True,
        slow=True,
    ),
)


def _with(kind: str) -> dict[str, Any]:
    """A lone router keeps the coalescer's table itself."""
    return {"router": {"deadline_s": 60, "replicas": 2}} if kind == "CoalescerActor" else {}


PROCESS = (
    *(
        Fault(f"kill-{name}", "process", act=make.killed(kind), config=_with(kind), slow=True, **LONG)
        for name, kind in (
            ("router", "RouterActor"),
            ("tier", "TierActor"),
            ("budget", "BudgetActor"),
            ("coalescer", "CoalescerActor"),
            ("observer", "ObserverActor"),
            ("workers", "workers"),
        )
    ),
    *(
        Fault(f"stop-{name}", "process", act=make.stopped(kind), config=_with(kind), slow=True, **LONG)
        for name, kind in (
            ("router", "RouterActor"),
            ("tier", "TierActor"),
            ("budget", "BudgetActor"),
            ("coalescer", "CoalescerActor"),
            ("observer", "ObserverActor"),
            ("workers", "workers"),
            ("driver", "driver"),
            ("raylet", "raylet"),
            ("gcs", "gcs_server"),
        )
    ),
    Fault("kill-driver", "process", act=make.killed("driver"), exit=-9, again=True, **LONG),
    Fault(
        "kill-raylet",
        "process",
        ray="two nodes",
        act=make.killed("raylet of actors"),
        env=QUICK_HEALTH,
        slow=True,
        **LONG,
    ),
    Fault(
        "stop-raylet-of-actors",
        "process",
        ray="two nodes",
        act=make.stopped("raylet of actors", 10),
        env=QUICK_HEALTH,
        slow=True,
        **LONG,
    ),
    *(
        Fault(
            f"node-{how}",
            "process",
            ray="three nodes",
            act=make.node_replaced(how),
            env=QUICK_HEALTH,
            slow=True,
            tier={"replicas": 3},
            **LONG
            | {"config": {"router": {"replicas": 3, "deadline_s": 60}}, "rows": 8000, "options": ("--window", "60")},
        )
        for how in HOW_NODES_GO
    ),
    Fault(
        "kill-gcs",
        "process",
        ray="own",
        act=make.killed("gcs_server"),
        exit=1,
        again=True,
        slow=True,
        env={"RAY_gcs_rpc_server_reconnect_timeout_s": "10"},
        **LONG | {"rows": 2500, "mock": {"latency": 0.5}},
    ),
)

CALLS = (
    Fault("calls-not-delivered", "calls", env=_losing(req_failure_prob=10), **LOSING),
    Fault("calls-ran-and-failed", "calls", env=_losing(resp_failure_prob=15), **LOSING),
)

MACHINE = (
    Fault(
        "disk-full",
        "machine",
        around=partial(make.disk_of, size="100k", holds="out"),
        rows=1000,
        exit=1,
        again=True,
        says=("No space left on device",),
        slow=True,  # a full disk is also in tests/e2e/test_bad_input.py
    ),
    Fault(
        "disk-full-for-the-ledger",
        "machine",
        around=partial(make.disk_of, size="1m", holds="state"),
        act=make.disk_filled,
        exit=(0, 1, 3, 4),
        may_fail=("deadline",),  # rows for which no lease was left when the disk was full, and it stays full
        again=True,
        says=("the ledger's store cannot be written",),
        slow=True,
        **LONG,
    ),
    Fault(
        "no-files-for-the-tier",
        "machine",
        around=make.proxied(Faults()),
        act=make.few_files("TierActor", 1),
        slow=True,
        **LONG | {"tier": {"breaker": {"recovery_timeout_s": 1}}},
    ),
    Fault(
        "no-files-for-the-driver",
        "machine",
        around=make.proxied(Faults()),
        act=make.few_files("driver", 0),
        slow=True,
        **LONG,
    ),
    Fault(
        "no-memory-for-the-tier",
        "machine",
        mock={"huge": 0.1, "latency": 0.1},
        second=None,
        config={"router": {"max_attempts": 30}},
        act=make.half_memory("TierActor", 32),
        slow=True,
    ),
    Fault("clock-back", "machine", act=make.clock_stepped(-3600), slow=True, **LONG),
    Fault("clock-ahead", "machine", act=make.clock_stepped(600), slow=True, **LONG),
)

INPUT = (
    Fault(
        "bad-rows",
        "input",
        lines=tuple(line for _, line in BAD_ROWS),
        exit=3,
        failed=tuple(code for code, _ in BAD_ROWS),
        known=True,
    ),
    Fault(
        "odd-lines",
        "input",
        lines=(b"", b"   ", b"\xe2\x80\xa8", b"{}"),
        exit=3,
        failed=("invalid_json", "missing_custom_id"),
        slow=True,
    ),
    Fault("torn-gzip", "input", around=make.torn_gzip, exit=1, cut_short=True, slow=True),
    Fault("empty-input", "input", around=make.lies_at("in.jsonl", b""), exit=2, says=("the input is empty",)),
    Fault(
        "broken-config",
        "input",
        around=make.lies_at("raycade.yaml", b"tiers: [{name: a, modle: b}]\n"),
        exit=2,
        says=("raycade.yaml:1", "modle"),
    ),
)

FAULTS: tuple[Fault, ...] = (*ENDPOINT, *NETWORK, *PROCESS, *CALLS, *MACHINE, *INPUT)
