"""What every node of a cluster must have, asked of the nodes before any actor is made: this code, what it needs, the keys.

    survey(config) -> a short task on every node -> Found -> complaint() -> one line, or nothing

The task is carried to the nodes by value and imports nothing of ours, since what it looks for may not be there. An actor
may be restarted on any node, so one that lacks something is told of before it loses rows.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.errors import ClusterError, ConfigError
from actors.keys import FILE
from runtime.config import Config
from runtime.connection import first_line

__all__ = ["Found", "code_digest", "complaint", "survey"]

SURVEY_S = 60.0
MARKS = {"runtime": "connection.py", "actors": "lane.py"}
"""Our two packages, and a file of each that tells it from somebody's own of the same name."""
NEEDED = (
    "aiohappyeyeballs", "aiohttp", "aiolimiter", "genai_prices", "httptools", "jinja2", "jsonschema_rs", "openai", "orjson",
    "prometheus_client", "pydantic", "python_multipart", "rich", "starlette", "typer", "uvloop", "yaml", "zstandard",
)  # fmt: skip
"""The modules of the packages that pyproject.toml asks for, beside Ray's."""


class Found(NamedTuple):
    """What a node has."""

    node: str
    folders: Mapping[str, str]
    """Where our packages are; empty for one that is not there."""
    strange: tuple[str, ...]
    """Those that are somebody's own."""
    digest: str
    """Of the code in them; empty where there is none of ours."""
    lacking: tuple[str, ...]
    """Modules that are not there."""
    keyless: tuple[str, ...]
    """Variables with neither a key nor the path of a file that can be read."""


def _looker() -> Callable[..., dict[str, Any]]:
    """What looks. A function within a function is pickled by value; one of this module would have to be there already."""

    def look(marks: dict[str, str], needed: tuple[str, ...], variables: tuple[str, ...], file: str) -> dict[str, Any]:
        folders, strange, digest = {}, [], hashlib.sha256()
        for package, mark in marks.items():
            spec = find_spec(package)
            places = list(spec.submodule_search_locations or ()) if spec is not None else []
            folders[package] = places[0] if places else (spec.origin or "") if spec is not None else ""
            if spec is not None and not (Path(folders[package]) / mark).is_file():
                strange.append(package)
        if not strange and all(folders.values()):
            for package in sorted(marks):
                for source in sorted(Path(folders[package]).rglob("*.py")):
                    digest.update(source.name.encode() + b"\0" + source.read_bytes())
        keyless = []
        for name in variables:
            path = os.path.expanduser(os.environ.get(f"{name}{file}", ""))
            if not os.environ.get(name) and not (path and os.access(path, os.R_OK) and os.path.getsize(path)):
                keyless.append(name)
        return {
            "folders": folders,
            "strange": tuple(strange),
            "digest": digest.hexdigest() if not strange and all(folders.values()) else "",
            "lacking": tuple(name for name in needed if find_spec(name) is None),
            "keyless": tuple(keyless),
        }

    return look


@cache
def here() -> Found:
    """What this process has; read once."""
    return Found(node="here", **_looker()(MARKS, (), (), FILE))


def code_digest() -> str:
    """What tells this code from another version of it."""
    return here().digest


def complaint(found: Sequence[Found], ours: Found) -> str:
    """What is wrong with the nodes, in one line, or nothing. Pure."""
    wrongs = [_wrong(one, ours) for one in found]
    for one, wrong in zip(found, wrongs, strict=True):
        if wrong:
            more = f" and {wrongs.count(wrong) - 1} more" if wrongs.count(wrong) > 1 else ""
            return f"on the node {one.node}{more} {wrong}"
    return ""


def _wrong(one: Found, ours: Found) -> str:
    folders = " and ".join(sorted(one.folders.values()))
    if one.strange:
        own = one.folders[one.strange[0]]
        return (
            f"the package {one.strange[0]} is not raycade's but {own}, which hides it: rename that folder, or leave it "
            "out of the working directory"
        )
    if not one.digest:
        return (
            "raycade is not installed: install the version that you have here on every node, or submit a checkout with "
            "--working-dir"
        )
    if one.digest != ours.digest:
        return (
            f"raycade ({folders}) is another version than here ({' and '.join(sorted(ours.folders.values()))}): "
            "install the same on every node"
        )
    if one.lacking:
        return f"packages that raycade needs are not installed: {', '.join(one.lacking)}"
    if one.keyless:
        name = one.keyless[0]
        return (
            f"there is no key in {name}, where the tiers' actors look for it, nor in a file that {name}{FILE} names: set "
            f"one of them where Ray is started on every node, or {name}{FILE} in the job's runtime_env"
        )
    return ""


async def survey(config: Config) -> None:
    """Ask every node of the Ray that we are connected to. Raises ConfigError for what is wrong there."""
    variables = tuple(dict.fromkeys(tier.api_key_env for tier in config.tiers if tier.api_key_env))
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    look = ray.remote(num_cpus=0, max_retries=0)(_looker())

    async def ask(node: str) -> Found:
        there = look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        return Found(node=nodes[node], **await there.remote(MARKS, NEEDED, variables, FILE))

    try:
        async with asyncio.timeout(SURVEY_S):
            found = await asyncio.gather(*map(ask, nodes))
    except TimeoutError:
        raise ClusterError(f"the nodes of the cluster did not start a short task within {SURVEY_S:g} s") from None
    except RayError as error:
        raise ClusterError(f"a node of the cluster cannot run a short task: {first_line(error)}") from None
    if wrong := complaint(found, here()):
        raise ConfigError(wrong)
