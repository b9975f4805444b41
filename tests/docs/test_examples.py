"""Every example runs on the built-in models, says something, leaves nothing behind, and is short."""

import json
import os
import subprocess
import sys

from pages import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# One process for all, for the sake of what importing takes.
DRIVER = """
import contextlib, io, json, runpy, sys, warnings

warnings.filterwarnings("error", category=DeprecationWarning, module="__main__")
said = {}
for path in sys.argv[1:]:
    print("===", path, file=sys.stderr, flush=True)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        runpy.run_path(path, run_name="__main__")
    said[path] = output.getvalue()
print(json.dumps(said))
"""


def test_examples_run_and_are_listed(tmp_path):
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    for example in EXAMPLES:
        assert len(example.read_text(encoding="utf-8").splitlines()) <= 60, example.name
        assert f"`examples/{example.name}`" in page
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, *map(str, EXAMPLES)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    said = json.loads(result.stdout.splitlines()[-1])
    assert [path for path in map(str, EXAMPLES) if not said[path].strip()] == []
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"
