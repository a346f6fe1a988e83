"""The filter removes what its rules say, counts it, and leaves nothing half-written."""

import dataclasses
import json
import sys

import duckdb
import pytest
from PIL import Image

from llamagen_jax.data.prepare import __main__ as prepare
from llamagen_jax.data.prepare import filter as metadata_filter
from llamagen_jax.data.prepare.filter import FilterConfig, filter_metadata
from llamagen_jax.errors import InputError

GOOD = {
    "URL": "https://example.com/1.jpg",
    "TEXT": 'it\'s a "cat", é',
    "WIDTH": 256.0,
    "HEIGHT": 300.0,
    "aesthetic_score": 4.75,
    "pwatermark": 0.5,
    "similarity": 0.3,
    "hash": 7,
}
# What each row changes in GOOD, and the rule that removes it.
BAD = [
    ("url", {"URL": "ftp://example.com/1.jpg"}),
    ("url", {"URL": "https://localhost/1.jpg"}),
    ("url", {"URL": "https://example.com/a picture.jpg"}),
    ("url", {"URL": ""}),
    ("url", {"URL": None}),
    ("width", {"WIDTH": 255}),
    ("width", {"WIDTH": None}),
    ("height", {"HEIGHT": 255.5}),
    ("height", {"HEIGHT": float("nan")}),
    ("aesthetic", {"aesthetic_score": 4.74, "pwatermark": 1.0}),
    ("aesthetic", {"aesthetic_score": float("nan")}),
    ("watermark", {"pwatermark": 0.51}),
    ("watermark", {"pwatermark": None}),
    ("similarity", {"similarity": 0.29}),
    ("hash", {"hash": None}),
    ("hash", {"URL": "https://example.com/second-of-its-hash.jpg"}),
]


def write_parquet(path, rows):
    types = {str: "VARCHAR", int: "BIGINT", float: "DOUBLE"}
    columns = {name: types[type(value)] for name, value in (GOOD | rows[-1]).items()}
    columns = {name: columns[name] for name in rows[0]}
    database = duckdb.connect()
    database.execute(f"CREATE TABLE t ({', '.join(f'{n} {t}' for n, t in columns.items())})")
    marks = ", ".join("?" * len(columns))
    database.executemany(f"INSERT INTO t VALUES ({marks})", [list(row.values()) for row in rows])
    path.parent.mkdir(exist_ok=True)
    database.table("t").write_parquet(str(path))


def read_parquet(path):
    found = duckdb.sql("SELECT * FROM read_parquet(?)", params=[str(path)])
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


@pytest.fixture
def metadata(tmp_path):
    """Every bad row, around good ones whose hashes are 7, 8 and 9; the third file has none good."""
    bad = [GOOD | change for _, change in BAD]
    good = [GOOD | {"hash": i, "URL": f"http://example.com/{i}.PNG?a=b"} for i in (8, 9)]
    write_parquet(tmp_path / "in" / "a.parquet", [*bad[:5], GOOD, *bad[5:]])
    write_parquet(tmp_path / "in" / "b.parquet", [good[1], bad[-1], good[0]])
    write_parquet(tmp_path / "in" / "c.parquet", [bad[0]])
    return tmp_path / "in"


def test_each_rule_removes_its_rows(metadata, tmp_path, capsys):
    report = filter_metadata(str(metadata), str(tmp_path / "out"), FilterConfig())
    expected = dict.fromkeys([rule for rule, _ in BAD], 0)
    for rule, _ in [*BAD, BAD[-1], BAD[0]]:
        expected[rule] += 1
    assert {rule["name"]: rule["removed"] for rule in report["rules"]} == expected
    assert (report["rows"], report["kept"]) == (len(BAD) + 5, 3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a-000.parquet",
        "b-000.parquet",
        "report.json",
        "report.png",
    ]
    assert read_parquet(tmp_path / "out" / "a-000.parquet") == [GOOD]
    assert [row["hash"] for row in read_parquet(tmp_path / "out" / "b-000.parquet")] == [9, 8]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert Image.open(tmp_path / "out" / "report.png").width > 500
    shown = capsys.readouterr().out
    assert f"url         http or https, with a host  {6:>14}   28.6%\n" in shown
    assert f"wrote 3 of 21 rows to {tmp_path / 'out'}" in shown


def test_columns_and_thresholds_are_flags(tmp_path):
    rows = [{"link": GOOD["URL"], "w": w, "TEXT": str(w)} for w in (10.0, 20.0, 30.0)]
    write_parquet(tmp_path / "in.parquet", rows)
    off = [f"--{n}-column=" for n in ("height", "aesthetic", "watermark", "similarity", "hash")]
    flags = ["--url-column", "link", "--width-column=w", "--min-size", "20", *off]
    prepare.main(["filter", str(tmp_path / "in.parquet"), str(tmp_path / "out"), *flags])
    assert read_parquet(tmp_path / "out" / "in-000.parquet") == rows[1:]


def test_strips_are_removed_where_asked_for(tmp_path):
    rows = [GOOD | {"WIDTH": w, "HEIGHT": h, "hash": w} for w, h in ((900, 300), (300, 901))]
    write_parquet(tmp_path / "a.parquet", rows)
    filter_metadata(tmp_path / "a.parquet", tmp_path / "out", FilterConfig(max_aspect=3.0))
    assert [row["WIDTH"] for row in read_parquet(tmp_path / "out" / "*.parquet")] == [900]
    with pytest.raises(InputError, match=r"max_aspect=0.5 must be at least 1, or 0 for any"):
        FilterConfig(max_aspect=0.5)


def test_duplicates_may_be_told_by_any_column(tmp_path):
    rows = [GOOD | {"hash": i, "URL": f"https://example.com/{i // 2}"} for i in range(4)]
    write_parquet(tmp_path / "in.parquet", rows)
    config = FilterConfig(hash_column="url")
    filter_metadata(str(tmp_path / "in.parquet"), str(tmp_path / "out"), config)
    assert read_parquet(tmp_path / "out" / "in-000.parquet") == [rows[0], rows[2]]


def test_large_files_are_written_in_parts(tmp_path, monkeypatch):
    rows = [GOOD | {"hash": i} for i in (1, 2, 3, 3, 3, 4)]
    write_parquet(tmp_path / "it's.parquet", rows)
    monkeypatch.setattr(metadata_filter, "_PART_BITS", 1)
    filter_metadata(str(tmp_path / "it's.parquet"), str(tmp_path / "it's out"), FilterConfig())
    parts = sorted((tmp_path / "it's out").glob("*.parquet"))
    assert [path.name for path in parts] == [f"it's-00{part}.parquet" for part in (0, 1, 2)]
    assert [row["hash"] for path in parts for row in read_parquet(path)] == [1, 2, 3, 4]


def test_rows_of_many_row_groups_keep_their_order(tmp_path):
    rows = "SELECT 'http://a.b/' || i AS URL, i % 300000 AS hash FROM range(400000) t(i)"
    duckdb.sql(rows).write_parquet(str(tmp_path / "in.parquet"), row_group_size=20_000)
    names = ("width", "height", "aesthetic", "watermark", "similarity")
    config = FilterConfig(**{f"{name}_column": "" for name in names})
    filter_metadata(str(tmp_path / "in.parquet"), str(tmp_path / "out"), config)
    found = duckdb.sql(f"SELECT hash FROM '{tmp_path}/out/in-000.parquet'").fetchall()
    assert found == [(i,) for i in range(300_000)]


def test_what_is_missing_or_damaged_is_named(metadata, tmp_path):
    def fails(path, message, **options):
        with pytest.raises(InputError, match=message) as error:
            filter_metadata(str(path), str(tmp_path / "out"), FilterConfig(**options))
        assert "\n" not in str(error.value)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]

    fails(tmp_path / "nowhere", r"no parquet file at .*nowhere")
    fails(tmp_path, "no parquet file at")
    column = r"a\.parquet has no column 'score' \(it has URL, .*\); .* --aesthetic-column, or ''"
    fails(metadata, column, aesthetic_column="score")
    no_rows = duckdb.sql("SELECT * FROM read_parquet(?) LIMIT 0", params=[f"{metadata}/b.parquet"])
    no_rows.write_parquet(str(tmp_path / "empty.parquet"))
    fails(tmp_path / "empty.parquet", r"empty\.parquet has no rows")
    fails(metadata, r"no row of .* is left \(removed by url 6, .*\)", min_size=999)
    columns = {f.name: "" for f in dataclasses.fields(FilterConfig) if f.name.endswith("_column")}
    fails(metadata, "every column is left out", **columns)
    whole = (metadata / "b.parquet").read_bytes()
    (metadata / "b.parquet").write_bytes(whole[: len(whole) // 2])
    fails(metadata, r"cannot filter .*b\.parquet: ")


def test_an_existing_output_is_kept(metadata, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit, match=r"error: .*out exists already"):
        prepare.main(["filter", str(metadata), str(tmp_path / "out")])
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("module", ["duckdb", "matplotlib.figure"])
def test_without_the_extra(metadata, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf'{module}: pip install "llamagen_jax\[prepare\]"'):
        filter_metadata(str(metadata), str(tmp_path / "out"), FilterConfig())
