"""Output lines in the format that a file's name asks for: plain, `.gz`, `.zst`, or `.parquet`.

A Parquet file has the columns id, custom_id, response and error; the last two are JSON text, null where the line says null.
"""

import gzip
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Any

import orjson
import zstandard

from runtime.batch.parquet import need_pyarrow

__all__ = ["check_packing", "pack"]

GZIP_LEVEL, ZSTD_LEVEL = 4, 3
PARQUET_ROWS = 5000
"""Rows of one row group: what is held at once."""


def check_packing(name: str) -> None:
    """Raises ConfigError when what the format needs is not there."""
    if name.endswith(".parquet"):
        need_pyarrow(name)


def pack(lines: Iterable[bytes], place: str, name: str) -> None:
    """Write the lines to `place`, on disk when this returns, in the format of `name`. Raises OSError."""
    with open(place, "wb") as file:
        if name.endswith(".parquet"):
            _write_parquet(iter(lines), file)
        elif name.endswith(".gz"):
            with gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as packed:
                packed.writelines(lines)
        elif name.endswith(".zst"):
            with zstandard.ZstdCompressor(ZSTD_LEVEL).stream_writer(file, closefd=False) as stream:
                for line in lines:
                    stream.write(line)
        else:
            file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def _write_parquet(lines: Iterator[bytes], file: IO[bytes]) -> None:
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([(name, pyarrow.string()) for name in ("id", "custom_id", "response", "error")])
    with parquet.ParquetWriter(file, schema) as writer:
        while rows := [_columns(orjson.loads(line)) for line in islice(lines, PARQUET_ROWS)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def _columns(line: dict[str, Any]) -> dict[str, Any]:
    texts = {name: line[name] and orjson.dumps(line[name]).decode() for name in ("response", "error")}
    return {"id": line["id"], "custom_id": line["custom_id"], **texts}
