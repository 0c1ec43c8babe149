"""The files below prompts/, read and checked: versions, and the release that says which of them are live.

    prompts/summarize/v1.yaml        a version: texts, request defaults, schema
    prompts/summarize/v2.yaml
    prompts/summarize/release.yaml   stable: 1, trial: {2: 0.1}, released: {1: sha256, 2: sha256}, history: [...]

Everything that is wrong is one line with file, line and key. A version is immutable from its release on: `released`
keeps its digest, and a file that does not have it any more is refused, since answers that are filed under a version
must be answers of that version. release.yaml is written by `raycade prompts` (runtime/prompts_release.py); one that was
written by hand is taken as well, and its versions are as good as drafts until the command has recorded them.

Templates: in `user_template`, `{name}` stands for a variable's text, `{{` and `}}` for braces; anything else in braces
is an error. `system` and the few-shot `messages` are plain text and taken as they are.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path as Folder
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import BeforeValidator, Field

from actors.errors import ConfigError
from actors.router.structured import validator_of
from actors.settings import Quality, Settings
from runtime.yaml_lines import Document, check, joined, read, shown

__all__ = ["RELEASE_FILE", "Change", "PromptVersion", "Release", "folder_of", "load_prompt", "load_release"]

RELEASE_FILE = "release.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_VERSION_FILE = re.compile(r"v([1-9][0-9]{0,5})\.yaml")
_HOLE = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}|([{}])")
_OWN_KEYS = {
    "messages": "is made of system, messages and user_template",
    "model": "has a key of its own: model",
    "temperature": "has a key of its own: temperature",
    "response_format": "is made of the key schema",
    "stream": "is chosen by the caller",
    "raycade": "is no field of a request",
}

Template = tuple[str | tuple[str], ...]
"""Literal texts, and names of variables in tuples of one."""

VersionKey = Annotated[int, BeforeValidator(lambda key: int(key) if re.fullmatch("[1-9][0-9]{0,5}", str(key)) else key)]
Weight = Annotated[float, Field(ge=0, le=1)]


class _Message(Settings):
    """One message of an example conversation, before the user's own."""

    role: Literal["user", "assistant"]
    content: str = Field(min_length=1)


class _Structured(Settings):
    """What a version says of its own about answers that do not satisfy its schema; None: as raycade.yaml says."""

    retries: int | None = Field(default=None, ge=0, le=10)
    escalate: bool | None = None


class _VersionFile(Settings):
    version: int = Field(ge=1)
    description: str = ""
    tags: list[str] = Field(default_factory=list)
    model: str | None = Field(default=None, min_length=1)
    min_quality: Quality | None = None
    temperature: float | None = Field(default=None, ge=0)
    defaults: dict[str, Any] = Field(default_factory=dict)
    system: str | None = None
    messages: list[_Message] = Field(default_factory=list)
    user_template: str = Field(min_length=1)
    variables: list[str] | None = None
    """What callers supply; None: whatever the template names."""
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    structured: _Structured = _Structured()
    deprecated: bool = False


class Change(Settings):
    """One line of a release's history: what was live from then on, and why."""

    at: str
    action: Literal["release", "rollback", "stopped"] = "release"
    """`stopped`: a trial that was worse, ended by itself."""
    reason: str
    stable: int = Field(ge=1)
    trial: dict[VersionKey, Weight] = Field(default_factory=dict)


class Release(Settings):
    """release.yaml: the version for everyone, and the share of units that get another one on trial."""

    stable: int = Field(ge=1)
    trial: dict[VersionKey, Weight] = Field(default_factory=dict)
    released: dict[VersionKey, str] = Field(default_factory=dict)
    """Digest of every version that was ever live."""
    history: list[Change] = Field(default_factory=list)

    @property
    def live(self) -> list[int]:
        return [self.stable, *sorted(self.trial)]


class PromptVersion(NamedTuple):
    name: str
    version: int
    description: str
    tags: tuple[str, ...]
    model: str | None
    """A tier's name or model: where the cascade starts."""
    min_quality: str | None
    temperature: float | None
    defaults: Mapping[str, Any]
    """Other fields of the request body, such as max_tokens."""
    system: str | None
    examples: tuple[tuple[str, str], ...]
    """Few-shot messages: role and text."""
    template: Template
    schema: bytes
    """JSON Schema that answers must satisfy; b"" means none."""
    retries: int | None
    escalate: bool | None
    deprecated: bool
    digest: str
    """SHA-256 over all that shapes an answer: not over description, tags, variables, deprecated and comments."""

    @property
    def ref(self) -> str:
        """`name@version`, as in output lines and in the coalescing key."""
        return f"{self.name}@{self.version}"

    @property
    def variables(self) -> frozenset[str]:
        """The names that the template uses."""
        return frozenset(part[0] for part in self.template if isinstance(part, tuple))


def folder_of(root: Folder, name: str) -> Folder:
    """The folder of a prompt. Raises ConfigError; a name that is no plain name never becomes a path."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"a prompt's name has letters, digits, '_' and '-' only, at most 64; found {shown(name)}")
    place = root / name
    if not place.is_dir():
        known = ", ".join(sorted(p.name for p in root.iterdir() if NAME.fullmatch(p.name) and p.is_dir())) or "none"
        raise ConfigError(f"there is no prompt {shown(name)}; there are: {known}", str(root))
    return place


def load_prompt(place: Folder, root: Folder) -> tuple[dict[int, PromptVersion], Release | None]:
    """All versions of one prompt, and its release if it has one. Raises ConfigError with one line a problem."""
    if not NAME.fullmatch(place.name):
        raise ConfigError("a prompt's name has letters, digits, '_' and '-' only, at most 64", str(place))
    versions: dict[int, PromptVersion] = {}
    released = False
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
            elif file.name == RELEASE_FILE:
                released = True
            else:
                raise ConfigError("expected v1.yaml, v2.yaml and so on, or release.yaml", str(file))
        except ConfigError as error:
            problems.append(error)
    if not problems and not versions:
        problems.append(ConfigError("has no version; write v1.yaml", str(place)))
    if problems:
        raise joined(problems)
    return versions, load_release(read(str(place / RELEASE_FILE)), versions, place) if released else None


def load_release(document: Document, versions: Mapping[int, PromptVersion], place: Folder) -> Release:
    """A release that fits the versions there are. Raises ConfigError with one line a problem."""
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
    for number, digest in release.released.items():
        if number in versions and versions[number].digest != digest:
            free = max(*versions, *release.released) + 1
            problems.append(
                ConfigError(
                    f"version {number} was released and has been edited since; put its text back "
                    f"(git checkout), and write the change as v{free}.yaml",
                    str(place / f"v{number}.yaml"),
                    1,
                )
            )
    if problems:
        raise joined(problems)
    return release


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
    if loaded.variables is not None:
        for part in dict.fromkeys(part for part in template if isinstance(part, tuple)):
            if part[0] not in loaded.variables:
                message = f"{{{part[0]}}} is supplied by nobody: it does not stand in `variables`"
                problems.append(document.error(message, ("user_template",)))
    if loaded.json_schema is not None:
        schema = orjson.dumps(loaded.json_schema)
        try:
            validator_of(schema)
        except ConfigError as error:
            problems.append(document.error(error.message, ("schema",)))
    if problems:
        raise joined(problems)
    examples = tuple((message.role, message.content) for message in loaded.messages)
    matters = {
        "name": name,
        "model": loaded.model,
        "min_quality": loaded.min_quality,
        "temperature": loaded.temperature,
        "defaults": loaded.defaults,
        "system": loaded.system,
        "messages": examples,
        "template": template,
        "schema": schema.decode(),
        "retries": loaded.structured.retries,
        "escalate": loaded.structured.escalate,
    }
    return PromptVersion(
        name=name,
        version=number,
        description=loaded.description,
        tags=tuple(loaded.tags),
        model=loaded.model,
        min_quality=loaded.min_quality,
        temperature=loaded.temperature,
        defaults=loaded.defaults,
        system=loaded.system,
        examples=examples,
        template=template,
        schema=schema,
        retries=loaded.structured.retries,
        escalate=loaded.structured.escalate,
        deprecated=loaded.deprecated,
        digest=_digest(matters),
    )


def _digest(matters: Mapping[str, Any]) -> str:
    """What is not said is left out, so that a key of a later version of raycade changes no digest that is on record."""
    said = {key: value for key, value in matters.items() if value is not None and value not in ("", (), {}, [])}
    return hashlib.sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS)).hexdigest()


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
