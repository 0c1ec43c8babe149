"""runtime/preflight.py, runtime/nodes.py, runtime/__main__.py: what is said of a submitted job before anything is spent."""

import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from ray import cloudpickle

from actors.errors import ConfigError
from runtime import nodes, preflight
from runtime.config import Config
from runtime.nodes import Found, complaint

ROOT = Path(__file__).parents[2]
CANARY = "sk-canary-0123456789abcdef"
HERE = Found("here", {"runtime": "/env/runtime", "actors": "/env/actors"}, (), "d1", (), ())
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def config(**more: object) -> Config:
    tier = {
        "name": "a",
        "model": "m",
        "base_url": "http://x",
        "api_key_env": "A_KEY",
        "price": {"prompt": 1, "completion": 1},
    }
    return Config.model_validate({"tiers": [tier], **more})


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copied working directory, as Ray lays it out."""
    folder = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "in.jsonl").touch()
    return folder


def refused(copy: Path, *, input: str = "data/in.jsonl", output: str = "/shared/out.jsonl", **environ: str) -> str:
    try:
        preflight.check_submitted(config(), environ, input, (("-o", output), ("--report", None)), str(copy))
    except ConfigError as error:
        return str(error)
    return ""


class TestFiles:
    """What lies in the copy of the working directory."""

    def test_an_input_that_was_not_copied_is_told_with_the_reason(self, copy: Path) -> None:
        """A file that git ignores is left out silently by Ray."""
        assert refused(copy) == ""
        assert refused(copy, input="data/*.jsonl") == refused(copy, input="-") == ""
        for spec in ("data/other.jsonl", "*.jsonl", str(copy / "other")):
            said = refused(copy, input=spec)
            assert said.startswith(f"{spec}: -i: is not in the copy of the working directory")
            assert ".gitignore" in said
            assert "\n" not in said

    def test_elsewhere_the_reader_says_it_itself(self, copy: Path, tmp_path: Path) -> None:
        """An absolute path, or a job that was not submitted with a working directory."""
        assert refused(copy, input=str(tmp_path / "nothing.jsonl")) == ""
        assert refused(tmp_path, input="nothing.jsonl", output="out.jsonl") == ""

    @pytest.mark.parametrize("output", ["out.jsonl", "./data/out.jsonl", "../_ray_pkg_0123/out.jsonl"])
    def test_an_output_that_ray_would_remove_is_refused(self, copy: Path, output: str) -> None:
        """Answers that were paid for would be lost."""
        said = refused(copy, output=output)
        assert said.startswith(f"{output}: -o: would be written into this job's copy of the working directory")
        assert "absolute path" in said

    def test_objects_in_a_store_are_in_no_copy(self, copy: Path) -> None:
        """But the journal of an output there is in state_dir, and that may be."""
        assert refused(copy, input="s3://bucket/in.jsonl") == ""
        assert refused(copy, output="s3://bucket/out/").startswith(
            ".raycade: state_dir: would be written into this job's"
        )

    def test_budgets_may_not_begin_anew_with_every_job(self, copy: Path, tmp_path: Path) -> None:
        """A relative state_dir is in the copy: refused as soon as there is a limit that lasts."""
        inside = str(copy)
        day = {"tokens": {"per_day": 100}}
        preflight.check_ledger(config(), (None, None), inside)
        preflight.check_ledger(config(budget={"tokens": {"per_request": 100}}), (), inside)
        preflight.check_ledger(config(budget=day), (), str(tmp_path))
        preflight.check_ledger(config(budget=day, state_dir=str(tmp_path)), (1.0, None), inside)
        preflight.check_ledger(config(budget=day, ledger="postgresql://me@db/l"), (1.0, None), inside)
        for budget, more in ((day, ()), ({"tiers": {"a": {"usd": {"per_hour": 1}}}}, ()), ({}, (None, 0))):
            with pytest.raises(ConfigError, match=r"^state_dir: \.raycade is in this job's copy .* begin anew"):
                preflight.check_ledger(config(budget=budget), more, inside)


class TestKeys:
    """A key that was submitted is on the dashboard already."""

    def test_a_key_in_the_runtime_env_or_the_metadata_is_told_without_it(self, copy: Path) -> None:
        """The name and two better ways are told; the key is not."""
        for submitted in ({"runtime_env": {"env_vars": {"A_KEY": CANARY}}}, {"metadata": {"note": CANARY}}):
            said = refused(copy, A_KEY=CANARY, **{JOB: orjson.dumps(submitted).decode()})
            assert said.startswith("tiers[0].api_key_env: the key in A_KEY was submitted with the job")
            assert "A_KEY_FILE" in said
            assert CANARY not in said

    def test_a_name_or_a_path_may_be_submitted(self, copy: Path) -> None:
        """Ray puts a node's own variable in the place of ${...}: what it shows is the name."""
        submitted = orjson.dumps(
            {"runtime_env": {"env_vars": {"A_KEY": "${TEAM_KEY}", "A_KEY_FILE": "/run/key"}}}
        ).decode()
        assert refused(copy, A_KEY=CANARY, **{JOB: submitted}) == ""
        assert refused(copy, A_KEY="none", **{JOB: '{"runtime_env": {"env_vars": {"A_KEY": "none"}}}'}) == ""


class TestNodes:
    """What a node lacks."""

    @pytest.mark.parametrize(
        ("there", "said"),
        [
            ({}, ""),
            ({"folders": {"runtime": "/wd/runtime", "actors": "/wd/actors"}}, ""),
            (
                {"folders": {"runtime": "/wd/runtime", "actors": "/env/actors"}, "strange": ("runtime",), "digest": ""},
                "on the node n1 the package runtime is not raycade's but /wd/runtime, which hides it: rename that folder",
            ),
            (
                {"folders": {"runtime": "", "actors": ""}, "digest": ""},
                "on the node n1 raycade is not installed: install",
            ),
            (
                {"digest": "d0"},
                "on the node n1 raycade (/env/actors and /env/runtime) is another version than here (/env/actors and",
            ),
            (
                {"lacking": ("orjson", "uvloop")},
                "on the node n1 packages that raycade needs are not installed: orjson, uvloop",
            ),
            ({"keyless": ("A_KEY",)}, "on the node n1 there is no key in A_KEY, where the tiers' actors look for it"),
        ],
    )
    def test_each_is_told_in_a_line(self, there: dict[str, object], said: str) -> None:
        """The first thing that is wrong, with the node."""
        told = complaint([HERE, HERE._replace(node="n1", **there)], HERE)
        assert told.startswith(said) if said else told == ""
        assert "\n" not in told

    def test_many_nodes_with_one_trouble_are_counted(self) -> None:
        """A hundred nodes are one line."""
        found = [HERE._replace(node=f"n{number}", keyless=("A_KEY",)) for number in range(100)]
        assert complaint([HERE, *found], HERE).startswith("on the node n0 and 99 more there is no key in A_KEY")

    def test_a_node_is_asked_by_a_task_that_needs_nothing_of_ours(self, tmp_path: Path) -> None:
        """Run where our packages are not, or are somebody else's: it comes with all its code, and tells what it saw."""
        (tmp_path / "actors").mkdir()
        (tmp_path / "actors" / "__init__.py").touch()
        (tmp_path / "key").write_text("secret")
        (tmp_path / "look").write_bytes(cloudpickle.dumps(nodes._looker()))
        variables = ("SET", "IN_A_FILE", "NO_FILE", "UNSET")
        call = f"({nodes.MARKS!r}, ('json', 'no_such_module'), {variables!r}, '_FILE')"
        program = f"import pickle, sys; print(pickle.load(open('look', 'rb')){call})"
        ended = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={"SET": "k", "IN_A_FILE_FILE": "key", "NO_FILE_FILE": "no/key"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, ended.stderr
        assert "'strange': ('actors',), 'digest': ''" in ended.stdout
        assert "'lacking': ('no_such_module',), 'keyless': ('NO_FILE', 'UNSET')" in ended.stdout

    def test_what_a_node_needs_is_what_the_package_asks_for(self) -> None:
        """A dependency that is added is looked for, too."""
        text = (ROOT / "pyproject.toml").read_text().partition("dependencies = [")[2].partition("\n]")[0]
        asked = {line.strip(' ",').partition(">")[0].replace("-", "_") for line in text.split("\n") if line.strip()}
        assert set(nodes.NEEDED) == {
            "yaml" if name == "pyyaml" else name for name in asked if not name.startswith("ray[")
        }

    def test_the_code_here_is_ours(self) -> None:
        """The digest is of both packages, and stands in messages' place only when they are ours."""
        ours = nodes.here()
        assert (ours.strange, len(ours.digest)) == ((), 64)
        assert ours.folders == {name: str(ROOT / name) for name in ("runtime", "actors")}


class TestAddresses:
    """Which Ray is meant."""

    def test_whose_environment_counts(self) -> None:
        """On a Ray that others have started, the nodes' environment does."""
        assert not preflight.joins(None, {})
        assert not preflight.joins("local", {"RAY_ADDRESS": "10.0.0.1:6379"})
        assert preflight.joins(None, {"RAY_ADDRESS": "10.0.0.1:6379"})
        assert preflight.joins("auto", {})

    def test_the_dashboards_address_is_told_apart(self) -> None:
        """RAY_ADDRESS often holds it, for `ray job submit`."""
        with pytest.raises(ConfigError, match=r"^RAY_ADDRESS: this is a dashboard"):
            preflight.joins(None, {"RAY_ADDRESS": "http://127.0.0.1:8265"})

    def test_a_stopped_job_ends_before_it_is_killed(self) -> None:
        """Ray's own wait decides; a job that nobody submitted has all the time it needs."""
        assert preflight.grace_s({}) is None
        assert preflight.grace_s({JOB: "{}"}) == 1.0
        assert preflight.grace_s({JOB: "{}", "RAY_JOB_STOP_WAIT_TIME_S": "30"}) == 28.0
        assert preflight.grace_s({JOB: "{}", "RAY_JOB_STOP_WAIT_TIME_S": "1"}) == 0.0


def test_a_folder_called_actors_is_told_in_one_line(tmp_path: Path) -> None:
    """It stands before ours on the path of a job whose working directory has it."""
    (tmp_path / "actors").mkdir()
    (tmp_path / "actors" / "__init__.py").touch()
    program = (
        "import sys; sys.meta_path[:] = [one for one in sys.meta_path if 'Editable' not in str(one)]; "  # it finds ours
        f"sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; from runtime.__main__ import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"raycade: its package actors is hidden by {tmp_path}/actors/__init__.py: rename")
    assert ended.stderr.count("\n") == 1
