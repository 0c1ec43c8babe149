"""runtime/config.py and runtime/yaml_lines.py: what loads, and the one line that says why something does not."""

import contextlib
import os
import pickle
import re
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import ConfigError
from actors.settings import Price
from runtime.config import Config, digest, key_values, load_config, resolve_prices
from runtime.yaml_lines import Document, looks_secret, parse, shown_path

INTERFACE = """\
state_dir: .raycade
tiers:                              # tried in this order
  - name: premium                   # label on every metric
    model: gpt-4o
    base_url: https://api.openai.com/v1     # one, or a list of endpoints that serve the same model
    api_key_env: OPENAI_API_KEY
    quality: high                   # basic < medium < high
    price: {prompt: 2.5, completion: 10.0}
    replicas: 1
    concurrency: auto
    requests_per_minute: 10000
    tokens_per_minute: 2000000
    timeout_s: 30
    context_tokens: 128000
    max_output_tokens: 1024
    transport: wire
    breaker: {failure_threshold: 5, recovery_timeout_s: 30, failure_rate: 0.5, min_calls: 20, window_s: 30,
              half_open_calls: 1}
budget:
  tokens: {per_request: 4000, per_hour: 100000, per_day: 1000000}
  usd: {per_hour: 5, per_day: 50}
  tiers: {premium: {usd: {per_day: 20}}}
  keys: {}
  on_exhausted: stop
router: {replicas: 1, min_quality: basic, deadline_s: 600, max_attempts: 6, on_rate_limit: fallback, hedge: off}
coalesce: {enabled: true, keep_s: 0, runaway: {max_per_minute: 0}}
prompts: {dir: prompts}
gateway: {keys_file: null, max_body_mb: 10}
telemetry: {metrics_port: 9464, otlp_endpoint: null}
"""

TIER = """\
tiers:
  - name: main
    model: gpt-4o
    base_url: http://127.0.0.1:9000/v1
"""

CANARY = "sk-proj-Canary0123456789abcdefXYZ"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Load a text as raycade.yaml of the current folder."""
    monkeypatch.chdir(tmp_path)

    def loader(text: str, environ: dict[str, str] | None = None, **options: bool) -> Config:
        Path("raycade.yaml").write_text(text, encoding="utf-8")
        return load_config(None, environ or {}, **options)

    return loader


@pytest.fixture
def refused(load):
    """The lines that say why a text does not load."""

    def loader(text: str, environ: dict[str, str] | None = None) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, environ)
        error = caught.value
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        for jargon in ("Input should be", "type=", "pydantic", "validation error", "[key]"):
            assert jargon not in str(error)
        return str(error).split("\n")

    return loader


def test_the_documented_example_loads_as_it_stands(load) -> None:
    """Every key of INTERFACE's raycade.yaml is known, and `hedge: off` is the word off."""
    config = load(INTERFACE, {"OPENAI_API_KEY": "x"})
    assert config.router.hedge is None
    assert config.tiers[0].breaker.window_s == 30
    assert config.budget.tiers["premium"].usd.per_day == 20
    assert config.telemetry.otlp_endpoint is None
    assert resolve_prices(config) == {"premium": Price(prompt=2.5, completion=10.0)}


def test_three_lines_are_a_configuration(load) -> None:
    """Everything but the tiers has a default."""
    config = load(TIER)
    assert config.state_dir == ".raycade"
    assert config.tiers[0].base_url == ("http://127.0.0.1:9000/v1",)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@host:5432/db",
        "postgres://host/db",
        "postgresql://me@one:1,two:2/db?sslmode=verify-full",
        "postgresql://[::1]:5432/db",
        "postgresql:///db?host=/var/run/postgresql",
        "postgresql:///?service=ledger",
    ],
)
def test_a_ledger_may_be_in_postgresql(load, url: str) -> None:
    """Every way to name a server but with a password; without one the ledger is a file in state_dir."""
    assert load(TIER + f"ledger: {url}\n").ledger_place == url
    assert load(TIER + "state_dir: here\n").ledger_place == os.path.abspath("here")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("    timeout_s: 30s\n", "raycade.yaml:5: tiers[0].timeout_s: expected a number of seconds > 0, found '30s'"),
        ("    timeout_s: .inf\n", "raycade.yaml:5: tiers[0].timeout_s: expected a number of seconds > 0, found '.inf'"),
        ("    timeout_s: .NaN\n", "raycade.yaml:5: tiers[0].timeout_s: expected a number of seconds > 0, found '.NaN'"),
        (
            "    timeout_s: 1e999\n",
            "raycade.yaml:5: tiers[0].timeout_s: expected a number of seconds > 0, found '1e999'",
        ),
        ("    timeout_s: 0\n", "raycade.yaml:5: tiers[0].timeout_s: expected a number of seconds > 0, found 0"),
        ("    timeout_s: true\n", "raycade.yaml:5: tiers[0].timeout_s: expected a number of seconds > 0, found true"),
        ("    replicas: 0\n", "raycade.yaml:5: tiers[0].replicas: expected a whole number from 1 to 256, found 0"),
        ("    replicas: 1.5\n", "raycade.yaml:5: tiers[0].replicas: expected a whole number from 1 to 256, found 1.5"),
        (
            "    concurrency: lots\n",
            "raycade.yaml:5: tiers[0].concurrency: expected 'auto' or a whole number >= 1, found 'lots'",
        ),
        ("    quality: top\n", "raycade.yaml:5: tiers[0].quality: expected 'basic', 'medium' or 'high', found 'top'"),
        ("    breakr: {}\n", "raycade.yaml:5: tiers[0].breakr: unknown key; did you mean breaker?"),
        ("    price: 3\n", "raycade.yaml:5: tiers[0].price: expected keys and values, found 3"),
        (
            "    price:\n      prompt: abc\n      completion: 1\n",
            "raycade.yaml:6: tiers[0].price.prompt: expected a number >= 0, found 'abc'",
        ),
        ("    price: {prompt: 1}\n", "raycade.yaml:5: tiers[0].price.completion: this key is missing"),
        (
            "budget: {tiers: {other: {}}}\n",
            "raycade.yaml:5: budget.tiers.other: there is no tier of this name; there are: main",
        ),
        (
            "budget: {usd: {per_week: 5}}\n",
            "raycade.yaml:5: budget.usd.per_week: unknown key; did you mean per_request?",
        ),
        (
            "router: {on_content_filter: retry}\n",
            "raycade.yaml:5: router.on_content_filter: expected 'final' or 'fallback', found 'retry'",
        ),
        (
            "router:\n  on_content_filter: off\n",
            "raycade.yaml:6: router.on_content_filter: expected 'final' or 'fallback', found 'off'",
        ),
        (
            "router: {min_quality: high}\n",
            "raycade.yaml:5: router.min_quality: no tier is of quality high; the best is basic",
        ),
        ("coalesce: {enabled: yes}\n", "raycade.yaml:5: coalesce.enabled: expected true or false, found 'yes'"),
        ("router: [1]\n", "raycade.yaml:5: router: expected keys and values, found a list"),
        ("router:\n", "raycade.yaml:5: router: expected keys and values, found nothing"),
        *(
            (f"ledger: {url}\n", f"raycade.yaml:5: ledger: {wrong}")
            for wrong, urls in {
                "a password never stands in this file; put it into the environment variable PGPASSWORD, into ~/.pgpass "
                "or into a service file": (
                    f"postgresql://me:{CANARY}@host/db",
                    f"postgresql://me:{CANARY}/@host/db",
                    f"postgresql://host/db?password={CANARY}",
                    f"postgresql://host/db?pass%77ord={CANARY}",
                    f"mysql://me:{CANARY}@host/db",
                ),
                "expected an address such as postgresql://USER@HOST:5432/DATABASE": (
                    "sqlite:///file",
                    "host=localhost",
                    f"postgresql://me:{CANARY}",
                    "'postgresql://host/my db'",
                ),
            }.items()
            for url in urls
        ),
        ("state_dir: 5\n", "raycade.yaml:5: state_dir: expected text, found 5 (put it in quotes)"),
        ("state_dir: a\nstate_dir: b\n", "raycade.yaml:6: state_dir: stands twice, first on line 5"),
        ("state_dir: !!str a\n", "raycade.yaml:5: tags (`!...`) are not allowed"),
        ("state_dir: !!python/object/apply:os.system [ls]\n", "raycade.yaml:5: tags (`!...`) are not allowed"),
        ("state_dir: 'a\n", "raycade.yaml:6: not valid YAML: found unexpected end of stream"),
        ("a: b: c\n", "raycade.yaml:5: not valid YAML: mapping values are not allowed here"),
        ("[1]: 2\n", "raycade.yaml:5: a key must be a word"),
        ('state_dir: "\\ud800"\n', "raycade.yaml:5: state_dir: holds half a character (a surrogate)"),
        ("state_dir: \x01\n", "raycade.yaml:5: a character that may not stand in YAML"),
    ],
)
def test_one_mistake_is_one_line_with_its_place(refused, text: str, expected: str) -> None:
    """File, line, key, what was expected and what was found."""
    assert refused(TIER + text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "raycade.yaml:1: the file is empty"),
        ("# nothing\n", "raycade.yaml:1: the file is empty"),
        ("- 1\n", "raycade.yaml:1: expected keys and values at the top, found a list"),
        ("state_dir: x\n", "raycade.yaml:1: tiers: this key is missing"),
        ("\ntiers: []\n", "raycade.yaml:2: tiers: expected a list, found nothing in it"),
        ("tiers: [5]\n", "raycade.yaml:1: tiers[0]: expected keys and values, found 5"),
        ("tiers: {name: a}\n", "raycade.yaml:1: tiers: expected a list, found keys and values"),
        (
            TIER.replace("http://127.0.0.1:9000/v1", "localhost:9000"),
            "raycade.yaml:4: tiers[0].base_url: expected an address that begins with http:// or https://, "
            "found 'localhost:9000'",
        ),
        (
            TIER.replace("main", "two words"),
            "raycade.yaml:2: tiers[0].name: expected a name of letters, digits, '.', '_' and '-', at most 64 "
            "characters, found 'two words'",
        ),
    ],
)
def test_a_file_of_the_wrong_shape_is_told_so(refused, text: str, expected: str) -> None:
    """Empty files, lists, missing and misshapen tiers."""
    assert refused(text) == [expected]


def test_every_mistake_is_told_at_once_in_the_order_of_the_file(refused) -> None:
    """Nobody wants to run a command six times to find six mistakes."""
    lines = refused(TIER + "    replicas: 0\n    timeout_s: soon\nrouter: {hedge: on}\nstate: x\n")
    assert [re.match(r"raycade\.yaml:(\d+): ([\w.\[\]]+): ", line).groups() for line in lines] == [
        ("5", "tiers[0].replicas"),
        ("6", "tiers[0].timeout_s"),
        ("7", "router.hedge"),
        ("8", "state"),
    ]


@pytest.mark.parametrize(
    ("given", "share", "after_s", "max_fraction"),
    [
        ("{after: p95, max_fraction: 0.05}", 0.95, None, 0.05),
        ("{after: p99.9}", 0.999, None, 0.05),
        ("{after: 2, max_fraction: 0}", None, 2.0, 0.0),
        ("{}", 0.95, None, 0.05),
    ],
)
def test_hedging_takes_a_quantile_or_seconds(
    load, given: str, share: float | None, after_s: float | None, max_fraction: float
) -> None:
    """And `off` or nothing is no hedging."""
    hedge = load(TIER + f"router: {{hedge: {given}}}\n").router.hedge
    assert hedge.share == (None if share is None else pytest.approx(share))
    assert (hedge.after_s, hedge.max_fraction) == (after_s, max_fraction)
    assert load(TIER + "router: {hedge: off}\n").router.hedge is None
    assert load(TIER).router.hedge is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("on", "hedge: expected off, or keys such as {after: p95, max_fraction: 0.05}, found 'on'"),
        ("{after: p100}", "hedge.after: expected p50 to p99.9, or a number of seconds > 0, found 'p100'"),
        ("{after: p20}", "hedge.after: expected p50 to p99.9, or a number of seconds > 0, found 'p20'"),
        ("{after: 0}", "hedge.after: expected p50 to p99.9, or a number of seconds > 0, found 0"),
        ("{after: true}", "hedge.after: expected a quantile such as p95, or a number of seconds, found true"),
        ("{max_fraction: 2}", "hedge.max_fraction: expected a number from 0 to 1, found 2"),
        ("{aftr: p95}", "hedge.aftr: unknown key; did you mean after?"),
    ],
)
def test_hedging_that_makes_no_sense_is_told_so(refused, given: str, expected: str) -> None:
    """One line with the place and what was expected."""
    assert refused(TIER + f"router: {{hedge: {given}}}\n") == [f"raycade.yaml:5: router.{expected}"]


def test_two_tiers_of_one_name_show_both_lines(refused) -> None:
    """The second is where the error stands, and it names the first."""
    [line] = refused(TIER + TIER.partition("\n")[2])
    assert line == "raycade.yaml:5: tiers[1].name: two tiers are called 'main'; the first is on line 2"


def test_a_missing_file_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message holds a line that is itself a configuration."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no such file.*-c FILE") as caught:
        load_config(None, {})
    sample = str(caught.value).partition("one line: ")[2]
    Path("mine.yaml").write_text(sample)
    assert load_config("mine.yaml", {"OPENAI_API_KEY": "x"}).tiers[0].name == "main"


def test_a_folder_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """Neither is a traceback."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(str(tmp_path), {})
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"a: 1\nb: \xe4\n")
    with pytest.raises(ConfigError, match=r"latin.yaml:2: not UTF-8 text"):
        load_config(str(file), {})


class TestKeys:
    """Keys stand in the environment; a message never shows one."""

    def test_a_missing_variable_is_named_with_its_line(self, refused) -> None:
        """Not set and empty are told apart, since an empty one usually means a broken secret mount."""
        text = TIER + "    api_key_env: MY_API_KEY\n"
        assert refused(text) == [
            "raycade.yaml:5: tiers[0].api_key_env: the environment variable MY_API_KEY is not set "
            "(nor MY_API_KEY_FILE, a file's path)"
        ]
        assert refused(text, {"MY_API_KEY": ""})[0].endswith("MY_API_KEY is empty")

    def test_a_key_may_stand_in_a_file_that_a_variable_names(self, load, refused, tmp_path: Path) -> None:
        """A path may be shown where a variable may not; neither the key nor what was put for a path is told."""
        text = TIER + "    api_key_env: MY_API_KEY\n"
        (tmp_path / "key").write_text(f"{CANARY}\n")
        environ = {"MY_API_KEY_FILE": str(tmp_path / "key")}
        assert key_values(load(text, environ), environ) == [CANARY]
        assert key_values(load(text, environ), environ | {"MY_API_KEY": "another"}) == ["another"]
        [line] = refused(text, {"MY_API_KEY_FILE": CANARY})
        assert line.endswith("the file that MY_API_KEY_FILE names cannot be read: No such file or directory")
        (tmp_path / "key").write_text(f"{CANARY} {CANARY}")
        [line] = refused(text, environ)
        assert line.endswith(
            "the file that MY_API_KEY_FILE names holds blanks, line ends or other characters no key has"
        )
        (tmp_path / "key").write_text(" ")
        assert refused(text, environ)[0].endswith("the file that MY_API_KEY_FILE names is empty")

    def test_a_value_with_blanks_is_refused_without_showing_it(self, refused) -> None:
        """A trailing newline in a key would break the header, or worse."""
        [line] = refused(TIER + "    api_key_env: MY_API_KEY\n", {"MY_API_KEY": CANARY + "\n"})
        assert "MY_API_KEY holds blanks" in line
        assert CANARY not in line

    def test_the_check_can_be_left_out(self, load) -> None:
        """A dry run calls nothing and needs no key."""
        assert load(TIER + "    api_key_env: MY_API_KEY\n", check_keys=False).tiers[0].api_key_env == "MY_API_KEY"

    @pytest.mark.parametrize(
        "text",
        [
            TIER + f"    api_key_env: {CANARY}\n",
            TIER + f"    api_key: {CANARY}\n",
            TIER + f"    key: {CANARY}\n    replicas: 0\n",
            TIER + f"    token: {CANARY}\n",
            TIER + f"    headers: {{Authorization: Bearer {CANARY}}}\n",
            TIER + f"    {CANARY}: 1\n",
            TIER + f"    api_key_env: [{CANARY}]\n",
            TIER + f"    api_key_env:\n      {CANARY}: {CANARY}\n",
            TIER + f"    quality: {CANARY}\n",
            TIER + f"    timeout_s: {CANARY}\n",
            TIER.replace("main", f"main\n    name: {CANARY}"),
            TIER.replace("http://127", f"http://me:{CANARY}@127"),
            TIER.replace("http://127", f"{CANARY}@127"),
            TIER + f"budget: {{tiers: {{{CANARY}: {{}}}}}}\n",
            TIER + f"budget: {{keys: {{{CANARY}: 5}}}}\n",
            TIER + f"{CANARY}: 1\n{CANARY}: 2\n",
            TIER + f"state_dir: *{CANARY}\n",
            TIER + f"telemetry: {{otlp_endpoint: 'http://u:{CANARY}@host'}}\n",
            CANARY,
            CANARY + ": [",
        ],
    )
    def test_no_message_or_traceback_shows_a_key(self, load, text: str) -> None:
        """Wherever a key was written by mistake, neither the error nor what hangs on it holds the key."""
        with pytest.raises(ConfigError) as caught:
            load(text)
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert CANARY not in shown
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None

    def test_an_address_for_traces_is_one(self, load) -> None:
        assert load(TIER + "telemetry: {otlp_endpoint: 'http://127.0.0.1:4318'}\n").telemetry.otlp_endpoint
        with pytest.raises(ConfigError, match=r"otlp_endpoint: expected an address such as http://127.0.0.1:4318"):
            load(TIER + "telemetry: {otlp_endpoint: '127.0.0.1:4318'}\n")

    @pytest.mark.parametrize(
        "key", [CANARY, "gsk_abcDEF0123456789abcdef", "AIzaSyA0123456789abcdefghij", "AKIAIOSFODNN7EXAMPLE"]
    )
    def test_a_key_in_place_of_a_name_is_explained(self, refused, key: str) -> None:
        """Also where the key would pass as a variable's name."""
        [line] = refused(TIER + f"    api_key_env: {key}\n")
        assert "a key never stands in this file" in line
        assert key not in line

    def test_the_key_api_key_leads_to_api_key_env(self, refused) -> None:
        """The message says where keys go instead."""
        [line] = refused(TIER + "    api_key: hunter2\n")
        assert line.startswith("raycade.yaml:5: tiers[0].api_key: ")
        assert "api_key_env takes the NAME" in line
        assert "hunter2" not in line

    @pytest.mark.parametrize(
        "text", ["gpt-4o-2024-08-06", "llama-3.1", "premium", "https://api.openai.com/v1", "api_key_env", "Asia"]
    )
    def test_ordinary_words_are_no_secrets(self, text: str) -> None:
        """Messages keep showing model names and addresses."""
        assert not looks_secret(text)


class TestYaml:
    """What the reader takes of YAML."""

    def test_anchors_and_merges_keep_their_lines(self, load, refused) -> None:
        """Shared settings are written once; a mistake in them is reported where it stands."""
        text = (
            "tiers:\n"
            "  - &base\n    name: a\n    model: gpt-4o\n    base_url: http://x\n    replicas: 2\n"
            "  - {<<: *base, name: b, replicas: 3}\n"
        )
        config = load(text)
        assert [(tier.name, tier.replicas) for tier in config.tiers] == [("a", 2), ("b", 3)]
        lines = refused(text.replace("model: gpt-4o", "model: 4"))
        assert [line.partition(" ")[0] for line in lines] == ["raycade.yaml:4:", "raycade.yaml:4:"]

    @pytest.mark.parametrize(
        "text",
        [
            "a: &a [*a]",
            "a: &a {<<: *a}",
            "a: &a {b: *a}",
            "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{n}: &{n} [{','.join([f'*{p}'] * 10)}]\n" for p, n in zip("abcdef", "bcdefg", strict=True)),
            "[" * 3000,
            "{a: " * 3000,
            "- " * 3000 + "a",
        ],
    )
    def test_bombs_are_refused(self, text: str) -> None:
        """A small text can neither become a large value nor exhaust the stack."""
        with pytest.raises(ConfigError, match=r"too large or endless|nested deeper"):
            parse(text.encode(), "f")

    def test_a_very_large_file_is_refused_unread(self) -> None:
        """Half a mebibyte of settings is a mistaken path."""
        with pytest.raises(ConfigError, match="larger than 512 KiB"):
            parse(b"a" * 600_000, "f")

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("off", "off"),
            ("yes", "yes"),
            ("True", True),
            ("null", None),
            ("~", None),
            ("10:30", "10:30"),
            ("010", "010"),
            ("0x1F", "0x1F"),
            ("1_000", 1000),
            ("1e6", 1e6),
            ("-2.5", -2.5),
            (".5", 0.5),
            ("2026-11-02", "2026-11-02"),
            (".inf", ".inf"),
            ("'5'", "5"),
            ("1e999", "1e999"),
        ],
    )
    def test_scalars_do_not_change_their_type_behind_ones_back(self, text: str, value: object) -> None:
        """YAML 1.2: only true and false are booleans, and no date, octal or clock time is guessed."""
        found = parse(f"k: {text}".encode(), "f").value["k"]
        assert found == value
        assert type(found) is type(value)

    def test_lines_are_those_of_keys_and_items(self) -> None:
        """A missing path gives the line of what is around it."""
        document = parse(b"a:\n  - x\n  -\n    b: |\n      text\n    c: 1\n", "f")
        assert document.lines[("a", 1, "b")] == 4
        assert document.line(("a", 1, "c")) == 6
        assert document.line(("a", 1, "nowhere", 3)) == 4
        assert shown_path(("a", 1, "b")) == "a[1].b"

    @given(
        st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")))
    )
    def test_any_bytes_are_a_document_or_one_config_error(self, data: bytes) -> None:
        """No input makes the reader raise anything else."""
        with contextlib.suppress(ConfigError):
            assert isinstance(parse(data, "f"), Document)

    @given(st.text(alphabet="ab:-[]{}&*<!|>'\"%@` \n\t#?,\\u0x~é", max_size=60))
    def test_any_punctuation_is_a_document_or_one_config_error(self, text: str) -> None:
        """The same over the characters that mean something in YAML."""
        with contextlib.suppress(ConfigError):
            assert isinstance(parse(text.encode(), "f"), Document)


class TestDigest:
    """What a resumed job may change."""

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("per_day: 50}", "per_day: 500}"),
            ("concurrency: auto", "concurrency: 64"),
            ("timeout_s: 30", "timeout_s: 60"),
            ("https://api.openai.com/v1", "http://127.0.0.1:1/v1"),
            ("requests_per_minute: 10000", "requests_per_minute: 5"),
            ("state_dir: .raycade", "state_dir: elsewhere"),
            ("metrics_port: 9464", "metrics_port: 9999"),
            ("OPENAI_API_KEY", "OTHER_API_KEY"),
            ("completion: 10.0", "completion: 12.0"),
            ("max_attempts: 6", "max_attempts: 9"),
        ],
    )
    def test_a_job_can_be_resumed_after_such_a_change(self, load, old: str, new: str) -> None:
        """Budgets, rates, times, addresses, prices and folders do not change what is asked of which model."""
        assert old in INTERFACE
        assert digest(load(INTERFACE.replace(old, new), check_keys=False)) == digest(load(INTERFACE, check_keys=False))

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("model: gpt-4o", "model: gpt-4o-mini"),
            ("name: premium ", "name: gold "),
            ("quality: high", "quality: medium"),
            ("max_output_tokens: 1024", "max_output_tokens: 512"),
            ("min_quality: basic", "min_quality: medium"),
        ],
    )
    def test_other_answers_are_another_job(self, load, old: str, new: str) -> None:
        """Models, qualities and lengths decide the answers."""
        assert old in INTERFACE
        text = INTERFACE.replace("  tiers: {premium: {usd: {per_day: 20}}}\n", "")
        assert digest(load(text.replace(old, new), check_keys=False)) != digest(load(text, check_keys=False))

    def test_the_order_of_tiers_counts(self, load) -> None:
        """It decides which model is asked first."""
        a, b = (f"  - {{name: {name}, model: gpt-4o, base_url: 'http://x'}}\n" for name in "ab")
        assert digest(load("tiers:\n" + a + b)) != digest(load("tiers:\n" + b + a))


class TestPrices:
    """A tier without a price gets one by its model, from data that is installed."""

    def test_a_known_model_has_a_price_offline(self, load, monkeypatch: pytest.MonkeyPatch) -> None:
        """No socket is opened to find it."""
        monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was tried"))
        price = resolve_prices(load(TIER))["main"]
        assert price.prompt > 0
        assert price.completion > price.prompt
        assert price.cached is not None
        assert price.cached < price.prompt

    @pytest.mark.parametrize(
        "model", ["gpt-4o-mini-2024-07-18", "openai/gpt-4o", "text-embedding-3-small", "claude-sonnet-4-5"]
    )
    def test_other_ways_to_write_a_model(self, load, model: str) -> None:
        """Dated versions, `provider/model`, embeddings and other providers."""
        assert resolve_prices(load(TIER.replace("gpt-4o", model)))["main"].prompt > 0

    def test_a_longer_context_reaches_the_price_of_long_prompts(self, load) -> None:
        """A budget must not be passed by prompts that the tier is known to take."""
        text = TIER.replace("gpt-4o", "claude-sonnet-4-5")
        usual, long = (resolve_prices(load(text + more))["main"] for more in ("", "    context_tokens: 1000000\n"))
        assert long.prompt > usual.prompt

    def test_an_unknown_model_is_an_error_that_says_what_to_write(self, refused) -> None:
        """It is found before any call is made."""
        [line] = refused(TIER.replace("gpt-4o", "my-own-model"))
        assert line.startswith("raycade.yaml:3: tiers[0].model: no price is known for model 'my-own-model'")
        assert "price: {prompt: 2.5, completion: 10.0}" in line

    def test_an_own_price_needs_no_lookup(self, load) -> None:
        """Zero is a price."""
        config = load(TIER.replace("gpt-4o", "mine") + "    price: {prompt: 0, completion: 0}\n")
        assert resolve_prices(config) == {"main": Price(prompt=0, completion=0)}

    def test_resolving_without_the_file_still_names_the_tier(self, load) -> None:
        """A Config built by a program has no lines."""
        tier = load(TIER).tiers[0].model_copy(update={"model": "mine"})
        with pytest.raises(ConfigError, match=r"tiers\[0\]\.model: no price is known"):
            resolve_prices(Config(tiers=[tier]))
