"""Releases: what changes them, what may not change any more, and what a program that runs sees of it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import ConfigError
from runtime.prompts import LivePrompts, load_prompts
from runtime.prompts_files import Change, Release
from runtime.prompts_release import before, release, rollback, stop_trial


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for number in (1, 2, 3):
        write(tmp_path, number)
    return str(tmp_path)


def write(root: Path | str, number: int, text: str = "Say {word}", more: str = "") -> None:
    place = Path(root) / "p"
    place.mkdir(exist_ok=True)
    (place / f"v{number}.yaml").write_text(f"version: {number}\nuser_template: '{text} {number}.'\n{more}")


def live(folder: str) -> tuple[int, dict[int, float]]:
    """As whoever starts now reads it."""
    now = load_prompts(folder).release("p")
    return now.stable, now.trial


class TestChanges:
    """release, rollback, and the end of a trial."""

    def test_a_release_says_all_that_is_live(self, folder: str) -> None:
        """What is not named is on trial no longer; without --stable that stays; each change is on record."""
        release(folder, "p", 1, {}, "first")
        release(folder, "p", None, {2: 0.1, 3: 0.25}, "try both")
        assert live(folder) == (1, {2: 0.1, 3: 0.25})
        release(folder, "p", 2, {}, "better: 'quotes', # and {braces}\nand lines \x07\U0001f600")
        assert live(folder) == (2, {})
        history = load_prompts(folder).release("p").history
        assert [(change.stable, change.trial) for change in history] == [(1, {}), (1, {2: 0.1, 3: 0.25}), (2, {})]
        assert history[2].reason == "better: 'quotes', # and {braces} and lines \U0001f600"
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", change.at) for change in history)

    def test_a_rollback_goes_back_one_release_and_again_one_further(self, folder: str) -> None:
        """To and fro would bring the bad version back; nothing comes on trial by a rollback."""
        release(folder, "p", 1, {}, "")
        release(folder, "p", 1, {2: 0.1}, "")
        release(folder, "p", 2, {3: 0.1}, "")
        release(folder, "p", 3, {}, "")
        seen = [(rolled.stable, rolled.trial) for rolled in (rollback(folder, "p", "bad") for _ in range(2))]
        assert seen == [(2, {}), (1, {})]
        with pytest.raises(ConfigError, match="no earlier release"):
            rollback(folder, "p", "")
        release(folder, "p", 3, {}, "again")
        assert rollback(folder, "p", "").stable == 1

    def test_a_rollback_ends_a_trial_first(self, folder: str) -> None:
        """The last release was the trial, so what was before it is the same stable version alone."""
        release(folder, "p", 1, {}, "")
        release(folder, "p", 1, {2: 0.5}, "")
        assert (rollback(folder, "p", "").stable, live(folder)) == (1, (1, {}))

    def test_a_release_by_hand_can_be_rolled_back(self, folder: str) -> None:
        """What stands in the file counts, on record or not."""
        release(folder, "p", 1, {}, "")
        file = Path(folder) / "p" / "release.yaml"
        file.write_text(file.read_text().replace("stable: 1\nreleased", "stable: 3\nreleased"))
        assert live(folder) == (3, {})
        assert rollback(folder, "p", "").stable == 1

    def test_a_trial_that_is_stopped_is_not_brought_back_by_a_rollback(self, folder: str) -> None:
        """And stopping what is on trial no longer changes nothing."""
        release(folder, "p", 1, {}, "")
        release(folder, "p", 1, {2: 0.1, 3: 0.1}, "")
        assert stop_trial(folder, "p", 2, "worse")
        assert live(folder) == (1, {3: 0.1})
        assert not stop_trial(folder, "p", 2, "worse")
        assert rollback(folder, "p", "").trial == {}
        assert [change.action for change in load_prompts(folder).release("p").history][-2:] == ["stopped", "rollback"]

    @pytest.mark.parametrize(
        ("stable", "trial", "expected"),
        [
            (9, {}, "there is no version 9; there are: 1, 2, 3"),
            (1, {9: 0.1}, "there is no version 9"),
            (1, {1: 0.1}, "is the stable version"),
            (1, {2: 0.7, 3: 0.7}, "the weights add up to 1.4"),
            (None, {2: 0.1}, "no release yet; say which version with --stable"),
            (3, {}, "p@3 is deprecated"),
            (1, {3: 0.1}, "version 3 is deprecated and cannot be on trial"),
        ],
    )
    def test_what_cannot_be_released_changes_nothing(
        self, folder: str, stable: int | None, trial: dict[int, float], expected: str
    ) -> None:
        """One line, and no file."""
        write(folder, 3, more="deprecated: true\n")
        with pytest.raises(ConfigError, match=re.escape(expected)):
            release(folder, "p", stable, trial, "")
        assert not (Path(folder) / "p" / "release.yaml").exists()

    @pytest.mark.parametrize("name", ["../p", "p/v1", "", ".", "nope", "/etc"])
    def test_no_name_leads_out_of_the_folder(self, folder: str, name: str) -> None:
        """Nor makes a folder."""
        with pytest.raises(ConfigError):
            release(folder, name, 1, {}, "")
        assert os.listdir(folder) == ["p"]

    def test_changes_at_the_same_time_are_all_made(self, folder: str) -> None:
        """Three programs make six changes each: eighteen lines of history, and never a file that cannot be read."""
        release(folder, "p", 1, {}, "first")
        program = (
            "import sys; from runtime.prompts_release import release\n"
            "for n in range(6): release(sys.argv[1], 'p', 1 + n % 3, {}, f'{sys.argv[2]} {n}')"
        )
        running = [subprocess.Popen([sys.executable, "-c", program, folder, str(who)]) for who in range(3)]
        while any(one.poll() is None for one in running):
            load_prompts(folder)
        assert [one.returncode for one in running] == [0] * 3
        reasons = [change.reason for change in load_prompts(folder).release("p").history]
        assert sorted(reasons[1:]) == sorted(f"{who} {n}" for who in range(3) for n in range(6))
        assert sorted(os.listdir(Path(folder) / "p")) == ["release.yaml", "v1.yaml", "v2.yaml", "v3.yaml"]

    @settings(max_examples=300)
    @given(st.lists(st.sampled_from([1, 2, 3, -1]), min_size=1, max_size=12))
    def test_rollbacks_are_a_stack(self, steps: list[int]) -> None:
        """Against a plain list of stable versions: -1 is a rollback, anything else a release of that version."""
        history: list[Change] = []
        stack: list[int] = []
        for step in steps:
            if step > 0:
                history.append(Change(at="", reason="", stable=step))
                stack += [step] if stack[-1:] != [step] else []
                continue
            if not history:
                continue
            found = before(Release(stable=history[-1].stable, history=history))
            assert found == (stack[-2] if len(stack) > 1 else None)
            if found is not None:
                history.append(Change(at="", action="rollback", reason="", stable=found))
                stack.pop()


class TestImmutable:
    """A released version is what its answers are filed under."""

    def test_an_edited_one_is_refused_with_how_to_go_on(self, folder: str) -> None:
        """Whether it is live now or was once; a draft may change, and so may what shapes no answer."""
        release(folder, "p", 1, {2: 0.1}, "")
        release(folder, "p", 1, {}, "")
        write(folder, 3, "Other words for {word}")
        write(folder, 1, more="description: better words\n")
        assert live(folder) == (1, {})
        write(folder, 2, "Other words for {word}")
        with pytest.raises(ConfigError) as caught:
            load_prompts(folder)
        assert str(caught.value) == (
            f"{folder}/p/v2.yaml:1: version 2 was released and has been edited since; put its text back (git checkout), "
            "and write the change as v4.yaml"
        )
        write(folder, 2)
        write(folder, 4, "Other words for {word}")
        assert release(folder, "p", 4, {}, "the change").stable == 4

    def test_a_damaged_digest_is_as_bad(self, folder: str) -> None:
        """Nobody makes an edit right by leaving the digest's place empty."""
        release(folder, "p", 1, {}, "")
        file = Path(folder) / "p" / "release.yaml"
        file.write_text(re.sub('1: "[0-9a-f]{64}"', '1: ""', file.read_text()))
        with pytest.raises(ConfigError, match="has been edited since"):
            load_prompts(folder)


class TestLive:
    """What a gateway holds."""

    def test_a_release_and_a_rollback_are_seen_at_the_next_look(self, folder: str) -> None:
        """And what was handed out before stays what it was."""
        release(folder, "p", 1, {}, "")
        prompts = LivePrompts(folder)
        first = prompts.registry()
        assert not prompts.look()
        release(folder, "p", 2, {}, "")
        assert prompts.look()
        assert prompts.registry().choose("p", "x").version == 2
        rollback(folder, "p", "")
        assert prompts.look()
        assert prompts.registry().choose("p", "x").version == first.choose("p", "x").version == 1

    def test_a_broken_edit_takes_no_running_prompt_away(self, folder: str) -> None:
        """The last good state serves, the trouble is told, and a rollback still comes through."""
        release(folder, "p", 1, {}, "")
        release(folder, "p", 2, {}, "")
        prompts = LivePrompts(folder)
        good = (Path(folder) / "p" / "v3.yaml").read_text()
        (Path(folder) / "p" / "v3.yaml").write_text("version: 3\nuser_template: '{oops'\n")
        assert prompts.look()
        assert "v3.yaml:2" in prompts.trouble["p"]
        assert prompts.registry().choose("p", "x").version == 2
        file = Path(folder) / "p" / "release.yaml"
        file.write_text(file.read_text().replace("stable: 2\nreleased", "stable: 1\nreleased"))
        assert prompts.look()
        assert prompts.registry().choose("p", "x").version == 1
        (Path(folder) / "p" / "v3.yaml").write_text(good)
        assert prompts.look()
        assert prompts.trouble == {}

    def test_a_new_prompt_is_found(self, folder: str) -> None:
        """Without a restart."""
        prompts = LivePrompts(folder)
        (Path(folder) / "q").mkdir()
        (Path(folder) / "q" / "v1.yaml").write_text("version: 1\nuser_template: x\n")
        assert prompts.look()
        assert prompts.registry().choose("q", "", 1).ref == "q@1"
