"""`raycade batch` as a client of `benchmarks.overhead_clients`: `runtime.batch.job.run_job`, watched.

What happens is observed at names that this module imports (open_input, OutputWriter, print_summary, and Encoder where rows are
timed), which are replaced by ones that also tell the meter. The actor calls of all processes are counted where Ray submits
them. Nothing of the run itself is changed.
"""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from benchmarks.overhead_meter import Meter

__all__ = ["run"]

WARMUP_TIMEOUT_S = 120.0

calls = 0
"""Actor calls that this process has made since `count_calls`."""


def count_calls(actor: object = None) -> None:
    """From now on, in this process."""
    from ray.actor import ActorHandle

    submit = ActorHandle._actor_method_call

    def counted(*args: Any, **kwargs: Any) -> Any:
        global calls
        calls += 1
        return submit(*args, **kwargs)

    ActorHandle._actor_method_call = counted


def counted_calls(actor: object = None) -> int:
    return calls


@contextmanager
def simulated(count: int) -> Iterator[str]:
    """So many of Ray's nodes, all on this machine and below this process, so that the meter finds them; their address."""
    from ray.cluster_utils import Cluster

    if count > 1:
        os.environ["RAYCADE_LANES"] = "ray"  # before any node starts: between machines there are no Unix sockets
    size = {"num_cpus": 2, "object_store_memory": 80 << 20}
    with patch("ray._private.utils.write_ray_address"):  # no other program is to be sent here by `auto`
        nodes = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    try:
        for _ in range(count - 1):
            nodes.add_node(**size)
        yield nodes.address
    finally:
        nodes.shutdown()


def run(options: dict[str, Any]) -> dict[str, Any]:
    """One batch. `options` also has `config`, `window` and `rows`; `timed`: tell how long each row took.

    `nodes`: of a cluster to run on, simulated on this machine; absent: a Ray of the job's own.
    """
    meter = Meter(options.get("together", ""))

    from actors.errors import InputError
    from runtime.batch import job, reader, rows
    from runtime.batch.reader import InputSet, RawRow
    from runtime.batch.summary import summary_dict
    from runtime.batch.writer import OutputWriter, Written
    from runtime.cluster import Cluster

    told: dict[str, Any] = {}
    warm = threading.Event()
    made_at: dict[int, float] = {}

    def open_input(*args: Any, **kwargs: Any) -> InputSet:
        inputs = reader.open_input(*args, **kwargs)
        plain_chunks = inputs.chunks

        def chunks(*args: Any, **kwargs: Any) -> Iterator[list[RawRow]]:
            meter.warming()
            for chunk in plain_chunks(*args, **kwargs):
                early = [row for row in chunk if row.number < options["warmup"]]
                if early:
                    yield early
                if len(early) < len(chunk):
                    if not warm.is_set():
                        if not warm.wait(WARMUP_TIMEOUT_S):  # chunks are read in a thread: the run itself goes on
                            raise InputError("warmup", "the warm-up did not end")
                        meter.begin()
                    yield chunk[len(early) :]

        inputs.chunks = chunks  # type: ignore[method-assign]
        return inputs

    class Writer(OutputWriter):
        lines = 0

        def flush(self) -> list[Written]:
            written = super().flush()
            self.lines += len(written)
            if self.lines == options["warmup"]:
                warm.set()
            if written and self.lines == options["rows"]:
                meter.end()  # here, while the actors still live and their CPU can be read
            return written

    class TimedWriter(Writer):
        def add_result(self, row: Any, *rest: Any) -> Any:
            meter.row(made_at.pop(row.number))
            return super().add_result(row, *rest)

    class TimedEncoder(rows.Encoder):
        def encode(self, row: Any) -> Any:
            made_at[row.number] = time.perf_counter()
            return super().encode(row)

    def print_summary(*args: Any, **kwargs: Any) -> None:
        told.update(summary_dict(*args[:7]))

    start, close = Cluster.start, Cluster.close

    async def started(*args: Any, **kwargs: Any) -> Cluster:
        cluster = await start(*args, **kwargs)
        await asyncio.gather(*(handle.__ray_call__.remote(count_calls) for handle in cluster.handles.values()))
        count_calls()
        return cluster

    async def closed(cluster: Cluster) -> None:
        ours = calls
        asked = [handle.__ray_call__.remote(counted_calls) for handle in cluster.handles.values()]
        told["actor_calls"] = ours + sum(await asyncio.gather(*asked))
        await close(cluster)

    watched: dict[str, Any] = {"open_input": open_input, "OutputWriter": Writer, "print_summary": print_summary}
    if options.get("timed"):
        watched |= {"OutputWriter": TimedWriter, "Encoder": TimedEncoder}
    with ExitStack() as stack:
        address = stack.enter_context(simulated(options["nodes"])) if options.get("nodes") else "local"
        asked = job.BatchOptions(
            options["input"],
            options["output"],
            config=options["config"],
            window=options["window"],
            dedupe=options.get("dedupe", True),
            fresh=True,
            address=address,
            progress="none",
        )
        stack.enter_context(patch.multiple(job, **watched))
        stack.enter_context(patch.object(Cluster, "start", started))
        stack.enter_context(patch.object(Cluster, "close", closed))
        code = job.run_job(asked)
    answered = told["rows"]["succeeded"]
    if not options.get("may_fail") and (code or answered != options["rows"]):
        raise SystemExit(f"raycade batch: exit code {code}, {told.get('rows')}, {told.get('ending')}")
    return meter.result(options["rows"] - options["warmup"]) | {
        "answered": answered,
        "actor_calls": told["actor_calls"],
        "rows_per_actor_call": options["rows"] / told["actor_calls"],
        "summary": told,
    }
