"""Server-sent events, cut anywhere: the same events, and those that the rules of WHATWG's HTML give."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.tier.sse import EventParser, frame
from actors.tier.transport import TransportError

TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\n"), max_size=12)
LINES = st.one_of(
    TEXTS.map(lambda text: f"data: {text}"),
    TEXTS.map(lambda text: f"data:{text}"),
    TEXTS.map(lambda text: f": {text}"),
    st.sampled_from(["", "", "data", "data:", "event: x", "id: 7", "retry: 5", "dat: a", " data: a", "data : a"]),
    TEXTS,
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r\n", "\r"])), max_size=20).map(
    lambda lines: "".join(line + end for line, end in lines).encode()
)


def reference(stream: bytes) -> list[bytes]:
    """The rules line by line, from the whole at once; an event at the end needs no empty line."""
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[bytes] = []
    data: list[bytes] = []
    for line in [*text.split(b"\n"), b""]:
        if not line:
            events += [b"\n".join(data)] if data else []
            data = []
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
    return events


def parsed(stream: bytes, cuts: list[int]) -> list[bytes]:
    parser = EventParser()
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    events = [event for at, to in pairwise(places) for event in parser.feed(stream[at:to])]
    return events + parser.end()


@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=12), st.booleans())
def test_any_cut_gives_the_same_events(stream: bytes, cuts: list[int], bom: bool) -> None:
    """Within a CRLF, a byte order mark or a letter: where the bytes were cut changes nothing."""
    stream = b"\xef\xbb\xbf" + stream if bom else stream
    assert parsed(stream, cuts) == reference(stream)


@given(STREAMS)
def test_one_byte_at_a_time(stream: bytes) -> None:
    assert parsed(stream, list(range(len(stream)))) == reference(stream)


@given(st.lists(st.binary(max_size=20).map(lambda data: data.replace(b"\r", b"")), max_size=8))
def test_what_is_framed_is_read_again(datas: list[bytes]) -> None:
    """Our own frames carry any data, also with line ends in it."""
    stream = b"".join(frame(data) for data in datas)
    assert EventParser().feed(stream) == datas


@pytest.mark.parametrize("size", [1, 7, 2_000])
def test_an_event_without_end_is_given_up(size: int) -> None:
    """Memory is bounded by the largest event, in one piece or in many."""
    parser = EventParser(1_000)

    def feed_on() -> None:
        for _ in range(2_000):
            parser.feed(b"x" * size)

    with pytest.raises(TransportError):
        feed_on()


def test_events_within_the_bound_have_no_end() -> None:
    """The bound is of one event, not of the stream."""
    parser = EventParser(1_000)
    assert sum(len(parser.feed(b"data: " + b"x" * 900 + b"\n\n")) for _ in range(50)) == 50
