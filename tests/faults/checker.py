"""What holds after every row of the matrix, whatever the fault was."""

import asyncio
from collections import Counter
from typing import Any

from actors.budget.actor import BudgetActor
from actors.budget.rows import LimitStatus
from runtime.config import load_config
from runtime.mock.content import echo
from tests.e2e.jobs import chat
from tests.faults.leaks import leaks
from tests.faults.scene import LIMIT_TOKENS, Scene

__all__ = ["check", "rows_wrong"]

TRACEBACK = b"Traceback (most recent"


def check(scene: Scene) -> list[str]:
    """What does not hold, in words; nothing when all does."""
    return [
        *_exit(scene),
        *rows_wrong(scene),
        *_money(scene),
        *_breaker(scene),
        *_memory(scene),
        *_words(scene),
        *(f"a key is written: {place}" for place in leaks(scene, scene.bed.searched)),
    ]


def _exit(scene: Scene) -> list[str]:
    fault = scene.fault
    wanted = fault.exit if isinstance(fault.exit, tuple) else (fault.exit,)
    wrong = ["the job did not end"] if scene.late else []
    if scene.codes[0] not in wanted:
        wrong.append(f"exit code {scene.codes[0]}, expected {' or '.join(map(str, wanted))}")
    if fault.again and scene.codes[-1] != (3 if scene.job.failed() else 0):
        wrong.append(f"exit code {scene.codes[-1]} of the job when it was started again")
    return wrong


def rows_wrong(scene: Scene) -> list[str]:
    """Each row once, in OUT with its own answer or in ERRORS with a reason that may be."""
    fault, job = scene.fault, scene.job
    if set(scene.codes) == {2}:
        return ["a job that must not start has written"] if job.out.exists() else []
    lines, failed = job.lines(), job.failed()
    bad = [line for line in failed if line["error"]["code"] != "duplicate_custom_id"]
    ids = Counter(line["custom_id"] for line in (*lines, *bad))
    asked = {row["custom_id"]: row for row in map(chat, range(fault.rows))}
    questions = {name: row["body"]["messages"][-1]["content"] for name, row in asked.items()}
    wrong = [f"{len(twice)} rows stand twice: {twice[:3]}" for twice in [[i for i in ids if i and ids[i] > 1]] if twice]
    missing = [row for row in questions if row not in ids]
    if missing and not fault.cut_short:
        wrong.append(f"{len(missing)} rows are lost: {missing[:3]}")
    if len(lines) + len(failed) > fault.rows + len(fault.lines):
        wrong.append(f"{len(lines) + len(failed)} lines for {fault.rows + len(fault.lines)} rows")
    others = [line["custom_id"] for line in lines if not _own(line, questions)]
    if others and not fault.strays:
        wrong.append(f"{len(others)} rows have another's answer: {others[:3]}")
    codes = Counter(line["error"]["code"] for line in failed)
    if set(codes) - set(fault.failed) - set(fault.may_fail):
        wrong.append(f"rows failed: {dict(codes)}: {failed[0]['error']['message'][:300]}")
    if fault.failed and not failed:
        wrong.append("no row failed, so the fault was not met")
    return wrong


def _own(line: dict[str, Any], questions: dict[str, str]) -> bool:
    answer = line["response"]["body"]["choices"][0]["message"]["content"]
    return line["custom_id"] in questions and answer.startswith(echo(questions[line["custom_id"]]))


def _money(scene: Scene) -> list[str]:
    """Never more than the limit; nothing served unbooked; nothing booked as known that was not served; nothing left reserved."""
    if set(scene.codes) == {2}:
        return []
    at_the_end, books = asyncio.run(_books(scene))
    metered = scene.bed.mock.stats()["total"]["total_tokens"]
    wrong = []
    if books.spent > LIMIT_TOKENS:
        wrong.append(f"{books.spent} tokens spent of {LIMIT_TOKENS}")
    if books.reserved:
        wrong.append(f"{books.reserved} tokens are reserved for ever")
    if at_the_end.reserved and scene.fault.of in ("endpoint", "network", "input"):
        wrong.append(f"{at_the_end.reserved} tokens were still reserved at the end of a job that nobody killed")
    # An answer that is another's tells another's usage.
    if not scene.fault.strays and not books.spent - books.unknown <= metered <= books.spent:
        wrong.append(f"{books.spent} booked, {books.unknown} of it unknown, and {metered} metered")
    if scene.fault.known and books.unknown:
        wrong.append(f"{books.unknown} tokens are booked as unknown, and every outcome was known")
    return wrong


async def _books(scene: Scene) -> tuple[LimitStatus, LimitStatus]:
    """What the ledger says of all time, whatever day it is: now, and when the leases of those who died have run out."""
    config = load_config(str(scene.job.config), {}, check_keys=False)
    actor = BudgetActor(config.budget, str(scene.job.state), lease_s=0.05)
    found = []
    for wait_s in (0.0, 0.2):
        await asyncio.sleep(wait_s)
        limits = (await actor.show()).limits
        found.append(next(s for s in limits if (s.scope, s.window, s.unit) == ("all", "total", "tokens")))
    await actor.close()
    return found[0], found[1]


def _breaker(scene: Scene) -> list[str]:
    fault = scene.fault
    wrong = []
    if fault.calls is not None:
        server = scene.server
        calls = scene.seen(fault.name)["requests"] if server is None else len(server.seen)
        if calls > fault.calls:
            wrong.append(f"{calls} calls reached the first tier, at most {fault.calls} were to")
    if fault.recovers_s is not None:
        ended = scene.fault_ended
        answered = next((s.at for s in scene.samples if s.at > ended and s.answered > _before(scene, ended)), None)
        if answered is None:
            wrong.append("the first tier never answered again")
        elif answered - ended > fault.recovers_s:
            wrong.append(f"the first tier answered again after {answered - ended:.1f} s")
    return wrong


def _before(scene: Scene, at: float) -> int:
    return max((sample.answered for sample in scene.samples if sample.at <= at), default=0)


def _memory(scene: Scene) -> list[str]:
    bounds = {"driver": scene.fault.driver_mb}
    return [f"{kind} took {mb} MB" for kind, mb in scene.rss_mb.items() if mb > bounds.get(kind, scene.fault.actor_mb)]


def _words(scene: Scene) -> list[str]:
    """The job tells what it should, and no output holds a traceback or what Ray wraps around an error."""
    wrong = [f"the job does not say {words!r}" for words in scene.fault.says if words not in scene.said]
    wrong += [f"the job shows its user {inner}" for inner in ("RayTaskError", "RayActorError") if inner in scene.said]
    texts = {"the job's output": scene.said.encode()}
    for path in (scene.job.out, scene.job.errors):
        if path.exists():
            texts[path.name] = path.read_bytes()
    for path in scene.ray_folder.rglob("worker-*"):  # what actors print; the files of earlier rows' actors stay
        if path.is_file() and path not in scene.bed.read:
            scene.bed.read.add(path)
            texts[str(path)] = path.read_bytes()
    return wrong + [
        f"a traceback in {name}: {text[text.index(TRACEBACK) :][-600:].decode(errors='replace')}"
        for name, text in texts.items()
        if TRACEBACK in text
    ]
