"""What -o can name beside a file that grows: one file for each input file, packed files, objects behind URLs."""

import gzip
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from actors.errors import ConfigError, InputError, RaycadeError
from runtime.batch import remote
from runtime.batch.journal import Journal
from runtime.batch.outputs import Output, output_of
from runtime.batch.parse import RawRow, Row, parse_row
from runtime.batch.publish import Publisher
from runtime.batch.reader import InputSet, open_input
from runtime.batch.writer import OutputWriter
from tests.storage import s3

KINDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


def row(number: int) -> dict[str, Any]:
    content = f"{number} \u2028 \U0001f600"
    body = {"messages": [{"role": "user", "content": content}]}
    return {"custom_id": f"row-{number}", "url": "/v1/chat/completions", "body": body}


def packed(rows: list[dict[str, Any]], place: Path) -> None:
    """Input of the kind that the name says."""
    lines = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    match place.suffix:
        case ".gz":
            place.write_bytes(gzip.compress(lines))
        case ".zst":
            place.write_bytes(zstandard.compress(lines))
        case ".parquet":
            columns = {
                name: pyarrow.array([row[name] for row in rows], pyarrow.string()) for name in ("custom_id", "url")
            }
            bodies = pyarrow.array([orjson.dumps(row["body"]).decode() for row in rows], pyarrow.string())
            parquet.write_table(pyarrow.table({**columns, "body": bodies}), place)
        case _:
            place.write_bytes(lines)


def unpacked(place: Path) -> list[dict[str, Any]]:
    """Output of the kind that the name says."""
    data = place.read_bytes()
    match place.suffix:
        case ".gz":
            data = gzip.decompress(data)
        case ".zst":
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        case ".parquet":
            lines = parquet.read_table(place).to_pylist()
            return [line | {"response": orjson.loads(line["response"])} for line in lines]
    return [orjson.loads(line) for line in data.splitlines()]


def shards(folder: Path, parts: list[tuple[int, str]]) -> list[Path]:
    """Files of so many rows and of these kinds, their rows numbered through."""
    folder.mkdir(exist_ok=True)
    places, number = [], 0
    for index, (count, kind) in enumerate(parts):
        places.append(folder / f"part-{index:03}{kind}")
        packed([row(each) for each in range(number, number + count)], places[-1])
        number += count
    return places


def until_error(inputs: InputSet) -> tuple[list[RawRow], InputError]:
    """The rows before the error that ends them."""
    got: list[RawRow] = []

    def read() -> None:
        for chunk in inputs.chunks():
            got.extend(chunk)

    with pytest.raises(InputError) as caught:
        read()
    return got, caught.value


class Run:
    """The rows of one job, without the calls: the journal, the writer and the publisher are those of `raycade batch`."""

    def __init__(self, spec: str, out: str, state: Path, fresh: bool = False, errors: str | None = None) -> None:
        self.inputs: InputSet = open_input(spec)
        self.output: Output = output_of(out, errors, str(state), self.inputs.files)
        files = (self.output.log, self.output.errors)
        prints = self.inputs.shards()
        self.journal = Journal.open(*files, self.inputs.fingerprint(), "c", fresh, None, prints)
        self.inputs.expect(*self.journal.expected)
        try:
            self.publisher = Publisher(self.output, fresh)
            self.writer = OutputWriter(*files, self.journal)
        except BaseException:
            self.journal.close()
            raise

    def do(
        self, wanted: Any = lambda number: True, fails: Any = lambda number: False, limit: int | None = None
    ) -> tuple[int, int]:
        """Do the rows that are wanted and not done, in an order of their own; publish. How many outputs there are."""
        rows = []
        for chunk in self.inputs.chunks(rows=1):
            rows += [parse_row(raw) for raw in chunk]
            if limit == len(rows):
                break
        random.Random(1).shuffle(rows)
        for each in rows:
            assert isinstance(each, Row)
            if each.number in self.journal.done or not wanted(each.number):
                continue
            if fails(each.number):
                self.writer.add_error(each.number, each.custom_id, "server", "no")
            else:
                self.writer.add_result(each, b'{"said":%d}' % each.number, 200, "r", {})
        self.writer.close()
        try:
            finished = len(self.journal.done) == (limit or self.inputs.rows)
            return self.publisher.publish_run(self.journal, self.inputs, limit, finished)
        finally:
            self.journal.close()


# -- rows ----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(parts=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(KINDS)), min_size=1, max_size=5))
def test_any_split_into_files_and_formats_gives_the_same_rows(
    parts: list[tuple[int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However rows are cut into files, and whatever those are, they are the same rows, numbered the same."""
    folder = tmp_path_factory.mktemp("in")
    shards(folder, parts)
    got = [parse_row(raw) for chunk in open_input(str(folder)).chunks() for raw in chunk]
    wanted = [row(number) for number in range(sum(count for count, _ in parts))]
    assert [(each.number, each.custom_id, each.body) for each in got if isinstance(each, Row)] == [
        (number, each["custom_id"], each["body"]) for number, each in enumerate(wanted)
    ]


# -- outputs -------------------------------------------------------------------------------------------------------

PARTS = [(4, ".jsonl"), (3, ".jsonl.gz"), (5, ".jsonl.zst"), (2, ".parquet")]


def said(place: Path) -> list[int]:
    return [line["response"]["body"]["said"] for line in unpacked(place)]


def test_a_folder_gets_one_output_for_each_input_file(tmp_path: Path) -> None:
    """Same names, same formats, rows in the order of the input; failures go to one file beside the folder."""
    shards(tmp_path / "in", PARTS)
    made, there = Run(str(tmp_path / "in"), f"{tmp_path}/out/", tmp_path).do(fails=lambda number: number == 5)
    assert (made, there) == (4, 4)
    outs = {place.name: said(place) for place in (tmp_path / "out").iterdir()}
    assert outs == {
        "part-000.jsonl": [0, 1, 2, 3],
        "part-001.jsonl.gz": [4, 6],
        "part-002.jsonl.zst": [7, 8, 9, 10, 11],
        "part-003.parquet": [12, 13],
    }
    assert [line["custom_id"] for line in unpacked(tmp_path / "out.errors.jsonl")] == ["row-5"]


def test_outputs_come_when_their_rows_are_done_and_stay_as_they_are(tmp_path: Path) -> None:
    """A run that ends early leaves whole files only; the next makes the others, and touches none of the first."""
    shards(tmp_path / "in", PARTS)
    out = tmp_path / "out"
    assert Run(str(tmp_path / "in"), f"{out}/", tmp_path).do(lambda number: number < 9) == (2, 2)
    assert sorted(os.listdir(out)) == ["part-000.jsonl", "part-001.jsonl.gz"]
    before = {place: place.stat().st_mtime_ns for place in out.iterdir()}
    assert Run(str(tmp_path / "in"), str(out), tmp_path).do() == (2, 4)
    assert {place: place.stat().st_mtime_ns for place in before} == before
    (out / "part-002.jsonl.zst").unlink()
    assert Run(str(tmp_path / "in"), str(out), tmp_path).do() == (1, 4)
    assert said(out / "part-002.jsonl.zst") == [7, 8, 9, 10, 11]


@pytest.mark.parametrize("name", ["out.jsonl.gz", "out.jsonl.zst", "out.parquet"])
def test_one_packed_output(tmp_path: Path, name: str) -> None:
    """The ending says the format; all files of the input go into it."""
    shards(tmp_path / "in", PARTS)
    Run(str(tmp_path / "in"), str(tmp_path / name), tmp_path).do()
    assert said(tmp_path / name) == list(range(14))
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_the_first_rows_only(tmp_path: Path) -> None:
    """With --limit the outputs are those of the rows up to it; without it the next run makes them whole."""
    shards(tmp_path / "in", PARTS)
    assert Run(str(tmp_path / "in"), f"{tmp_path}/out/", tmp_path).do(limit=6) == (2, 2)
    assert said(tmp_path / "out" / "part-001.jsonl.gz") == [4, 5]
    assert Run(str(tmp_path / "in"), f"{tmp_path}/out/", tmp_path).do() == (3, 4)
    assert said(tmp_path / "out" / "part-001.jsonl.gz") == [4, 5, 6]


def test_files_of_one_name_keep_their_folders(tmp_path: Path) -> None:
    """day-1/part.jsonl and day-2/part.jsonl are two outputs."""
    (tmp_path / "in").mkdir()
    for day in ("day-1", "day-2"):
        shards(tmp_path / "in" / day, [(1, ".jsonl")])
    spec = str(tmp_path / "in" / "*" / "*.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        output = output_of("out/", None, "state", open_input(spec).files)
    assert output.targets == ("out/day-1/part-000.jsonl", "out/day-2/part-000.jsonl")


def test_what_another_made_is_not_replaced(tmp_path: Path) -> None:
    """Not a file that stands there, and not the input itself; --fresh takes away what the job made."""
    shards(tmp_path / "in", PARTS)
    with pytest.raises(ConfigError, match=r"part-000\.jsonl: -o: would be written over the input|over the input"):
        output_of(str(tmp_path / "in"), None, str(tmp_path), open_input(str(tmp_path / "in")).files)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-002.jsonl.zst").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="exists and is not this job's"):
        Run(str(tmp_path / "in"), str(tmp_path / "out"), tmp_path)
    assert (tmp_path / "out" / "part-002.jsonl.zst").read_bytes() == b"mine"
    os.remove(tmp_path / "out" / "part-002.jsonl.zst")
    Run(str(tmp_path / "in"), str(tmp_path / "out"), tmp_path).do()
    assert Run(str(tmp_path / "in"), str(tmp_path / "out"), tmp_path, fresh=True).do(lambda _: False) == (0, 0)
    assert os.listdir(tmp_path / "out") == []


# -- an input that changes -----------------------------------------------------------------------------------------


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    """One line: which file of the input is not what it was, or has come, or is gone."""
    places = shards(tmp_path / "in", PARTS)
    spec, out = str(tmp_path / "in"), f"{tmp_path}/out/"
    Run(spec, out, tmp_path).do(lambda number: number < 5)
    whole = places[1].read_bytes()
    packed([row(77)], places[1])
    with pytest.raises(ConfigError, match=r"it was part-001\.jsonl\.gz \(.*\), now it is part-001\.jsonl\.gz \("):
        Run(spec, out, tmp_path)
    places[1].write_bytes(whole)
    packed([row(78)], tmp_path / "in" / "part-004.jsonl")
    with pytest.raises(ConfigError, match=r"it was nothing behind part-003\.parquet .*, now it is part-004\.jsonl"):
        Run(spec, out, tmp_path)
    os.remove(tmp_path / "in" / "part-004.jsonl")
    assert Run(spec, out, tmp_path).do() == (3, 4)


def cut_short(tmp_path: Path) -> tuple[Path, bytes, int]:
    """A job whose second file was cut in the middle: its place, what it should be, and how many rows were done."""
    (tmp_path / "in").mkdir()
    text = [row(number) for number in range(3000)]
    packed(text[:10], tmp_path / "in" / "a.jsonl")
    packed(text[10:2990], tmp_path / "in" / "b.jsonl.gz")
    packed(text[2990:], tmp_path / "in" / "c.jsonl")
    place = tmp_path / "in" / "b.jsonl.gz"
    whole = place.read_bytes()
    place.write_bytes(whole[: len(whole) // 2])
    run = Run(str(tmp_path / "in"), f"{tmp_path}/out/", tmp_path)
    raws, error = until_error(run.inputs)
    assert str(error).endswith("the compressed data ends early")
    read = [parse_row(raw) for raw in raws]
    for each in read:
        assert isinstance(each, Row)
        run.writer.add_result(each, b'{"said":%d}' % each.number, 200, "r", {})
    assert run.inputs.damage is not None
    run.journal.damaged(*run.inputs.damage)
    run.writer.close()
    assert run.publisher.publish_run(run.journal, run.inputs, None, finished=False) == (1, 1)
    run.journal.close()
    return place, whole, len(read)


def test_a_file_that_was_cut_may_come_back_whole(tmp_path: Path) -> None:
    """What was read of it is done; with the whole file in its place the job goes on behind that."""
    place, whole, done = cut_short(tmp_path)
    assert 100 < done < 2900
    place.write_bytes(whole)
    run = Run(str(tmp_path / "in"), f"{tmp_path}/out/", tmp_path)
    assert len(run.journal.done) == done
    assert run.do() == (2, 3)
    assert said(tmp_path / "out" / "b.jsonl.gz") == list(range(10, 2990))


def test_a_file_that_comes_back_as_another_is_refused(tmp_path: Path) -> None:
    """Rows are told by their place, so another order of them would give answers to other rows."""
    place, _, _ = cut_short(tmp_path)
    packed([row(number) for number in reversed(range(10, 2990))], place)
    run = Run(str(tmp_path / "in"), f"{tmp_path}/out/", tmp_path)
    with pytest.raises(Exception, match=r"b\.jsonl\.gz:\d+: is not what it was when the rows before it were done"):
        run.do()
    run.journal.close()


# -- objects behind URLs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A bucket `bucket`."""
    with s3("bucket") as client:
        yield client


def test_a_folder_in_s3_and_answers_beside_it(tmp_path: Path, bucket: Any) -> None:
    """Rows are those of the same files on disk, fingerprint too; an upload that fails is done by the next run."""
    for place in shards(tmp_path / "in", PARTS):
        bucket.upload_file(str(place), "bucket", f"in/{place.name}")
    local, there = open_input(str(tmp_path / "in")), open_input("s3://bucket/in/")
    assert there.fingerprint() == local.fingerprint()
    assert [raw.data for chunk in there.chunks() for raw in chunk] == [raw.data for c in local.chunks() for raw in c]
    assert there.read_bytes == there.size_bytes
    assert open_input("s3://bucket/in/*.gz").files == ("s3://bucket/in/part-001.jsonl.gz",)
    run = Run("s3://bucket/in", "s3://nobody/out/", tmp_path)
    with pytest.raises(
        RaycadeError, match=r"s3://nobody/out/part-000\.jsonl: cannot be written: .*bucket.* no answer is lost"
    ):
        run.do()
    bucket.create_bucket(Bucket="nobody")
    assert Run("s3://bucket/in", "s3://nobody/out/", tmp_path).do() == (4, 4)
    for place in (tmp_path / "in").iterdir():
        bucket.download_file("nobody", f"out/{place.name}", str(tmp_path / f"got-{place.name}"))
    assert [said(place) for place in sorted(tmp_path.glob("got-*"))] == [
        [0, 1, 2, 3],
        [4, 5, 6],
        [7, 8, 9, 10, 11],
        [12, 13],
    ]


def test_failures_go_beside_answers_in_s3(tmp_path: Path, bucket: Any) -> None:
    """One object of answers, one of failures."""
    shards(tmp_path / "in", PARTS)
    Run(str(tmp_path / "in"), "s3://bucket/one.jsonl", tmp_path).do(fails=lambda number: number == 3)
    lines = bucket.get_object(Bucket="bucket", Key="one.errors.jsonl")["Body"].read().splitlines()
    assert [orjson.loads(line)["custom_id"] for line in lines] == ["row-3"]
    assert len(bucket.get_object(Bucket="bucket", Key="one.jsonl")["Body"].read().splitlines()) == 13


def test_what_is_not_there_is_one_line(bucket: Any) -> None:
    """A bucket, an object or a scheme that does not exist."""
    for spec, said in (
        ("s3://none/in.jsonl", "s3://none/in.jsonl: "),
        ("s3://bucket/no/", "s3://bucket/no/: there is no such object, and no *.jsonl"),
        ("s3://bucket/*.nothing", "s3://bucket/*.nothing: nothing matches"),
        ("gs://b/in.jsonl", "gs://b/in.jsonl: gs:// needs a package that is not installed: "),
        ("nfs://b/in.jsonl", "nfs://b/in.jsonl: "),
    ):
        with pytest.raises(ConfigError) as caught:
            open_input(spec)
        assert str(caught.value).startswith(said)
        assert "\n" not in str(caught.value)


def test_a_read_that_fails_on_the_way_is_told_with_its_place(tmp_path: Path, bucket: Any) -> None:
    """An object that is gone when its turn comes: the rows before it, then one line."""
    bucket.put_object(Bucket="bucket", Key="gone/a.jsonl", Body=b"1\n")
    bucket.put_object(Bucket="bucket", Key="gone/b.jsonl", Body=b"2\n")
    source = open_input("s3://bucket/gone/")
    remote.remove("s3://bucket/gone/b.jsonl")
    got, error = until_error(source)
    assert [raw.data for raw in got] == [b"1"]
    assert str(error).startswith("s3://bucket/gone/b.jsonl:1: cannot be read from here on: ")


@pytest.mark.parametrize(
    ("package", "spec", "said"),
    [
        ("pyarrow", "in.parquet", "in.parquet: Parquet needs pyarrow: pip install 'raycade[data]'"),
        ("fsspec", "s3://b/x", "s3://b/x: s3:// needs fsspec: pip install 'raycade[data]'"),
    ],
)
def test_a_package_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, spec: str, said: str
) -> None:
    """Which one, and what to install."""
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        open_input(spec)
    assert said in str(caught.value)
