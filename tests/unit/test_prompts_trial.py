"""The sequential test that stops a trial: what its docstring claims, simulated."""

import random
from math import log

import pytest

from runtime.prompts_trial import Arm, TrialWatch, cost_evidence, failure_evidence

ALPHA = 0.05


def lognormal(rng: random.Random, mean: float, sigma: float) -> float:
    return mean * rng.lognormvariate(-sigma * sigma / 2, sigma)


def stopped_at(
    rng: random.Random, rows: int, refused: tuple[float, float], cost: tuple[float, float], sigma: float, weight: float
) -> tuple[int, str] | None:
    """The row at which a trial is stopped, and why. Pairs are stable, trial."""
    watch = TrialWatch(1, [2], ALPHA, 0.1)
    for row in range(rows):
        trial = rng.random() < weight
        found = watch.observe(1 + trial, rng.random() < refused[trial], lognormal(rng, cost[trial], sigma))
        if found:
            [(version, reason)] = found
            assert version == 2
            return row + 1, reason
    return None


@pytest.mark.parametrize(
    ("share", "sigma", "weight"),
    [(0.02, 1.0, 0.2), (0.4, 0.3, 0.5), (0.001, 1.5, 0.1)],
    ids=["usual", "even", "skewed"],
)
def test_a_trial_that_is_no_worse_is_hardly_ever_stopped(share: float, sigma: float, weight: float) -> None:
    """Looked at after each of 800 rows, at the very edge of what is tolerated: of 150 trials at most alpha's share."""
    rng = random.Random(5)
    stops = [stopped_at(rng, 800, (share, share), (1.0, 1.1), sigma, weight) for _ in range(150)]
    assert sum(stop is not None for stop in stops) <= ALPHA * 150


@pytest.mark.parametrize(
    ("refused", "cost", "within", "reason"),
    [
        ((0.02, 0.30), (1.0, 1.0), 600, "answers were refused"),
        ((0.0, 1.0), (1.0, 1.0), 80, "answers were refused"),
        ((0.02, 0.02), (1.0, 2.0), 1000, "a row costs"),
    ],
)
def test_a_trial_that_is_worse_is_stopped_soon(
    refused: tuple[float, float], cost: tuple[float, float], within: int, reason: str
) -> None:
    """For the right reason, in every one of 20 trials at a fifth of the rows."""
    rng = random.Random(6)
    for _ in range(20):
        found = stopped_at(rng, within, refused, cost, 0.5, 0.2)
        assert found is not None
        assert reason in found[1]


def test_a_trial_that_is_better_or_as_dear_as_is_tolerated_goes_on() -> None:
    """Cheaper, or with fewer refused answers, or always a little dearer because its text is a little longer."""
    assert failure_evidence(Arm(1000, 0), Arm(1000, 300)) == 0
    watch = TrialWatch(1, [2], ALPHA, 0.1)
    for _ in range(5000):
        assert watch.observe(1, True, 0.0100) == []
        assert watch.observe(2, False, 0.0105) == []


def test_the_evidence_is_that_of_the_formula() -> None:
    """Ten of ten against none of ten, by hand: B(10.5, 0.5) B(0.5, 10.5) / B(.5, .5)^2 / 0.5^20."""
    beta = 1.0
    for k in range(10):  # B(10.5, .5) / B(.5, .5) = product of (k + 1/2) / (k + 1)
        beta *= (k + 0.5) / (k + 1)
    assert failure_evidence(Arm(10, 10), Arm(10, 0)) == pytest.approx(2 * log(beta) + 20 * log(2))


def test_nothing_is_said_of_too_little() -> None:
    """No rows of one version, no spread, no cost: no evidence, and no division by zero."""
    assert failure_evidence(Arm(), Arm(5, 0)) == failure_evidence(Arm(5, 5), Arm()) == 0
    assert cost_evidence(Arm(49, 0, 9.0, 0.0), Arm(1000, 0, 1.0, 0.0), 0.1) == 0
    assert cost_evidence(Arm(1000, 0, 0.0, 0.0), Arm(1000, 0, 0.0, 0.0), 0.1) == 0
    assert cost_evidence(Arm(1000, 0, 5.0, 0.0), Arm(1000, 0, 0.0, 0.0), 0.1) == 0
    assert failure_evidence(Arm(50, 50), Arm(50, 50)) == 0


def test_a_trial_is_told_once_and_others_go_on() -> None:
    """Each of several has its share of alpha, and the end of one is not the end of all."""
    watch = TrialWatch(1, [2, 3], ALPHA, 0.1)
    told = [
        version
        for _ in range(200)
        for arm, worse in ((1, False), (2, True), (3, False))
        for version, _ in watch.observe(arm, worse, 1.0)
    ]
    assert told == [2]


def test_what_was_seen_outlives_the_process() -> None:
    """A resumed job goes on where the test was."""
    one, two = (TrialWatch(1, [2], ALPHA, 0.1) for _ in range(2))
    for number in range(60):
        one.observe(1 + number % 2, False, 0.1 * number)
    two.restore(one.state())
    assert two.state() == one.state()
    ends = [[watch.observe(2, True, 1.0) for _ in range(20)] for watch in (one, two)]
    assert ends[0] == ends[1]
    assert sum(map(len, ends[0])) == 1
