import json

import pytest

from llamagen_jax.errors import InputError
from llamagen_jax.text.prompts import check_prompts, read_categories, read_prompts


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "a cat\r\na dog, running\n", ["a cat", "a dog, running"]),
        ("a.TXT", "\ufeffünïcödé 图\n\n \nx\n\n", ["ünïcödé 图", "x"]),
        ("a.csv", 'Id,Prompt\n1,"a cat, a dog"\n\n2,"a ""b"""\n', ["a cat, a dog", 'a "b"']),
        ("a.csv", "\ufeffPROMPT\na cat\n", ["a cat"]),
        (
            "PartiPrompts.tsv",
            'Prompt\tCategory\tNote\na paper named "B" here\tAnimals\t\nx, y\tAbstract\tz\n',
            ['a paper named "B" here', "x, y"],
        ),
        ("a.tsv", 'Caption\tC\n"A" is a letter\tX\n"b ""c"""\tY\n', ['"A" is a letter', 'b "c"']),
        # A quote that opens in one line and closes in another would swallow those between.
        ("a.tsv", 'Prompts\tC\n"A is\tX\nb\tY\nso is B"\tZ\n', ['"A is', "b", 'so is B"']),
        ("a.tsv", 'text\tC\n"two\nlines"\tX\n', ["two\nlines"]),
        ("a.csv", "note,TEXT,Caption\na,b,c\n", ["c"]),
        ("a.csv", "prompt\n" + "x" * 200_000 + "\n", ["x" * 200_000]),
        (
            "a.jsonl",
            '{"Prompt": "a cat", "id": 1}\n\n"a dog"\n{"text": "图"}',
            ["a cat", "a dog", "图"],
        ),
        ("a.tsv", "Category\t prompt \nAnimals\ta cat\nAnimals\n", ["a cat", ""]),
    ],
)
def test_read_prompts(name, content, expected, tmp_path):
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert read_prompts(path) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"Title,Note\na,b\n", r"a\.csv has no column Prompt, .*: 'Title', 'Note'$"),
        ("a.csv", b"", r"a\.csv has no column Prompt, .*; its columns are: none"),
        ("a.txt", b"a\ncaf\xe9", r"^line 2 of .*a\.txt is no UTF-8 text"),
        ("a.txt", b"\xff\xfea", r"^line 1 of .*a\.txt is no UTF-16 text"),
        ("a.csv", b'Prompt,b\n"a" b, c,d\n', r"^line 2 of .*a\.csv has 3 fields instead of 2"),
        ("a.jsonl", b'"a"\n{"prompt": 3}', r"^line 2 of .*a\.jsonl has no string"),
        ("a.jsonl", b"a cat", r"^line 1 of .*a\.jsonl is no JSON"),
        ("a.json", b"[]", r"a\.json holds no captions as COCO's do"),
        ("a.txt", None, r"a\.txt cannot be read: .*No such file"),
    ],
)
def test_files_that_are_no_prompts(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_prompts(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], r"^a\.txt has no prompts"),
        (["a cat", " \t"], r"^prompt 2 of a\.txt is empty$"),
        (["a\udcff"], r"^prompt 1 of a\.txt, 'a\\udcff', is no UTF-8 text"),
        (["a\0b"], r"^prompt 1 of a\.txt has a zero byte"),
        (["图片"], r"^prompt 1 of a\.txt, '图片', is empty once cleaned"),
    ],
)
def test_empty_prompts_are_named(prompts, message):
    pytest.importorskip("ftfy")
    with pytest.raises(InputError, match=message):
        check_prompts(prompts, "a.txt")
    check_prompts(["a cat"], "a.txt")


def test_categories_and_the_captions_of_coco(tmp_path):
    (tmp_path / "a.tsv").write_text("Prompt\tCategory\na\tAnimals\nb\n")
    assert read_categories(tmp_path / "a.tsv") == [("a", "Animals"), ("b", "")]
    (tmp_path / "a.jsonl").write_text('{"tag": "color_attr", "prompt": "a"}\n"b"')
    assert read_categories(tmp_path / "a.jsonl") == [("a", "color_attr"), ("b", "")]
    captions = [(2, 9, "d"), (1, 8, "b"), (1, 7, "a "), (2, 10, "e")]
    values = [{"image_id": i, "id": n, "caption": text} for i, n, text in captions]
    (tmp_path / "coco.json").write_text(json.dumps({"annotations": values}))
    assert read_prompts(tmp_path / "coco.json") == ["a", "d"]
    with pytest.raises(InputError, match=r"a\.md is not called \.txt, \.csv, \.tsv, \.json or"):
        read_prompts(tmp_path / "a.md")


def test_utf_16_and_blank_lines(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("a cat\n\n图\n", encoding="utf-16")
    assert read_prompts(tmp_path / "a.txt") == ["a cat", "图"]
    assert "left out 1 blank lines" in caplog.text
