"""Registered prompts over HTTP: which version a request gets, and the trials that its answers stop.

    {"raycade": {"prompt": "summarize", "variables": {...}}} -> Prompts.rendered -> asks.py -> router
    its answer -> Prompts.ended -> the sequential test (runtime/prompts_trial.py) -> a trial that is worse ends

Each request looks at its prompt's files first (a few microseconds each), so a release or a rollback holds from the next
request on, in every replica. The version is chosen by the request's `unit`, or without one by its variables: the same
request gets the same version however often it is sent.

Each replica tests what it has seen itself, with its share of `prompts.trial.alpha`. A trial that it stops gets no more
requests here from that moment on, and elsewhere as soon as release.yaml says so, which `Prompts.stop` writes.
"""

import os
from collections.abc import Mapping, Set
from typing import Any, NamedTuple

import orjson

from actors.errors import ConfigError, InputError
from runtime.config import PromptSettings
from runtime.prompts import LivePrompts, Registry, Release, Rendered, parse_ref, rendered, variables_of
from runtime.prompts_job import WORSE
from runtime.prompts_release import stop_trial
from runtime.prompts_trial import TrialWatch

__all__ = ["Prompts", "Stopped", "refuse_unknown"]


def refuse_unknown(name: str, known: Set[str], given: Mapping[str, Any]) -> None:
    """Raises InputError for a variable that no version has."""
    for each in sorted(given.keys() - known):
        message = f"no version of prompt {name} has a variable of this name; there are: {', '.join(sorted(known))}"
        raise InputError("unknown_variable", message, field=f"variables.{each}")


class Stopped(NamedTuple):
    """A trial that is to end."""

    name: str
    version: int
    reason: str


class _Trials(NamedTuple):
    """The trials of one release, as this replica sees them."""

    release: Release
    watch: TrialWatch
    stopped: set[int]


class Prompts:
    """One a replica. A prompt that cannot be read is not served, and told in `trouble`; no folder at all is fine."""

    def __init__(self, settings: PromptSettings, replicas: int = 1) -> None:
        """`replicas`: among so many the chance of a wrong stop is shared out."""
        self._folder = settings.dir
        self._settings = settings.trial
        self._alpha = settings.trial.alpha / replicas
        self._live: LivePrompts | None = None
        self._trials: dict[str, _Trials] = {}
        self._open()

    def _open(self) -> LivePrompts | None:
        if self._live is None and os.path.isdir(self._folder):
            self._live = LivePrompts(self._folder)
        return self._live

    @property
    def trouble(self) -> list[str]:
        """What is wrong with files of prompts, as of the last request for each."""
        return [] if self._live is None else list(self._live.trouble.values())

    def rendered(self, ref: str, variables: Mapping[str, Any], unit: str | None) -> Rendered:
        """The body of a request for `NAME` or `NAME@VERSION`. Raises InputError with the field that is wrong."""
        try:
            name, pinned = parse_ref(ref)
        except ConfigError as error:
            raise InputError("invalid_prompt", error.message, field="prompt") from None
        registry = self.looked(name)
        refuse_unknown(name, variables_of(registry, name), variables)
        if unit is None:
            unit = orjson.dumps(variables, option=orjson.OPT_SORT_KEYS).decode()
        version = registry.choose(name, unit, pinned)
        if pinned is None and version.version in self._stopped(name, registry):
            version = registry.version(name, registry.release(name).stable)
        return rendered(version, variables)

    def looked(self, name: str) -> Registry:
        """What is live, with this prompt as it is now. Raises InputError when nothing is."""
        live = self._open()
        if live is None:
            raise InputError("unknown_prompt", "no prompts are served here", field="prompt")
        live.look(name)
        return live.registry()

    def _stopped(self, name: str, registry: Registry) -> set[int]:
        """Trials that have been stopped here under the release that holds."""
        release = registry.release(name)
        known = self._trials.get(name)
        if known is None or (known.release is not release and known.release != release):
            known = self._trials[name] = self._watched(release, known)
        return known.stopped

    def _watched(self, release: Release, before: _Trials | None) -> _Trials:
        watched = release.trial if self._settings.stop else {}
        watch = TrialWatch(release.stable, watched, self._alpha, self._settings.cost_tolerance)
        if before is not None and before.release.stable == release.stable:
            # What has been seen of a version stays true while it is live, whatever its weight is now.
            kept = {str(number) for number in before.release.live if number not in before.stopped}
            watch.restore({number: arm for number, arm in before.watch.state().items() if number in kept})
        return _Trials(release, watch, set())

    def ended(self, ref: str, refused_replies: int, failed: str, cost_usd: float) -> list[Stopped]:
        """Take in a request that has ended, by its `name@version`: the trials that are to be stopped by that, each once.

        `failed`: the kind of its failure; empty: it was answered.
        """
        name, _, number = ref.rpartition("@")
        trials = self._trials.get(name)
        if trials is None or not trials.release.trial or int(number) not in trials.release.live:
            return []
        worse = bool(refused_replies) or failed in WORSE
        found = trials.watch.observe(int(number), worse, cost_usd)
        trials.stopped.update(version for version, _ in found)
        return [Stopped(name, version, reason) for version, reason in found]

    def stop(self, stopped: Stopped) -> str:
        """Write it into release.yaml; a line that says what came of it. Blocks on the disk."""
        name, version, reason = stopped
        said = f"stopped the trial of {name}@{version}: {reason}"
        try:
            if not stop_trial(self._folder, name, version, f"stopped by itself: {reason}"):
                said += "; release.yaml had it on trial no longer"
        except (ConfigError, OSError) as error:
            said += f"; in this gateway only, since release.yaml could not be changed: {error}"
        return said
