"""Registered prompts in the rows of a batch: the versions that were live when it began, for all of its rows.

    {"body": {"raycade": {"prompt": "summarize", "variables": {...}}}} -> BatchPrompts.rendered -> asks.py -> router

A row is read as the same body over HTTP would be, but for two things that it has from `raycade batch --prompt`: a batch keeps the
release it began with, over restarts of the gateway too (runtime/prompts_job.py, a journal for each prompt that its rows name),
and the version is chosen by the row's `unit`, or else by its custom_id. Trials that its answers show to be worse are stopped.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.errors import ConfigError, InputError
from runtime.config import PromptSettings
from runtime.gateway.prompts import Prompts, refuse_unknown
from runtime.prompts import Rendered, parse_ref
from runtime.prompts_job import JobPrompt

__all__ = ["BatchPrompts"]

log = logging.getLogger("raycade.gateway")


class BatchPrompts:
    """One a batch; `folder` is its own, for what has to outlive the gateway."""

    def __init__(self, live: Prompts, settings: PromptSettings, folder: Path) -> None:
        """`live`: what is served over HTTP."""
        self._live = live
        self._settings = settings
        self._folder = folder
        self._begun: dict[tuple[str, int | None], JobPrompt] = {}

    def begin(self, body: Mapping[str, Any]) -> None:
        """Take the release that is live now for the prompt that a row names. What is wrong is told when the row is read."""
        extras = body.get("raycade")
        ref = extras.get("prompt") if isinstance(extras, dict) else None
        if isinstance(ref, str):
            try:
                self._of(ref)
            except InputError:
                return

    def rendered(self, ref: str, variables: Mapping[str, Any], unit: str | None) -> Rendered:
        """The body of a row. Raises InputError with the field that is wrong."""
        prompt = self._of(ref)
        refuse_unknown(prompt.name, prompt.variables, variables)
        return prompt.render(unit or "", variables)

    def _of(self, ref: str) -> JobPrompt:
        try:
            asked = parse_ref(ref)
        except ConfigError as error:
            raise InputError("invalid_prompt", error.message, field="prompt") from None
        prompt = self._begun.get(asked)
        if prompt is None:
            name, number = asked
            registry = self._live.looked(name)
            registry.choose(
                name, "", number
            )  # with a code for what is not there; from here on the name is that of a folder
            try:
                prompt = JobPrompt(ref, self._settings, registry)
                place = self._folder / (name if number is None else f"{name}@{number}")
                place.mkdir(parents=True, exist_ok=True)
                prompt.attach(place, ("", ""), None)
            except ConfigError as error:
                raise InputError("invalid_prompt", error.message.partition("\n")[0], field="prompt") from None
            self._begun[asked] = prompt
        return prompt

    def observe(self, ref: str, refused_replies: int, failed: str, cost_usd: float) -> list[str]:
        """As JobPrompt.observe. A row that names its version is on no trial."""
        prompt = self._begun.get((ref.rpartition("@")[0], None))
        stopped = [] if prompt is None else prompt.observe(ref, refused_replies, failed, cost_usd)
        for said in stopped:
            log.warning("%s", said)
        return stopped

    def checkpoint(self) -> None:
        """As JobPrompt.checkpoint."""
        for prompt in self._begun.values():
            prompt.checkpoint()
