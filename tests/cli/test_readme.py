"""Every command and every example of the README runs, and nothing in it is deprecated."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from quept import builtin
from quept.generation.arguments import CACHE_NAME

README = Path(__file__).parents[2] / "README.md"
HARNESS = Path(__file__).parents[1]
# What stands for the reader's own, and what makes a calibration short.
SHORT = ["--samples", "8", "--epochs", "1", "--batch-size", "4"]
SHORT_TEXT = ["--sequence-length", "64"]

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
        exec(what, globals())
"""
# What the examples in Python take as given.
PREPARED = """
import functools, shutil, torch, transformers, quept
shutil.rmtree("model-elastic", ignore_errors=True)
quept.calibrate = functools.partial(quept.calibrate, samples=8, sequence_length=64, recipe=RECIPE)
tokenizer = transformers.AutoTokenizer.from_pretrained("MODEL")
inputs = tokenizer("The tailor", return_tensors="pt", return_token_type_ids=False)
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def commands() -> list[list[str]]:
    """The README's `quept` commands, with the built-in models in the place of the reader's.

    `DIR` is what the block of a command calibrates, or else what the first block does.
    """
    found = []
    for number, block in enumerate(blocks("bash")):
        own = f"artifact-{number}" if "quept calibrate" in block and found else "artifact"
        for line in block.splitlines():
            command, _, _ = line.partition("  #")
            words = re.sub(r'"([^"]*)"', lambda match: match[1].replace(" ", "_"), command).split()
            if words and words[0] == "quept" and words[1] != "demo":  # which has its own test
                found.append(_ready(words, own))
    return found


def _ready(words: list[str], directory: str) -> list[str]:
    images = "IMAGES" in words
    model = builtin.vision_model_path() if images else builtin.model_path()
    data = builtin.test_images_path() if images else "text.txt"
    given = {"MODEL": model, "DIR": directory, "TEXT": data, "IMAGES": data}
    words = [str(given.get(word, word)) for word in words]
    return words + ([*SHORT, *([] if images else SHORT_TEXT)] if words[1] == "calibrate" else [])


def test_nothing_in_the_readme_is_deprecated(tmp_path):
    (tmp_path / "text.txt").write_text(builtin.test_text_path().read_text()[:8000])
    (tmp_path / "calibration.txt").symlink_to("text.txt")
    all_commands = commands()
    assert {words[1] for words in all_commands} == {
        *("calibrate", "evaluate", "generate", "info", "bench", "sensitivity", "allocate")
    }
    examples = [example.replace("org/model", str(builtin.model_path())) for example in blocks("python")]
    # As the README says, the argument has another name before transformers 5.24.
    examples = [example.replace("cache=cache", f"{CACHE_NAME}=cache") for example in examples]
    assert any("quept.KeyValueCache" in example for example in examples)
    work: list[tuple[str, object]] = [("command", words) for words in all_commands]
    for example in examples:
        recipe = "weight-activation-best" if "kv" in example else "best"
        ready = PREPARED.replace("RECIPE", repr(recipe)).replace("MODEL", str(builtin.model_path()))
        if "quept.calibrate(" not in example:
            ready += f'quept.calibrate("{builtin.model_path()}", "model-elastic", data="text.txt")\n'
            ready += 'model = quept.load("model-elastic", 4)\n'
        work.append(("example", ready + example))
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
