"""The coalescing key: which requests are "the same".

Two requests are equal when an endpoint would have to treat them alike. The key is SHA-256 over

    the path, where the cascade starts (what `model` meant), the minimum quality: who may answer
    the prompt's name and version, the schema: what the answer must be, and whose experiment it belongs to
    every field of the body but those below, unknown ones included: an endpoint may read them

and not over `NOT_PART_OF_IT`: fields that change how an answer is delivered, booked or cached, not what it is. Whose
request it is does not stand here either: the router keeps callers apart, for every door (actors/router/claims.py).

`temperature`, `seed`, `n` and the like are fields as any other. Equal requests share one call also when their answer is
drawn by chance: they asked the same at the same time, and one sample answers them all. Who wants several samples says
so with `n`, with a `seed` each, or by turning coalescing off.

Fields count by their JSON value, so escapes and white space do not matter and `1` is not `1.0`, which costs a call at
worst. The order of keys never matters at the top and not inside `UNORDERED`. Elsewhere it does: a schema's property
order is the order in which a model writes the properties, and of a field that we do not know nobody can tell.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

__all__ = ["digest"]

NOT_PART_OF_IT = frozenset(
    {"model", "stream", "stream_options", "user", "metadata", "store", "safety_identifier", "prompt_cache_key"}
)
UNORDERED = frozenset({"messages", "input", "prompt", "logit_bias", "stop", "modalities", "audio", "prediction"})


def digest(
    path: str,
    body: Mapping[str, Any],
    *,
    start_tier: int,
    min_quality: int,
    prompt: str = "",
    schema: bytes = b"",
) -> bytes:
    """The key, 32 bytes. `body` is the request's JSON object.

    Raises TypeError for a body that JSON has no words for (a whole number beyond 64 bits, more than 254 levels, a lone
    surrogate): whatever encodes the body refuses it too.
    """
    plain: dict[str, Any] = {}
    ordered: list[str] = []
    for name, value in body.items():
        if name in NOT_PART_OF_IT:
            continue
        if type(value) in (dict, list) and name not in UNORDERED:
            ordered.append(name)
        else:
            plain[name] = value
    key = hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS))
    for name in sorted(ordered):
        key.update(b"\0%s\0%s" % (orjson.dumps(name), orjson.dumps(body[name])))
    key.update(f"\0{path}\0{start_tier}\0{min_quality}\0{prompt}\0".encode())
    key.update(schema)
    return key.digest()
