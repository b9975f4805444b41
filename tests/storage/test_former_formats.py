"""Artifacts that an earlier version wrote: same codes, same logits."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import quept
from quept.precision import elastic_linears

GOLDEN = Path(__file__).parent / "golden" / "artifacts"


@pytest.mark.parametrize("name", ["best", "vision"])
def test_a_format_2_artifact_has_the_codes_and_the_logits_it_had(name):
    """`best` keeps an 8-bit master, `vision` floats with adapters; both were written by the code before format 3."""
    model = quept.load(GOLDEN / name, packed=False, integers=False)
    assert model.quept_manifest.version == 2
    inputs = load_file(GOLDEN / "inputs.safetensors")
    given = {"input_ids": inputs["ids"]} if name == "best" else {"pixel_values": inputs["images"]}
    expected = load_file(GOLDEN / f"{name}.safetensors")
    linears = elastic_linears(model)
    for key, value in expected.items():
        kind, bits, path = [*key.split(".", 2), ""][:3]
        if kind == "codes":
            assert torch.equal(linears[path].codes(int(bits))[0], value), key
        else:
            with torch.no_grad(), quept.at_precision(model, int(bits)):
                torch.testing.assert_close(model(**given).logits, value, atol=2e-6, rtol=1e-5)


def test_saving_one_writes_the_present_format_and_loses_nothing(tmp_path):
    before = quept.load(GOLDEN / "best")
    quept.save(before, tmp_path / "saved")
    after = quept.load(tmp_path / "saved")
    assert (before.quept_manifest.version, after.quept_manifest.version) == (2, 4)
    ids = load_file(GOLDEN / "inputs.safetensors")["ids"]
    for bits in after.quept_manifest.recipe.bits:
        with torch.no_grad(), quept.at_precision(before, bits), quept.at_precision(after, bits):
            assert torch.equal(before(input_ids=ids).logits, after(input_ids=ids).logits)
