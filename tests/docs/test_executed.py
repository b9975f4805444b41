"""Every command and every block of code in the README and the guides runs, and nothing in it is deprecated.

Commands run on the built-in models, with as little data as they allow and no training. What a page calibrates serves
its later blocks. Commands that need a download, and those by which figures were measured, are only read: see
`test_commands.py`.
"""

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
from pages import GUIDES, ROOT, blocks, lines

import quept
from quept import builtin
from quept.generation.arguments import CACHE_NAME

HARNESS = ROOT / "tests"
MEASURED = ("results", "experiments")  # on models and texts that are not here
DOWNLOADED = {"wikitext2", "ptb", "c4", "pile", "redpajama", "imagenet", "cifar10", "cifar100"}
RUN = [page for page in GUIDES if page.stem not in (*MEASURED, "examples")]  # test_examples.py has the examples
# What makes commands short.
SHORT = {
    "calibrate": ["--samples", "4", "--epochs", "0", "--batch-size", "4"],
    "sensitivity": ["--samples", "4"],
    "bench": ["--repeats", "1", "--tokens", "4"],
}
SHORT_TEXT = {"calibrate": ["--sequence-length", "64"]}

# One process for all, for the sake of what importing takes; its warnings are of first imports too.
DRIVER = """
import json, shutil, sys, warnings
sys.path.append(sys.argv[1])
from command_line import run

warnings.simplefilter("always")
for kind, what in json.load(sys.stdin):
    print("===", what, file=sys.stderr, flush=True)
    if kind == "command":
        if "calibrate" in what[:2]:
            shutil.rmtree(what[what.index("--output") + 1], ignore_errors=True)
        assert run(*what[1:]) == 0, what
    else:
        exec(what, {"__name__": "example"})
"""
# What the examples in Python take as given.
PREPARED = """
import shutil, torch, transformers, quept
from dataclasses import replace
from pathlib import Path
from quept.models import ARCHITECTURES
shutil.rmtree("model-elastic", ignore_errors=True)
shutil.rmtree("artifact-of-a-family", ignore_errors=True)

def calibrate(model, output, **given):
    "Calibrate once for each recipe; later calls copy that."
    kept = Path("kept-" + RECIPE)
    if not kept.exists():
        quept.commands.calibrate(model, kept, recipe=RECIPE, samples=4, sequence_length=64, epochs=0, **given)
    shutil.copytree(kept, output)

quept.calibrate = calibrate
MY_FAMILY = replace(ARCHITECTURES["llama"], model_type="my_family")
"""
CALIBRATED = """
quept.calibrate("MODEL", "model-elastic", data="text.txt")
model = quept.load("model-elastic", 4)
tokenizer = transformers.AutoTokenizer.from_pretrained("MODEL")
inputs = tokenizer("The tailor", return_tensors="pt", return_token_type_ids=False)
quept.PrecisionPlan({"*.down_proj": 8}).write(Path("plan.json"))
"""


def commands():
    """Yield the `quept` commands of all pages, each once, with the built-in models in the place of the reader's.

    `DIR` is what the block of a command calibrates, or else what the README's first block does.
    """
    seen, artifacts = set(), {}
    for page in RUN:
        calibrated = {}
        for number, words in lines(page):
            if words[0] != "quept" or words[1] == "demo" or is_downloaded(words):  # the demo has its own test
                continue
            if words[1] == "calibrate":
                calibrated[number] = artifacts.setdefault(tuple(words), f"artifact-{len(artifacts)}")
            ready = _ready(words, calibrated.get(number, "artifact-0"))
            if tuple(ready) not in seen:
                seen.add(tuple(ready))
                yield ready


def is_downloaded(words):
    """Whether a command names a data set or a model of the Hub."""
    return any(word in DOWNLOADED or re.fullmatch(r"[A-Za-z][\w.-]*/[\w.-]+", word) for word in words)


def _ready(words, directory):
    images = "IMAGES" in words
    model = builtin.vision_model_path() if images else builtin.model_path()
    data = builtin.test_images_path() if images else "text.txt"
    given = {"MODEL": model, "DIR": directory, "TEXT": data, "IMAGES": data}
    words = [str(given.get(word, word)) for word in words]
    return [*words, *SHORT.get(words[1], []), *([] if images else SHORT_TEXT.get(words[1], []))]


def examples():
    """Yield the blocks of Python of all pages, each with what it takes as given."""
    for page in RUN:
        for example in blocks(page, "python"):
            # As the page says, the argument has another name before transformers 5.24.
            example = example.replace("cache=cache", f"{CACHE_NAME}=cache")
            for name in ("org/model", "path/to/model"):
                example = example.replace(name, str(builtin.model_path()))
            example = example.replace('"artifact"', '"artifact-of-a-family"')
            recipe = "weight-activation-best" if "kv" in example else "best"
            is_prepared = "quept.calibrate(" in example or not re.search(r"\bmodel\b", example)
            ready = PREPARED + ("" if is_prepared else CALIBRATED)
            yield ready.replace("RECIPE", repr(recipe)).replace("MODEL", str(builtin.model_path())) + example


def test_all_commands_and_examples_run_and_nothing_is_deprecated(tmp_path):
    (tmp_path / "text.txt").write_text(builtin.test_text_path().read_text()[:6000])
    (tmp_path / "calibration.txt").symlink_to("text.txt")
    all_commands, all_examples = list(commands()), list(examples())
    assert {words[1] for words in all_commands} == {
        *("calibrate", "evaluate", "generate", "info", "bench", "sensitivity", "allocate")
    }
    assert any("quept.KeyValueCache" in example for example in all_examples)
    work = [("command", words) for words in all_commands] + [("example", each) for each in all_examples]
    result = subprocess.run(
        [sys.executable, "-W", "always", "-c", DRIVER, str(HARNESS)],
        input=json.dumps(work),
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    told = [line for line in result.stderr.splitlines() if re.search(r"deprecat|FutureWarning", line, re.IGNORECASE)]
    # What third parties do to one another is theirs; PyTorch's modules call on our behalf.
    assert [line for line in told if not re.search(r"site-packages/(?!torch/nn/modules/module)", line)] == []


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_recipes_and_plans_that_are_shown_are_valid(page):
    for block in blocks(page, "toml"):
        written = tomllib.loads(block)
        if "bits" in written and "name" in written:
            quept.Recipe.parse(written, origin=page.name)
        elif "rounding_method" not in written:  # which the page's own code registers
            quept.load_recipe("best").updated(**written)
    for block in blocks(page, "json"):
        quept.PrecisionPlan.parse(json.loads(block), origin=page.name)
