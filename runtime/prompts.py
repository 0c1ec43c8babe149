"""The registry of prompts: versions that are files, and a release that says which of them are live.

    prompts/summarize/v1.yaml        a version: texts, request defaults, schema
    prompts/summarize/v2.yaml
    prompts/summarize/release.yaml   stable: 1, trial: {2: 0.1}, history: [...]

Everything is read and checked at once by `load_prompts`; afterwards a name is looked up in a dict, never in a folder,
so no name in a request can lead out of `prompts/`. A job or gateway then asks `choose` for a version and `render` for
a request body.

Templates: in `user_template`, `{name}` stands for a variable's text, `{{` and `}}` for braces; anything else in braces
is an error when the file is loaded. `system` is plain text and taken as it is. Values are data: they are put in once
and never looked at again, so braces in them stay braces.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path as Folder
from typing import Annotated, Any, NamedTuple

import orjson
from pydantic import BeforeValidator, Field

from actors.errors import ConfigError, InputError
from actors.router.structured import validator_of
from actors.settings import Quality, Settings
from runtime.yaml_lines import Document, check, joined, read, shown

__all__ = ["PromptVersion", "Registry", "Release", "load_prompts", "render"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_VERSION_FILE = re.compile(r"v([1-9][0-9]{0,5})\.yaml")
_HOLE = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}|([{}])")
_OWN_KEYS = {
    "messages": "is made of system and user_template",
    "model": "has a key of its own: model",
    "temperature": "has a key of its own: temperature",
    "response_format": "is made of the key schema",
    "stream": "is chosen by the caller",
    "raycade": "is no field of a request",
}

Template = tuple[str | tuple[str], ...]
"""Literal texts, and names of variables in tuples of one."""

VersionKey = Annotated[int, BeforeValidator(lambda key: int(key) if re.fullmatch("[1-9][0-9]{0,5}", str(key)) else key)]


class _VersionFile(Settings):
    version: int = Field(ge=1)
    description: str = ""
    model: str | None = Field(default=None, min_length=1)
    min_quality: Quality | None = None
    temperature: float | None = Field(default=None, ge=0)
    defaults: dict[str, Any] = Field(default_factory=dict)
    system: str | None = None
    user_template: str = Field(min_length=1)
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    deprecated: bool = False


class Change(Settings):
    """One line of a release's history: what was live from then on, and why."""

    at: str
    reason: str
    stable: int = Field(ge=1)
    trial: dict[VersionKey, float] = Field(default_factory=dict)


class Release(Settings):
    """release.yaml: the version for everyone, and the share of units that get another one on trial."""

    stable: int = Field(ge=1)
    trial: dict[VersionKey, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    history: list[Change] = Field(default_factory=list)


class PromptVersion(NamedTuple):
    name: str
    version: int
    description: str
    model: str | None
    """A tier's name or model: where the cascade starts."""
    min_quality: str | None
    temperature: float | None
    defaults: Mapping[str, Any]
    """Other fields of the request body, such as max_tokens."""
    system: str | None
    template: Template
    schema: bytes
    """JSON Schema that answers must satisfy; b"" means none."""
    deprecated: bool
    digest: str
    """SHA-256 over all that shapes an answer: not over description, deprecated and comments."""

    @property
    def ref(self) -> str:
        """`name@version`, as in output lines and in the coalescing key."""
        return f"{self.name}@{self.version}"

    @property
    def variables(self) -> frozenset[str]:
        """The names that the template uses."""
        return frozenset(part[0] for part in self.template if isinstance(part, tuple))


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
            message = f"prompt {name} has no release.yaml; write one with `stable: {last}` or ask for {name}@{last}"
            raise InputError("no_release", message)
        return self._releases[name]

    def choose(self, name: str, unit: str, version: int | None = None) -> PromptVersion:
        """The version for a unit (a row's custom_id, a user): the pinned one, else as the release says.

        The same unit gets the same version on every call, machine and day, and one that is on trial stays on it while
        the weight grows. Raises InputError: `unknown_prompt`, `unknown_version`, `no_release`.
        """
        versions = self.versions(name)
        if version is not None:
            if version not in versions:
                known = ", ".join(str(number) for number in sorted(versions))
                raise InputError("unknown_version", f"prompt {name} has no version {version}; there are: {known}")
            return versions[version]
        release = self.release(name)
        point = _point(name, unit)
        edge = 0.0
        for number, weight in sorted(release.trial.items()):
            edge += weight
            if point < edge:
                return versions[number]
        return versions[release.stable]

    def digest(self, name: str, version: int | None = None) -> str:
        """SHA-256 over all that decides which body a row becomes: a job is resumed only under the one it began with."""
        if version is not None:
            return self.choose(name, "", version).digest
        release = self.release(name)
        live = {release.stable: 1.0, **release.trial}
        versions = self.versions(name)
        return _sha256([release.stable, *([n, weight, versions[n].digest] for n, weight in sorted(live.items()))])


def load_prompts(folder: str) -> Registry:
    """Read and check every prompt below the folder. Raises ConfigError with one line a problem."""
    root = Folder(folder)
    if not root.is_dir():
        raise ConfigError("there is no such folder of prompts", folder)
    versions: dict[str, dict[int, PromptVersion]] = {}
    releases: dict[str, Release] = {}
    problems: list[ConfigError] = []
    for place in sorted(root.iterdir()):
        if place.name.startswith((".", "_")) or not place.is_dir():
            continue
        try:
            if not _NAME.fullmatch(place.name):
                raise ConfigError("a prompt's name has letters, digits, '_' and '-' only, at most 64", str(place))
            versions[place.name], release = _load_prompt(place, root)
            if release is not None:
                releases[place.name] = release
        except ConfigError as error:
            problems.append(error)
    if problems:
        raise joined(problems)
    return Registry(versions, releases)


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
        message = f"prompt {version.ref} needs {', '.join(missing)}, which the row does not have"
        raise InputError("missing_variable", message, field=f"variables.{missing[0]}")
    text = "".join(part if isinstance(part, str) else _text(part[0], variables[part[0]]) for part in version.template)
    messages = [{"role": "user", "content": text}]
    if version.system:
        messages.insert(0, {"role": "system", "content": version.system})
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


def _point(name: str, unit: str) -> float:
    """Evenly spread over [0, 1). The name is in it, so that two prompts do not put the same units on trial."""
    seed = hashlib.sha256(f"{name}\0{unit}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(seed[:6], "big") / (1 << 48)


def _sha256(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _load_prompt(place: Folder, root: Folder) -> tuple[dict[int, PromptVersion], Release | None]:
    versions: dict[int, PromptVersion] = {}
    release: Document | None = None
    problems: list[ConfigError] = []
    for file in sorted(place.iterdir()):
        number = _VERSION_FILE.fullmatch(file.name)
        try:
            if file.suffix not in (".yaml", ".yml"):
                continue  # notes and the like
            if not file.resolve().is_relative_to(root.resolve()):
                raise ConfigError("leads out of the folder of prompts", str(file))
            if number:
                versions[int(number[1])] = _load_version(place.name, int(number[1]), read(str(file)))
            elif file.name == "release.yaml":
                release = read(str(file))
            else:
                raise ConfigError("expected v1.yaml, v2.yaml and so on, or release.yaml", str(file))
        except ConfigError as error:
            problems.append(error)
    if not problems and not versions:
        problems.append(ConfigError("has no version; write v1.yaml", str(place)))
    if problems:
        raise joined(problems)
    return versions, None if release is None else _load_release(release, versions)


def _load_version(name: str, number: int, document: Document) -> PromptVersion:
    loaded = check(_VersionFile, document)
    problems: list[ConfigError] = []
    if loaded.version != number:
        message = f"says {loaded.version}, but the file is v{number}.yaml of prompt {name}"
        problems.append(document.error(message, ("version",)))
    for key in sorted(loaded.defaults.keys() & _OWN_KEYS.keys()):
        problems.append(document.error(_OWN_KEYS[key], ("defaults", key)))
    template: Template = ()
    schema = b""
    try:
        template = tuple(_parts(loaded.user_template))
    except ValueError as error:
        problems.append(document.error(str(error), ("user_template",)))
    if loaded.json_schema is not None:
        schema = orjson.dumps(loaded.json_schema)
        try:
            validator_of(schema)
        except ConfigError as error:
            problems.append(document.error(error.message, ("schema",)))
    if problems:
        raise joined(problems)
    matters = [name, loaded.model, loaded.min_quality, loaded.temperature, loaded.defaults, loaded.system, template]
    return PromptVersion(
        name=name,
        version=number,
        description=loaded.description,
        model=loaded.model,
        min_quality=loaded.min_quality,
        temperature=loaded.temperature,
        defaults=loaded.defaults,
        system=loaded.system,
        template=template,
        schema=schema,
        deprecated=loaded.deprecated,
        digest=_sha256([*matters, schema.decode()]),
    )


def _load_release(document: Document, versions: Mapping[int, PromptVersion]) -> Release:
    release = check(Release, document)
    known = ", ".join(str(number) for number in sorted(versions))
    problems: list[ConfigError] = []
    if release.stable not in versions:
        problems.append(document.error(f"there is no version {release.stable}; there are: {known}", ("stable",)))
    for number in release.trial:
        path = ("trial", str(number))
        if number not in versions:
            problems.append(document.error(f"there is no version {number}; there are: {known}", path))
        elif number == release.stable:
            problems.append(document.error("is the stable version, which cannot be on trial too", path))
        elif versions[number].deprecated:
            problems.append(document.error(f"version {number} is deprecated and cannot be on trial", path))
    total = sum(release.trial.values())
    if total > 1 + 1e-9:
        problems.append(document.error(f"the weights add up to {total:g}, more than 1", ("trial",)))
    if problems:
        raise joined(problems)
    return release


def _parts(template: str) -> Iterator[str | tuple[str]]:
    """Raises ValueError for a brace that is neither doubled nor around a plain name."""
    position = 0
    text = ""
    for hole in _HOLE.finditer(template):
        text += template[position : hole.start()]
        position = hole.end()
        if hole[2]:
            line = template.count("\n", 0, hole.start()) + 1
            near = shown(template[hole.start() :].partition("\n")[0][:30])
            raise ValueError(f"line {line} of the text: {near} is neither {{name}} nor a brace written twice")
        if hole[1] is None:
            text += hole[0][0]
            continue
        if text:
            yield text
        text = ""
        yield (hole[1],)
    text += template[position:]
    if text:
        yield text
