"""When a trial is worse than the stable version, with confidence: a sequential test of refused answers and of cost per row.

A trial is looked at after every row. An ordinary test at 5% that is repeated like that stops nearly every good trial in
the end; these tests may be looked at as often as one likes: the chance that a trial which is no worse is EVER stopped is
at most `alpha`, over both tests and all trials of a release together (each has its share of alpha). Rows are taken as
independent, and the version of a row as chosen without regard to it, which the hash of its id does.

Refused answers (a row whose first reply did not parse or did not satisfy the schema, or that failed by its own fault).
For a version whose share of such rows is p, after f of n rows

    M(p) = B(f + 1/2, n - f + 1/2) / B(1/2, 1/2) / (p^f (1 - p)^(n - f))

has mean 1 whatever n: a likelihood ratio, mixed over a Beta(1/2, 1/2) prior. The product for trial and stable has mean 1 as
well, and by Ville's inequality it ever reaches 1/alpha with a chance of at most alpha. "The trial is no worse" says
p_trial <= p_stable, so the trial is stopped when the product reaches 1/alpha for ALL such pairs. The smallest product is that
of the best fit among them, which is p_trial = p_stable = all refused / all rows when the trial looks worse. This test is
exact: it holds for any number of rows.

Cost per row (the followers of a shared call are no rows here). The mixture sequential probability ratio test (mSPRT): with
D the difference of the means, trial - (1 + tolerance) * stable, and V its estimated variance,

    L = sqrt(V / (V + t^2)) * exp(t^2 D^2 / (2 V (V + t^2)))        stop when D > 0 and L >= 1/alpha

`t`, a quarter of the stable's mean, is the difference that the test is best at. Costs are not normal, and V is an estimate: so
this one holds only as n grows, and it waits for `MIN_COSTS` rows of each version. `tolerance`: a wording that is a
little longer costs a little more with certainty, and is not to be stopped for that.

Pure: no clock, no file. runtime/prompts_job.py feeds it; tests/unit/test_prompts_trial.py simulates what is claimed.
"""

from collections.abc import Iterable, Mapping
from math import inf, lgamma, log
from typing import Any, NamedTuple

__all__ = ["Arm", "TrialWatch", "cost_evidence", "failure_evidence"]

MIN_COSTS = 50
LEAST_SPREAD = 0.02
"""Of a mean: rows that all cost the same would make any difference infinitely certain."""


class Arm(NamedTuple):
    """What has been seen of one version. Costs as Welford keeps them: number, mean, sum of squared distances."""

    rows: int = 0
    refused: int = 0
    mean_usd: float = 0.0
    squares: float = 0.0

    def plus(self, refused: bool, cost_usd: float) -> "Arm":
        rows = self.rows + 1
        distance = cost_usd - self.mean_usd
        mean = self.mean_usd + distance / rows
        return Arm(rows, self.refused + refused, mean, self.squares + distance * (cost_usd - mean))

    @property
    def variance(self) -> float:
        """Of one row's cost."""
        least = (LEAST_SPREAD * self.mean_usd) ** 2
        return max(least, self.squares / (self.rows - 1)) if self.rows > 1 else inf


def failure_evidence(trial: Arm, stable: Arm) -> float:
    """Logarithm of the evidence that the trial's answers are refused more often; 0 or less: none."""
    if not trial.rows or not stable.rows or trial.refused * stable.rows <= stable.refused * trial.rows:
        return 0.0
    refused, rows = trial.refused + stable.refused, trial.rows + stable.rows
    share = refused / rows
    null = refused * log(share) + ((rows - refused) * log(1 - share) if refused < rows else 0.0)
    return _mixture(trial) + _mixture(stable) - null


def _mixture(arm: Arm) -> float:
    def log_beta(a: float, b: float) -> float:
        return lgamma(a) + lgamma(b) - lgamma(a + b)

    return log_beta(arm.refused + 0.5, arm.rows - arm.refused + 0.5) - log_beta(0.5, 0.5)


def cost_evidence(trial: Arm, stable: Arm, tolerance: float) -> float:
    """Logarithm of the evidence that a row of the trial costs more than `1 + tolerance` times a row of the stable."""
    if min(trial.rows, stable.rows) < MIN_COSTS:
        return 0.0
    more = trial.mean_usd - (1 + tolerance) * stable.mean_usd
    variance = trial.variance / trial.rows + (1 + tolerance) ** 2 * stable.variance / stable.rows
    mixing = (0.25 * stable.mean_usd) ** 2
    if more <= 0 or not variance or not mixing:
        return 0.0
    return mixing * more**2 / (2 * variance * (variance + mixing)) + log(variance / (variance + mixing)) / 2


class TrialWatch:
    """The trials of one release, as one job or gateway sees them."""

    def __init__(self, stable: int, trials: Iterable[int], alpha: float, cost_tolerance: float) -> None:
        self._stable = stable
        self._running = set(trials)
        self._enough = log(2 * max(1, len(self._running)) / alpha)
        self._alpha = alpha
        self._tolerance = cost_tolerance
        self._arms: dict[int, Arm] = {}

    def observe(self, version: int, refused: bool, cost_usd: float) -> list[tuple[int, str]]:
        """Take in a row that has ended. The trials that are to be stopped now, each with the reason; each once."""
        self._arms[version] = self._arms.get(version, Arm()).plus(refused, cost_usd)
        looked_at = self._running if version == self._stable else self._running & {version}
        found = [(trial, reason) for trial in sorted(looked_at) if (reason := self._verdict(trial))]
        self._running -= {trial for trial, _ in found}
        return found

    def stop(self, version: int) -> None:
        """It is no longer on trial, for whatever reason."""
        self._running.discard(version)

    def state(self) -> dict[str, list[float]]:
        """What a journal keeps, for `restore`."""
        return {str(version): list(arm) for version, arm in self._arms.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        for version, (rows, refused, mean_usd, squares) in state.items():
            self._arms[int(version)] = Arm(int(rows), int(refused), float(mean_usd), float(squares))

    def _verdict(self, version: int) -> str:
        trial, stable = self._arms.get(version, Arm()), self._arms.get(self._stable, Arm())
        sure = f"(sequential test: at most {self._alpha:.0%} of trials that are no worse are stopped)"
        if failure_evidence(trial, stable) >= self._enough:
            return (
                f"its answers were refused in {trial.refused:,} of {trial.rows:,} rows, those of version "
                f"{self._stable} in {stable.refused:,} of {stable.rows:,} {sure}"
            )
        if cost_evidence(trial, stable, self._tolerance) >= self._enough:
            return (
                f"a row costs ${trial.mean_usd:.6f}, {trial.mean_usd / stable.mean_usd - 1:.0%} more than with version "
                f"{self._stable}, over {trial.rows:,} and {stable.rows:,} rows {sure}"
            )
        return ""
