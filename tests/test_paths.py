"""Paths that no file can have, and places that vanish: every function that takes a path explains them."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import quept
from quept.cli.console import check_target
from quept.cli.plan_goal import make_directory
from quept.commands.demo import _clear
from quept.commands.sensitivity import open_table
from quept.config import PrecisionPlan
from quept.errors import InvalidInput, QueptError
from quept.evaluation.judges import DataOptions
from quept.search.table import SensitivityTable

IDS = torch.arange(8).view(2, 4)
TEXT = "a text that is long enough for some windows. " * 20


@pytest.fixture(scope="module")
def given(tmp_path_factory, tiny_model, tiny_tokenizer, windows):
    """An artifact, the model it is of, the same loaded, and a text."""
    folder = tmp_path_factory.mktemp("given")
    paper = quept.load_recipe("paper").with_bits((2, 4))
    recipe = paper.updated(adapter=paper.adapter.updated(rank=2), reconstruction=paper.reconstruction.updated(epochs=1))
    model = tiny_model("llama")
    model.save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    quept.calibrate(model, folder / "artifact", data=windows, recipe=recipe, tokenizer=tiny_tokenizer)
    (folder / "text.txt").write_text(TEXT)
    return {
        "model": folder / "model",
        "artifact": folder / "artifact",
        "loaded": quept.load(folder / "artifact"),
        "text": folder / "text.txt",
        "ids": windows,
        "options": DataOptions(max_tokens=32, sequence_length=16),
    }


BAD = {
    "too long": lambda folder: "x" * 5000,
    "a name that is too long": lambda folder: folder / ("y" * 300),
    "NUL": lambda folder: folder / "a\0b",
    "not Unicode": lambda folder: folder / "a\ud800b",
    "below a file": lambda folder: folder / "file" / "below" / "it",
    "links in a circle": lambda folder: folder / "circle",
    "below links in a circle": lambda folder: folder / "circle" / "below",
}
FUNCTIONS = {
    "calibrate, model": lambda path, g: quept.calibrate(path, "out", data=g["ids"]),
    "calibrate, output": lambda path, g: quept.calibrate(g["model"], path, data=g["ids"]),
    "calibrate, resume": lambda path, g: quept.calibrate(g["model"], path, data=g["ids"], resume=True),
    "calibrate, data": lambda path, g: quept.calibrate(g["model"], "out", data=path),
    "calibrate, recipe": lambda path, g: quept.calibrate(g["model"], "out", data=g["ids"], recipe=path),
    "load": lambda path, g: quept.load(path),
    "save": lambda path, g: quept.save(g["loaded"], path),
    "info": lambda path, g: quept.info(path),
    "bench": lambda path, g: quept.bench(path),
    "generate": lambda path, g: quept.generate(path, "text"),
    "load_recipe": lambda path, g: quept.load_recipe(path),
    "demo": lambda path, g: _clear(Path(path)),
    "evaluate, model": lambda path, g: quept.evaluate(path, g["text"]),
    "evaluate, data": lambda path, g: quept.evaluate(g["loaded"], path),
    "evaluate, plans": lambda path, g: quept.evaluate(g["loaded"], g["text"], plans=[path]),
    "evaluate, original": lambda path, g: quept.evaluate(
        g["loaded"], g["text"], original=path, options=g["options"]
    ),
    "evaluate, recipe": lambda path, g: quept.evaluate(g["model"], g["text"], recipe=path),
    "PlanEvaluator, model": lambda path, g: quept.PlanEvaluator(path, g["text"]),
    "PlanEvaluator, data": lambda path, g: quept.PlanEvaluator(g["loaded"], path),
    "sensitivity, model": lambda path, g: quept.sensitivity(path, g["text"], "table.json"),
    "sensitivity, data": lambda path, g: quept.sensitivity(g["loaded"], path, "table.json"),
    "measure_sensitivity": lambda path, g: quept.measure_sensitivity(g["loaded"], IDS, path),
    "allocate, model": lambda path, g: quept.allocate(path, "table.json", average_bits=3),
    "allocate, table": lambda path, g: quept.allocate(g["artifact"], path, average_bits=3),
    "plan_front, model": lambda path, g: quept.plan_front(path, "table.json", None),
    "plan_front, table": lambda path, g: quept.plan_front(g["artifact"], path, None),
    "a table's model": lambda path, g: open_table("table.json", path),
    "PrecisionPlan.read": lambda path, g: PrecisionPlan.read(path),
    "PrecisionPlan.write": lambda path, g: PrecisionPlan({"a": 4}).write(Path(path)),
    "SensitivityTable.read": lambda path, g: SensitivityTable.read(path),
    "--json": lambda path, g: check_target("--json", Path(path)),
    "--front": lambda path, g: make_directory(Path(path)),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "circle").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "circle")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_path_that_no_file_can_have_is_refused_in_one_line(folder, given, function):
    for kind, bad in BAD.items():
        for given_as in (Path, str):
            path = given_as(bad(folder))
            with pytest.raises(QueptError) as refused:
                function(path, given)
            assert "\n" not in str(refused.value), kind
    assert sorted(entry.name for entry in folder.iterdir()) == ["circle", "file", "other"]


@pytest.mark.parametrize("name", ["calibrate, output", "load", "save", "info", "demo", "measure_sensitivity", "--json"])
def test_a_path_that_cannot_be_used_is_named_with_the_reason(folder, given, name):
    reasons = {
        "too long": "File name too long",
        "NUL": "null byte",
        "links in a circle": "[Ss]ymbolic link|Symlink loop",
    }
    for kind, reason in reasons.items():
        with pytest.raises(InvalidInput, match=reason) as refused:
            FUNCTIONS[name](BAD[kind](folder), given)
        assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("name", ["calibrate, model", "calibrate, output", "load", "save", "info", "demo"])
def test_a_folder_that_may_not_be_entered_is_refused(folder, given, name):
    (folder / "locked").mkdir()
    for place in (Path("locked"), Path("locked") / "below"):
        if os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
            os.chown(folder / "locked", 65534, 65534)
            (folder / "locked").chmod(0)
            os.seteuid(65534)
        else:
            (folder / "locked").chmod(0)
        try:
            with pytest.raises(QueptError, match="Permission denied"):
                FUNCTIONS[name](place, given)
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
            (folder / "locked").chmod(0o700)


@pytest.mark.parametrize("kind", ["removed", "a file", "renamed"])
def test_unfinished_work_that_vanishes_during_the_run_is_told_without_a_traceback(folder, given, kind):
    partial = folder / "out.partial"

    class Removes:
        def stage(self, name: str) -> None: ...
        def start(self, blocks: int, steps: int) -> None: ...
        def note(self, text: str) -> None: ...

        def step(self, block: int, step: int, loss: float) -> None:
            if block == 1 and step == 1:
                partial.rename(folder / "elsewhere") if kind == "renamed" else shutil.rmtree(partial)
                if kind == "a file":
                    partial.write_text("a file")

    recipe = quept.load_recipe("paper").with_bits((2, 4)).adjusted(epochs=1, rank=2)
    with pytest.raises(QueptError, match=r"could not be written") as told:
        quept.calibrate(given["model"], "out", data=given["ids"], recipe=recipe, progress=Removes())
    assert "out.partial" in str(told.value)
    assert not (folder / "out").exists()
