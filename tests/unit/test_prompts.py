"""runtime/prompts.py and runtime/schemas.py: versions, releases, templates, and where a schema comes from."""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from actors.errors import ConfigError, InputError
from runtime.prompts import Registry, load_prompts, render
from runtime.schemas import load_schema, schema_of

V1 = "version: 1\nuser_template: 'Say {word}.'\n"
THREE = {"p__v1": V1, "p__v2": V1.replace("1", "2"), "p__v3": V1.replace("1", "3")}


@pytest.fixture
def prompts(tmp_path: Path):
    """Load prompts from texts by path."""

    def loader(**files: str) -> Registry:
        for path, text in files.items():
            file = tmp_path / "prompts" / (path.replace("__", "/") + ".yaml")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return load_prompts(str(tmp_path / "prompts"))

    return loader


@pytest.fixture
def refused(prompts, tmp_path: Path):
    """The lines that say why prompts do not load, without the folder they lie in."""

    def loader(**files: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            prompts(**files)
        return [line.replace(f"{tmp_path}/prompts/", "") for line in str(caught.value).split("\n")]

    return loader


class TestShipped:
    """The examples in prompts/."""

    registry = load_prompts(str(Path(__file__).parents[2] / "prompts"))

    def test_they_load_and_are_released(self) -> None:
        """Two versions of summarize, one of extract, each usable without naming a version."""
        assert self.registry.names == ["extract", "summarize"]
        assert sorted(self.registry.versions("summarize")) == [1, 2]
        assert self.registry.choose("extract", "row").ref == "extract@1"

    def test_extract_renders_its_literal_braces_and_brings_a_schema(self) -> None:
        """Doubled braces become single ones, and the schema asks for exactly the keys that the text shows."""
        version = self.registry.choose("extract", "row")
        body = render(version, {"text": "My kettle is broken"})
        assert body["messages"][0]["role"] == "system"
        shown = body["messages"][1]["content"].splitlines()[-1]
        schema = json.loads(version.schema)
        assert list(json.loads(shown)) == schema["required"] == list(schema["properties"])
        assert body["max_tokens"] == 400


class TestChoice:
    """Which unit gets which version."""

    def test_it_is_the_same_every_time_and_in_every_process(self, prompts) -> None:
        """The choice is a function of prompt and unit, as the sha256 below says, and of nothing else."""
        registry = prompts(**THREE, p__release="stable: 1\ntrial: {2: 0.1, 3: 0.2}")
        for number in range(200):
            unit = f"row-{number}"
            point = int.from_bytes(hashlib.sha256(f"p\0{unit}".encode()).digest()[:6], "big") / 2**48
            expected = 2 if point < 0.1 else 3 if point < 0.3 else 1
            assert registry.choose("p", unit).version == expected

    def test_shares_are_what_the_weights_say(self, prompts) -> None:
        """Of 1,000 rows on a 0.2 trial between 15% and 25% are on it."""
        registry = prompts(**THREE, p__release="stable: 1\ntrial: {2: 0.2}")
        counts = Counter(registry.choose("p", str(number)).version for number in range(1000))
        assert 150 < counts[2] < 250
        assert counts[1] + counts[2] == 1000

    def test_a_growing_trial_keeps_its_units(self, prompts) -> None:
        """Who was on trial at a tenth is still on trial at a half."""
        small = prompts(**THREE, p__release="stable: 1\ntrial: {2: 0.1}")
        large = prompts(p__release="stable: 1\ntrial: {2: 0.5}")
        units = [str(number) for number in range(500)]
        first = {unit for unit in units if small.choose("p", unit).version == 2}
        assert first < {unit for unit in units if large.choose("p", unit).version == 2}

    def test_weights_of_zero_and_one_mean_nobody_and_everybody(self, prompts) -> None:
        """The edges are exact."""
        registry = prompts(**THREE, p__release="stable: 1\ntrial: {2: 0, 3: 1}")
        assert {registry.choose("p", str(number)).version for number in range(300)} == {3}

    def test_a_pinned_version_needs_no_release(self, prompts) -> None:
        """A draft can be tried by its number; without one the error says what to write."""
        registry = prompts(**THREE)
        assert registry.choose("p", "x", 3).ref == "p@3"
        with pytest.raises(InputError, match=r"release p --stable 3.*p@3") as caught:
            registry.choose("p", "x")
        assert caught.value.code == "no_release"

    def test_unknown_versions_and_prompts_name_the_known_ones(self, prompts) -> None:
        """Each with a code for the row's error line."""
        registry = prompts(**THREE, p__release="stable: 1")
        with pytest.raises(InputError, match="has no version 9; there are: 1, 2, 3") as caught:
            registry.choose("p", "x", 9)
        assert caught.value.code == "unknown_version"
        with pytest.raises(InputError, match="no prompt 'q'; there are: p") as caught:
            registry.choose("q", "x")
        assert caught.value.code == "unknown_prompt"

    @pytest.mark.parametrize("name", ["../p", "p/../../etc", "p/v1", "/etc/passwd", ".", "..", "", "p.yaml", "p\0"])
    def test_no_name_leads_out_of_the_folder(self, prompts, name: str) -> None:
        """A name is looked up among those that were loaded, so a path is only an unknown name."""
        with pytest.raises(InputError) as caught:
            prompts(p__v1=V1, p__release="stable: 1").choose(name, "x")
        assert caught.value.code == "unknown_prompt"

    def test_the_digest_changes_with_what_shapes_an_answer(self, prompts) -> None:
        """Descriptions, tags, marks and comments may change after a release; texts, schema and request may not."""
        before = prompts(p__v1=V1).version("p", 1).digest
        said = "description: better words\ntags: [a]\nvariables: [word]\ndeprecated: true\n# a comment\n"
        assert prompts(p__v1=V1 + said).version("p", 1).digest == before
        for other in (
            "temperature: 0\n",
            "system: x\n",
            "schema: {}\n",
            "defaults: {seed: 1}\n",
            "messages: [{role: user, content: x}]\n",
            "structured: {escalate: false}\n",
        ):
            assert prompts(p__v1=V1 + other).version("p", 1).digest != before


class TestRender:
    """Variables into a body."""

    def test_a_body_has_messages_defaults_temperature_and_model(self, prompts) -> None:
        """System first, and nothing that the version does not say."""
        text = V1 + "system: Be brief {really}.\ntemperature: 0\nmodel: gpt-4o\ndefaults: {max_tokens: 5, stop: [a]}\n"
        assert render(prompts(p__v1=text).choose("p", "", 1), {"word": "hello"}) == {
            "messages": [
                {"role": "system", "content": "Be brief {really}."},
                {"role": "user", "content": "Say hello."},
            ],
            "max_tokens": 5,
            "stop": ["a"],
            "temperature": 0,
            "model": "gpt-4o",
        }
        assert render(prompts(q__v1=V1).choose("q", "", 1), {"word": "x"}) == {
            "messages": [{"role": "user", "content": "Say x."}]
        }

    def test_examples_stand_between_system_and_the_users_text(self, prompts) -> None:
        """Few-shot messages are taken as they are: braces in them are text."""
        text = V1 + "system: s\nmessages: [{role: user, content: 'Say {x}'}, {role: assistant, content: '{}'}]\n"
        messages = render(prompts(p__v1=text).version("p", 1), {"word": "hello"})["messages"]
        assert [(m["role"], m["content"]) for m in messages] == [
            ("system", "s"),
            ("user", "Say {x}"),
            ("assistant", "{}"),
            ("user", "Say hello."),
        ]

    @given(st.text())
    def test_values_are_data(self, value: str) -> None:
        """Whatever stands in a value arrives as it is, braces and all."""
        body = render(_WORDS.choose("p", "", 1), {"word": value, "other": "{word}"})
        assert body["messages"][0]["content"] == f"[{value}] {{word}} {{literal}} [{value}]"

    @pytest.mark.parametrize(
        ("value", "text"),
        [(3, "3"), (1.5, "1.5"), (True, "true"), (None, "null"), ([1, "ä"], '[1,"ä"]'), ({"a": 1}, '{"a":1}')],
    )
    def test_other_values_are_written_as_json(self, prompts, value: object, text: str) -> None:
        """A list or an object is readable to a model; Python's own notation is not."""
        assert render(prompts(p__v1=V1).choose("p", "", 1), {"word": value})["messages"][0]["content"] == f"Say {text}."

    def test_a_missing_variable_is_named(self, prompts) -> None:
        """The row's error says which, and of which version."""
        with pytest.raises(InputError, match="p@1 needs word, which is not given") as caught:
            render(prompts(p__v1=V1).choose("p", "", 1), {"Word": "x"})
        assert (caught.value.code, caught.value.field) == ("missing_variable", "variables.word")

    def test_more_variables_than_needed_are_no_error(self, prompts) -> None:
        """Rows carry columns that only another version uses."""
        assert render(prompts(p__v1=V1).choose("p", "", 1), {"word": "x", "unused": 1})

    @pytest.mark.parametrize("variables", [[1], "word", None, {"word": {1, 2}}, {"word": object()}])
    def test_what_is_no_json_object_is_refused(self, prompts, variables) -> None:
        """Lists of variables, and values that no JSON could hold."""
        with pytest.raises(InputError) as caught:
            render(prompts(p__v1=V1).choose("p", "", 1), variables)
        assert caught.value.code == "bad_variables"


def _words() -> Registry:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "p"
        place.mkdir()
        text = 'version: 1\nuser_template: "[{word}] {other} {{literal}} [{word}]"\n'
        (place / "v1.yaml").write_text(text)
        return load_prompts(folder)


_WORDS = _words()


class TestRefused:
    """Mistakes in files: one line each, found when they are loaded."""

    @pytest.mark.parametrize(
        "template",
        [
            "{a.b}",
            "{a[0]}",
            "{a!r}",
            "{a:>10}",
            "{}",
            "{0}",
            "{a",
            "a}",
            "{ a }",
            "{a-b}",
            "{{{",
            "}}}",
            "{a.__class__}",
            "{\n}",
            "{ä}",
        ],
    )
    def test_anything_but_a_plain_name_in_braces(self, refused, template: str) -> None:
        """No attributes, indexes, conversions or format specs, and no single brace."""
        text = "version: 1\ndescription: x\nuser_template: " + json.dumps("one\n" + template)
        [line] = refused(p__v1=text)
        assert line.startswith("p/v1.yaml:3: user_template: line 2 of the text: ")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("user_template: x\n", "p/v1.yaml:1: version: this key is missing"),
            ("version: 2\nuser_template: x\n", "p/v1.yaml:1: version: says 2, but the file is v1.yaml of prompt p"),
            ("version: 1\nuser_templat: x\n", "p/v1.yaml:2: user_templat: unknown key; did you mean user_template?"),
            (
                V1 + "variables: [text]\n",
                "p/v1.yaml:2: user_template: {word} is supplied by nobody: it does not stand in `variables`",
            ),
            (V1 + "messages: [{role: system, content: x}]\n", "p/v1.yaml:3: messages[0].role: expected 'user' or"),
            (V1 + "schemas: {}\n", "p/v1.yaml:3: schemas: unknown key; did you mean schema?"),
            (V1 + "schema: {type: strin}\n", "p/v1.yaml:3: schema: not a JSON Schema: $.type: "),
            (V1 + "schema: {$ref: 'http://x/y'}\n", "p/v1.yaml:3: schema: not a JSON Schema: $: Resource 'http://x/y'"),
            (V1 + "temperature: warm\n", "p/v1.yaml:3: temperature: expected a number >= 0, found 'warm'"),
            (
                V1 + "defaults: {messages: []}\n",
                "p/v1.yaml:3: defaults.messages: is made of system, messages and user_template",
            ),
            (V1 + "defaults: {model: x}\n", "p/v1.yaml:3: defaults.model: has a key of its own: model"),
            (
                V1 + "min_quality: best\n",
                "p/v1.yaml:3: min_quality: expected 'basic', 'medium' or 'high', found 'best'",
            ),
            (V1 + "system: !!python/name:os.system\n", "p/v1.yaml:3: tags (`!...`) are not allowed"),
        ],
    )
    def test_a_version_with_a_mistake(self, refused, text: str, expected: str) -> None:
        """File, line and key, as for raycade.yaml."""
        lines = refused(p__v1=text)
        assert any(line.startswith(expected) for line in lines), lines

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("stable: 9\n", "p/release.yaml:1: stable: there is no version 9; there are: 1, 2, 3"),
            ("stable: 1\ntrial: {9: 0.1}\n", "p/release.yaml:2: trial.9: there is no version 9; there are: 1, 2, 3"),
            (
                "stable: 1\ntrial: {1: 0.1}\n",
                "p/release.yaml:2: trial.1: is the stable version, which cannot be on trial too",
            ),
            (
                "stable: 1\ntrial:\n  3: 0.1\n",
                "p/release.yaml:3: trial.3: version 3 is deprecated and cannot be on trial",
            ),
            ("stable: 1\ntrial: {2: 1.5}\n", "p/release.yaml:2: trial.2: expected a number from 0 to 1, found 1.5"),
            ("stable: 1\ntrial: {two: 0.5}\n", "p/release.yaml:2: trial.two: this name is not allowed here"),
            ("trial: {}\n", "p/release.yaml:1: stable: this key is missing"),
            ("stable: 1\nhistory: [{at: today}]\n", "p/release.yaml:2: history[0].reason: this key is missing"),
            (
                "stable: 1\nlive: 2\n",
                "p/release.yaml:2: live: unknown key; known here: stable, trial, released, history",
            ),
        ],
    )
    def test_a_release_with_a_mistake(self, refused, text: str, expected: str) -> None:
        """Versions that do not exist, deprecated ones on trial, weights that are none."""
        files = {**THREE, "p__v3": THREE["p__v3"] + "deprecated: true\n"}
        assert expected in refused(**files, p__release=text)

    def test_weights_that_pass_one(self, refused) -> None:
        """Nobody can be on two trials."""
        [line] = refused(**THREE, p__release="stable: 1\ntrial: {2: 0.6, 3: 0.6}")
        assert line == "p/release.yaml:2: trial: the weights add up to 1.2, more than 1"

    def test_every_file_is_reported_at_once(self, refused) -> None:
        """One line for each mistake of each prompt."""
        assert len(refused(p__v1="version: 1\n", q__v1="version: x\nuser_template: a\n")) == 2

    def test_files_and_folders_with_strange_names(self, prompts, refused, tmp_path: Path) -> None:
        """A misspelt file would otherwise just never be used; notes and hidden folders are left alone."""
        prompts(p__v1=V1)
        (tmp_path / "prompts" / "p" / "README.md").write_text("notes")
        (tmp_path / "prompts" / ".git").mkdir()
        assert prompts().names == ["p"]
        assert refused(p__V2=V1) == ["p/V2.yaml: expected v1.yaml, v2.yaml and so on, or release.yaml"]
        (tmp_path / "prompts" / "p" / "V2.yaml").unlink()
        assert refused(**{"a.b__v1": V1}) == ["a.b: a prompt's name has letters, digits, '_' and '-' only, at most 64"]

    def test_a_link_out_of_the_folder_is_refused(self, prompts, refused, tmp_path: Path) -> None:
        """A checkout from elsewhere must not make us read a file beside it."""
        prompts(p__v1=V1)
        secret = tmp_path / "secret.yaml"
        secret.write_text("version: 2\nuser_template: hunter2\n")
        os.symlink(secret, tmp_path / "prompts" / "p" / "v2.yaml")
        assert refused() == ["p/v2.yaml: leads out of the folder of prompts"]

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        """One line, no traceback."""
        with pytest.raises(ConfigError, match="no such folder of prompts"):
            load_prompts(str(tmp_path / "nowhere"))


class TestLoadSchema:
    """--schema file.json or module:Class."""

    @pytest.fixture(autouse=True)
    def _here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tmp_path)
        known = set(sys.modules)
        yield
        for name in set(sys.modules) - known:
            if name.startswith("user_"):
                del sys.modules[name]

    def test_a_file_is_taken_as_it_is_in_its_own_order(self) -> None:
        """Compact, with the order of properties kept, since models answer in that order."""
        Path("s.json").write_text('\ufeff{"type": "object", "properties": {"b": {}, "a": {}}}\n', encoding="utf-8")
        assert load_schema("s.json") == b'{"type":"object","properties":{"b":{},"a":{}}}'

    def test_a_class_is_imported_from_the_current_folder(self) -> None:
        """The console script has no current folder on its path, yet a user's models lie there."""
        Path("user_models.py").write_text(
            "import pydantic\nclass Out:\n  class Ticket(pydantic.BaseModel):\n    b: int\n    a: str\n"
        )
        before = list(sys.path)
        schema = json.loads(load_schema("user_models:Out.Ticket"))
        assert list(schema["properties"]) == ["b", "a"]
        assert schema["title"] == "Ticket"
        assert sys.path == before

    @pytest.mark.parametrize(
        ("spec", "expected"),
        [
            ("nowhere.json", "nowhere.json: schema: cannot be read: No such file"),
            ("twice.json", 'twice.json: schema: not JSON: the key "a" stands twice'),
            ("prose.json", "prose.json: schema: not JSON: prose around it"),
            ("number.json", "number.json: schema: not a JSON Schema: it is neither an object"),
            ("wrong.json", "wrong.json: schema: not a JSON Schema: $.type"),
            ("user_nowhere:A", "user_nowhere:A: schema: there is no module 'user_nowhere'"),
            ("user_bad:A", "user_bad:A: schema: cannot be imported: ValueError: two lines"),
            ("user_exit:A", "user_exit:A: schema: cannot be imported: SystemExit: 3"),
            ("user_good:Nope", "user_good:Nope: schema: has no such class"),
            ("user_good:thing", "user_good:thing: schema: is not a pydantic model"),
            ("user_good:Odd", "user_good:Odd: schema: cannot be imported: PydanticInvalidForJsonSchema"),
            ("what is this", "schema: expected file.json or module:Class"),
            ("os:system('ls')", "schema: expected file.json or module:Class"),
        ],
    )
    def test_what_cannot_be_used_is_one_line(self, spec: str, expected: str) -> None:
        """Whatever the file holds or the user's module raises."""
        Path("twice.json").write_text('{"a": 1, "a": 2}')
        Path("prose.json").write_text('Here: {"type": "object"}')
        Path("number.json").write_text("5")
        Path("wrong.json").write_text('{"type": "strin"}')
        Path("user_bad.py").write_text("raise ValueError('two\\nlines')")
        Path("user_exit.py").write_text("import sys\nsys.exit(3)")
        Path("user_good.py").write_text(
            "import pydantic, typing\nthing = 5\nclass Odd(pydantic.BaseModel):\n  f: typing.Callable[[], int]\n"
        )
        with pytest.raises(ConfigError) as caught:
            load_schema(spec)
        assert str(caught.value).startswith(expected)
        assert "\n" not in str(caught.value)

    def test_a_class_at_hand(self) -> None:
        """For a program that has the class itself; what JSON cannot say is one line."""

        class Good(BaseModel):
            reasoning: str
            verdict: bool

        class Odd(BaseModel):
            hook: Callable[[], int]

        assert list(json.loads(schema_of(Good))["properties"]) == ["reasoning", "verdict"]
        with pytest.raises(ConfigError, match="Odd has no JSON Schema: PydanticInvalidForJsonSchema"):
            schema_of(Odd)
