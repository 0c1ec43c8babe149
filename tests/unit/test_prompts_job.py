"""A job's own prompt: it keeps its release, stops its trials, and does the rows of a bad version again."""

from collections import Counter
from pathlib import Path

import orjson
import pytest

from actors.errors import ConfigError
from runtime import prompts_job
from runtime.batch.journal import Journal
from runtime.batch.reader import Row
from runtime.batch.writer import OutputWriter
from runtime.config import PromptSettings
from runtime.prompts import load_prompts
from runtime.prompts_job import JobPrompt, prompt_of_line
from runtime.prompts_release import release, rollback

ROWS = 60


class Job:
    """A folder with prompts and a job in it, run without its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.prompts = folder, str(folder / "prompts")
        self.out, self.errors = str(folder / "out.jsonl"), str(folder / "out.errors.jsonl")
        for number in (1, 2, 3):
            self.version(number)
        self.settings = PromptSettings.model_validate({"dir": self.prompts})

    def version(self, number: int, text: str = "Say {word}") -> None:
        place = self.folder / "prompts" / "p"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"v{number}.yaml").write_text(f"version: {number}\nuser_template: '{text} {number}.'\n")

    def open(self, ref: str = "p", redo: str | None = None) -> "tuple[Journal, JobPrompt]":
        prompt = JobPrompt(ref, self.settings)
        files = (self.out, self.errors)
        journal = Journal.open(*files, "in", prompt.identity, attach=lambda folder: prompt.attach(folder, files, redo))
        return journal, prompt

    def run(self, ref: str = "p", redo: str | None = None, rows: int = ROWS) -> JobPrompt:
        """Do what is not done, up to a row; every seventh fails."""
        journal, prompt = self.open(ref, redo)
        with journal, OutputWriter(self.out, self.errors, journal) as writer:
            for number in range(rows):
                if number in journal.done:
                    continue
                extra = {"prompt": prompt.render(f"r{number}", {"word": "x"}).ref, "note": "p@2"}
                if number % 7:
                    writer.add_result(Row(number, "in", 1, f"r{number}", "/c", {}, None), b"{}", 200, "q", extra)
                else:
                    writer.add_error(number, f"r{number}", "timeout", "late", extra=extra)
        return prompt

    def lines(self) -> list[bytes]:
        return [line for file in (self.out, self.errors) for line in Path(file).read_bytes().splitlines(keepends=True)]

    def made_by(self) -> dict[str, str]:
        """The version of every row, each of which has one line."""
        lines = [orjson.loads(line) for line in self.lines()]
        assert sorted(line["custom_id"] for line in lines) == sorted(f"r{number}" for number in range(len(lines)))
        return {line["custom_id"]: prompt_of_line(line) for line in lines}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    made = Job(tmp_path)
    release(made.prompts, "p", 1, {2: 0.4}, "try")
    return made


class TestItsRelease:
    """What a job begins with it ends with."""

    def test_a_resumed_job_goes_on_under_its_own_release(self, job: Job) -> None:
        """Rows get the version that they would have had in the first run, whatever was released since."""
        job.run(rows=20)
        release(job.prompts, "p", 3, {}, "something else")
        job.run()
        registry = load_prompts(job.prompts)
        release(job.prompts, "p", 1, {2: 0.4}, "as it was")
        again = load_prompts(job.prompts)
        assert registry.choose("p", "r0").version == 3
        assert job.made_by() == {f"r{number}": again.choose("p", f"r{number}").ref for number in range(ROWS)}

    def test_a_new_job_has_the_release_of_its_day(self, job: Job) -> None:
        """Nothing of an earlier job sticks."""
        job.run()
        release(job.prompts, "p", 3, {}, "")
        fresh = Journal.open(job.out, job.errors, "in", "x", fresh=True)
        fresh.close()
        assert not (job.folder / "out.jsonl.journal" / "prompt.json").exists()
        for name in ("meta.json", "intent", "lock"):
            (job.folder / "out.jsonl.journal" / name).unlink()
        job.run()
        assert set(job.made_by().values()) == {"p@3"}

    def test_a_draft_that_was_edited_in_between_is_refused(self, job: Job) -> None:
        """Half of the rows by one text and half by another would be filed under one version."""
        job.run("p@3", rows=10)
        job.version(3, "Shout {word}")
        with pytest.raises(ConfigError, match=r"--prompt: p@3 has been edited since this job began"):
            job.run("p@3")

    def test_another_version_is_another_job(self, job: Job) -> None:
        """In words that name both."""
        job.run("p@3", rows=10)
        with pytest.raises(ConfigError, match=r"begun with --prompt p@3, not p@2; "):
            job.run("p@2")
        with pytest.raises(ConfigError, match=r"begun with --prompt p@3, not p; "):
            job.run("p")

    def test_a_journal_that_lost_it_is_refused(self, job: Job) -> None:
        """Rather than go on under today's release."""
        job.run(rows=10)
        place = job.folder / "out.jsonl.journal" / "prompt.json"
        place.write_text("{")
        with pytest.raises(ConfigError, match="is damaged"):
            job.run()
        place.unlink()
        with pytest.raises(ConfigError, match="does not say which release"):
            job.run()

    @pytest.mark.parametrize(
        ("ref", "expected"),
        [("q", "there is no prompt 'q'"), ("p@9", "has no version 9"), ("p@x", "NAME or NAME@VERSION")],
    )
    def test_what_is_no_prompt_is_a_usage_error(self, job: Job, ref: str, expected: str) -> None:
        """Before anything is opened."""
        with pytest.raises(ConfigError, match=expected):
            JobPrompt(ref, job.settings)


class TestTrials:
    """A trial that is worse ends in the middle of a job."""

    def stop(self, job: Job) -> tuple[Journal, JobPrompt, list[str]]:
        journal, prompt = job.open()
        told: list[str] = []
        for _ in range(50):
            told += prompt.observe("p@1", 0, "", 0.01)
            told += prompt.observe("p@2", 1, "", 0.01)
        return journal, prompt, told

    def test_it_gets_no_new_rows_here_and_in_later_runs(self, job: Job) -> None:
        """It says so in one line, and release.yaml has it on record."""
        job.run(rows=20)
        before = job.made_by()
        journal, prompt, [told] = self.stop(job)
        journal.close()
        assert told.startswith("stopped the trial of p@2: its answers were refused in ")
        assert "\n" not in told
        assert prompt.render("r1", {"word": "x"}).ref == "p@1"
        now = load_prompts(job.prompts).release("p")
        assert (now.stable, now.trial, now.history[-1].action) == (1, {}, "stopped")
        job.run()
        after = job.made_by()
        assert {unit: after[unit] for unit in before} == before
        assert Counter(before.values())["p@2"] > 3
        assert {ref for unit, ref in after.items() if unit not in before} == {"p@1"}

    def test_what_was_seen_is_kept_for_the_next_run(self, job: Job) -> None:
        """A trial of which each run sees a little is stopped all the same."""
        told: list[str] = []
        for _ in range(12):
            journal, prompt = job.open()
            for _ in range(4):
                told += prompt.observe("p@1", 0, "", 0.01)
                told += prompt.observe("p@2", 0, "invalid_output", 0.01)
            prompt.checkpoint()
            journal.close()
        assert len(told) == 1

    def test_a_release_that_cannot_be_changed_ends_it_in_the_job(
        self, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The line says so."""

        def refuse(*_: object) -> bool:
            raise ConfigError("cannot be written: Read-only file system", "release.yaml")

        monkeypatch.setattr(prompts_job, "stop_trial", refuse)
        journal, prompt, [told] = self.stop(job)
        journal.close()
        assert "in this job only, since release.yaml could not be changed" in told
        assert prompt.render("r1", {"word": "x"}).ref == "p@1"

    def test_they_may_be_left_alone(self, job: Job) -> None:
        """`stop: false`."""
        job.settings = PromptSettings.model_validate({"dir": job.prompts, "trial": {"stop": False}})
        journal, _, told = self.stop(job)
        journal.close()
        assert told == []


class TestRedo:
    """`--redo prompt=NAME@V`."""

    def test_just_the_rows_of_the_bad_version_are_done_again(self, job: Job) -> None:
        """All other lines stay byte for byte and in their order, results and errors alike; the old ones are kept."""
        job.run()
        before, lines = job.made_by(), job.lines()
        rollback(job.prompts, "p", "bad")
        prompt = job.run(redo="prompt=p@2")
        bad = [line for line in lines if prompt_of_line(orjson.loads(line)) == "p@2"]
        good = [line for line in lines if line not in bad]
        assert prompt.taken_out == len(bad) == Counter(before.values())["p@2"] > 10
        assert [line for line in job.lines() if line in good] == good
        assert set(job.made_by().values()) == {"p@1"}
        assert len(job.made_by()) == ROWS
        replaced = (job.folder / "out.jsonl.journal" / "replaced.jsonl").read_bytes()
        assert sorted(replaced.splitlines(keepends=True)) == sorted(bad)

    def test_twice_is_once(self, job: Job) -> None:
        """The same command again has nothing to do."""
        job.run()
        rollback(job.prompts, "p", "bad")
        job.run(redo="prompt=p@2")
        lines = job.lines()
        assert job.run(redo="prompt=p@2").taken_out == 0
        assert job.lines() == lines

    def test_a_stable_version_that_was_bad(self, tmp_path: Path) -> None:
        """The job takes the release of today, so that its rows do not get the bad version again."""
        job = Job(tmp_path)
        release(job.prompts, "p", 1, {}, "")
        release(job.prompts, "p", 2, {}, "")
        job.run()
        with pytest.raises(ConfigError, match=r"--redo: p@2 would make these rows again; take it away first \(raycade"):
            job.run(redo="prompt=p@2")
        rollback(job.prompts, "p", "bad")
        job.run(redo="prompt=p@2")
        assert set(job.made_by().values()) == {"p@1"}

    def test_a_draft_that_was_put_right(self, job: Job) -> None:
        """A version that was never released may be edited, and its rows done again."""
        job.run("p@3")
        job.version(3, "Shout {word}")
        assert job.run("p@3", redo="prompt=p@3").taken_out == ROWS
        assert len(job.made_by()) == ROWS
        with pytest.raises(ConfigError, match="would make these rows again"):
            job.run("p@3", redo="prompt=p@3")

    @pytest.mark.parametrize("redo", ["p@2", "prompt=p", "prompt=q@2", "prompt=", "rows=1", "prompt=p@x"])
    def test_what_it_takes(self, job: Job, redo: str) -> None:
        """One line, and nothing is taken out."""
        job.run()
        lines = job.lines()
        with pytest.raises(ConfigError, match="expected"):
            job.run(redo=redo)
        assert job.lines() == lines

    @pytest.mark.parametrize("again", ["prompt=p@2", None], ids=["with --redo", "without"])
    @pytest.mark.parametrize("killed_at", range(13))
    def test_it_may_be_killed_at_any_step(
        self, job: Job, monkeypatch: pytest.MonkeyPatch, killed_at: int, again: str | None
    ) -> None:
        """Before or after each write to disk: the next run ends what was begun; no row is lost or has two lines."""
        job.run()
        lines = job.lines()
        rollback(job.prompts, "p", "bad")
        steps = 0

        class Killed(BaseException):
            pass

        def deadly(module: object, name: str) -> None:
            real = getattr(module, name)

            def step(*args: object) -> object:
                nonlocal steps
                steps += 1
                if steps == killed_at:
                    raise Killed
                done = real(*args)
                steps += 1
                if steps == killed_at:
                    raise Killed
                return done

            monkeypatch.setattr(module, name, step)

        with monkeypatch.context() as patched:
            monkeypatch = patched
            deadly(prompts_job, "replace_file")
            deadly(prompts_job.os, "replace")
            try:
                journal, _ = job.open(redo="prompt=p@2")
                journal.close()
            except Killed:
                pass
        if again or killed_at not in (1, 2):  # at those nothing had been decided yet
            job.run(redo=again)
            assert set(job.made_by().values()) == {"p@1"}
        good = [line for line in lines if prompt_of_line(orjson.loads(line)) != "p@2"]
        assert [line for line in job.lines() if line in good] == good
        assert len(job.made_by()) == ROWS
