"""Training and streams in which some linears are at the next higher bit-width."""

from dataclasses import replace

import pytest
import torch

import quept
from quept.calibration.block import CalibrationBlock
from quept.calibration.capture import ModelStem
from quept.calibration.merge import advance
from quept.calibration.mixing import Mixture, draw_mixture
from quept.calibration.ranges import init_ranges
from quept.calibration.stream import Stream, StreamStore
from quept.calibration.tools import Tools
from quept.config import Adapter, Granularity, Mixing, Reconstruction
from quept.layers import paths
from quept.layers.paths import LinearSetting
from quept.layers.setting import scope
from quept.models import BlockContext, architecture_of
from quept.precision import elastic_linears

CPU = torch.device("cpu")


def recipe(**training):
    quick = Reconstruction(epochs=4, batch_size=4, loss="mse", normalized=True, clip_init="search", **training)
    return (
        quept.load_recipe("best")
        .with_bits((2, 3, 8))
        .updated(
            granularity=Granularity(group_size=16, grouped_bits=(2, 3)),
            adapter=Adapter(kind="none"),
            learned_rounding=(2, 3),
            reconstruction=quick,
        )
    )


def first_block(model, windows, settings):
    architecture = architecture_of(model.config.model_type)
    stem = ModelStem(model, architecture, torch.float32)
    context = BlockContext.of(architecture, model, 0)
    call = stem.calls(windows)[0]
    module = architecture.block_list(model)[0]
    block = CalibrationBlock(module, context, settings, call, CPU, torch.float32)
    block.round_to_stored()
    ones = {path: torch.ones(1, linear.in_features) for path, linear in block.trainable.items()}
    init_ranges(block, ones, torch.Generator().manual_seed(0))
    block.freeze()
    return block, stem.hidden_states(windows)


def test_linears_that_read_one_tensor_move_together_to_the_next_bit_width(tiny_model, windows):
    settings = recipe(mixing=Mixing(bits=(2, 8), probability=0.3))
    block, _ = first_block(tiny_model("llama"), windows, settings)
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_mixture(block, 2, settings.reconstruction, generator) for _ in range(400)]
    sets = [{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, {"self_attn.o_proj"}]
    sets += [{"mlp.gate_proj", "mlp.up_proj"}, {"mlp.down_proj"}]
    for mixture in drawn:
        others = dict(mixture.others)
        assert set(others.values()) <= {3}
        assert all(not others.keys() & each or each <= others.keys() for each in sets)
    for each in sets:
        assert 0.2 < sum(each <= dict(mixture.others).keys() for mixture in drawn) / 400 < 0.4
    state = generator.get_state()
    assert draw_mixture(block, 3, settings.reconstruction, generator) == Mixture(3), "3 bits are not mixed"
    assert draw_mixture(block, 8, settings.reconstruction, generator) == Mixture(8), "nothing is higher"
    assert torch.equal(generator.get_state(), state)


def test_blocks_before_the_start_are_not_mixed(tiny_model, windows):
    settings = recipe(mixing=Mixing(bits=(2,), probability=0.5, start=0.5))
    block, _ = first_block(tiny_model("llama"), windows, settings)
    generator = torch.Generator().manual_seed(0)
    assert block.context.blocks == 2
    assert {draw_mixture(block, 2, settings.reconstruction, generator) for _ in range(20)} == {Mixture(2)}
    block.context = replace(block.context, index=1)
    assert len({draw_mixture(block, 2, settings.reconstruction, generator) for _ in range(20)}) > 1


def test_a_block_runs_with_each_linear_at_the_bit_width_of_the_mixture(tiny_model, windows):
    block, hidden = first_block(tiny_model("llama"), windows, recipe())
    others = {"mlp.down_proj": 3, "self_attn.o_proj": 8}
    with torch.no_grad():
        mixed = block.run(hidden, 2, others)
        weights = {path: linear.derive(others.get(path, 2)) for path, linear in block.linears.items()}
        block.run(hidden, None)
        given = {
            linear: LinearSetting(None, None, paths.given, weights[path]) for path, linear in block.linears.items()
        }
        with scope(given):
            assert torch.equal(mixed, block.run(hidden, None))


def test_streams_of_mixed_bit_widths_alone_are_another(tiny_model, windows, tmp_path):
    moved_on = {}
    for share in (0.0, 0.2):
        settings = recipe(mixing=Mixing(bits=(2,), probability=share))
        block, hidden = first_block(tiny_model("llama"), windows, settings)
        streams = [Stream(hidden.clone(), CPU) for _ in settings.groups.groups]
        generator, store = torch.Generator().manual_seed(0), StreamStore(2**30, tmp_path, CPU)
        streams = advance(block, streams, settings.reconstruction, generator, Tools.plain(store, 4))
        moved_on[share] = [stream.read(slice(None)) for stream in streams]
        at_two = block.run(hidden, 2)
    assert torch.equal(moved_on[0.0][0], moved_on[0.2][0])
    assert torch.equal(moved_on[0.0][1], moved_on[0.2][1])
    assert torch.allclose(moved_on[0.0][2], at_two, atol=1e-6)
    same = [
        torch.allclose(one, other, atol=1e-6) for one, other in zip(moved_on[0.0][2], moved_on[0.2][2], strict=True)
    ]
    assert 0 < sum(same) < len(same), "every sample draws its own"


@pytest.fixture(scope="module")
def calibrated(tiny_model, windows, tmp_path_factory):
    def calibrate(share):
        out = tmp_path_factory.mktemp("mixed") / "out"
        settings = recipe(mixing=Mixing(bits=(2,), probability=share))
        return quept.load(quept.calibrate(tiny_model("llama"), out, data=windows, recipe=settings).directory)

    return calibrate(0.0), calibrate(0.4)


def test_a_mixed_bit_width_and_the_next_learn_otherwise_and_the_rest_the_same_bit_for_bit(calibrated):
    plain, mixed = map(elastic_linears, calibrated)
    assert all(torch.equal(plain[path].derive(8), mixed[path].derive(8)) for path in plain)
    for bits in (2, 3):
        assert any(not torch.equal(plain[path].derive(bits), mixed[path].derive(bits)) for path in plain)


@pytest.mark.parametrize("bits", [(2, 5), (2, 8)])
def test_linears_move_to_a_bit_width_that_does_not_train_without_changing_it(bits, tiny_model, windows, tmp_path):
    def calibrate(share):
        settings = quept.load_recipe("best").with_bits(bits)
        mixing = Mixing(bits=(2,), probability=share)
        training = settings.reconstruction.updated(epochs=2, batch_size=4, train_every=(0, 1), mixing=mixing)
        settings = settings.updated(reconstruction=training)
        out = tmp_path / str(share)
        return quept.load(quept.calibrate(tiny_model("llama"), out, data=windows, recipe=settings).directory)

    plain, mixed = map(elastic_linears, map(calibrate, (0.0, 0.6)))
    assert all(torch.equal(plain[path].derive(bits[1]), mixed[path].derive(bits[1])) for path in plain)
    assert any(not torch.equal(plain[path].derive(2), mixed[path].derive(2)) for path in plain)
