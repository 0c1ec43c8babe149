"""From an input row to the request that the router gets: prompt, schema, quality and place. No I/O.

What a body itself says is read by `BodyEncoder` (runtime/encode.py), as for every door.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actors.errors import ConfigError, InputError
from actors.messages import Request
from actors.settings import StructuredSettings, TierSettings
from runtime.batch.reader import Row, RowError
from runtime.encode import BodyEncoder, Terms
from runtime.prompts import Rendered

__all__ = ["Encoder"]


class Encoder:
    """Turns rows into requests. One a job."""

    def __init__(
        self,
        tiers: Sequence[TierSettings],
        *,
        min_quality: int,
        deadline_s: float,
        job: str,
        share: bool,
        schema: bytes = b"",
        structured: StructuredSettings = StructuredSettings(),  # noqa: B008 (frozen)
        render: Callable[[str, Mapping[str, Any]], Rendered] | None = None,
    ) -> None:
        self._tiers = tiers
        self._firsts: dict[tuple[int, int], str] = {}
        self._bodies = BodyEncoder(tiers, deadline_s=deadline_s, job=job, share=share, structured=structured)
        self._terms = Terms(min_quality=min_quality, schema=schema)
        self._render = render

    def first_tier(self, request: Request) -> str:
        """Name of the tier that the request should have, were all tiers well."""
        key = (request.start_tier, request.min_quality)
        name = self._firsts.get(key)
        if name is None:
            fit = [tier.name for tier in self._tiers[key[0] :] if tier.rank >= key[1]]
            name = self._firsts[key] = fit[0] if fit else ""
        return name

    def encode(self, row: Row) -> Request:
        """The request of a row. Raises RowError."""
        source, terms = self._said(row)
        try:
            return self._bodies.request(row.custom_id, row.path, source, terms)
        except InputError as error:
            raise _refused(row, error) from None

    def key(self, row: Row) -> bytes:
        """The digest that `encode` gives the row's request. Raises RowError."""
        source, terms = self._said(row)
        try:
            return self._bodies.digest(row.path, source, terms)
        except InputError as error:
            raise _refused(row, error) from None

    def _said(self, row: Row) -> tuple[dict[str, Any], Terms]:
        rendered, terms = self._rendered(row), self._terms
        if rendered is None:
            if row.path == "/chat/completions" and not row.body.get("messages"):
                message = "a prompt of the registry is named with --prompt NAME here, and rows bring `variables`"
                raise _refuse(row, "invalid_body", "body.raycade", message)
            return row.body, terms
        return rendered.body, Terms(
            min_quality=max(terms.min_quality, rendered.min_quality),
            prompt=rendered.ref,
            schema=terms.schema or rendered.schema,
            retries=rendered.retries,
            escalate=rendered.escalate,
        )

    def _rendered(self, row: Row) -> Rendered | None:
        if row.variables is None:
            return None
        if self._render is None:
            raise _refuse(row, "invalid_body", "variables", "a row with variables needs --prompt NAME")
        try:
            return self._render(row.custom_id, row.variables)
        except InputError as error:
            raise _refuse(row, error.code, error.field or "variables", error.message) from None
        except ConfigError as error:
            raise _refuse(row, "invalid_prompt", "variables", str(error)) from None


def _refused(row: Row, error: InputError) -> RowError:
    field = error.field if error.field in ("body", "url") else f"body.{error.field}"
    return _refuse(row, error.code, field, error.message)


def _refuse(row: Row, code: str, field: str, message: str) -> RowError:
    return RowError(row.number, code, message, row.file, row.line, field, row.custom_id)
