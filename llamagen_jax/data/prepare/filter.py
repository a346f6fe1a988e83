"""Metadata of images and captions -> the rows worth downloading; part of the command `prepare`.

The rules are those by which LlamaGen chose 50 million of LAION-COCO's 600 million rows for its
first stage (arXiv 2406.06525, section 3.3). The paper names the criteria but no thresholds: the
defaults are the first stage's resolution, the aesthetic score and watermark probability of the data
set guangyil/laion-coco-aesthetic, and LAION-400M's CLIP similarity.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from llamagen_jax import commands
from llamagen_jax.errors import InputError, check_finite
from llamagen_jax.files import staged
from llamagen_jax.parquet import import_extra, parquet_files

if TYPE_CHECKING:
    import duckdb
    from matplotlib.figure import Figure

# The database spills what does not fit to disk, so that any number of rows can be filtered; what
# its threads hold of the files that they read and write has to fit.
_GIGABYTES_PER_THREAD = 0.5
# A row's position is the file's number, then the row's number in it. Kept rows are written by parts
# of a file.
_ROW_BITS, _PART_BITS = 40, 22
# Written faster than DuckDB's larger default, as the memory of one is used again for the next.
_ROW_GROUP_SIZE = 61_440


# What reads an option of a field of this type.
_TYPES = {int: commands.whole_or_zero, float: commands.number, str: str}


def _option(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Thresholds and column names; an empty column name leaves its rule out.

    A row without a value for a rule is removed by that rule.
    """

    min_size: int = _option(256, "pixels that width and height have at least")
    max_aspect: float = _option(0.0, "longer side in shorter ones, at most; 0 for any")
    min_aesthetic: float = _option(4.75, "lowest aesthetic score")
    max_watermark: float = _option(0.5, "highest probability of a watermark")
    min_similarity: float = _option(0.3, "lowest CLIP similarity of image and text")
    url_column: str = _option("URL", "address of the image")
    width_column: str = _option("WIDTH", "width in pixels")
    height_column: str = _option("HEIGHT", "height in pixels")
    aesthetic_column: str = _option("aesthetic_score", "aesthetic score")
    watermark_column: str = _option("pwatermark", "probability of a watermark")
    similarity_column: str = _option("similarity", "CLIP similarity")
    hash_column: str = _option("hash", "what only duplicates have in common")

    def __post_init__(self):
        check_finite(self)
        if self.max_aspect and self.max_aspect < 1:
            raise InputError(f"max_aspect={self.max_aspect} must be at least 1, or 0 for any")
        if self.max_aspect and not (self.width_column and self.height_column):
            raise InputError("max_aspect needs the columns of width and height")


@dataclasses.dataclass(frozen=True)
class _Rule:
    """`condition` is SQL about `column` that holds for the rows to keep."""

    name: str
    column: str
    keeps: str
    condition: str


def filter_metadata(metadata: str, output: str, config: FilterConfig) -> dict:
    """Writes the rows that pass every rule, in their order, and reports what was removed.

    Every removed row counts for the first rule that it fails; of the rows with the same hash that
    pass the others, the first is kept.

    Args:
      metadata: a parquet file, or a folder of them.
      output: folder to write, which appears when it is complete: parquet files with all columns,
        one per input file or four million rows of it, `report.json` and `report.png`.

    Returns:
      The report: {"rows", "kept", "rules": [{"name", "column", "keeps", "removed"}]}.

    Raises:
      InputError: a file or column is missing or cannot be read, or no row is left.
    """
    duckdb, figures = import_extra("duckdb"), import_extra("matplotlib.figure")
    files = parquet_files(metadata)
    rules = _rules(config)
    with staged(output) as partial:
        partial.mkdir()
        with _database(duckdb, partial / "spill") as database:
            report = _judge(database, files, rules)
            if not report["rows"]:
                raise InputError(f"{metadata} has no rows: check the path")
            if not report["kept"]:
                counts = ", ".join(f"{rule['name']} {rule['removed']}" for rule in report["rules"])
                raise InputError(
                    f"no row of {metadata} is left (removed by {counts}); loosen the rules"
                )
            _write_kept(database, files, partial)
        (partial / "report.json").write_text(json.dumps(report, indent=2))
        _draw(report, figures.Figure).savefig(partial / "report.png", dpi=150)
    print(_table(report))
    print(f"wrote {report['kept']} of {report['rows']} rows to {output}")
    return report


@contextlib.contextmanager
def _database(duckdb: Any, spill: Path) -> Iterator["duckdb.DuckDBPyConnection"]:
    threads = os.cpu_count() or 1
    settings = {
        "threads": threads,
        "memory_limit": f"{max(_GIGABYTES_PER_THREAD * threads, 1)}GB",
        "temp_directory": str(spill),
    }
    with duckdb.connect(config=settings) as database:
        yield database
    shutil.rmtree(spill, ignore_errors=True)


def _rules(config: FilterConfig) -> list[_Rule]:
    def rule(name: str, keeps: str, condition: str) -> _Rule:
        column = getattr(config, f"{'width' if name == 'aspect' else name}_column")
        texts = {"column": _quoted(column), "number": _number(column)}
        return _Rule(name, column, keeps, condition.format(**texts))

    address = "CAST({column} AS VARCHAR)"
    url = (
        rf"regexp_matches({address}, '^(?i:https?)://[^/\s]+\.[^/\s]') "
        f"AND NOT contains({address}, ' ')"
    )
    width, height = _number(config.width_column), _number(config.height_column)
    aspect = f"greatest({width}, {height}) <= {config.max_aspect} * least({width}, {height})"
    size, aesthetic = config.min_size, config.min_aesthetic
    watermark, similarity = config.max_watermark, config.min_similarity
    rules = [
        rule("url", "http or https, with a host", url),
        rule("width", f"at least {size} px", f"{{number}} >= {size}"),
        rule("height", f"at least {size} px", f"{{number}} >= {size}"),
        *([rule("aspect", f"at most {config.max_aspect}", aspect)] if config.max_aspect else []),
        rule("aesthetic", f"score at least {aesthetic}", f"{{number}} >= {aesthetic}"),
        rule("watermark", f"probability at most {watermark}", f"{{number}} <= {watermark}"),
        rule("similarity", f"CLIP score at least {similarity}", f"{{number}} >= {similarity}"),
        rule("hash", "the first of its kind", "{column} IS NOT NULL"),
    ]
    chosen = [rule for rule in rules if rule.column]
    if not chosen:
        raise InputError("every column is left out: name one to filter by")
    return chosen


def _number(column: str) -> str:
    # NaN compares as the largest number in SQL; a row without a value fails every rule.
    return f"nullif(TRY_CAST({_quoted(column)} AS DOUBLE), 'NaN'::DOUBLE)"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _judge(database: "duckdb.DuckDBPyConnection", files: list[Path], rules: list[_Rule]) -> dict:
    """Makes the table `kept` of the positions of rows to keep, and returns the report."""
    cases = " ".join(
        f"WHEN NOT coalesce({rule.condition}, false) THEN {number}"
        for number, rule in enumerate(rules)
    )
    key = next((f"hash({_quoted(rule.column)})" for rule in rules if rule.name == "hash"), "NULL")
    database.execute("CREATE TEMP TABLE verdicts (position BIGINT, rule TINYINT, key UBIGINT)")
    for number, file in enumerate(tqdm(files, desc="judge", unit="file")):
        _check_columns(database, file, rules)
        _read(
            database,
            f"INSERT INTO verdicts SELECT {_position(number)}, "
            f"CASE {cases} ELSE {len(rules)} END, {key} FROM read_parquet(?)",
            file,
        )
    group = "GROUP BY key" if key != "NULL" else "GROUP BY position"
    database.execute(
        "CREATE TABLE kept AS SELECT min(position) AS position FROM verdicts "
        f"WHERE rule = {len(rules)} {group}"
    )
    report = _report(database, rules)
    database.execute("DROP TABLE verdicts")
    return report


def _position(file_number: int) -> str:
    return f"({file_number}::BIGINT << {_ROW_BITS}) | file_row_number"


def _check_columns(database: "duckdb.DuckDBPyConnection", file: Path, rules: list[_Rule]) -> None:
    columns = [row[0] for row in _read(database, "DESCRIBE SELECT * FROM read_parquet(?)", file)]
    # Column names of SQL do not mind case.
    known = {column.lower() for column in columns}
    for rule in rules:
        if rule.column.lower() not in known:
            raise InputError(
                f"{file} has no column '{rule.column}' (it has {', '.join(columns)}); name the "
                f"right one by --{rule.name}-column, or '' to leave the rule out"
            )


def _read(database: "duckdb.DuckDBPyConnection", query: str, file: Path) -> list[tuple]:
    """Runs a query whose one parameter is the file to read."""
    duckdb = import_extra("duckdb")
    try:
        return database.execute(query, [str(file)]).fetchall()
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot filter {file}: {reason}") from error


def _report(database: "duckdb.DuckDBPyConnection", rules: list[_Rule]) -> dict:
    removed = dict(database.execute("SELECT rule, count(*) FROM verdicts GROUP BY rule").fetchall())
    ((kept,),) = database.execute("SELECT count(*) FROM kept").fetchall()
    counts = [removed.get(number, 0) for number in range(len(rules))]
    if rules[-1].name == "hash":
        counts[-1] += removed.get(len(rules), 0) - kept
    return {
        "rows": sum(removed.values()),
        "kept": kept,
        "rules": [
            {"name": rule.name, "column": rule.column, "keeps": rule.keeps, "removed": count}
            for rule, count in zip(rules, counts, strict=True)
        ],
    }


def _write_kept(database: "duckdb.DuckDBPyConnection", files: list[Path], folder: Path) -> None:
    """Writes a file per `1 << _PART_BITS` rows of an input file, several files at a time."""
    found = f"SELECT DISTINCT position >> {_PART_BITS} AS part FROM kept ORDER BY part"
    parts = [part for (part,) in database.execute(found).fetchall()]
    write = functools.partial(_write_part, database, files, folder)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in tqdm(pool.map(write, parts), desc="write", unit="part", total=len(parts)):
            pass


def _write_part(
    database: "duckdb.DuckDBPyConnection", files: list[Path], folder: Path, part: int
) -> None:
    number, part_of_file = divmod(part, 1 << (_ROW_BITS - _PART_BITS))
    first, last = part_of_file << _PART_BITS, (1 << _PART_BITS) - 1
    target = folder / f"{files[number].stem}-{part_of_file:03d}.parquet"
    with database.cursor() as cursor:
        ((bits,),) = cursor.execute(
            f"SELECT bitstring_agg(position & {last}, 0, {last}) FROM kept "
            f"WHERE position >> {_PART_BITS} = {part}"
        ).fetchall()
    # A database of one thread writes rows in their order without waiting for those of others, and
    # holds no more than a row group. A join with `kept` would not promise the order.
    with import_extra("duckdb").connect(config={"threads": 1}) as writer:
        writer.execute("SET VARIABLE kept = ?::BIT", [bits])
        _read(
            writer,
            f"COPY (SELECT * FROM read_parquet(?) "
            f"WHERE file_row_number BETWEEN {first} AND {first + last} "
            f"AND get_bit(getvariable('kept'), (file_row_number & {last})::INTEGER) = 1) "
            f"TO {_literal(target)} (FORMAT parquet, ROW_GROUP_SIZE {_ROW_GROUP_SIZE})",
            files[number],
        )


def _table(report: dict) -> str:
    lines = [f"{'rule':<12}{'keeps':<28}{'removed':>14}{'share':>8}"]
    rows = [(rule["name"], rule["keeps"], rule["removed"]) for rule in report["rules"]]
    for name, keeps, count in [*rows, ("kept", "", report["kept"])]:
        lines.append(f"{name:<12}{keeps:<28}{count:>14,}{count / report['rows']:>8.1%}")
    return "\n".join(lines)


def _draw(report: dict, new_figure: "type[Figure]") -> "Figure":
    """A bar for what each rule removed, in the rules' order, and one for the rest."""
    bars = [(f"{rule['name']}: {rule['keeps']}", rule["removed"]) for rule in report["rules"]]
    names, counts = zip(*bars, ("kept", report["kept"]), strict=True)
    figure = new_figure(figsize=(8, 0.5 * len(names) + 1), layout="constrained")
    axes = figure.subplots()
    colors = ["tab:red"] * len(bars) + ["tab:green"]
    drawn = axes.barh(names, counts, color=colors)
    axes.bar_label(drawn, [f"{n:,} ({n / report['rows']:.1%})" for n in counts], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.get_xaxis().set_visible(False)
    axes.set_title(f"Rows removed by each rule in turn, of {report['rows']:,}")
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `prepare filter`."""
    parser.set_defaults(run=_run)
    parser.add_argument(
        "metadata",
        type=commands.path,
        metavar="METADATA",
        help="parquet file, or a folder of them",
    )
    parser.add_argument(
        "output",
        type=commands.path,
        metavar="OUTPUT",
        help="folder to write, as img2dataset --url_list reads it",
    )
    for field in dataclasses.fields(FilterConfig):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=_TYPES[field.type],
            default=field.default,
            help=f"{field.metadata['help']} (%(default)s)",
        )


def _run(metadata: str, output: str, **options: Any) -> None:
    filter_metadata(metadata, output, FilterConfig(**options))
