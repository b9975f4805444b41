"""The same calibration on a CUDA device."""

import pytest
import torch

import quept

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("name", ["paper", "weight-activation"])
def test_a_model_calibrates_and_runs_on_cuda(tiny_model, windows, tmp_path, name, family, dtype):
    model = tiny_model(family, dtype=dtype)
    paper = quept.load_recipe(name)
    recipe = paper.updated(adapter=paper.adapter.updated(rank=2), reconstruction=paper.reconstruction.updated(epochs=4))
    report = quept.calibrate(model, tmp_path / "out", data=windows, recipe=recipe, device="cuda")
    low = [error for error in report.manifest.block_errors if error.bits == min(recipe.bits)]
    assert all(error.calibrated < error.rounding for error in low)

    loaded = quept.load(tmp_path / "out", device="cuda")
    expected = model.to("cuda")(windows[:2].to("cuda")).logits
    assert torch.allclose(loaded(windows[:2].to("cuda")).logits, expected, rtol=1e-2, atol=1e-2)
    for bits in recipe.bits:
        quept.set_precision(loaded, bits)
        assert torch.isfinite(loaded(windows[:2].to("cuda")).logits).all()
