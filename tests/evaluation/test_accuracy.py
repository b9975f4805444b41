import math
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional
from transformers import ViTConfig, ViTForImageClassification

import quept
from quept.errors import InvalidInput
from quept.evaluation import accuracy, classifier, compare, evaluate_accuracy
from quept.layers.replace import elastic_like, replace_linears
from quept.precision import at_precision, precision_of, rounded_to_nearest

CLASSES, IMAGES = 7, 30


def lookup(logits):
    """A classifier that finds the logits of an image, and the image's row, in its one pixel."""
    return lambda pixels: logits[pixels[:, 0, 0, 0].long()]


def batches(labels, size=8):
    rows = torch.arange(len(labels), dtype=torch.float32).view(-1, 1, 1, 1)
    return list(zip(rows.split(size), torch.as_tensor(labels).split(size), strict=True))


def drawn(seed, classes=CLASSES, images=IMAGES):
    return torch.randn(images, classes, generator=torch.Generator().manual_seed(seed))


LABELS = torch.randint(CLASSES, (IMAGES,), generator=torch.Generator().manual_seed(9))


def of(logits, labels, size=8):
    """The accuracy of fixed logits."""
    return compare(lookup(logits), lookup(logits), batches(labels, size)).accuracy


@pytest.mark.parametrize("size", [1, 8, 100])
def test_it_counts_the_right_class_among_the_largest_logits(size):
    logits = drawn(1)
    found = of(logits, LABELS, size)
    top5 = (logits.topk(5).indices == LABELS[:, None]).any(-1)
    assert found.images == IMAGES
    assert found.top1 == pytest.approx(float((logits.argmax(-1) == LABELS).float().mean()))
    assert found.top5 == pytest.approx(float(top5.float().mean()))
    assert found.top1 < found.top5 < 1


def test_the_standard_error_is_that_of_a_share():
    logits = functional.one_hot(torch.tensor([0, 0, 0, 1]), 2).float()
    found = of(logits, torch.zeros(4, dtype=torch.int64))
    assert (found.top1, found.top1_error) == (0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 4)))
    assert (found.top5, found.top5_error) == (1, 0)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_with_five_classes_or_fewer_all_are_among_the_five_largest(classes):
    found = of(drawn(2, classes), LABELS % classes)
    assert found.top5 == 1
    assert found.top1 == pytest.approx(float((drawn(2, classes).argmax(-1) == LABELS % classes).float().mean()))


def test_of_equal_logits_the_first_counts_as_larger():
    found = of(torch.zeros(IMAGES, CLASSES), LABELS)
    assert found.top1 == pytest.approx(float((LABELS == 0).float().mean()))
    assert found.top5 == pytest.approx(float((LABELS < 5).float().mean()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_never_right(value):
    logits = functional.one_hot(LABELS, CLASSES).float()
    logits[3, (LABELS[3] + 1) % CLASSES] = value
    logits[5] = value
    found = of(logits, LABELS)
    assert found.top1 == found.top5 == (IMAGES - 2) / IMAGES
    assert compare(lookup(drawn(1)), lookup(logits), batches(LABELS)).kl == math.inf


def test_a_comparison_is_of_pairs():
    reference, model = (
        drawn(1) + 2 * functional.one_hot(LABELS, CLASSES),
        drawn(2) + functional.one_hot(LABELS, CLASSES),
    )
    first, second = ((logits.argmax(-1) == LABELS).double() for logits in (reference, model))
    difference = first - second
    assert 0 < float(difference.clamp(max=0).abs().sum()) < float(difference.clamp(min=0).sum())
    found = compare(lookup(reference), lookup(model), batches(LABELS))
    assert found.accuracy == of(model, LABELS)
    assert found.lost == pytest.approx(float(difference.mean()))
    assert found.lost_error == pytest.approx(float(difference.std(correction=0)) / math.sqrt(IMAGES))
    p, q = reference.log_softmax(-1), model.log_softmax(-1)
    assert found.kl == pytest.approx(float(functional.kl_div(q, p, log_target=True, reduction="batchmean")), rel=1e-5)


def test_nothing_is_lost_beside_itself_and_what_is_won_counts_as_negative():
    one, better = drawn(1), functional.one_hot(LABELS, CLASSES).float()
    same = compare(lookup(one), lookup(one), batches(LABELS))
    assert (same.lost, same.lost_error, same.kl) == (0, 0, pytest.approx(0, abs=1e-7))
    gain = compare(lookup(one), lookup(better), batches(LABELS))
    assert gain.lost == pytest.approx(of(one, LABELS).top1 - 1)
    assert gain.lost < 0


def test_progress_counts_images():
    calls = []
    compare(lookup(drawn(1)), lookup(drawn(2)), batches(LABELS), total=30, progress=lambda *call: calls.append(call))
    assert calls == [(8, 30), (16, 30), (24, 30), (30, 30)]


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_labels_that_are_no_classes(label):
    labels = LABELS.clone()
    labels[4] = label
    with pytest.raises(InvalidInput, match=rf"labels from .*{label}.* classes 0 to {CLASSES - 1}"):
        of(drawn(1), labels)


@pytest.mark.parametrize(
    ("given", "message"), [([], "no images"), ([(torch.zeros(1, 1, 1, 1), None)], "have no labels")]
)
def test_images_without_which_there_is_no_accuracy(given, message):
    with pytest.raises(InvalidInput, match=message):
        compare(lookup(drawn(1)), lookup(drawn(1)), given)


@pytest.fixture
def tiny_vit():
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=CLASSES,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ViTForImageClassification(config).eval()


PIXELS = torch.randn(IMAGES, 1, 8, 8, generator=torch.Generator().manual_seed(4))
LABELLED = list(zip(PIXELS.split(8), LABELS.split(8), strict=True))


def test_a_transformers_classifier(tiny_vit):
    with torch.no_grad():
        logits = tiny_vit(pixel_values=PIXELS).logits
    calls = []
    found = accuracy(tiny_vit, LABELLED, progress=lambda *call: calls.append(call))
    assert found == of(logits, LABELS)
    assert calls[-1] == (IMAGES, None)


def test_pixels_get_the_type_of_the_weights(tiny_vit):
    assert torch.equal(classifier(tiny_vit.bfloat16())(PIXELS), tiny_vit(pixel_values=PIXELS.bfloat16()).logits)


def test_modes_of_the_modules_are_restored(tiny_vit):
    tiny_vit.train()
    tiny_vit.vit.eval()
    before = [module.training for module in tiny_vit.modules()]
    seen = []
    tiny_vit.classifier.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    accuracy(tiny_vit, LABELLED)
    assert seen
    assert not any(seen)
    assert [module.training for module in tiny_vit.modules()] == before


@pytest.mark.parametrize("logits", [None, torch.zeros(3, 4, 5)])
def test_a_model_that_does_not_classify_images(tiny_vit, logits):
    tiny_vit.forward = lambda pixel_values: SimpleNamespace(logits=logits)
    with pytest.raises(InvalidInput, match="ViTForImageClassification has no logits of shape"):
        accuracy(tiny_vit, LABELLED)


@pytest.fixture
def elastic_vit(tiny_vit):
    """The same with the linears of its blocks elastic, and clipped as after a calibration."""
    linears = [name for name, module in tiny_vit.vit.named_modules() if isinstance(module, torch.nn.Linear)]
    recipe = quept.load_recipe("best").updated(adapter={"kind": "none"}, learned_rounding=(), store={})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for layer in replace_linears(
            tiny_vit.vit, "vit", dict.fromkeys(linears, recipe.weight_spec), {}, elastic_like
        ).values():
            for name, parameter in layer.named_parameters():
                if name not in ("weight", "bias"):
                    parameter.sub_(torch.rand_like(parameter).mul(3))
    return tiny_vit


@pytest.mark.parametrize("held", [1, 600, 1 << 28])
def test_every_precision_is_compared_on_the_same_images(elastic_vit, held, monkeypatch):
    monkeypatch.setattr("quept.evaluation.accuracy_precisions._PIXEL_BYTES", held)
    before = precision_of(elastic_vit)
    found = evaluate_accuracy(elastic_vit, iter(LABELLED), [2, "4"], baseline=True)
    assert precision_of(elastic_vit) == before
    model = classifier(elastic_vit)

    def at(context):
        def classify(pixels):
            with context():
                return model(pixels)

        return classify

    full = at(lambda: at_precision(elastic_vit, None))
    with at_precision(elastic_vit, None):
        assert found.full_precision == accuracy(elastic_vit, LABELLED)
    assert found.images == IMAGES
    for row, bits in zip(found.results, (2, 4), strict=True):
        assert (row.bits, row.precision) == (bits, str(bits))
        with torch.inference_mode():
            own = compare(full, at(lambda bits=bits: at_precision(elastic_vit, bits)), LABELLED)
            nearest = compare(full, at(lambda bits=bits: rounded_to_nearest(elastic_vit, bits)), LABELLED)
        assert row.calibrated == own
        assert row.baseline == nearest
        assert own.kl != nearest.kl
    assert found.results[0].bytes < found.results[1].bytes < found.full_precision_bytes
    assert found.results[0].baseline.kl > found.results[1].baseline.kl > 0


def test_what_is_not_asked_for_is_not_measured(elastic_vit):
    calls = []
    evaluate_accuracy(
        elastic_vit, LABELLED, [3], calibrated=False, baseline=True, total=30, progress=lambda *call: calls.append(call)
    )
    assert [call[0] for call in calls] == ["full precision"] * 4 + ["3 bits, rounding"] * 4
    assert [call[1:] for call in calls[:4]] == [(8, 30), (16, 30), (24, 30), (30, 30)]
    found = evaluate_accuracy(elastic_vit, LABELLED, [3])
    assert found.results[0].baseline is None
    assert found.to_json()["results"][0]["calibrated"]["accuracy"] == asdict(found.results[0].calibrated.accuracy)


def test_a_bit_width_that_is_not_there_is_told_before_any_image_is_read(elastic_vit):
    def unread():
        raise AssertionError
        yield

    with pytest.raises(InvalidInput):
        evaluate_accuracy(elastic_vit, unread(), ["w4a4"])
