"""What can be told to be wrong with a submitted job before Ray is joined, or anything is spent. Rules only: no Ray.

    ray job submit --working-dir . -- python -m runtime batch ...

runs the command on a node of the cluster, in a copy of the folder. The copy has not all files (git's and Ray's ignore
files leave some out), Ray removes it some time after the job, and the job's runtime_env stands on the dashboard for all
to read. What every node must have is asked of the nodes, in runtime/nodes.py.
"""

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from actors.errors import ConfigError
from actors.keys import FILE
from actors.settings import Limits
from runtime.batch.remote import is_url
from runtime.config import Config

__all__ = ["check_exposed", "check_ledger", "check_submitted", "grace_s", "joins"]

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray tells the command of a submitted job what was submitted with it."""
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
STOP_WAIT_S = 3.0
"""What Ray leaves a job that is stopped before it kills it, where the variable does not say otherwise."""
CLOSING_S = 2.0
"""Of that for letting go of the cluster, and telling how far the job came."""
SHORTEST_KEY = 8
"""Less is a word like `none`, given where no key is needed."""
_COPY = re.compile(r"(.*/runtime_resources/working_dir_files/[^/]+)(?:/|$)")
"""Where Ray unpacks a working directory on a node."""


def joins(address: str | None, environ: Mapping[str, str]) -> bool:
    """Whether a Ray that others have started is asked for: its nodes' environments are not this process's.

    Raises ConfigError for the address of its dashboard.
    """
    place = address or environ.get("RAY_ADDRESS", "")
    if place.startswith(("http://", "https://")):
        raise ConfigError(
            "this is a dashboard, as `ray job submit` takes it (and RAY_API_SERVER_ADDRESS); expected HOST:PORT of the "
            "cluster, 6379 by default, or nothing for a Ray of its own",
            key="--address" if address else "RAY_ADDRESS",
        )
    return place not in ("", "local")


def grace_s(environ: Mapping[str, str]) -> float | None:
    """How long rows in flight may take after SIGTERM; None: as long as they need, since nobody kills this process."""
    if JOB not in environ:
        return None
    try:
        wait_s = float(environ.get(STOP_WAIT, STOP_WAIT_S))
    except ValueError:
        wait_s = STOP_WAIT_S
    return max(0.0, wait_s - CLOSING_S)


def copy_of(path: str, folder: str) -> str | None:
    """The copied working directory that a path lies in. `folder`: what relative paths are relative to."""
    found = _COPY.match(os.path.normpath(os.path.join(folder, path)))
    return found and found[1]


def check_submitted(
    config: Config, environ: Mapping[str, str], input: str, written: Iterable[tuple[str, str | None]], folder: str
) -> None:
    """All that can be told of a batch. `written`: pairs of option and path. Raises ConfigError."""
    check_exposed(config, environ)
    check_input(input, folder)
    check_outputs(written, config.state_dir, folder)


def check_input(spec: str, folder: str) -> None:
    """Raises ConfigError for an input that is not in the copy of the working directory."""
    if spec == "-" or is_url(spec) or copy_of(spec, folder) is None:
        return
    if not os.path.lexists(os.path.join(folder, spec)) and not glob.glob(spec, recursive=True, root_dir=folder):
        raise ConfigError(
            "is not in the copy of the working directory that this job runs in: files that a .gitignore or .rayignore "
            "names are not copied; submit without that line, or give an absolute path that all nodes can read",
            spec,
            key="-i",
        )


def check_outputs(outputs: Iterable[tuple[str, str | None]], state_dir: str, folder: str) -> None:
    """Pairs of option and path. Raises ConfigError for what would be written into the copy."""
    for option, path in outputs:
        if path is not None and is_url(path):
            option, path = "state_dir", state_dir  # where the journal of such an output is
        if path is not None and copy_of(path, folder) is not None:
            raise ConfigError(
                "would be written into this job's copy of the working directory, which Ray removes after the job, and "
                "could not be resumed; give an absolute path, best on storage that all nodes share",
                path,
                key=option,
            )


def check_ledger(config: Config, more: Sequence[float | None], folder: str) -> None:
    """Raises ConfigError where budgets would begin anew with the next job. `more`: limits of the job itself."""
    if config.ledger is not None or copy_of(config.state_dir, folder) is None:
        return
    if any(limit is not None for limit in more) or any(map(_lasts, _limits(config))):
        raise ConfigError(
            f"{config.state_dir} is in this job's copy of the working directory, and budgets would begin anew with the "
            "next job; give an absolute path on a local disk, or a ledger: postgresql://...",
            key="state_dir",
        )


def check_exposed(config: Config, environ: Mapping[str, str]) -> None:
    """Raises ConfigError where a key was submitted with the job: Ray shows that on its dashboard and writes it to logs."""
    submitted = environ.get(JOB, "")
    for index, tier in enumerate(config.tiers):
        name = tier.api_key_env or ""
        value = environ.get(name, "")
        if len(value) >= SHORTEST_KEY and value in submitted:
            raise ConfigError(
                f"the key in {name} was submitted with the job, so it stands on Ray's dashboard and in its logs: name a "
                f"file in {name}{FILE} instead, or have {name} in the environment of the nodes; and change the key",
                key=f"tiers[{index}].api_key_env",
            )


def _limits(config: Config) -> Iterable[Limits]:
    budget = config.budget
    for scope in (budget, *budget.tiers.values(), *budget.keys.values(), *budget.jobs.values()):
        yield from (scope.tokens, scope.usd)


def _lasts(limits: Limits) -> bool:
    return limits.per_hour is not None or limits.per_day is not None
