"""A second answer, cut anywhere: the caller gets one text."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from actors.router.resume import Continuation, Diverged, Rest

TEXTS = st.text("ab \n\u00e9", max_size=40)
CUTS = st.lists(st.integers(0, 100), max_size=8)


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[at:to] for at, to in pairwise(places)]


@given(TEXTS, TEXTS, CUTS)
def test_the_rest_follows_what_was_said_or_the_answers_diverge(said: str, again: str, cuts: list[int]) -> None:
    """Whatever comes second, the caller's text is that second answer, or an honest end after what was said."""
    rest = Rest(said)
    passed = ""
    for piece in pieces(again, cuts):
        new = rest.feed(piece)
        if isinstance(new, Diverged):
            assert not again.startswith(said)
            assert passed == ""
            assert said[: new.at] == again[: new.at]
            assert said[new.at] != again[new.at]
            return
        passed += new
    if rest.end() is None:
        assert said + passed == again
    else:
        assert said.startswith(again)
        assert said != again
        assert passed == ""


@given(TEXTS, TEXTS, CUTS)
def test_a_second_answer_that_begins_so_is_never_refused(said: str, more: str, cuts: list[int]) -> None:
    rest = Rest(said)
    assert "".join(str(rest.feed(piece)) for piece in pieces(said + more, cuts)) == more
    assert rest.end() is None


@given(TEXTS, TEXTS, CUTS, st.booleans())
def test_a_continuation_is_the_same_however_it_is_cut(said: str, more: str, cuts: list[int], echoes: bool) -> None:
    """And what was said ends with the white space that it had: none twice, none lost but what the continuation left out."""
    text = said.rstrip() + more if echoes else more
    whole, cut = Continuation(said), Continuation(said)
    once = whole.feed(text) + whole.end()
    assert "".join([*(cut.feed(piece) for piece in pieces(text, cuts)), cut.end()]) == once
    assert text.endswith(once)
    joined = said + once
    kept = said.rstrip()
    if len(kept) < 24 or not text.startswith(kept):
        assert joined == kept + text or joined.startswith(said)
        assert joined.replace(" ", "").replace("\n", "") == (kept + text).replace(" ", "").replace("\n", "")
