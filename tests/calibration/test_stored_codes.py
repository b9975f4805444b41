"""What a calibration ends with is what is loaded: every bit-width of a store, bit for bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import quept
from quept.calibration import workspace
from quept.calibration.block import CalibrationBlock
from quept.config import Store
from quept.errors import InvalidInput
from quept.numerics import affine
from quept.precision import elastic_linears

WIDTHS = (2, 3, 5, 8)


def recipe(name="best", **store):
    base = quept.load_recipe(name).with_bits(WIDTHS)
    return base.updated(
        adapter=base.adapter.updated(rank=2),
        granularity=base.granularity.updated(group_size=16),
        reconstruction=base.reconstruction.updated(epochs=2, batch_size=4, keep="learned"),
        store={"master_bits": 8, **store},
    )


@pytest.fixture
def settled(monkeypatch):
    """Codes and grids of every layer and bit-width at the moment when its block was settled."""
    found, freeze = {}, CalibrationBlock.freeze

    def remember(block):
        freeze(block)
        found.update({(linear.path, bits): linear.codes(bits) for linear in block.linears.values() for bits in WIDTHS})

    monkeypatch.setattr(CalibrationBlock, "freeze", remember)
    return found


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize(
    ("family", "name", "dtype", "store"),
    [
        ("llama", "best", torch.float32, {}),
        ("llama", "paper", torch.bfloat16, {"clip_ratio_bits": 4, "group_size": 12}),
        ("gpt2", "best", torch.float16, {"group_size": 12}),
        ("opt", "paper", torch.bfloat16, {"clip_ratio_bits": 4}),
    ],
)
def test_loaded_codes_are_those_that_calibration_ended_with(
    family, name, dtype, store, settled, tiny_model, windows, tmp_path
):
    quept.calibrate(tiny_model(family, dtype), tmp_path / "out", data=windows, recipe=recipe(name, **store))
    for held in (None, torch.float16):
        model = quept.load(tmp_path / "out", dtype=held)
        for path, layer in elastic_linears(model).items():
            assert layer.dtype == (held or dtype)
            for bits in WIDTHS:
                (codes, grid), (expected, calibrated) = layer.codes(bits), settled[path, bits]
                assert torch.equal(codes, expected), (path, bits)
                assert torch.equal(grid.scale, calibrated.scale)
                assert torch.equal(grid.zero_point, calibrated.zero_point)
                dense = affine.join_groups(affine.dequantize(codes, grid), layer.in_features)
                assert torch.equal(layer.derive(bits), dense.to(layer.dtype))


@pytest.fixture(scope="module")
def artifact(tiny_model, windows, tmp_path_factory):
    directory = tmp_path_factory.mktemp("store") / "out"
    quept.calibrate(tiny_model("llama", torch.bfloat16), directory, data=windows, recipe=recipe())
    return directory


def test_the_bit_width_of_the_master_is_the_master_and_so_is_full_precision(artifact, windows):
    model = quept.load(artifact)
    full = model(windows).logits
    for layer in elastic_linears(model).values():
        assert torch.equal(layer.derive(8), layer.master())
        assert torch.equal(layer.nearest(8), layer.master())
        assert not torch.equal(layer.derive(5), layer.nearest(5))
    quept.set_precision(model, 8)
    assert torch.equal(model(windows).logits, full)


def test_nothing_of_a_linear_is_loaded_in_floats_and_moving_it_keeps_every_dtype(artifact):
    model = quept.load(artifact)
    before = {name: value.clone() for name, value in model.state_dict().items() if ".store." in name}
    for name in before:
        assert name.rpartition(".")[0].endswith(("store", "shares"))
    for path, layer in elastic_linears(model).items():
        wide = [name for name, value in layer.named_parameters() if value.is_floating_point() and value.dim() > 1]
        assert wide in (["store.master_scale"], []), path
    model.to(torch.float32)
    after = model.state_dict()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert torch.equal(after[name], value)
    layer = next(iter(elastic_linears(model).values()))
    assert layer.derive(3).dtype == layer.master().dtype == torch.float32


def test_saving_a_loaded_store_writes_its_tensors_again(artifact, tmp_path):
    quept.save(quept.load(artifact), tmp_path / "again")
    shards = [name for name in contents(artifact) if name.endswith(".safetensors")]
    assert len(shards) == 3
    for name in shards:
        one, other = load_file(artifact / name), load_file(tmp_path / "again" / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one)
    quept.save(quept.load(tmp_path / "again"), tmp_path / "third")
    assert contents(tmp_path / "third") == contents(tmp_path / "again")


def test_an_interrupted_store_resumes_to_the_same_bytes(artifact, tiny_model, windows, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    write, output = workspace.Workspace.write, tmp_path / "out"

    def dying(self, stem, tensors, note=None):
        if stem.startswith("elastic-00002"):
            raise Killed
        write(self, stem, tensors, note)

    model = tiny_model("llama", torch.bfloat16)
    with monkeypatch.context() as patch:
        patch.setattr(workspace.Workspace, "write", dying)
        with pytest.raises(Killed):
            quept.calibrate(model, output, data=windows, recipe=recipe())
    quept.calibrate(model, output, data=windows, recipe=recipe(), resume=True)
    assert contents(output) == contents(artifact)


def test_what_a_kernel_rebuilds_from_gives_the_codes(artifact):
    for layer in elastic_linears(quept.load(artifact)).values():
        for bits in (2, 3, 5):
            stored = layer.stored_weight(bits)
            assert (stored.up is not None) == (bits == 5)
            assert (stored.mask is not None) == (bits != 5)
            codes, scale, zero_point = stored.codes(bits, 16 if bits < 5 else layer.in_features, symmetric=False)
            expected, grid = layer.codes(bits)
            assert torch.equal(codes, affine.join_groups(expected, layer.in_features))
            assert torch.equal(scale, grid.scale.squeeze(-1))
            assert torch.equal(zero_point, grid.zero_point.squeeze(-1))
        master = layer.stored_weight(8)
        assert (master.up, master.down, master.adapter_scale, master.clip_ratios, master.mask) == (None,) * 5


def test_a_store_of_its_masters_bit_width_alone_has_nothing_to_train(tiny_model, windows, tmp_path):
    only = quept.load_recipe("paper").updated(store={"master_bits": 8}).with_bits((8,))
    report = quept.calibrate(tiny_model("llama"), tmp_path / "out", data=windows, recipe=only)
    assert report.trained_tokens == 0
    for layer in elastic_linears(quept.load(tmp_path / "out", 8)).values():
        assert not layer.store.shares
        assert layer.store.up is None


def test_what_a_stored_master_cannot_have_is_refused():
    best = quept.load_recipe("best")
    for change in ({"learned_rounding": (2, 8)}, {"adapter": best.adapter.updated(bits=(5, 8))}):
        with pytest.raises(InvalidInput, match="at 8 bits the store's master is used as it is"):
            best.updated(**change)
    with pytest.raises(InvalidInput, match="may sum to 1024 at most"):
        best.updated(adapter=best.adapter.updated(rank=513))
    assert best.trained_groups == ((), (7,), (6,), (5,), (4,), (3,), (2,))
    assert best.updated(store=Store()).trained_groups == best.groups.groups
