"""YAML that knows its lines: read a file safely, check it with pydantic, and say in one line each what is wrong where.

raycade.yaml and the files below prompts/ are read through here. `parse` gives a `Document`: plain values plus the
line of every key and item; `check` turns it into a pydantic model or raises a ConfigError whose text has one line a
problem, such as `raycade.yaml:12: tiers[1].price.prompt: expected a number >= 0, found 'abc'`.

Three choices that differ from PyYAML's own loader:
- Scalars follow YAML 1.2, where `off` is a word and not a boolean and `10:30` is no number: a setting must not change
  its type behind its writer's back. NaN and infinity stay words, so no number field can take them.
- Tags are refused, and aliases are walked with a bound on depth and on nodes: a small file cannot become a large one.
- No message shows a value that may be a secret: values below unknown or key-like names, or that look like a key.
"""

import difflib
import math
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from actors.errors import ConfigError

__all__ = ["Document", "Path", "check", "joined", "looks_secret", "parse", "read", "shown", "shown_path"]

Path = tuple[str | int, ...]
"""Where a value stands: keys and list indexes from the top."""

MAX_BYTES = 512 * 1024
MAX_DEPTH = 64
MAX_NODES = 50_000
SHOWN_CHARS = 60

M = TypeVar("M", bound=BaseModel)

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)\Z")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}
_SECRET_NAME = re.compile(r"key|secret|passw|credential|authori[sz]ation|bearer|token$|headers?$", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9_])(?i:sk|pk|rk|gsk|xai|hf|r8|pplx|ghp|gho|glpat|nvapi)[-_]"
    r"|(?<![A-Za-z0-9])(?:AIza|AKIA|ASIA|eyJ)[A-Za-z0-9]"
    r"|(?i:\bbearer\s)|://[^/\s]*@|[A-Fa-f0-9]{32}"
)
_LONG_RUN = re.compile(r"[A-Za-z0-9_-]{20,}")


class Document(NamedTuple):
    """A YAML file as plain values, and the line on which each key or item stands."""

    file: str
    value: Any
    lines: dict[Path, int]

    def line(self, path: Path) -> int:
        """Line of the key, or of the nearest thing around it."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 1)

    def error(self, message: str, path: Path = ()) -> ConfigError:
        return ConfigError(message, self.file, self.line(path), shown_path(path))


def read(file: str) -> Document:
    """Parse the file at a path. Raises ConfigError, also for a file that cannot be opened."""
    problem = ""
    data = b""
    try:
        with open(file, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        problem = error.strerror or "it cannot be read"
    if problem:
        raise ConfigError(f"cannot be read: {problem}", file)
    return parse(data, file)


def parse(data: bytes, file: str) -> Document:
    """Plain values (mappings have text keys) with their lines. Raises ConfigError; constructs nothing by tag."""
    if len(data) > MAX_BYTES:
        raise ConfigError(f"larger than {MAX_BYTES // 1024} KiB; that is no file for people", file)
    node, error = _composed(data, file)
    if error is not None:
        raise error
    if node is None:
        raise ConfigError("the file is empty", file, 1)
    builder = _Builder(file)
    value = builder.build(node, (), 0)
    if builder.problems:
        raise joined(builder.problems)
    return Document(file, value, builder.lines)


def check(model: type[M], document: Document, hints: Mapping[str, str] | None = None) -> M:
    """The document as a model, strictly typed. `hints`: by field name, what to expect in words. Raises ConfigError."""
    problems: list[ConfigError] = []
    if not isinstance(document.value, dict):
        problems.append(document.error(f"expected keys and values at the top{_found(document.value, ())}"))
    else:
        try:
            return model.model_validate(document.value, strict=True)
        except ValidationError as error:
            problems.extend(_explained(error, model, document, hints or {}))
    # Raised outside the handler, so that no traceback shows pydantic's own text, which holds the input.
    raise joined(problems)


def joined(problems: Iterable[ConfigError]) -> ConfigError:
    """One error for several: its text has a line for each, and its file, line and key are those of the first."""
    first, *rest = sorted(problems, key=lambda problem: problem.line)
    message = "\n".join([first.message, *(str(problem) for problem in rest)])
    return ConfigError(message, first.file, first.line, first.key)


def looks_secret(text: str) -> bool:
    """Whether a text resembles an API key. Errs on the side of silence: the message still has its line."""
    if _SECRET_VALUE.search(text):
        return True
    return any(
        re.search("[0-9]", run) and re.search("[a-z]", run) and re.search("[A-Z]", run)
        for run in _LONG_RUN.findall(text)
    )


def shown(value: object) -> str:
    """A value as a message shows it: bounded, one line, and nothing that looks like a key."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        if looks_secret(value):
            return "a text that is not shown here"
        text = repr(value)
        return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"
    return str(value)[:SHOWN_CHARS]


def shown_path(path: Path) -> str:
    """`tiers[1].price.prompt`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + _shown_key(step)
    return text


def _shown_key(key: str) -> str:
    if looks_secret(key):
        return "(a key that is not shown here)"
    key = key if key.isprintable() else repr(key)
    return key if len(key) <= SHOWN_CHARS else key[: SHOWN_CHARS - 1] + "…"


# Reading.


class _Refused(yaml.MarkedYAMLError):
    """What we refuse although it is YAML."""


class _Loader(yaml.SafeLoader):
    """Composes nodes with a bound on depth and without tags; values are built by `_Builder`, never by constructors."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise _Refused(problem="tags (`!...`) are not allowed", problem_mark=event.start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Refused(problem=f"nested deeper than {MAX_DEPTH}", problem_mark=event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _composed(data: bytes, file: str) -> tuple[yaml.Node | None, ConfigError | None]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return None, ConfigError("not UTF-8 text", file, data.count(b"\n", 0, error.start) + 1)
    try:
        return _Loader(text).get_single_node(), None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or "cannot be understood"
        if problem.startswith("but "):
            problem = f"{error.context}, {problem}"
        if not isinstance(error, _Refused):
            problem = f"not valid YAML: {' '.join(problem.split())[:200]}"
        if looks_secret(problem):
            problem = "not valid YAML"
        return None, ConfigError(problem, file, mark.line + 1 if mark else 1)
    except yaml.reader.ReaderError as error:
        return None, ConfigError(
            "a character that may not stand in YAML", file, text.count("\n", 0, error.position) + 1
        )
    except (ValueError, OverflowError):  # PyYAML lets those of an escape such as "\UFFFFFFFF" through
        return None, ConfigError("not valid YAML", file, 1)


class _Builder:
    """Nodes -> plain values, noting each path's line."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Path, int] = {}
        self.problems: list[ConfigError] = []
        self.nodes = 0

    def build(self, node: yaml.Node, path: Path, depth: int) -> Any:
        self._count(node, path, depth)
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        self._whole(node, path)
        return _scalar(node.value) if node.style is None else node.value

    def _count(self, node: yaml.Node, path: Path, depth: int) -> None:
        """Ends the walk when it grows too large: an alias may stand for thousands of nodes, or for itself."""
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            line = node.start_mark.line + 1
            raise ConfigError("aliases make this file too large or endless", self.file, line, shown_path(path[:4]))

    def _whole(self, node: yaml.ScalarNode, path: Path) -> None:
        """Escapes can write half a character, which no JSON encoder takes later on."""
        if _SURROGATE.search(node.value):
            line = node.start_mark.line + 1
            self.problems.append(ConfigError("holds half a character (a surrogate)", self.file, line, shown_path(path)))

    def _mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, (line, value_node) in self._pairs(node, path, depth).items():
            self.lines[(*path, key)] = line
            mapping[key] = self.build(value_node, (*path, key), depth + 1)
        return mapping

    def _pairs(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[str, tuple[int, yaml.Node]]:
        """Keys with line and value. `<<: *anchor` adds the keys of another mapping that this one does not have."""
        self._count(node, path, depth)
        pairs: dict[str, tuple[int, yaml.Node]] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(ConfigError("a key must be a word", self.file, line, shown_path(path)))
            elif key_node.value == "<<" and key_node.style is None:
                merged.extend(value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node])
            elif key_node.value in pairs:
                first = pairs[key_node.value][0]
                where = shown_path((*path, key_node.value))
                self.problems.append(ConfigError(f"stands twice, first on line {first}", self.file, line, where))
            else:
                self._whole(key_node, path)
                pairs[key_node.value] = (line, value_node)
        for source in merged:
            if isinstance(source, yaml.MappingNode):
                pairs = self._pairs(source, path, depth + 1) | pairs
            else:
                line = source.start_mark.line + 1
                self.problems.append(ConfigError("`<<` takes mappings only", self.file, line, shown_path(path)))
        return pairs


def _scalar(text: str) -> str | int | float | bool | None:
    if text in _WORDS:
        return _WORDS[text]
    if len(text) <= 64:
        if _INT.match(text) and abs(whole := int(text.replace("_", ""))) < 1 << 63:
            return whole
        if _FLOAT.match(text) and not re.match(r"[-+]?0[0-9]", text) and math.isfinite(number := _float(text)):
            return number
    return text


def _float(text: str) -> float:
    return float(text.replace("_", ""))


# Explaining.


def _explained(
    error: ValidationError, model: type[BaseModel], document: Document, hints: Mapping[str, str]
) -> Iterator[ConfigError]:
    """One problem a path: what pydantic says about each member of a union is about one and the same value."""
    done: set[Path] = set()
    for detail in error.errors(include_url=False):
        location: Path = detail["loc"]
        path = location
        while path and path not in document.lines:
            path = path[:-1]
        if detail["type"] == "missing":
            path = location
        if path in done:
            continue
        done.add(path)
        yield document.error(_message(detail, model, document, path, hints), path)


def _message(detail: Any, model: type[BaseModel], document: Document, path: Path, hints: Mapping[str, str]) -> str:
    kind = detail["type"]
    name = str(path[-1]) if path else ""
    if kind == "missing":
        return "this key is missing"
    if kind == "extra_forbidden":
        known = _keys_at(model, path[:-1])
        near = difflib.get_close_matches(name, known, 1, 0.6)
        return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known here: {', '.join(known)}"
    value = _value_at(document.value, path)
    if "[key]" in detail["loc"]:
        return "this name is not allowed here"
    if kind in ("value_error", "assertion_error"):
        return f"{detail['ctx']['error']}{_found(value, path)}"
    expected = hints.get(name) or _expected(*_field_at(model, path), name)
    found = _found(value, path)
    if expected == "text" and isinstance(value, bool | int | float):
        found += " (put it in quotes)"
    if kind in ("string_too_short", "too_short"):
        return f"expected {expected}, found nothing in it"
    return f"expected {expected}{found}"


def _found(value: object, path: Path) -> str:
    secret = any(isinstance(step, str) and _SECRET_NAME.search(step) for step in path[-2:])
    if isinstance(value, str) and (secret or looks_secret(value)):
        return ""
    return f", found {shown(value)}"


def _value_at(value: Any, path: Path) -> Any:
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _field_at(model: Any, path: Path) -> tuple[Any, list[Any]]:
    """The annotation at a path, with its constraints."""
    annotation, constraints = model, list[Any]()
    for step in path:
        annotation, constraints = _below(annotation, step) or (Any, [])
    return annotation, constraints


def _keys_at(model: type[BaseModel], path: Path) -> list[str]:
    for member in _members(_field_at(model, path)[0]):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return [field.alias or name for name, field in member.model_fields.items()]
    return []


def _below(annotation: Any, step: str | int) -> tuple[Any, list[Any]] | None:
    for member in _members(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if isinstance(member, type) and issubclass(member, BaseModel):
            for name, field in member.model_fields.items():
                if step == (field.alias or name):
                    return field.annotation, list(field.metadata)
        elif origin in (list, tuple) and isinstance(step, int):
            return arguments[0], []
        elif origin is dict:
            return arguments[1], []
    return None


def _members(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _members(argument)
    elif annotation is not type(None):
        yield annotation


def _expected(annotation: Any, constraints: list[Any], name: str) -> str:
    """An annotation in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [
            part for extra in arguments[1:] for part in (extra.metadata if isinstance(extra, FieldInfo) else [extra])
        ]
        return _expected(arguments[0], [*inner, *constraints], name)
    if origin in (Union, types.UnionType):
        return " or ".join(_expected(each, constraints, name) for each in arguments if each is not type(None))
    if origin is Literal:
        *others, last = (repr(each) for each in arguments)
        return f"{', '.join(others)} or {last}" if others else last
    if annotation is bool:
        return "true or false"
    if annotation in (int, float):
        noun = "a whole number" if annotation is int else "a number"
        return noun + (" of seconds" if name.endswith("_s") else "") + _range(constraints)
    if annotation is str:
        return "text"
    if list in (origin, annotation) or tuple in (origin, annotation):
        return "a list"
    if dict in (origin, annotation) or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "keys and values"
    return "another value"


def _range(constraints: list[Any]) -> str:
    bounds = {
        sign: getattr(each, sign) for each in constraints for sign in ("ge", "gt", "le", "lt") if hasattr(each, sign)
    }
    if "ge" in bounds and "le" in bounds:
        return f" from {bounds['ge']} to {bounds['le']}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return " and".join(f" {signs[sign]} {bound}" for sign, bound in bounds.items())
