"""Changes of release.yaml: release, roll back, stop a trial. Each with its time and reason, and as a whole or not at all.

Whoever changes a release holds the kernel's lock on the prompt's folder meanwhile, so that two commands, or a command and
a job that stops a trial, make two changes and never half of each. The file is written beside the old one, checked as it
will be read, brought to disk and put in the old one's place: a reader finds the old release or the new one. It is written
from its values, so comments in it do not last; reasons belong into the history.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import orjson

from actors.errors import ConfigError
from runtime.prompts_files import RELEASE_FILE, Change, PromptVersion, Release, folder_of, load_prompt, load_release
from runtime.yaml_lines import parse

__all__ = ["before", "release", "rollback", "stop_trial"]

MAX_REASON_CHARS = 300

State = tuple[int, dict[int, float]]
"""Stable version and trials."""


def release(folder: str, name: str, stable: int | None, trial: Mapping[int, float], reason: str) -> Release:
    """Make a version stable, and put others on trial; what is not named is on trial no longer. Raises ConfigError."""
    with _locked(folder, name) as (place, versions, old):
        if stable is None:
            if old is None:
                raise ConfigError(f"prompt {name} has no release yet; say which version with --stable V")
            stable = old.stable
        if stable in versions and versions[stable].deprecated and (old is None or stable != old.stable):
            raise ConfigError(f"{name}@{stable} is deprecated; release another version, or take the mark off first")
        return _write(place, versions, old, (stable, dict(trial)), "release", reason)


def rollback(folder: str, name: str, reason: str) -> Release:
    """Go back to what was live before the last release, with nothing on trial; again: one further. Raises ConfigError."""
    with _locked(folder, name) as (place, versions, old):
        stable = None if old is None else before(old)
        if stable is None:
            raise ConfigError(
                f"prompt {name} has no earlier release to go back to; `raycade prompts log {name}` shows what was live"
            )
        return _write(place, versions, old, (stable, {}), "rollback", reason)


def stop_trial(folder: str, name: str, version: int, reason: str) -> bool:
    """End a version's trial; False when it is on trial no longer. Raises ConfigError when that cannot be written."""
    with _locked(folder, name) as (place, versions, old):
        if old is None or version not in old.trial:
            return False
        trial = {number: weight for number, weight in old.trial.items() if number != version}
        _write(place, versions, old, (old.stable, trial), "stopped", reason)
        return True


def before(release: Release) -> int | None:
    """The stable version of the release before this one; None when there is none.

    Rolled-back releases do not count: going back twice goes back two steps, not to and fro.
    """
    states: list[State] = []
    for change in release.history:
        if change.action == "rollback":
            del states[_below(states) :]
        states.append((change.stable, change.trial))
    now = (release.stable, release.trial)
    if not states or states[-1] != now:
        states.append(now)  # written by hand
    below = _below(states)
    if below < len(states) - 1:
        return states[below][0]
    return release.stable if release.trial else None  # the first release of all began with trials: they can be ended


def _below(states: Sequence[State]) -> int:
    """Where the state lies that a rollback of the last one leads to; the last one's own place when there is none."""
    for index in range(len(states) - 2, -1, -1):
        if (states[index][0], {}) != states[-1]:
            return index
    return max(0, len(states) - 1)


@contextmanager
def _locked(folder: str, name: str) -> Iterator[tuple[Path, dict[int, PromptVersion], Release | None]]:
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError("there is no such folder of prompts", folder)
    place = folder_of(root, name)
    lock = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        versions, old = load_prompt(place, root)
        yield place, versions, old
    finally:
        os.close(lock)


def _write(
    place: Path,
    versions: Mapping[int, PromptVersion],
    old: Release | None,
    state: State,
    action: Literal["release", "rollback", "stopped"],
    reason: str,
) -> Release:
    stable, trial = state
    reason = " ".join("".join(char if char.isprintable() else " " for char in reason).split())[:MAX_REASON_CHARS]
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    change = Change(at=at, action=action, reason=reason or "(no reason given)", stable=stable, trial=trial)
    digests = {number: versions[number].digest for number in (stable, *trial) if number in versions}
    new = Release(
        stable=stable,
        trial=trial,
        released=dict(sorted({**(old.released if old else {}), **digests}.items())),
        history=[*(old.history if old else []), change],
    )
    text = _text(new).encode()
    target = Path(os.path.realpath(place / RELEASE_FILE))
    try:
        same = load_release(parse(text, str(target)), versions, place) == new
    except ConfigError as error:  # about what was asked for, not about a file that anybody has seen
        raise ConfigError(error.message, key=error.key) from None
    if not same:
        raise ConfigError("could not be written so that it reads the same", str(target))
    draft = target.with_name(f".{RELEASE_FILE}.{os.getpid()}.tmp")
    try:
        with open(draft, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, draft)
        os.replace(draft, target)
        folder = os.open(target.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConfigError(f"cannot be written: {error.strerror}", str(target)) from None
    return new


def _text(release: Release) -> str:
    """YAML that any reader takes for what it says: texts in quotes, everything else a number."""
    lines = ["# Written by `raycade prompts`; comments do not last.", f"stable: {release.stable}"]
    if release.trial:
        lines.append(f"trial: {_weights(release.trial)}")
    lines += ["released:"] if release.released else []
    lines += [f"  {number}: {_quoted(digest)}" for number, digest in release.released.items()]
    lines.append("history:")
    for change in release.history:
        trial = f", trial: {_weights(change.trial)}" if change.trial else ""
        said = "" if change.action == "release" else f", action: {change.action}"
        lines.append(
            f"  - {{at: {_quoted(change.at)}{said}, reason: {_quoted(change.reason)}, stable: {change.stable}{trial}}}"
        )
    return "\n".join(lines) + "\n"


def _weights(trial: Mapping[int, float]) -> str:
    return "{" + ", ".join(f"{number}: {weight!r}" for number, weight in sorted(trial.items())) + "}"


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()
