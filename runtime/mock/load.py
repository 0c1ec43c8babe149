"""Find a scenario by name or file and check it; every fault is one line with its place."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from actors.errors import ConfigError
from runtime.mock.scenario import Scenario

__all__ = ["builtin_names", "load_scenario", "parse_scenario"]

_BUILTIN = Path(__file__).with_name("scenarios")


def builtin_names() -> list[str]:
    return sorted(path.stem for path in _BUILTIN.glob("*.yaml"))


def load_scenario(name_or_file: str | Path) -> Scenario:
    """A built-in scenario's name, or the path of a YAML file. Raises ConfigError."""
    text = str(name_or_file)
    path = _BUILTIN / f"{text}.yaml" if text in builtin_names() else Path(text)
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no scenario or file {text!r}; built in: {', '.join(builtin_names())}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"cannot be read: {reason}", file=text) from None
    return parse_scenario(source, str(path))


def parse_scenario(source: str, file: str) -> Scenario:
    """`file` is what errors name as their place."""
    try:
        tree = yaml.compose(source, Loader=yaml.SafeLoader)
        value = yaml.safe_load(source)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(str(problem), file=file, line=mark.line + 1 if mark else 0) from None
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError("a scenario is a mapping with the keys seed, require_key and tiers", file=file, line=1)
    try:
        return Scenario.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = first["loc"]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key"
        key = ".".join(str(part) for part in place)
        raise ConfigError(message, file=file, line=_line(tree, place), key=key) from None


def _line(node: yaml.Node | None, place: Sequence[str | int]) -> int:
    """Line of the deepest part of `place` that stands in the file."""
    line = node.start_mark.line + 1 if node is not None else 0
    for part in place:
        if isinstance(node, yaml.MappingNode):
            entry = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if entry is None:
                return line
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
