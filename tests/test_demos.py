"""The demos' commands are such as the programs take; to run them takes minutes (`make demo`)."""

import itertools
import shlex

import pytest

from demos import control, digits, emoji, holes, report, scenes
from llamagen_jax import sample
from llamagen_jax.convert import __main__ as convert
from llamagen_jax.data.prepare import __main__ as prepare
from llamagen_jax.evaluate import __main__ as evaluate
from llamagen_jax.training import config_files

PROGRAMS = {
    "sample.py": sample,
    "llamagen_jax.convert": convert,
    "llamagen_jax.data.prepare": prepare,
    "llamagen_jax.evaluate": evaluate,
}


EVERY_KIND = {"train.py", "sample.py", "llamagen_jax.data.prepare"}


@pytest.mark.parametrize(
    ("module", "least"),
    [
        (control, EVERY_KIND),
        (digits, EVERY_KIND),
        (emoji, EVERY_KIND),
        (holes, {"train.py"}),
        (scenes, EVERY_KIND),
    ],
)
def test_commands_are_taken(module, least):
    programs = set()
    for command in itertools.chain(*module.stages().values()):
        program, *arguments = shlex.split(command.removeprefix("-m "))
        programs.add(program)
        if program == "train.py":
            config_files.load(arguments[0].removeprefix("--config="))
        elif program in PROGRAMS:
            PROGRAMS[program]._parser().parse_args(arguments)
        else:
            assert program in ("pip", "tarfile")
    assert programs >= least


def test_report_tells_what_missed_its_target(capsys, tmp_path):
    figures = [
        report.Figure("share", 0.95, "{:.0%}", at_least=0.9),
        report.Figure("loss", 0.2, "{:.1f}", below=0.3),
        report.Figure("size", 3, "{:.0f}"),
    ]
    assert report.report(tmp_path, figures, {"all of it": 2.0}, ("a.png",)) == 0
    assert "MISSED" not in capsys.readouterr().out
    figures.append(report.Figure("loss", 0.3, "{:.1f}", below=0.3))
    assert report.report(tmp_path, figures, {"all of it": 2.0}, ()) == 1
    (missed,) = [line for line in capsys.readouterr().out.splitlines() if "MISSED" in line]
    assert missed.split() == ["loss", "0.3", "<", "0.3", "MISSED"]
