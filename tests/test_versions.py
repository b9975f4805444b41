"""Versions beyond those that were tested are told once."""

import warnings
from email.message import Message
from importlib import metadata

import pytest

from quept.versions import warn_untested

REQUIRED = [
    "torch<=2.13.0,>=2.10",
    "transformers<5.25,>=5.20",
    'pillow<13.1,>=11; extra == "vision"',
    'ruff<0.18,>=0.14; extra == "dev"',
]
TESTED = {"torch": "2.13.0+cpu", "transformers": "5.24.3", "pillow": "13.0.0", "ruff": "9.0"}


def warned(monkeypatch, **installed):
    """The warning where these are installed, the others as tested; None for no warning."""
    versions = {**TESTED, **installed}

    def version(name):
        if versions[name] is None:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    about = Message()
    for extra in ("vision", "dev"):
        about["Provides-Extra"] = extra
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRED)
    monkeypatch.setattr(metadata, "metadata", lambda name: about)
    monkeypatch.setattr(metadata, "version", version)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_untested()
    assert len(caught) <= 1
    return str(caught[0].message) if caught else None


def test_tested_versions_are_no_news(monkeypatch):
    assert warned(monkeypatch) is None
    assert warned(monkeypatch, pillow=None, torch="2.10.0", transformers="5.20.0.dev0") is None


@pytest.mark.parametrize(
    ("name", "version", "tested"),
    [
        ("transformers", "5.25.0", "<5.25,>=5.20"),
        ("transformers", "6.0.1.dev0", "<5.25,>=5.20"),
        ("torch", "2.13.1+cu130", "<=2.13.0,>=2.10"),
        ("pillow", "14.0", "<13.1,>=11"),
    ],
)
def test_what_is_newer_is_named_with_what_was_tested(name, version, tested, monkeypatch):
    message = warned(monkeypatch, **{name: version})
    assert f"{name} {version.partition('+')[0]} (tested: " in message
    assert set(tested.split(",")) == set(message.partition("(tested: ")[2].partition(")")[0].split(","))
    assert message.count("tested: ") == 1


def test_all_that_is_newer_is_in_one_warning(monkeypatch):
    message = warned(monkeypatch, torch="2.14.0", transformers="5.25.0")
    assert "torch 2.14.0" in message
    assert "transformers 5.25.0" in message
