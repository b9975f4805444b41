"""Every command in the documentation is one that exists, with options that it has; what can run is run elsewhere."""

import re
import tomllib
from importlib.util import find_spec

import pytest
import typer
from pages import GUIDES, ROOT, inline, lines

from quept.cli.app import app

COMMANDS = typer.main.get_command(app).commands
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
SCRIPTS = [path for folder in ("benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")]
HELP = {"--help", "-h"}


def options_of(command):
    return {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | HELP


def options_in(path):
    return set(re.findall(r"[\"'](--[\w-]+)[\"']", path.read_text(encoding="utf-8"))) | HELP


def given(words):
    return {word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}


def check_quept(words):
    command = COMMANDS[words[0]]
    assert given(words[1:]) <= options_of(command), words


def check_make(words):
    for word in words:
        name, is_set, _ = word.partition("=")
        assert re.search(rf"^{name}\s*\?=|\$\({name}[:)]" if is_set else rf"^{name}:", MAKEFILE, re.MULTILINE), word


def check_pip(words):
    assert words[0] == "install"
    for extras in re.findall(r"\[(.*?)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(EXTRAS), words


def check_python(words):
    if words[0] == "-m":
        assert find_spec(words[1]), words
        return
    script = ROOT / words[0]
    assert script.is_file(), words
    assert given(words[1:]) <= options_in(script), words


def check_pytest(words):
    for word in words:
        assert "/" not in word or (ROOT / word).exists(), word


PROGRAMS = {
    "quept": check_quept,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "pytest": check_pytest,
}


def check(words):
    while "=" in words[0]:  # settings in front of the program
        words = words[1:]
    PROGRAMS[words[0]](words[1:])


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_every_command_is_one_that_exists(page):
    for _, words in lines(page):
        check(words)
        if words[0] == "quept":  # a whole command line also has what is required
            COMMANDS[words[1]].make_context(words[1], words[2:])
    for code in inline(page):
        program, *words = code.split()
        if program in PROGRAMS and words:
            check([program, *words])


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_every_option_in_a_sentence_is_one_that_exists(page):
    known = set().union(*map(options_of, COMMANDS.values()), *map(options_in, SCRIPTS))
    for code in inline(page):
        if re.match(r"--[a-z]", code):
            assert given(code.split()) <= known, code


def test_an_unknown_option_is_found():
    for line in ("quept calibrate MODEL --output DIR --data TEXT --width 4", "python benchmarks/store.py --bits 4"):
        with pytest.raises(AssertionError):
            check(line.split())
    with pytest.raises(KeyError):
        check(["curl", "somewhere"])
