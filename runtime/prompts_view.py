"""What `raycade prompts list | show | diff | log | failures` print: the registry and the failure log, for people."""

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson
from rich import box
from rich.table import Table

from actors.errors import ConfigError, InputError
from actors.router.failures import FILES
from runtime.prompts import Registry
from runtime.prompts_files import PromptVersion, Release

__all__ = ["Reason", "diff", "failures", "history", "listing", "live", "shown_version"]

_VOLATILE = re.compile(r", found .*$|\d+|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")


def listing(registry: Registry) -> Table:
    """A line for each prompt: what is live, what there is, what it is for."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for title in ("prompt", "stable", "on trial", "versions", "description"):
        table.add_column(title)
    for name in registry.names:
        versions = registry.versions(name)
        try:
            release = registry.release(name)
        except InputError:
            stable, trial, of = "-", "", max(versions)
        else:
            stable, trial, of = str(release.stable), _trials(release), release.stable
        numbers = ", ".join(f"{number}{_mark(version)}" for number, version in sorted(versions.items()))
        table.add_row(name, stable, trial or "-", numbers, versions[of].description)
    return table


def _mark(version: PromptVersion) -> str:
    return " (deprecated)" if version.deprecated else ""


def _trials(release: Release) -> str:
    return ", ".join(f"{number} ({weight:.3g})" for number, weight in sorted(release.trial.items()))


def live(name: str, release: Release) -> str:
    """`summarize: version 1 for everyone but 2 (0.1) on trial`."""
    trial = f", on trial: {_trials(release)}" if release.trial else ", nothing on trial"
    return f"{name}: stable is version {release.stable}{trial}"


def shown_version(version: PromptVersion) -> str:
    """All that a version is, as text; also what `diff` compares."""
    parts = [f"version: {version.version}"]
    if version.description:
        parts.append(f"description: {version.description}")
    if version.tags:
        parts.append(f"tags: {', '.join(version.tags)}")
    if version.deprecated:
        parts.append("deprecated: true")
    for title, value in (
        ("model", version.model),
        ("min_quality", version.min_quality),
        ("temperature", version.temperature),
        ("retries", version.retries),
        ("escalate", version.escalate),
    ):
        if value is not None:
            parts.append(f"{title}: {orjson.dumps(value).decode()}")
    if version.defaults:
        parts.append(f"defaults: {orjson.dumps(version.defaults).decode()}")
    if version.variables:
        parts.append(f"variables: {', '.join(sorted(version.variables))}")
    parts.append(f"digest: {version.digest}")
    text = "".join(part if isinstance(part, str) else f"{{{part[0]}}}" for part in version.template)
    for role, content in (("system", version.system), *version.examples, ("user", text)):
        if content:
            parts.append(f"\n[{role}]\n{content.rstrip()}")
    if version.schema:
        parts.append(f"\n[schema]\n{orjson.dumps(orjson.loads(version.schema), option=orjson.OPT_INDENT_2).decode()}")
    return "\n".join(parts)


def diff(old: PromptVersion, new: PromptVersion) -> Iterator[str]:
    """Lines of a unified diff; none when nothing differs."""
    texts = (shown_version(old).splitlines(), shown_version(new).splitlines())
    return difflib.unified_diff(*texts, old.ref, new.ref, lineterm="")


def history(release: Release) -> Iterator[str]:
    """A line for each change, the latest first."""
    for change in reversed(release.history):
        trial = "".join(f", {number} on trial ({weight:.3g})" for number, weight in sorted(change.trial.items()))
        yield f"{change.at}  {change.action:<8}  stable {change.stable}{trial}: {change.reason}"


class Reason(NamedTuple):
    """Refused replies that were refused alike."""

    replies: int
    prompts: dict[str, int]
    tiers: dict[str, int]
    first: str
    last: str
    error: str
    """Of the last one, in full."""
    reply: str
    """The last one."""


def failures(state_dir: str, name: str | None, version: int | None) -> list[Reason]:
    """The failure log of this machine, grouped by reason, the most frequent first. Raises ConfigError."""
    groups: dict[str, list[dict[str, Any]]] = {}
    counts: Counter[str] = Counter()
    prompts: dict[str, Counter[str]] = {}
    tiers: dict[str, Counter[str]] = {}
    for line in _logged(state_dir):
        prompt = str(line.get("prompt", ""))
        if name is not None and prompt.partition("@")[0] != name:
            continue
        if version is not None and prompt != f"{name}@{version}":
            continue
        reason = " & ".join(sorted({_VOLATILE.sub("…", str(error)) for error in line.get("errors", ["?"])}))
        counts[reason] += 1
        prompts.setdefault(reason, Counter())[prompt or "(no prompt)"] += 1
        tiers.setdefault(reason, Counter())[str(line.get("tier", ""))] += 1
        held = groups.setdefault(reason, [line, line])
        held[1] = line
    return [
        Reason(
            count,
            dict(prompts[reason]),
            dict(tiers[reason]),
            str(groups[reason][0].get("at", "")),
            str(groups[reason][1].get("at", "")),
            "; ".join(str(error) for error in groups[reason][1].get("errors", [])),
            str(groups[reason][1].get("reply", "")),
        )
        for reason, count in counts.most_common()
    ]


def _logged(state_dir: str) -> Iterator[dict[str, Any]]:
    for file in FILES:
        path = os.path.join(state_dir, file)
        try:
            with open(path, "rb") as stream:
                for text in stream:
                    try:
                        line = orjson.loads(text)
                    except orjson.JSONDecodeError:
                        continue  # torn by a full disk
                    if isinstance(line, dict):
                        yield line
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", path) from None
