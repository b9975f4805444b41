"""Long commands are never silent: a plain line now and then without a terminal, a bar with one."""

import re
import sys
import time

import pytest
from command_line import run

from quept import builtin
from quept.cli import progress
from quept.cli.progress import display


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(progress, "FIRST", 0.02)
    monkeypatch.setattr(progress, "EVERY", 0.02)


def test_lines_come_at_least_every_ten_seconds():
    assert progress.FIRST <= progress.EVERY < 10


def test_a_step_that_takes_long_is_not_silent(often, capfd):
    with display(False, "opening"):
        time.sleep(0.5)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) >= 3
    assert all(re.fullmatch(r"\[0:0\d\] opening", line) for line in lines)


def test_a_line_says_what_how_much_and_how_long(often, capfd):
    with display(False, "opening") as shown:
        for done in range(1, 6):
            shown.show("block 1/3, training", done, 30, "loss 0.5")
            time.sleep(0.2)
        shown.note("by the\x1bway")
    lines = capfd.readouterr().err.splitlines()
    assert any(re.fullmatch(r"\[0:0\d\] block 1/3, training, 5/30, loss 0.5, about 0:0\d left", line) for line in lines)
    assert "note: by the way" in lines


def test_what_is_quick_or_quiet_says_nothing(capfd, monkeypatch):
    with display(False, "opening"):
        pass
    monkeypatch.setattr(progress, "FIRST", 0.01)
    with display(True, "opening"):
        time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar_and_no_lines(often, capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    with display(False, "opening") as shown:
        shown.show("training", 1, 2)
        time.sleep(0.3)
    shown_text = capfd.readouterr().err
    assert "opening" in shown_text or "training" in shown_text
    assert "━" in shown_text
    assert "[0:0" not in shown_text


def test_a_piped_calibration_and_evaluation_print_their_progress(often, tmp_path, capfd):
    text = tmp_path / "text.txt"
    text.write_text(builtin.test_text_path().read_text()[:6000])
    more = ("--samples", 8, "--sequence-length", 64, "--epochs", 2, "--batch-size", 2)
    data = ("--data", text)
    assert run("calibrate", builtin.model_path(), "--output", tmp_path / "out", *data, *more) == 0
    told = capfd.readouterr().err
    assert re.search(r"^\[\d+:\d\d\] opening", told, re.MULTILINE)
    training = r"^\[\d+:\d\d\] block \d/6, training, \d+/48, loss \S+, about \d+:\d\d left$"
    assert re.search(training, told, re.MULTILINE)
    assert "\x1b" not in told
    assert run("evaluate", tmp_path / "out", *data, "--bits", "2,4", "--original", builtin.model_path()) == 0
    assert re.search(r"^\[\d+:\d\d\] \d bits, \d+/\d+, about", capfd.readouterr().err, re.MULTILINE)
