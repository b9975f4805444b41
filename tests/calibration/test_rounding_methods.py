"""A rounding method of a user's own: one class, registered, named by a recipe; the package is not touched."""

import pytest
import torch

import quept
from quept.calibration import RoundingMethod, register_rounding_method
from quept.calibration.methods import ROUNDING_METHODS
from quept.errors import InvalidInput
from quept.precision import elastic_linears


class StochasticRounding(RoundingMethod):
    """Rounds up with the probability of a weight's fraction (unbiased on average), as drawn once for each bit-width."""

    def draw(self, generator):
        """Draw a number between 0 and 1 for every weight."""
        shape = self.weight.out_features, self.weight.in_features
        self.draws = {bits: torch.rand(shape, generator=generator) for bits in self.bits}

    def offset(self, bits, grouped, grid):
        """Up where the fraction is above the draw."""
        size = grouped.shape[-1]
        padded = torch.nn.functional.pad(self.draws[bits], (0, -self.weight.in_features % size))
        ratio = grouped.detach() / grid.scale.detach()
        return (ratio - ratio.floor() > padded.view_as(grouped)).float() + ratio.floor() - ratio

    def state(self):
        """The draws."""
        return self.draws.values()


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr("quept.calibration.methods.ROUNDING_METHODS", dict(ROUNDING_METHODS))
    register_rounding_method("stochastic", StochasticRounding)


def recipe(method):
    best = quept.load_recipe("best").with_bits((2, 4, 8))
    return best.updated(
        rounding_method=method,
        learned_rounding=(2, 4),
        adapter={"kind": "none"},
        granularity=best.granularity.updated(group_size=16),
        reconstruction=best.reconstruction.updated(epochs=2, batch_size=4, keep="learned"),
    )


def test_stochastic_rounding_is_one_class_from_calibration_to_a_loaded_model(registered, tiny_model, windows, tmp_path):
    model = tiny_model("llama", hidden_size=64, intermediate_size=96)
    report = quept.calibrate(model, tmp_path / "out", data=windows, recipe=recipe("stochastic"))
    assert report.manifest.recipe.rounding_method == "stochastic"
    ROUNDING_METHODS_OF_THE_PACKAGE = set(ROUNDING_METHODS)
    assert "stochastic" not in ROUNDING_METHODS_OF_THE_PACKAGE
    loaded = quept.load(tmp_path / "out", packed=False)
    for layer in elastic_linears(loaded).values():
        for bits in (2, 4):
            grouped, grid, offset = layer.derivation(bits)
            ratio = grouped / grid.scale
            rounded = (ratio + offset).round()
            assert bool(((rounded == ratio.floor()) | (rounded == ratio.ceil())).all())
            inside = (ratio - ratio.round()).abs() > 1e-6
            up, fraction = (rounded > ratio)[inside].double(), (ratio - ratio.floor())[inside].double()
            # As often as the fractions say: not as rounding to nearest does, and not as a coin.
            spread = (fraction * (1 - fraction)).sum().sqrt()
            assert (up - fraction).sum().abs() < 5 * spread
            assert float((up - 0.5) @ (fraction - 0.5)) > 0
            assert 0.05 < float((rounded != ratio.round()).double().mean()) < 0.5
    for bits in (2, 4, 8):
        quept.set_precision(loaded, bits)
        assert loaded(windows[:1]).logits.isfinite().all()


def test_the_same_seed_draws_the_same(registered, tiny_model, windows, tmp_path):
    for name in ("one", "two"):
        quept.calibrate(tiny_model("llama"), tmp_path / name, data=windows, recipe=recipe("stochastic"))
    one, two = (sorted((tmp_path / name).glob("*.safetensors")) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_an_artifact_runs_where_its_method_is_not_registered(tiny_model, windows, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(ROUNDING_METHODS, "stochastic", StochasticRounding)
        quept.calibrate(tiny_model("llama"), tmp_path / "out", data=windows, recipe=recipe("stochastic"))
    assert quept.load(tmp_path / "out", 2)(windows[:1]).logits.isfinite().all()


def test_a_name_that_is_not_registered_is_refused_before_any_work(tiny_model, windows, tmp_path):
    with pytest.raises(
        InvalidInput, match="rounding_method 'dithered' is not known; choose one of offsets, or register"
    ):
        quept.calibrate(tiny_model("llama"), tmp_path / "out", data=windows, recipe=recipe("dithered"))
    assert not list(tmp_path.iterdir())


def test_what_is_no_method_and_a_name_that_is_taken_are_refused(registered):
    with pytest.raises(InvalidInput, match="is no rounding method; derive a class"):
        register_rounding_method("mine", dict)
    with pytest.raises(InvalidInput, match="'offsets' is registered already"):
        register_rounding_method("offsets", StochasticRounding)
    register_rounding_method("stochastic", StochasticRounding)  # twice is once
