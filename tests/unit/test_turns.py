"""What waits in a tier takes turns."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from actors.tier.turns import Turns


def test_a_short_line_is_not_behind_a_long_one() -> None:
    """One row of a job waits for one of another's."""
    turns = Turns[str]()
    for number in range(1000):
        turns.add("long", f"long {number}")
    turns.add("short", "short 0")
    assert [turns.take() for _ in range(3)] == ["long 0", "short 0", "long 1"]


def test_what_could_not_use_its_turn_has_the_next() -> None:
    """Whoever was sent back stands before all others."""
    turns = Turns[str]()
    turns.add("a", "a 0")
    turns.add("b", "b 0")
    taken = turns.take()
    turns.put_back("a", taken)
    assert [turns.first(), turns.take(), turns.take()] == ["a 0", "a 0", "b 0"]
    assert not turns


@given(st.lists(st.tuples(st.sampled_from("+-<x"), st.sampled_from("abc"))))
def test_nothing_is_lost_and_no_line_is_passed_over(steps: list[tuple[str, str]]) -> None:
    """Each line keeps its order; between two turns of a line every other that waits has at least one."""
    turns, lines, number = Turns[tuple[str, int]](), {name: deque[int]() for name in "abc"}, 0
    passed_over: dict[str, list[str]] = {name: [] for name in "abc"}
    for step, name in steps:
        if step == "+":
            number += 1
            turns.add(name, (name, number))
            lines[name].append(number)
        elif step == "-" and turns:
            whose, taken = turns.take()
            assert lines[whose].popleft() == taken
            for other in "abc":
                if other != whose and lines[other]:
                    passed_over[other].append(whose)
                    assert passed_over[other].count(whose) <= 2, "a line had two turns more than one that waited"
            passed_over[whose] = []
        elif step == "<" and turns:
            whose, taken = turns.take()
            turns.put_back(whose, (whose, taken))
        elif step == "x":
            gone = turns.leave(lambda one, name=name: one[0] == name and one[1] % 2 == 0)  # type: ignore[misc]
            assert gone == [(name, each) for each in lines[name] if each % 2 == 0]
            lines[name] = deque(each for each in lines[name] if each % 2)
        assert len(turns) == sum(map(len, lines.values())) == len(list(turns))
