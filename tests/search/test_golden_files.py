"""Tables and plans outlive releases: once one is out, a failure here means a new version number."""

import json
from pathlib import Path

import pytest

from quept.config import Mixing, PrecisionPlan
from quept.search.table import TABLE_VERSION, Origin, SensitivityTable, model_digest
from quept.storage import read_manifest

GOLDEN = Path(__file__).parent / "golden"


def small_table():
    return SensitivityTable(
        origin=Origin(
            metric="kl", model="a" * 64, data="täglich.txt", data_sha256="b" * 64, rows=4096, keys_values=(4, 8)
        ),
        parts={
            "model.layers.0.self_attn.q_proj": {"2": 0.5, "8": 1 / 3, "w16a8": 1e-09},
            "model.layers.0.mlp.down_proj": {"2": -1.25e-08, "8": 0.0},
            "model.layers.0.self_attn": {"kv4": 0.125, "kv8": 1.0},
        },
        pairs=("", "-0.1250", "1.0000 0.0000", "0.5000 -1.0000 0.0625"),
    )


def small_plan():
    return PrecisionPlan(
        {
            "*": 4,
            "model.layers.0.*": "w2a8",
            "model.layers.0.self_attn": "kv3",
            "model.layers.0.mlp.down_proj": None,
            "model.layers.1.mlp.down_proj": "4kv8",
        }
    )


def test_a_table_is_written_as_the_golden_file_byte_for_byte_and_read_from_it(tmp_path):
    small_table().write(tmp_path / "sensitivity.json")
    assert (tmp_path / "sensitivity.json").read_bytes() == (GOLDEN / "sensitivity.json").read_bytes()
    assert SensitivityTable.read(GOLDEN / "sensitivity.json") == small_table()
    assert json.loads((GOLDEN / "sensitivity.json").read_bytes())["version"] == TABLE_VERSION == 1


def test_a_plan_is_written_as_the_golden_file_byte_for_byte_and_read_from_it(tmp_path):
    small_plan().write(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_bytes() == (GOLDEN / "plan.json").read_bytes()
    read = PrecisionPlan.read(GOLDEN / "plan.json")
    assert read == small_plan()
    assert list(read.bits) == list(small_plan().bits), "the order of entries decides"
    assert json.loads((GOLDEN / "plan.json").read_bytes())["version"] == 1


@pytest.mark.parametrize("format", ["format-2", "format-3"])
def test_settings_that_are_added_or_renamed_leave_the_digest_of_an_artifact_as_it_was(format):
    """A table belongs to its artifact also where a later release has more settings, or other names for them."""
    manifest = read_manifest(GOLDEN.parents[1] / "storage" / "golden" / format, verify=False)
    assert model_digest(manifest) == "fa7e634a6d3d7a0d05bad547fe4f402d5fc5e6f05490357546fa13e045376878"
    changed = manifest.recipe.reconstruction.updated(mixing=Mixing(bits=(2,), probability=0.1))
    other = manifest.updated(recipe=manifest.recipe.updated(reconstruction=changed))
    assert model_digest(other) != model_digest(manifest)
