"""The registry of prompts: versions that are files, and a release that says which of them are live.

Everything is read and checked at once by `load_prompts` (runtime/prompts_files.py says what the files hold); afterwards
a name is looked up in a dict, never in a folder, so no name in a request can lead out of `prompts/`. A job
(runtime/prompts_job.py) or gateway (runtime/gateway/prompts.py) then asks for a version and has its request `rendered`.
A gateway holds `LivePrompts`, which sees a release that was changed while it runs.

Values are data: they are put into a template once and never looked at again, so braces in them stay braces.
"""

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path as Folder
from typing import Any, NamedTuple

import orjson

from actors.errors import ConfigError, InputError
from runtime.encode import rank_of
from runtime.prompts_files import (
    NAME,
    RELEASE_FILE,
    PromptVersion,
    Release,
    folder_of,
    load_prompt,
    load_release,
)
from runtime.yaml_lines import joined, read, shown

__all__ = [
    "LivePrompts",
    "PromptVersion",
    "Registry",
    "Release",
    "Rendered",
    "load_prompts",
    "parse_ref",
    "pick",
    "render",
    "rendered",
    "variables_of",
]


class Rendered(NamedTuple):
    """A request body made by a prompt version, and what the version asks for."""

    body: dict[str, Any]
    ref: str
    """`name@version`."""
    min_quality: int
    schema: bytes
    retries: int | None = None
    escalate: bool | None = None
    """Of answers that do not satisfy the schema; None: as raycade.yaml says."""


class Registry:
    """All prompts of a folder as they were when it was loaded."""

    def __init__(self, versions: Mapping[str, Mapping[int, PromptVersion]], releases: Mapping[str, Release]) -> None:
        self._versions = versions
        self._releases = releases

    @property
    def names(self) -> list[str]:
        return sorted(self._versions)

    def versions(self, name: str) -> Mapping[int, PromptVersion]:
        """By number. Raises InputError `unknown_prompt`."""
        if name not in self._versions:
            known = ", ".join(self.names) or "none at all"
            raise InputError("unknown_prompt", f"there is no prompt {shown(name)}; there are: {known}")
        return self._versions[name]

    def release(self, name: str) -> Release:
        """Raises InputError `unknown_prompt`, or `no_release` for a prompt that can only be used with its version."""
        numbers = sorted(self.versions(name))
        if name not in self._releases:
            last = numbers[-1]
            message = (
                f"prompt {name} has no release.yaml; write it with `raycade prompts release {name} --stable {last}`, "
                f"or ask for {name}@{last}"
            )
            raise InputError("no_release", message)
        return self._releases[name]

    def version(self, name: str, number: int) -> PromptVersion:
        """Raises InputError: `unknown_prompt`, `unknown_version`."""
        versions = self.versions(name)
        if number not in versions:
            known = ", ".join(str(each) for each in sorted(versions))
            raise InputError("unknown_version", f"prompt {name} has no version {number}; there are: {known}")
        return versions[number]

    def choose(self, name: str, unit: str, version: int | None = None) -> PromptVersion:
        """The version for a unit (a row's custom_id, a user): the pinned one, else as the release says.

        The same unit gets the same version on every call, machine and day, and one that is on trial stays on it while
        the weight grows. Raises InputError: `unknown_prompt`, `unknown_version`, `no_release`.
        """
        if version is not None:
            return self.version(name, version)
        release = self.release(name)
        return self._versions[name][pick(name, unit, release.stable, release.trial)]


def load_prompts(folder: str, only: str | None = None) -> Registry:
    """Read and check every prompt below the folder, or one of them. Raises ConfigError with one line a problem."""
    root = Folder(folder)
    if not root.is_dir():
        raise ConfigError("there is no such folder of prompts", folder)
    versions: dict[str, dict[int, PromptVersion]] = {}
    releases: dict[str, Release] = {}
    problems: list[ConfigError] = []
    for place in sorted(root.iterdir()) if only is None else [folder_of(root, only)]:
        if place.name.startswith((".", "_")) or not place.is_dir():
            continue
        try:
            versions[place.name], release = load_prompt(place, root)
            if release is not None:
                releases[place.name] = release
        except ConfigError as error:
            problems.append(error)
    if problems:
        raise joined(problems)
    return Registry(versions, releases)


def variables_of(registry: Registry, name: str) -> frozenset[str]:
    """Any version's: a rollback must not make callers wrong who give what the newer version wanted."""
    return frozenset().union(*(version.variables for version in registry.versions(name).values()))


def parse_ref(ref: str) -> tuple[str, int | None]:
    """`NAME` or `NAME@VERSION`. Raises ConfigError for anything else."""
    name, at, number = ref.partition("@")
    if at and not (number.isascii() and number.isdigit() and len(number) <= 6):
        raise ConfigError(f"expected NAME or NAME@VERSION, found {shown(ref)}")
    return name, int(number) if at else None


def pick(name: str, unit: str, stable: int, trial: Mapping[int, float]) -> int:
    """The version of a unit. The name is in it, so that two prompts do not put the same units on trial."""
    seed = hashlib.sha256(f"{name}\0{unit}".encode(errors="surrogatepass")).digest()
    point = int.from_bytes(seed[:6], "big") / (1 << 48)  # evenly spread over [0, 1)
    edge = 0.0
    for number, weight in sorted(trial.items()):
        edge += weight
        if point < edge:
            return number
    return stable


def rendered(version: PromptVersion, variables: Mapping[str, Any]) -> Rendered:
    """`render`, with what the version asks for. Raises InputError."""
    return Rendered(
        render(version, variables),
        version.ref,
        rank_of(version.min_quality) if version.min_quality else 0,
        version.schema,
        version.retries,
        version.escalate,
    )


def render(version: PromptVersion, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The request body for a row's variables: messages, the version's defaults, temperature and model.

    Text goes in as it is, any other JSON value as compact JSON. Variables that the template does not name are
    ignored: rows carry more columns than one version uses, and another version on trial may use them. Raises
    InputError: `missing_variable` naming those that are absent, `bad_variables` for what is no object of JSON values.
    """
    if not isinstance(variables, Mapping):
        raise InputError("bad_variables", f"expected an object, found {shown(variables)}", field="variables")
    missing = sorted(version.variables - variables.keys())
    if missing:
        message = f"prompt {version.ref} needs {', '.join(missing)}, which is not given"
        raise InputError("missing_variable", message, field=f"variables.{missing[0]}")
    text = "".join(part if isinstance(part, str) else _text(part[0], variables[part[0]]) for part in version.template)
    messages = [{"role": "system", "content": version.system}] if version.system else []
    messages += [{"role": role, "content": content} for role, content in version.examples]
    messages.append({"role": "user", "content": text})
    body: dict[str, Any] = {"messages": messages, **version.defaults}
    if version.temperature is not None:
        body["temperature"] = version.temperature
    if version.model is not None:
        body["model"] = version.model
    return body


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        message = f"expected text or another JSON value, found {type(value).__name__}"
    raise InputError("bad_variables", message, field=f"variables.{name}")


class LivePrompts:
    """The registry of something that runs for long: files that have changed are read again, a prompt at a time.

    What cannot be read leaves what was there before, and `trouble` says why: an edit that went wrong must not take a
    running prompt away. A rollback reaches even a prompt whose newest draft is broken, since versions and release are
    taken in apart.
    """

    def __init__(self, folder: str) -> None:
        """Whoever starts a program checks with `load_prompts` first; a part of it that starts later, while somebody edits
        a draft, goes without that."""
        self._root = Folder(folder)
        self._versions: dict[str, dict[int, PromptVersion]] = {}
        self._releases: dict[str, Release] = {}
        self._seen: dict[str, tuple[object, ...]] = {}
        self.trouble: dict[str, str] = {}
        """By prompt, what is wrong with its files at the moment."""
        self._registry = Registry({}, {})
        self.look()

    def registry(self) -> Registry:
        """What is live as of the last `look`. A value: a request uses one from beginning to end."""
        return self._registry

    def look(self, only: str | None = None) -> bool:
        """Take in what has changed, of every prompt or of one; True if anything has.

        It costs a stat a file: cheap enough for one prompt with each request, and for all of them once a second.
        """
        names = (place.name for place in sorted(self._root.iterdir())) if only is None else (only,)
        changed = False
        for name in names:
            seen = _signature(self._root / name) if NAME.fullmatch(name) else ()
            if seen and seen != self._seen.get(name):  # what has vanished is served on as it was
                self._seen[name] = seen
                self._take_in(self._root / name)
                changed = True
        if changed:
            self._registry = Registry(dict(self._versions), dict(self._releases))
        return changed

    def _take_in(self, place: Folder) -> None:
        name = place.name
        self.trouble.pop(name, None)
        try:
            self._versions[name], release = load_prompt(place, self._root)
        except ConfigError as error:
            self.trouble[name] = str(error)
            if name not in self._versions:
                return
            try:
                release = load_release(read(str(place / RELEASE_FILE)), self._versions[name], place)
            except ConfigError:
                return
        if release is None:
            self._releases.pop(name, None)
        else:
            self._releases[name] = release


def _signature(place: Folder) -> tuple[object, ...]:
    """What changes with any file of a prompt; empty for what is no folder, or cannot be read."""
    found: list[tuple[str, int, int, int]] = []
    with contextlib.suppress(OSError), os.scandir(place) as files:
        for file in files:
            with contextlib.suppress(OSError):
                status = file.stat()  # of where a link leads
                found.append((file.name, status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(sorted(found))
