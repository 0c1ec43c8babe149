"""What a file and a batch of the gateway are, and how a batch goes from one state to the next. Pure.

    validating --> in_progress --> finalizing --> completed
        |              |               `--------> expired      when the completion window ends first
        |              `--> cancelling ---------> cancelled
        `--> failed                                            the input file is wrong: nothing was called

These are OpenAI's words and shapes (`client.files`, `client.batches`); `shown` and `file_value` make what clients see.
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError, field_validator

from actors.settings import Settings
from runtime.batch.reader import PATHS, Row, RowError
from runtime.gateway.errors import HttpError

__all__ = [
    "ENDED",
    "MAX_ERRORS",
    "WINDOW_S",
    "Batch",
    "BatchAsk",
    "Fault",
    "Page",
    "StoredFile",
    "carried_on",
    "closing",
    "counted",
    "ended",
    "failed",
    "fault_of",
    "file_value",
    "page",
    "page_value",
    "read_batch_ask",
    "shown",
    "started",
    "told_to_cancel",
    "wrong_row",
]

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
End = Literal["completed", "expired", "cancelled"]
ENDED: frozenset[Status] = frozenset({"failed", "completed", "expired", "cancelled"})
WINDOW_S = 24 * 3600
MAX_ERRORS = 100
"""So many faults of an input file are listed."""
LEAST_KEEP_S, MOST_KEEP_S = 3600, 30 * 24 * 3600
CODES = {"invalid_json": "invalid_json_line", "invalid_utf8": "invalid_json_line", "unknown_url": "url_mismatch"}
"""Our reader's codes -> OpenAI's, where it has one."""


class StoredFile(NamedTuple):
    """A file as the gateway keeps it. Its bytes lie under its id."""

    id: str
    owner: str
    """Name of the key that uploaded it, or whose batch made it."""
    filename: str
    """As the client called it; never a path here."""
    purpose: str
    bytes: int
    created_at: int
    expires_at: int | None = None


class Fault(NamedTuple):
    """What is wrong with an input file."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Batch(NamedTuple):
    """A batch as the gateway keeps it. Times are Unix seconds."""

    id: str
    owner: str
    endpoint: str
    """As rows name it: `/v1/chat/completions`."""
    input_file_id: str
    filename: str
    """Of the input, for messages."""
    result_id: str
    errors_id: str
    """What the files it makes will be called."""
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None = None
    keep_s: int | None = None
    """How long the files it makes are kept, where the client said so."""
    status: Status = "validating"
    closing: End | None = None
    """Every row has its line: what is left is to hand the files over."""
    note: str = ""
    """What holds it up now, in words."""
    total: int = 0
    completed: int = 0
    failed: int = 0
    faults: tuple[Fault, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None


# -- states --------------------------------------------------------------------------------------------------------


def started(batch: Batch, total: int, now: float) -> Batch:
    """The input file is right. A batch that was cancelled meanwhile stays so."""
    batch = batch._replace(total=total)
    if batch.status != "validating":
        return batch
    return batch._replace(status="in_progress", in_progress_at=int(now))


def failed(batch: Batch, faults: Iterable[Fault], now: float) -> Batch:
    """The input file is wrong."""
    return batch._replace(status="failed", failed_at=int(now), faults=tuple(faults), note="")


def told_to_cancel(batch: Batch, now: float, note: str = "") -> Batch:
    """Its owner wants no more of it; saying so twice changes nothing. Raises HttpError when it is too late."""
    if batch.status in ("cancelling", "cancelled"):
        return batch
    if batch.status in ENDED or batch.closing is not None:
        status = "finalizing" if batch.status not in ENDED else batch.status
        raise HttpError(409, f"a batch with the status {status!r} cannot be cancelled", code="batch_not_cancellable")
    return batch._replace(status="cancelling", cancelling_at=int(now), note=note)


def counted(batch: Batch, completed: int, failed: int, note: str) -> Batch:
    """How far it is, and what holds it up. What was told to cancel keeps the reason for that."""
    return batch._replace(completed=completed, failed=failed, note=batch.note if batch.status == "cancelling" else note)


def closing(batch: Batch, end: End, now: float) -> Batch:
    """Every row has its line. What was told to cancel ends so, whatever else is true."""
    if batch.status == "cancelling":
        return batch._replace(closing="cancelled")
    return batch._replace(closing=end, status="finalizing", finalizing_at=int(now), note="")


def ended(batch: Batch, output: bool, errors: bool, now: float) -> Batch:
    """Its files are handed over. `output`, `errors`: there is such a file."""
    end = batch.closing
    assert end is not None, "closing() comes first"
    batch = batch._replace(
        status=end,
        output_file_id=batch.result_id if output else None,
        error_file_id=batch.errors_id if errors else None,
    )
    match end:
        case "completed":
            return batch._replace(completed_at=int(now))
        case "expired":
            return batch._replace(expired_at=int(now))
        case "cancelled":
            return batch._replace(cancelled_at=int(now))


def carried_on(batches: Iterable[Batch], running: Iterable[Batch], at_once: int) -> list[Batch]:
    """Which of the batches that wait are to begin, when `at_once` may run: in order, but whose owner runs fewest first."""
    running = list(running)
    waiting = [batch for batch in batches if batch.id not in {one.id for one in running}]
    chosen: list[Batch] = []
    while waiting and len(running) + len(chosen) < at_once:
        load = [one.owner for one in (*running, *chosen)]
        first = min(waiting, key=lambda batch: load.count(batch.owner))  # min() keeps the order among equals
        waiting.remove(first)
        chosen.append(first)
    return chosen


# -- rows ----------------------------------------------------------------------------------------------------------


def wrong_row(row: Row, endpoint: str) -> Fault | None:
    """What is wrong with a row that is right in itself, beside its batch."""
    if row.path == PATHS[endpoint]:
        return None
    message = f"expected {endpoint}, the endpoint of the batch; found /v1{row.path}"
    return Fault("url_mismatch", message, row.line, "url")


def fault_of(error: RowError) -> Fault:
    return Fault(CODES.get(error.code, error.code), error.message, error.line, error.field or None)


# -- what clients say ----------------------------------------------------------------------------------------------


class ExpiresAfter(Settings):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=LEAST_KEEP_S, le=MOST_KEEP_S)


class BatchAsk(Settings):
    """The body of POST /v1/batches."""

    input_file_id: str = Field(min_length=1, max_length=100)
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    output_expires_after: ExpiresAfter | None = None

    @field_validator("metadata")
    @classmethod
    def _short(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        for name, text in (value or {}).items():
            if len(name) > 64 or len(text) > 512:
                raise ValueError("keys have at most 64 characters, values at most 512")
        return value


def read_batch_ask(value: Any) -> BatchAsk:
    """Raises HttpError with the field that is wrong."""
    if not isinstance(value, dict):
        raise HttpError(400, "expected a JSON object as the body", code="invalid_body")
    try:
        return BatchAsk.model_validate(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(step) for step in first["loc"])[:100]
        wrong = HttpError(400, f"{field}: {first['msg']}"[:300], code="invalid_field", param=field)
    raise wrong


class Page(NamedTuple):
    """Which part of a list is asked for."""

    after: str | None
    limit: int
    newest_first: bool = True


def page(query: dict[str, str], most: int, default: int) -> Page:
    """`after`, `limit` and `order` of a query. Raises HttpError."""
    limit, order, after = query.get("limit"), query.get("order", "desc"), query.get("after")
    if limit is not None and not (limit.isascii() and limit.isdecimal() and len(limit) < 9 and 1 <= int(limit) <= most):
        raise HttpError(400, f"limit: expected a number from 1 to {most}", code="invalid_field", param="limit")
    if order not in ("asc", "desc"):
        raise HttpError(400, "order: expected asc or desc", code="invalid_field", param="order")
    return Page(after or None, int(limit) if limit else default, order == "desc")


# -- what clients see ----------------------------------------------------------------------------------------------


def page_value(data: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}


def file_value(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def shown(batch: Batch) -> dict[str, Any]:
    """A batch as OpenAI shows it; what holds it up stands in our own key `raycade`."""
    faults = [fault._asdict() for fault in batch.faults]
    value = {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": faults} if faults else None,
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at,
        "in_progress_at": batch.in_progress_at,
        "expires_at": batch.expires_at,
        "finalizing_at": batch.finalizing_at,
        "completed_at": batch.completed_at,
        "failed_at": batch.failed_at,
        "expired_at": batch.expired_at,
        "cancelling_at": batch.cancelling_at,
        "cancelled_at": batch.cancelled_at,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.metadata,
    }
    if batch.note:
        value["raycade"] = {"note": batch.note}
    return value
