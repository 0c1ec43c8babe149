"""A JSON value that satisfies a JSON Schema, the same for the same seed: so that any schema can be tried on the mock. Pure.

It covers what people write for structured output: objects, arrays, enum, const, anyOf, references, lengths and bounds.
What it does not know (pattern, not, dependent schemas) it ignores.
"""

from typing import Any

__all__ = ["instance"]

_DEEP = 4
"""After following so many references optional properties and items are left out, so that recursive schemas end."""
_MAX_PARTS = 10_000
"""A value never has more parts: a schema that demands an endless one gets a wrong one."""


def instance(schema: Any, text: str, seed: int) -> Any:
    """`text` is what free strings carry; `seed` picks among alternatives."""
    try:
        return _Maker(schema, text).make(schema, seed, 0)
    except RecursionError:  # nested hundreds of levels deep
        return text


class _Maker:
    def __init__(self, root: Any, text: str) -> None:
        self._root, self._text = root, text
        self._left = _MAX_PARTS

    def make(self, schema: Any, seed: int, depth: int) -> Any:
        """`depth` counts the references on the way here: nothing else can recurse."""
        if isinstance(schema, dict) and "$ref" in schema:
            schema, depth = _resolve(schema, self._root), depth + 1
        self._left -= 1
        if not isinstance(schema, dict) or self._left < 0 or depth > 10 * _DEEP:
            return self._text
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return schema["enum"][seed % len(schema["enum"])]
        for name in ("anyOf", "oneOf"):
            if isinstance(schema.get(name), list) and schema[name]:
                # Deep down the last alternative, which by habit is null, ends a recursion.
                return self.make(schema[name][0 if depth < _DEEP else -1], seed, depth)
        if isinstance(schema.get("allOf"), list):
            schema = _merged([schema, *(_resolve(part, self._root) for part in schema["allOf"])])
        return self._typed(schema, seed, depth)

    def _typed(self, schema: dict[str, Any], seed: int, depth: int) -> Any:
        match _kind(schema):
            case "object":
                return self._object(schema, seed, depth)
            case "array":
                least = _whole(schema.get("minItems"), 0)
                count = least if depth >= _DEEP else max(least, min(1, _whole(schema.get("maxItems"), 1)))
                items = schema.get("items", {})
                return [self.make(items, seed + at, depth) for at in range(min(count, 100))]
            case "integer":
                return int(_number(schema, seed, 1))
            case "number":
                return _number(schema, seed, 0.5)
            case "boolean":
                return seed % 2 == 0
            case "null":
                return None
            case _:
                least, most = _whole(schema.get("minLength"), 0), _whole(schema.get("maxLength"), 10_000)
                return (self._text + "." * min(max(0, least - len(self._text)), 10_000))[:most]

    def _object(self, schema: dict[str, Any], seed: int, depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        required = required if isinstance(required, list) else []
        names = list(properties) if depth < _DEEP else [name for name in required if name in properties]
        return {name: self.make(properties[name], seed + at, depth) for at, name in enumerate(names)}


def _resolve(schema: Any, root: Any) -> Any:
    for _ in range(20):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str) or not reference.startswith("#"):
            return schema
        schema = root
        for part in reference[1:].strip("/").split("/"):
            if part:
                schema = schema.get(part, {}) if isinstance(schema, dict) else {}
    return {}


def _merged(schemas: list[Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for schema in schemas:
        if isinstance(schema, dict):
            known, more = merged.get("properties"), schema.get("properties")
            merged |= schema
            if isinstance(known, dict):
                merged["properties"] = {**known, **(more if isinstance(more, dict) else {})}
    return merged


def _kind(schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    return kind if isinstance(kind, str) else "object" if "properties" in schema else "string"


def _number(schema: dict[str, Any], seed: int, step: float) -> float:
    """A number within the bounds; exclusive bounds are kept by a step, or by the middle when the range is narrow."""
    low, high = (
        _bound(schema, "minimum", "exclusiveMinimum", step),
        _bound(schema, "maximum", "exclusiveMaximum", -step),
    )
    unit = schema.get("multipleOf")
    if isinstance(unit, int | float) and unit > 0:
        return -(-(low or 0) // unit) * unit
    if low is None:
        return float(seed % 100) if high is None else high
    if high is None:
        return low
    return low + seed % (int(high - low) + 1) if high >= low else (low + high) / 2


def _bound(schema: dict[str, Any], inclusive: str, exclusive: str, step: float) -> float | None:
    if isinstance(schema.get(inclusive), int | float):
        return float(schema[inclusive])
    return schema[exclusive] + step if isinstance(schema.get(exclusive), int | float) else None


def _whole(value: Any, default: int) -> int:
    return value if type(value) is int else default
