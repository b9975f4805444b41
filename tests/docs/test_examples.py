"""Every example runs on the built-in models, and is short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_is_listed(example, tmp_path):
    lines = example.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    assert f"examples/{example.name}" in (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(example)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"
