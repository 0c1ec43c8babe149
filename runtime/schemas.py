"""`--schema`: a JSON Schema from a file, or from a pydantic class of the user's.

The result is bytes, encoded once, that travel with every request of the job. The order of properties is kept as
written: models write their answers in that order, so a `reasoning` that stands before `verdict` must stay there.
"""

import importlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import orjson
from pydantic import BaseModel

from actors.errors import ConfigError
from actors.router.structured import Parsed, parse_reply, validator_of

__all__ = ["load_schema", "schema_of"]

_CLASS = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")


def load_schema(spec: str) -> bytes:
    """The schema that `file.json` or `module:Class` names, checked. Raises ConfigError, one line.

    A module is imported as `python -m` would from the current folder: that runs the user's own code, here and nowhere
    else.
    """
    found = _CLASS.fullmatch(spec)
    if found and not os.path.exists(spec):
        schema = _of_class(spec, found["module"], found["name"])
    elif os.path.exists(spec) or spec.endswith(".json"):
        schema = _of_file(spec)
    else:
        raise ConfigError(f"expected file.json or module:Class, found {spec[:60]!r}", key="schema")
    try:
        validator_of(schema)
    except ConfigError as error:
        problem = error.message
    else:
        return schema
    raise ConfigError(problem, spec, key="schema")


def schema_of(model: type[BaseModel]) -> bytes:
    """The schema of a pydantic class that a program has at hand. Raises ConfigError for one that JSON cannot say."""
    try:
        schema = orjson.dumps(model.model_json_schema())
    except Exception as error:  # pydantic's own, and whatever the class's hooks raise
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    else:
        validator_of(schema)
        return schema
    raise ConfigError(f"{model.__name__} has no JSON Schema: {problem}")


def _of_file(file: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            text = stream.read().strip(b"\xef\xbb\xbf \t\r\n")
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    else:
        # The parser of replies, since it refuses duplicate keys; its tolerance for prose is not wanted in a file.
        parsed = parse_reply(text)
        if isinstance(parsed, Parsed) and parsed.value == text:
            return orjson.dumps(orjson.loads(text))
        reason = "prose around it" if isinstance(parsed, Parsed) else parsed.reason.replace("the reply", "the file", 1)
        problem = f"not JSON: {reason}"
    raise ConfigError(problem, file, key="schema")


def _of_class(spec: str, module: str, name: str) -> bytes:
    try:
        with _current_folder_first():
            model: object = importlib.import_module(module)
        for part in name.split("."):
            model = getattr(model, part)
        if isinstance(model, type) and issubclass(model, BaseModel):
            return orjson.dumps(model.model_json_schema())
        problem = "is not a pydantic model (a class derived from pydantic.BaseModel)"
    except AttributeError as error:
        problem = f"has no such class: {error}"
    except ModuleNotFoundError as error:
        problem = f"there is no module {error.name!r} that Python can import from here"
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        problem = f"cannot be imported: {type(error).__name__}: {error}"
    raise ConfigError(" ".join(problem.split())[:300], spec, key="schema")


@contextmanager
def _current_folder_first() -> Iterator[None]:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
