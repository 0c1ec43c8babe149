"""The coalescing key: which requests are "the same".

Two requests are equal when an endpoint would have to treat them alike. So the key is SHA-256 over the path, where the
cascade starts, the minimum quality, the caller's tenant, the prompt version, the schema, and the body with its keys
sorted at every depth. Left out are the fields that change how an answer is delivered or booked, not what it is
(`NOT_PART_OF_IT`). Key order does count inside `response_format`, `tools` and their kin (`ORDERED`): a schema's
property order is the order in which a model writes the properties.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

__all__ = ["digest"]

NOT_PART_OF_IT = frozenset(
    {"model", "stream", "stream_options", "user", "metadata", "store", "safety_identifier", "prompt_cache_key"}
)
ORDERED = frozenset({"response_format", "tools", "functions", "text"})


def digest(
    path: str,
    body: Mapping[str, Any],
    *,
    start_tier: int,
    min_quality: int,
    tenant: str = "",
    prompt: str = "",
    schema: bytes = b"",
) -> bytes:
    """The key, 32 bytes. `body` is the request's JSON object."""
    plain = {k: v for k, v in body.items() if k not in NOT_PART_OF_IT and k not in ORDERED}
    key = hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS))
    for name in sorted(ORDERED & body.keys()):
        key.update(b"\0%s\0%s" % (name.encode(), orjson.dumps(body[name])))
    key.update(f"\0{path}\0{start_tier}\0{min_quality}\0{tenant}\0{prompt}\0".encode())
    key.update(schema)
    return key.digest()
