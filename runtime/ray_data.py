"""`from runtime.ray_data import complete`: a step of a Ray Data pipeline that has every row answered, with all guards.

    ray.data.read_parquet("in").map_batches(
        complete, fn_constructor_kwargs={"config": "raycade.yaml"}, concurrency=1, batch_size=256
    ).write_parquet("out")

    columns -> body of each row -> Client -> router actor -> ... -> result -> the same columns and ANSWERED

Every worker of a pipeline, and of all pipelines of one Ray job, uses the same actors: those of a runtime that is up (`raycade
up`), or a set that the first worker has made (runtime/keeper.py). So there is one budget, one coalescer, one set of limits.

A row that fails is a row with `error`; nothing that is in a row, and nothing that an endpoint does, ends the pipeline. The
client has a thread and a loop of its own, since Ray Data blocks the one on which it calls us.

Ray runs a task again whose worker, or whose result's node, was lost. Its rows are then asked again: who asks what is under way
shares the call, and with `coalesce.keep_s` what was answered so long ago is not paid for twice.
"""

import asyncio
import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import orjson

from actors.errors import InputError, RaycadeError, RequestFailed
from actors.messages import Result
from runtime.batch.parquet import without_nulls

if missing := [name for name in ("pandas", "pyarrow") if find_spec(name) is None]:
    raise ImportError(f"runtime.ray_data needs {' and '.join(missing)}: pip install 'raycade[data]'")

import pyarrow as pa

__all__ = ["ANSWERED", "Answered", "answered", "ask_of", "complete"]

ASKS = ("prompt", "messages", "body")
"""Columns of which a row has one."""

ARGUMENTS = ("min_quality", "deadline_s", "share")
"""Of `Client.result`; all else is a field of the body."""
SAID = (
    ("tier", "model", str, "the name of a tier"),
    ("max_tokens", "max_tokens", int, "a whole number above 0"),
    ("min_quality", "min_quality", str, "basic, medium or high"),
)
"""Columns beside the question: what each sets, in which type. All other columns are left alone."""
COLUMNS = (*ASKS, *(said[0] for said in SAID))


class Answered(NamedTuple):
    """What a row gets beside its own columns, of which `tier` is replaced. None: there is none."""

    answer: str | None = None
    """The text; the value, as JSON, where a schema was asked for; the message, as JSON, where it has no text."""
    tier: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float = 0.0
    """Of this row: what failed attempts cost too, and nothing where another row's call answered it."""
    error: str | None = None
    """`kind: message`."""


ANSWERED = pa.schema(
    [
        ("answer", pa.string()),
        ("tier", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("error", pa.string()),
    ]
)
"""The same in every batch, so that all files of a data set have one schema."""


class complete:
    """For `Dataset.map_batches`. In: COLUMNS, of which a row has one of `prompt`, `messages` or `body`. Out: ANSWERED beside them.

    `messages` and `body` are structs or JSON texts. `tier` is the tier at which the cascade starts.
    """

    def __init__(self, config: Any = None, *, job: str = "", max_usd: float | None = None, **fields: Any) -> None:
        """`config`: a file on every node, by default raycade.yaml; or one that was read.

        `job`: the scope in the ledger that all workers are charged to, by default the Ray job; `max_usd`: the most that it may
        spend. `fields`: of every row's body where the row does not say otherwise, such as `temperature`, or what
        `Client.complete` takes, such as `min_quality`. Raises ConfigError and ClusterError.
        """
        self._fields = fields
        self._client = _opened(config, job, max_usd)

    async def __call__(self, batch: Any) -> pa.Table:
        """One batch; several may be under way at a time."""
        table = _table(batch)
        rows = table.select([name for name in table.column_names if name in COLUMNS]).to_pylist()
        work = partial(_all_answered, rows=rows, fields=self._fields, columns=table.column_names)
        return joined(table, await asyncio.wrap_future(self._client.begin(work)))

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._client.__exit__()


def _opened(config: Any, job: str, max_usd: float | None) -> Any:
    """A client of the set of actors that all workers use."""
    from runtime.client_sync import SyncClient
    from runtime.cluster import is_up
    from runtime.config import Config, load_config
    from runtime.keeper import Kept, job_name

    file = None if config is None or isinstance(config, Config) else os.fspath(config)
    read = config if isinstance(config, Config) else load_config(file, os.environ, check_keys=False)
    about = {"job": job or job_name(), "max_usd": max_usd}
    if is_up(read):
        return SyncClient(read, **about).__enter__()
    if not isinstance(config, Config):
        load_config(file, os.environ)  # the actors inherit this worker's environment, with the keys
    return SyncClient(read, **about, kept=Kept(read)).__enter__()


def _table(batch: Any) -> pa.Table:
    """A batch in any of Ray Data's formats."""
    if isinstance(batch, pa.Table):
        return batch
    from ray.data.block import BlockAccessor

    table = BlockAccessor.for_block(BlockAccessor.batch_to_block(batch)).to_arrow()
    for at, field in enumerate(table.schema):
        # Lists of structs in NumPy's format: Ray would pickle them, and so they would be written.
        values = batch[field.name]
        if isinstance(field.type, pa.ExtensionType) and getattr(getattr(values, "dtype", None), "kind", "") == "O":
            with contextlib.suppress(pa.ArrowException):
                table = table.set_column(at, field.name, pa.array(_lists(values)))
    return table


def _lists(value: Any) -> Any:
    """With lists for the arrays of NumPy."""
    return [_lists(item) for item in value.tolist()] if hasattr(value, "tolist") else value


def joined(table: pa.Table, rows: Sequence[Answered]) -> pa.Table:
    """The columns of a batch and what its rows got."""
    for field, values in zip(ANSWERED, zip(*rows, strict=True) if rows else [()] * len(ANSWERED), strict=True):
        column = pa.array(values, field.type)
        at = table.schema.get_field_index(field.name)
        table = table.append_column(field, column) if at < 0 else table.set_column(at, field, column)
    return table


# ---- rows


async def _all_answered(
    client: Any, rows: Sequence[Mapping[str, Any]], fields: Mapping[str, Any], columns: Sequence[str]
) -> list[Answered]:
    return await asyncio.gather(*(_answered(client, row, fields, columns) for row in rows))


async def _answered(client: Any, row: Mapping[str, Any], fields: Mapping[str, Any], columns: Sequence[str]) -> Answered:
    try:
        body, how_to = ask_of(row, fields, columns)
        return answered(await client.result(body, **how_to))
    except RequestFailed as error:
        return Answered(cost_usd=error.cost_usd, error=_line(error.kind, error.message))
    except InputError as error:
        place = "tier" if error.field == "model" and not _absent(row.get("tier")) else error.field
        return Answered(error=_line(error.code, f"{place}: {error.message}" if place else error.message))
    except RaycadeError as error:
        return Answered(error=_line("internal", str(error)))
    except Exception as error:  # what is in a row may raise anything, and the others must not suffer for it
        return Answered(error=_line("invalid_row", f"{type(error).__name__}: {error}"))


def _line(kind: str, message: str) -> str:
    return " ".join(f"{kind}: {message}".split())[:1000]


def ask_of(
    row: Mapping[str, Any], fields: Mapping[str, Any], columns: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The body that a row asks with, and the arguments of `Client.result`. Raises InputError with the column as its field."""
    asks = [name for name in ASKS if not _absent(row.get(name))]
    if len(asks) != 1:
        found = " and ".join(asks) if asks else f"none in the columns {', '.join(columns)}"[:200]
        raise InputError("invalid_row", f"expected one of {', '.join(ASKS)}; found {found}")
    column = asks[0]
    value = row[column]
    if column == "prompt":
        if not isinstance(value, str):
            raise _wrong(column, "a text", value)
        body: dict[str, Any] = {"messages": [{"role": "user", "content": value}]}
    else:
        value = without_nulls(_parsed(column, value))
        if column == "messages":
            value = {"messages": value} if isinstance(value, list) else None
        if not isinstance(value, dict):
            raise _wrong(column, "a list of messages" if column == "messages" else "an object", row[column])
        body = value
    for name, default in fields.items():
        if name not in ARGUMENTS:
            body.setdefault(name, default)
    how_to = {name: fields[name] for name in ARGUMENTS if name in fields}
    for name, target, kind, expected in SAID:
        said = row.get(name)
        if _absent(said):
            continue
        if kind is int and isinstance(said, float) and said.is_integer():  # NumPy has no integers with nulls
            said = int(said)
        if not isinstance(said, kind) or isinstance(said, bool):
            raise _wrong(name, expected, said)
        (how_to if target in ARGUMENTS else body)[target] = said
    return body, how_to


def _parsed(column: str, value: Any) -> Any:
    if not isinstance(value, str | bytes):
        return value
    try:
        return orjson.loads(value)
    except ValueError:
        raise InputError("invalid_row", "expected a struct or JSON; found a text that is none", field=column) from None


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))  # what NumPy and pandas have for it


def _wrong(column: str, expected: str, found: Any) -> InputError:
    return InputError("invalid_row", f"expected {expected}, found {found!r:.60}", field=column)


def answered(result: Result) -> Answered:
    """What a row gets of its answer."""
    if result.parsed:
        text = result.parsed.decode()
    else:
        message = orjson.loads(result.body)["choices"][0]["message"]
        said = message.get("content")
        text = said if isinstance(said, str) else orjson.dumps(message).decode()
    usage = result.usage
    cost_usd = 0.0 if result.coalesced else result.cost.usd_micros / 1e6
    return Answered(text, result.tier, usage.prompt_tokens, usage.completion_tokens, cost_usd)
