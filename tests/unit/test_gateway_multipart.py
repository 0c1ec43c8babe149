"""A form with a file in it, in whatever pieces it arrives."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway.errors import HttpError
from runtime.gateway.multipart import FileBegin, FormReader

KIND = "multipart/form-data; boundary=xyz"
DATA = b'{"custom_id": "1"}\r\n--xy\r\n\x00\xff' * 3


def form(*parts: tuple[str, bytes], end: bytes = b"--xyz--\r\n") -> bytes:
    return b"".join(b"--xyz\r\n%s\r\n\r\n%s\r\n" % (head.encode(), data) for head, data in parts) + end


def field(name: str, data: bytes = b"batch") -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="{name}"', data


def file(filename: str = "in.jsonl", data: bytes = DATA) -> tuple[str, bytes]:
    head = f'Content-Disposition: form-data; name="file"; filename="{filename}"'
    return f"{head}\r\nContent-Type: application/octet-stream", data


def read(data: bytes, cuts: list[int]) -> tuple[dict[str, str], str, bytes]:
    reader = FormReader(KIND)
    name, content = "", b""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(places):
        for event in reader.feed(data[start:end]):
            if isinstance(event, FileBegin):
                name = event.filename
            else:
                content += event
    reader.end()
    return reader.fields, name, content


@given(st.lists(st.integers(0, 1000), max_size=20), st.booleans())
def test_the_same_in_whatever_pieces(cuts: list[int], file_first: bool) -> None:
    """Bytes of the file that look like a boundary are the file's; the order of the parts does not matter."""
    parts = [field("purpose"), file()]
    assert read(form(*(parts[::-1] if file_first else parts)), cuts) == ({"purpose": "batch"}, "in.jsonl", DATA)


def test_a_name_is_only_shown() -> None:
    """Whatever a client calls its file: a last part without control characters."""
    assert read(form(file("../../etc/pass\twd")), [])[1] == "passwd"
    assert read(form(file("C:\\secret\\a.jsonl")), [])[1] == "a.jsonl"
    assert read(form(file("")), [])[1] == "upload"


@pytest.mark.parametrize(
    "data",
    [
        form(file(), end=b""),
        form(file())[:-20],
        form(field("purpose")),
        form(file(), file()),
        form(("Content-Disposition: attachment", b"x")),
        form(("X: y", b"x")),
        form(field("purpose", b"x" * 2000), file()),
        form((f"Content-Disposition: form-data; name=a{'b' * 5000}", b"x")),
        form(*[field(f"f{number}") for number in range(40)], file()),
        b"nonsense",
        b"",
    ],
)
def test_what_is_no_such_form(data: bytes) -> None:
    """Cut off, without a file, with two, or larger beside the file than any form is: one clear refusal."""
    with pytest.raises(HttpError) as refused:
        read(data, [50])
    assert refused.value.status == 400


@pytest.mark.parametrize("kind", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=x"])
def test_another_kind_of_body(kind: str) -> None:
    with pytest.raises(HttpError, match="multipart"):
        FormReader(kind)
