"""What training a block moves, and what it must leave alone."""

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import quept
from quept.calibration import forward
from quept.calibration.block import CalibrationBlock
from quept.calibration.capture import ModelHead, ModelStem
from quept.calibration.forward import CompiledForward, EagerForward
from quept.calibration.merge import advance
from quept.calibration.methods import Clipping, LearnedRounding
from quept.calibration.objective import output_error, prediction_error
from quept.calibration.ranges import init_ranges
from quept.calibration.reconstruct import Training, expected_draws, reconstruct
from quept.calibration.stream import Stream, StreamStore
from quept.calibration.tools import Tools
from quept.config import Adapter, BitGroups, Granularity, Recipe, Reconstruction
from quept.models import BlockContext, architecture_of
from quept.numerics import affine
from quept.precision import elastic_linears

CPU = torch.device("cpu")
WIDTHS = (2, 3, 4, 8)


def recipe(**changes) -> Recipe:
    best = quept.load_recipe("best").with_bits(WIDTHS)
    quick = Reconstruction(epochs=10, batch_size=4, loss="mse", normalized=True, clip_init="search", keep="learned")
    return best.updated(
        **{
            "granularity": Granularity(group_size=16, grouped_bits=(2, 3, 4)),
            "adapter": Adapter(kind="none"),
            "reconstruction": quick,
            "learned_rounding": (2, 3, 4),
            "store": {},
            **changes,
        }
    )


def first_block(model, windows, settings: Recipe | None = None):
    """The first block, elastic, and the stream that enters it."""
    architecture = architecture_of(model.config.model_type)
    stem = ModelStem(model, architecture, torch.float32)
    call = stem.calls(windows)[0]
    blocks = architecture.block_list(model)
    context = BlockContext.of(architecture, model, 0)
    block = CalibrationBlock(blocks[0], context, settings or recipe(), call, CPU, torch.float32)
    return block, stem.hidden_states(windows)


def trained(model, windows, settings: Recipe, noise: float):
    """The first block's weights at every bit-width after training, with noise in the lowest group's input alone."""
    block, hidden = first_block(model, windows, settings)
    targets = Stream(block.run(hidden).detach(), CPU)
    init_ranges(block, {path: torch.ones(1, each.in_features) for path, each in block.trainable.items()}, seeded(0))
    streams = [Stream(hidden.clone(), CPU) for _ in settings.groups.groups]
    streams[-1] = Stream(hidden + noise * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1)), CPU)
    training = Training(settings.trained_groups, settings.reconstruction, output_error("mse"), seeded(2))
    reconstruct(block, streams, targets, training, Tools.plain(StreamStore(2**20, Path(), CPU)))
    block.freeze()
    return {
        bits: {name: linear.derive(bits).detach() for name, linear in block.linears.items()} for bits in settings.bits
    }


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("isolated", "untouched"), [(True, True), (False, False)])
def test_isolation_keeps_the_lowest_bit_widths_loss_from_all_higher_widths(isolated, untouched, tiny_model, windows):
    settings = recipe(adapter=Adapter(kind="cascade", rank=2, isolated=isolated))
    calm, disturbed = (trained(tiny_model("llama"), windows, settings, noise) for noise in (0.0, 1.0))
    for bits in WIDTHS[1:]:
        same = all(torch.equal(calm[bits][name], disturbed[bits][name]) for name in calm[bits])
        assert same == untouched, bits
    assert not all(torch.equal(calm[2][name], disturbed[2][name]) for name in calm[2])


@pytest.fixture(scope="module")
def reports(tiny_model, seen, tmp_path_factory):
    """The same calibration without and with learned rounding."""
    folder = tmp_path_factory.mktemp("rounding")
    wide = {"hidden_size": 64, "intermediate_size": 92}
    return {
        bits: quept.calibrate(
            tiny_model("llama", **wide), folder / str(len(bits)), data=seen, recipe=recipe(learned_rounding=bits)
        )
        for bits in ((), (2, 3, 4))
    }


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_learned_rounding_lowers_each_blocks_error_at_each_chosen_bit_width(bits, reports):
    without, learned = (
        {error.block: error for error in report.manifest.block_errors if error.bits == bits}
        for report in reports.values()
    )
    assert len(learned) == 2
    for block, error in learned.items():
        assert error.calibrated < 0.8 * error.rounding
        # The first block alone sees the same inputs in both.
        if block.endswith(".0"):
            assert error.calibrated < 0.9 * without[block].calibrated


def test_planes_are_stored_once_per_chosen_bit_width_and_rebuild_the_calibrated_codes(reports, tiny_model, windows):
    report = reports[(2, 3, 4)]
    loaded = quept.load(report.directory)
    layers = elastic_linears(loaded)
    for layer in layers.values():
        assert list(layer.planes) == ["2", "3", "4"]
        for bits in (2, 3, 4):
            packed = layer.planes[str(bits)]
            assert packed.dtype == torch.uint8
            assert packed.shape == (layer.out_features, -(-layer.in_features // 8))
            assert packed.any()
            codes, to = layer.codes(bits)
            assert torch.equal(layer.derive(bits), layer._join((codes.float() - to.zero_point) * to.scale))
    again = quept.load(report.directory)
    for path, layer in elastic_linears(again).items():
        for bits in WIDTHS:
            assert torch.equal(layer.codes(bits)[0], layers[path].codes(bits)[0])


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_settling_keeps_every_code_that_training_ended_with(family, tiny_model, windows):
    settings = recipe()
    block, _ = first_block(tiny_model(family), windows, settings)
    ones = {path: torch.ones(1, each.in_features) for path, each in block.trainable.items()}
    init_ranges(block, ones, seeded(3))
    before, generator = {}, seeded(3)
    for path, linear in block.trainable.items():
        offsets = linear.trainable.method(LearnedRounding).offsets
        assert set(offsets) == {2, 3, 4}
        for offset in offsets.values():
            offset.data.uniform_(-0.5, 0.5, generator=generator)
        before[path] = {bits: linear.trainable.derive(bits).detach() for bits in WIDTHS}
    block.freeze()
    assert not block.trainable
    for path, linear in block.linears.items():
        for bits in WIDTHS:
            assert torch.equal(linear.derive(bits), before[path][bits])


def test_bit_widths_left_out_of_training_are_rounding_to_nearest(tiny_model, windows, tmp_path):
    settings = recipe(reconstruction=recipe().reconstruction.updated(train_every=(0, 1, 2, 1), epochs=2))
    report = quept.calibrate(tiny_model("llama"), tmp_path / "out", data=windows, recipe=settings)
    for layer in elastic_linears(quept.load(report.directory)).values():
        assert torch.equal(layer.derive(8), layer.nearest(8))
        assert not torch.equal(layer.derive(4), layer.nearest(4))


def test_draws_follow_cadence_and_group_size():
    groups = BitGroups(groups=[[7, 8], [5], [3], [2]])
    draws = expected_draws(groups.groups, Reconstruction(train_every=(4, 0, 2, 1)), 10)
    assert draws == {8: 1.5, 7: 1.5, 5: 0, 3: 5, 2: 10}


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("bits", [2, 8])
def test_products_in_bfloat16_stay_close_and_give_float32_gradients(family, bits, tiny_model, windows):
    block, hidden = first_block(tiny_model(family), windows, recipe())
    init_ranges(block, {path: torch.ones(1, each.in_features) for path, each in block.trainable.items()}, seeded(0))

    def run() -> torch.Tensor:
        for linear in block.trainable.values():
            linear.current = linear.trainable.derive(bits)
        return block.call(block.module, hidden)

    exact = run().detach()
    with block.multiplying(torch.bfloat16):
        half = run()
    assert half.dtype == torch.float32
    assert 0 < float((half - exact).detach().norm() / exact.norm()) < 0.02
    half.square().mean().backward()
    logits = [linear.trainable.method(Clipping).logits[bits] for linear in block.trainable.values()]
    assert all(each.grad.dtype == torch.float32 for each in logits)
    assert torch.equal(run().detach(), exact)
    block.freeze()
    with torch.no_grad():
        assert torch.equal(block.run(hidden, bits), exact)


@pytest.mark.parametrize("strategy", ["per-group", "selective", "single-width"])
def test_streams_move_on_in_bfloat16_where_it_is_asked_for(strategy, tiny_model, windows, tmp_path):
    settings = recipe(merging={"strategy": strategy, "single_width": 8})
    block, hidden = first_block(tiny_model("llama"), windows, settings)
    init_ranges(block, {path: torch.ones(1, each.in_features) for path, each in block.trainable.items()}, seeded(0))
    block.freeze()

    def moved_on(*bfloat16_bits: int) -> list[torch.Tensor]:
        one = Stream(hidden.clone(), CPU)
        separate = strategy == "per-group"
        streams = [Stream(hidden.clone(), CPU) if separate else one for _ in settings.groups.groups]
        generator, store = torch.Generator().manual_seed(0), StreamStore(2**30, tmp_path, CPU)
        training = settings.reconstruction.updated(bfloat16_bits=bfloat16_bits)
        advanced = advance(block, streams, training, generator, Tools.plain(store, 4))
        return [stream.read(slice(None)) for stream in advanced]

    exact, half = moved_on(), moved_on(2, 8)
    for group, one, other in zip(settings.groups.groups, exact, half, strict=True):
        if strategy == "per-group" and not set(group) & {2, 8}:
            assert torch.equal(one, other)
        else:
            assert 0 < float((one - other).norm() / one.norm()) < 0.1  # a token or two may merge otherwise


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gemma3_text", "phi3", "opt", "gpt2", "gpt_neox"])
def test_the_exit_gives_the_models_own_predictions(family, tiny_model, windows):
    model = tiny_model(family)
    architecture = architecture_of(model.config.model_type)
    stem = ModelStem(model, architecture, torch.float32)
    hidden = stem.hidden_states(windows)
    for block, call in zip(architecture.block_list(model), stem.calls(windows), strict=True):
        hidden = call(block, hidden)
    head = ModelHead(model, architecture, torch.float32, CPU, windows[:1])
    with torch.no_grad():
        expected = model(input_ids=windows, use_cache=False).logits
        torch.testing.assert_close(head(hidden), expected, rtol=1e-4, atol=1e-4)


def test_the_prediction_error_is_the_divergence_however_it_is_divided(tiny_model, windows, monkeypatch):
    model = tiny_model("llama")
    head = ModelHead(model, architecture_of("llama"), torch.float32, CPU, windows[:1])
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(3, 24, 32, generator=generator)
    output = (target + 0.3 * torch.randn(target.shape, generator=generator)).requires_grad_(True)
    with torch.no_grad():
        p, q = (head(states).log_softmax(-1) for states in (target, output))
        expected = F.kl_div(q, p, log_target=True, reduction="sum") / 72
    values, gradients = [], []
    for tokens in (10_000, 30, 7):  # all at once; a sample at a time; parts of a sample
        monkeypatch.setattr("quept.calibration.objective.LOGITS_PER_CHUNK", tokens * head.classes)
        value = prediction_error(head)(target, slice(None))(output)
        gradients.append(torch.autograd.grad(value, output)[0])
        values.append(value.detach())
        torch.testing.assert_close(values[-1], expected)
        torch.testing.assert_close(gradients[-1], gradients[0])
    assert float(prediction_error(head)(target, slice(None))(target)) == pytest.approx(0, abs=1e-6)


def test_the_text_has_its_share_of_the_predictions(tiny_model, windows, monkeypatch):
    model = tiny_model("llama")
    head = ModelHead(model, architecture_of("llama"), torch.float32, CPU, windows[:1])
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 24, 32, generator=generator)
    output = (target + 0.3 * torch.randn(target.shape, generator=generator)).requires_grad_(True)
    rows, share = [3, 1], 0.25
    with torch.no_grad():
        p, log_q = head(target).softmax(-1), head(output).log_softmax(-1)
        text = F.one_hot(windows[rows][:, 1:24], p.shape[-1])
        p[:, :-1] = (1 - share) * p[:, :-1] + share * text  # after a window's last token nothing is known to follow
        expected = (p * (p.log() - log_q)).sum() / 48
    for tokens in (10_000, 7):  # all at once; parts of a sample
        monkeypatch.setattr("quept.calibration.objective.LOGITS_PER_CHUNK", tokens * head.classes)
        error = prediction_error(head, windows[:, :24], share)(target, rows)
        torch.testing.assert_close(error(output).detach(), expected)
    assert torch.autograd.grad(error(output), output)[0].isfinite().all()


def test_without_a_compiler_the_plain_pass_takes_over_and_says_so_once(tiny_model, windows, monkeypatch):
    block, hidden = first_block(tiny_model("llama"), windows, recipe())

    def compile_nothing(*_, **__):
        def fail(*_):
            raise RuntimeError("no compiler here")

        return fail

    monkeypatch.setattr(torch, "compile", compile_nothing)
    notes = []
    forward = CompiledForward(notes.append)
    for _ in range(2):
        assert torch.equal(forward(block.call, block.module, hidden), block.run(hidden))
    assert len(notes) == 1
    assert "no compiler here" in notes[0]


@pytest.mark.parametrize("bits", [2, 8])
def test_what_is_compiled_quantizes_as_the_library_does(bits):
    generator = torch.Generator().manual_seed(bits)
    grouped = torch.randn(5, 3, 16, generator=generator)
    logits = (torch.randn(2, 5, 3, generator=generator) + 2).requires_grad_(True)
    offset = (torch.rand(grouped.shape, generator=generator) - 0.5).requires_grad_(True)
    upstream = torch.randn(grouped.shape, generator=generator)
    low, high = torch.sigmoid(logits).unsqueeze(-1)
    expected = affine.fake_quantize(grouped, affine.grid(grouped, bits, low, high), offset)
    rows = [values.flatten(0, 1) for values in (grouped, *affine.min_max(grouped), offset)]
    actual = forward._quantize(*rows, torch.sigmoid(logits).flatten(1).unsqueeze(-1), 2**bits - 1).view_as(expected)
    torch.testing.assert_close(actual, expected)
    for one, other in zip(
        torch.autograd.grad(actual, (logits, offset), upstream),
        torch.autograd.grad(expected, (logits, offset), upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("activation_bits", [(), (2, 4, 8)])
def test_a_compiled_pass_gives_what_the_plain_one_gives(activation_bits, tiny_model, windows):
    # The last block of the one it has is the first as well, so that what is rotated at both ends is compiled, too.
    rotation = {"activations": {"bits": activation_bits}, "rotation": {"enabled": bool(activation_bits)}}
    block, hidden = first_block(tiny_model("llama", num_hidden_layers=1), windows, recipe(**rotation))
    notes, found = [], []
    for run in (EagerForward(), CompiledForward(notes.append)):
        init_ranges(block, {path: torch.ones(1, each.in_features) for path, each in block.trainable.items()}, seeded(0))
        for layer in block.trainable.values():
            layer.current = run.weight(layer.trainable, 2)
        learned = [layer.trainable.method(LearnedRounding).offsets[2] for layer in block.trainable.values()]
        for each in block.inputs if activation_bits else ():
            learned.append(each.quantizer.clipping["2"].requires_grad_(True))
            each.quantizer.override = each.quantizer.grid(2)
        output = run(block.call, block.module, hidden)
        found.append((output.detach(), torch.autograd.grad(output.square().mean(), learned)))
        for layer in block.trainable.values():
            layer.current = None
    assert not notes
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-4)
    for compiled, plain in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_code_is_not_taken_from_a_block_that_differs(tiny_model, windows):
    """The first block rotates what enters it, and the last one what leaves it; those between share their code."""
    settings = quept.load_recipe("weight-activation-best")
    model = tiny_model("llama", num_hidden_layers=4)
    architecture = architecture_of("llama")
    stem = ModelStem(model, architecture, torch.float32)
    blocks, hidden, notes = architecture.block_list(model), stem.hidden_states(windows), []
    compiled = CompiledForward(notes.append)
    for index, call in enumerate(stem.calls(windows)):
        context = BlockContext.of(architecture, model, index)
        block = CalibrationBlock(blocks[index], context, settings, call, CPU, torch.float32)
        with torch.no_grad():
            for layer in block.linears.values():
                layer.override = layer.derive(8)
            torch.testing.assert_close(
                compiled(block.call, block.module, hidden), block.call(block.module, hidden), rtol=1e-4, atol=1e-4
            )
    assert not notes
