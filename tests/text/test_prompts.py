import pytest

from llamagen_jax.errors import InputError
from llamagen_jax.text.prompts import check_prompts, read_prompts


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "a cat\r\na dog, running\n", ["a cat", "a dog, running"]),
        ("a.TXT", "\ufeffünïcödé 图\n\nx", ["ünïcödé 图", "", "x"]),
        ("a.csv", 'Id,Prompt\n1,"a cat, a dog"\n\n2,"a ""b"""\n', ["a cat, a dog", 'a "b"']),
        ("a.csv", "\ufeffPROMPT\na cat\n", ["a cat"]),
        (
            "PartiPrompts.tsv",
            'Prompt\tCategory\tNote\na paper named "B" here\tAnimals\t\nx, y\tAbstract\tz\n',
            ['a paper named "B" here', "x, y"],
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
        ("a.csv", b"Text,Note\na,b\n", r"a\.csv has no column 'Prompt'; .* are: 'Text', 'Note'$"),
        ("a.csv", b"", r"a\.csv has no column 'Prompt'; its columns are: none"),
        ("a.txt", b"caf\xe9", r"a\.txt is no UTF-8 text"),
        ("a.csv", b"Prompt\n" + b"x" * 200_000, r"a\.csv cannot be read: field larger"),
        ("a.json", b"[]", r"a\.json is not called \.txt, \.csv or \.tsv"),
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
        (["图片"], r"^prompt 1 of a\.txt, '图片', is empty once cleaned"),
    ],
)
def test_empty_prompts_are_named(prompts, message):
    pytest.importorskip("ftfy")
    with pytest.raises(InputError, match=message):
        check_prompts(prompts, "a.txt")
    check_prompts(["a cat"], "a.txt")
