"""The prompt of one batch job: the release it began with, the trials it stops, the rows it does again.

A job keeps its release whatever happens to release.yaml meanwhile, over resumes too: `OUT.journal/prompt.json` holds it
from before the first row on, with the digests of its versions, so that a row gets the same version in every run of the
job. Two things change what new rows get, and both are written there before they hold:

    a trial that was stopped   its rows go to the stable version from then on; rows that are done stay as they are
    --redo prompt=NAME@V       the job takes the release that is live now, and the lines that NAME@V made are taken out of
                               OUT and ERRORS, so that their rows are rows to do like any other

`redo` is the one thing that takes lines away. It writes each file anew beside the old one, all other lines byte for byte
and in their order, and puts it in the old one's place; what was taken out is kept in `OUT.journal/replaced.jsonl`. The
order (release and intent first, then the files) makes it safe to kill: the next run of the job, with or without --redo, ends
what was begun before it looks at any row.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import orjson

from actors.errors import ConfigError, InputError
from runtime.batch.journal import replace_file, sync_folder
from runtime.config import PromptSettings
from runtime.prompts import PromptVersion, Registry, Rendered, load_prompts, parse_ref, pick, rendered, variables_of
from runtime.prompts_release import stop_trial
from runtime.prompts_trial import TrialWatch

__all__ = ["JobPrompt", "PromptWatch", "prompt_of_line"]

FILE = "prompt.json"
REPLACED = "replaced.jsonl"
WORSE = frozenset({"invalid_output", "bad_request", "content_filter", "context_length"})
"""Failures that a prompt may bring about."""


@dataclass(frozen=True)
class _Record:
    """What prompt.json holds."""

    prompt: str
    pinned: int | None
    stable: int
    trial: dict[str, float]
    digests: dict[str, str]
    stopped: dict[str, str] = field(default_factory=dict)
    """Trials that were ended by this job, with the reason."""
    redo: str = ""
    """`name@version` whose lines are to be taken out."""
    seen: dict[str, list[float]] = field(default_factory=dict)
    """What the sequential test has seen."""


class PromptWatch(Protocol):
    """What is told of rows that have ended: a job's one prompt, or those of a gateway's batch."""

    def observe(self, ref: str, refused_replies: int, failed: str, cost_usd: float) -> list[str]: ...

    def checkpoint(self) -> None: ...


class JobPrompt:
    """`--prompt NAME[@V]` of one job. Made before the job is opened, `attach`ed to its journal before any row is read."""

    def __init__(self, ref: str, settings: PromptSettings, registry: Registry | None = None) -> None:
        """`registry`: what is live; None: what the files say now. Raises ConfigError for a prompt that cannot be used."""
        try:
            self.name, self._pinned = parse_ref(ref)
            self._registry = registry or load_prompts(settings.dir, only=self.name)
            if self._pinned is not None:
                self._registry.version(self.name, self._pinned)
                stable, trial = self._pinned, dict[int, float]()
            else:
                release = self._registry.release(self.name)
                stable, trial = release.stable, release.trial
        except InputError as error:  # an unknown name or version is a usage error, not a row's
            raise ConfigError(error.message, key="--prompt") from None
        except ConfigError as error:
            raise ConfigError(error.message, error.file, error.line, error.key or "--prompt") from None
        self._settings = settings
        self._place: Path | None = None
        self.taken_out = 0
        """Lines that `attach` has taken out: their rows are to be done again."""
        self._take(self._record(stable, trial))

    @property
    def variables(self) -> frozenset[str]:
        """What rows may bring, whichever version they get."""
        return variables_of(self._registry, self.name)

    @property
    def identity(self) -> str:
        """What tells jobs apart: another release or version of the same prompt is refused by `attach`, in better words."""
        return f"prompt={self.name}"

    def _record(self, stable: int, trial: Mapping[int, float]) -> _Record:
        digests = {str(number): self._version(number).digest for number in (stable, *trial)}
        weights = {str(number): weight for number, weight in trial.items()}
        return _Record(self.name, self._pinned, stable, weights, digests)

    def _version(self, number: int) -> PromptVersion:
        return self._registry.version(self.name, number)

    def _take(self, record: _Record) -> None:
        self._kept = record
        self._trial = {int(number): weight for number, weight in record.trial.items()}
        self._stopped = {int(number) for number in record.stopped}
        trial = self._settings.trial
        watched = self._trial if trial.stop else {}
        self._watch = TrialWatch(record.stable, watched, trial.alpha, trial.cost_tolerance)
        self._watch.restore(record.seen)
        for number in self._stopped:
            self._watch.stop(number)

    # ------------------------------------------------------------------ the journal

    def attach(self, folder: Path, files: tuple[str, str], redo: str | None) -> None:
        """Take up the job's own release, or make today's its own; end a redo. Raises ConfigError.

        `files`: OUT and ERRORS. The journal's lock is held and no line has been counted yet.
        """
        self._place = folder / FILE
        kept = self._read(self._place)
        if kept is None and any(os.path.exists(file) and os.path.getsize(file) for file in files):
            raise ConfigError("the job's journal does not say which release it began with; start over with --fresh")
        if redo is not None:
            kept = self._adopted(redo, kept)
        if kept is None:
            kept = self._kept
        else:
            self._check(kept)
        self._take(kept)
        self._save()
        if kept.redo:
            self.taken_out = sum(_take_out(file, kept.redo, folder) for file in files)
            self._take(replace(kept, redo=""))
            self._save()

    def _adopted(self, redo: str, kept: _Record | None) -> _Record:
        """The release that is live now, with the intent to take out what the bad version made."""
        kind, _, ref = redo.partition("=")
        name, number = parse_ref(ref)
        if kind != "prompt" or number is None or name != self.name:
            raise ConfigError(f"expected prompt={self.name}@VERSION, found {redo[:80]!r}", key="--redo")
        if kept is None:
            raise ConfigError("there is no job here yet whose rows could be done again", key="--redo")
        new = self._record(self._kept.stable, self._trial)
        if new.digests.get(str(number)) is not None and new.digests.get(str(number)) == kept.digests.get(str(number)):
            if kept.redo == ref:
                return kept  # begun by a run that was killed
            way = f"raycade prompts rollback {name}" if self._pinned is None else f"--prompt {name}@V"
            raise ConfigError(
                f"{ref} would make these rows again; take it away first ({way}), or leave out --redo to go on",
                key="--redo",
            )
        for version, digest in kept.digests.items():
            if version != str(number) and new.digests.get(version, digest) != digest:
                raise ConfigError(f"{name}@{version} has been edited since it made rows of this job", key="--redo")
        return replace(new, digests={**kept.digests, **new.digests}, redo=ref)

    def _check(self, kept: _Record) -> None:
        if kept.pinned != self._pinned:
            was, now = (f"{self.name}@{v}" if v is not None else self.name for v in (kept.pinned, self._pinned))
            raise ConfigError(
                f"this job was begun with --prompt {was}, not {now}; give the old one to resume, another -o, "
                "--redo prompt=NAME@V to do rows of a bad version again, or --fresh to start over",
                key="--prompt",
            )
        for version in {str(kept.stable), *kept.trial}:
            try:
                digest = self._version(int(version)).digest
            except InputError as error:
                raise ConfigError(f"{error.message}; this job was begun with it", key="--prompt") from None
            if digest != kept.digests.get(version):
                raise ConfigError(
                    f"{self.name}@{version} has been edited since this job began; put its text back and write the change "
                    "as a new version, or start over with --fresh",
                    key="--prompt",
                )

    def _read(self, place: Path) -> _Record | None:
        try:
            return _Record(**orjson.loads(place.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise ConfigError("is damaged; start over with --fresh", str(place)) from None

    def _save(self) -> None:
        if self._place is not None:
            replace_file(self._place, orjson.dumps(asdict(self._kept), option=orjson.OPT_INDENT_2) + b"\n")

    def checkpoint(self) -> None:
        """Keep what the sequential test has seen. What a kill loses of it is lost whatever the rows were like."""
        if self._trial:
            self._kept = replace(self._kept, seen=self._watch.state())
            self._save()

    # ------------------------------------------------------------------ rows

    def render(self, custom_id: str, variables: Mapping[str, Any]) -> Rendered:
        """The request of a row. Raises InputError."""
        number = pick(self.name, custom_id, self._kept.stable, self._trial)
        version = self._version(self._kept.stable if number in self._stopped else number)
        return rendered(version, variables)

    def observe(self, ref: str, refused_replies: int, failed: str, cost_usd: float) -> list[str]:
        """Take in a row that has ended: a line for each trial that this stops."""
        number = int(ref.rpartition("@")[2]) if self._trial and ref else 0
        if number != self._kept.stable and number not in self._trial:
            return []
        worse = bool(refused_replies) or failed in WORSE
        return [self._stop(*found) for found in self._watch.observe(number, worse, cost_usd)]

    def _stop(self, version: int, reason: str) -> str:
        self._stopped.add(version)
        self._kept = replace(self._kept, stopped={**self._kept.stopped, str(version): reason})
        said = f"stopped the trial of {self.name}@{version}: {reason}"
        try:
            self.checkpoint()
            if not stop_trial(self._settings.dir, self.name, version, f"stopped by itself: {reason}"):
                said += "; release.yaml had it on trial no longer"
        except (ConfigError, OSError) as error:
            said += f"; in this job only, since release.yaml could not be changed: {error}"
        return said


def prompt_of_line(line: dict[str, Any]) -> str:
    """`name@version` in a line of OUT or ERRORS; "" when it was made by none."""
    extra = line.get("raycade")
    if not isinstance(extra, dict):
        body = (line.get("response") or {}).get("body")
        extra = body.get("raycade") if isinstance(body, dict) else None
    ref = extra.get("prompt") if isinstance(extra, dict) else None
    return ref if isinstance(ref, str) else ""


def _take_out(path: str, ref: str, folder: Path) -> int:
    """Write the file anew without the lines that a version made, which go to `replaced.jsonl`; how many they were."""
    if not os.path.exists(path) or not any(True for _ in _made_by(path, ref)):
        return 0
    draft = f"{path}.redo.tmp"
    count = 0
    try:
        with open(path, "rb") as old, open(draft, "wb") as new, open(folder / REPLACED, "ab") as replaced:
            shutil.copymode(path, draft)
            at = 0
            for start, end in _made_by(path, ref):
                _copy(old, new, at, start)
                _copy(old, replaced, start, end)
                at, count = end, count + 1
            _copy(old, new, at, os.fstat(old.fileno()).st_size)
            for file in (replaced, new):
                file.flush()
                os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.remove(folder / "checkpoint")  # it speaks of the old file
        os.replace(draft, path)
        sync_folder(os.path.dirname(path) or ".")
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(draft)
        raise ConfigError(f"cannot be written anew: {error.strerror}", path) from None
    return count


def _made_by(path: str, ref: str) -> Iterator[tuple[int, int]]:
    """Where the lines lie that a version made. A torn last line is none: recovery cuts it off."""
    mark = orjson.dumps(ref)
    at = 0
    with open(path, "rb") as file:
        for line in file:
            end = at + len(line)
            if mark in line and line.endswith(b"\n"):
                with contextlib.suppress(orjson.JSONDecodeError):
                    if prompt_of_line(orjson.loads(line)) == ref:
                        yield at, end
            at = end


def _copy(source: Any, target: Any, start: int, end: int) -> None:
    source.seek(start)
    while start < end:
        block = source.read(min(1 << 20, end - start))
        target.write(block)
        start += len(block)
