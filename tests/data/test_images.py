import io
import json
import sys
import tarfile
import threading

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from quept.data import images as images_module
from quept.data import load_images
from quept.data.images import ImageSample
from quept.data.records import balanced_order
from quept.errors import InvalidInput

NAMES = ("ant", "bee", "cat")
SIDE = 6


class Plain:
    """A preprocessing that only rescales; it remembers how many images it was given at a time."""

    def __init__(self, channels=1, size=(SIDE, SIDE), classes=3, label2id=None):
        self.channels, self.size, self.classes = channels, size, classes
        self.label2id = {name: number for number, name in enumerate(NAMES)} if label2id is None else label2id
        self.given = []

    def pixels(self, images):
        self.given.append(len(images))
        assert all(image.mode == {1: "L", 3: "RGB"}[self.channels] for image in images)
        arrays = [np.asarray(image, dtype=np.float32).reshape(image.height, image.width, -1) for image in images]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 255


def pictures(count, channels=1, seed=0):
    shape = (count, SIDE, SIDE) if channels == 1 else (count, SIDE, SIDE, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(array, kind="png", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def write_folder(path, arrays, labels):
    for at, (array, label) in enumerate(zip(arrays, labels, strict=True)):
        folder = path / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{at:04}.png").write_bytes(encoded(array))
    return path


def write_npz(path, arrays, labels):
    np.savez(path, x=arrays, y=np.asarray(labels))
    return path


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_pairs(path, arrays, labels):
    pairs = [
        ((f"part/{at:04}.png", encoded(array)), (f"part/{at:04}.cls", f"{label}\n".encode()))
        for at, (array, label) in enumerate(zip(arrays, labels, strict=True))
    ]
    return write_tar(path, [member for pair in pairs for member in pair])


def write_parquet(path, arrays, labels, features=None, **options):
    rows = [{"bytes": encoded(array), "path": "/etc/passwd"} for array in arrays]
    table = pyarrow.table({"id": range(len(rows)), "image": rows, "label": list(labels)})
    if features is not None:
        described = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": described})
    pyarrow.parquet.write_table(table, path, **options)
    return path


def write_bytes_column(path, arrays, labels):
    table = pyarrow.table({"photo": [encoded(array) for array in arrays], "y": list(labels)})
    pyarrow.parquet.write_table(table, path, row_group_size=3)
    return path


WRITERS = {
    "folder": write_folder,
    "a.npz": write_npz,
    "a.tar": write_pairs,
    "a.parquet": write_parquet,
    "b.parquet": write_bytes_column,
}


def everything(source, size=4):
    pixels, labels = zip(*source.batches(size), strict=True)
    return torch.cat(pixels), torch.cat(labels)


def expected_pixels(arrays):
    pixels = torch.from_numpy(arrays).float() / 255
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)


@pytest.fixture
def source(tmp_path):
    """Ten grayscale images of three classes, from a `.npz` file."""
    return load_images(write_npz(tmp_path / "a.npz", pictures(10), [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]), Plain())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_source_gives_the_same_images_in_order(tmp_path, kind, channels):
    arrays, labels = pictures(11, channels), [0] * 4 + [1] * 5 + [2] * 2
    source = load_images(WRITERS[kind](tmp_path / kind, arrays, labels), Plain(channels))
    assert source.count == 11
    assert source.labelled
    pixels, found = everything(source)
    assert pixels.dtype == torch.float32
    assert found.dtype == torch.int64
    assert torch.equal(pixels, expected_pixels(arrays))
    assert found.tolist() == labels
    assert not source.skipped


@pytest.mark.parametrize("kind", WRITERS)
def test_a_sample_is_of_whole_pairs_whatever_the_source(tmp_path, kind):
    arrays, labels = pictures(20), [at // 7 for at in range(20)]
    sample = load_images(WRITERS[kind](tmp_path / kind, arrays, labels), Plain()).take(9, seed=3)
    rows = [int((expected_pixels(arrays) == image).all(dim=(1, 2, 3)).nonzero()) for image in sample.pixels]
    assert len(set(rows)) == 9
    assert [labels[row] for row in rows] == sample.labels.tolist()
    assert torch.bincount(sample.labels).tolist() == [3, 3, 3]
    assert len(set(sample.names)) == 9


def test_a_sample_is_a_function_of_the_seed_and_comes_in_random_order(source):
    def rows(seed):
        return [int(name.split()[1]) for name in source.take(8, seed=seed).names]

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)
    assert rows(0) != sorted(rows(0))


def test_the_sample_does_not_depend_on_how_many_are_prepared_at_a_time(source, monkeypatch):
    expected = source.take(8, seed=5)
    monkeypatch.setattr(images_module, "_BATCH", 3)
    found = source.take(8, seed=5)
    assert torch.equal(found.pixels, expected.pixels)
    assert (found.names, found.digest()) == (expected.names, expected.digest())


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=40), seed=st.integers(0, 2**63 - 1))
def test_every_beginning_of_a_balanced_order_is_balanced(labels, seed):
    order = balanced_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    sizes = {label: labels.count(label) for label in labels}
    for end in range(len(order) + 1):
        taken = [labels[row] for row in order[:end]]
        most = max((taken.count(label) for label in sizes), default=0)
        assert all(taken.count(label) >= min(most - 1, size) for label, size in sizes.items())


def test_the_digest_is_of_pixels_shape_and_labels():
    pixels, labels = torch.rand(4, 1, 2, 3), torch.tensor([0, 1, 2, 3])
    digests = {
        ImageSample(pixels, labels, ()).digest(),
        ImageSample(pixels, labels.flip(0), ()).digest(),
        ImageSample(pixels, None, ()).digest(),
        ImageSample(pixels.flip(0), labels, ()).digest(),
        ImageSample(pixels.reshape(4, 1, 3, 2), labels, ()).digest(),
    }
    assert len(digests) == 5
    assert ImageSample(pixels.clone(), labels, ("a",)).digest() == ImageSample(pixels, labels, ()).digest()


def test_batches_have_the_size_that_was_asked_for(source):
    def sizes(*arguments, **options):
        return [len(pixels) for pixels, _ in source.batches(*arguments, **options)]

    assert sizes(4) == [4, 4, 2]
    assert sizes(5) == [5, 5]
    assert sizes(100) == [10]
    assert sizes(4, limit=5) == [4, 1]
    assert sizes(4, limit=8) == [4, 4]


def test_images_are_decoded_as_they_are_asked_for(tmp_path):
    plain = Plain()
    batches = load_images(write_npz(tmp_path / "a.npz", pictures(100), [0] * 100), plain).batches(10)
    next(batches)
    batches.close()  # waits for the thread
    assert 10 <= sum(plain.given) <= 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("quept-images")]


def test_an_image_without_a_color_fits_a_model_of_one_channel(tmp_path):
    gray = pictures(3)
    path = write_folder(tmp_path / "folder", np.stack([gray] * 3, axis=-1), [0, 1, 2])
    assert torch.equal(everything(load_images(path, Plain()))[0], expected_pixels(gray))


def test_a_grayscale_image_fits_a_model_of_three_channels(tmp_path):
    gray = pictures(3)
    path = write_folder(tmp_path / "folder", gray, [0, 1, 2])
    assert torch.equal(everything(load_images(path, Plain(3)))[0], expected_pixels(gray).expand(-1, 3, -1, -1))


def test_a_color_image_does_not_fit_a_model_of_one_channel(tmp_path):
    path = write_folder(tmp_path / "folder", pictures(1, 3), [1])
    with pytest.raises(InvalidInput, match=r"0000\.png' is a color image, .* 1 channel: convert"):
        everything(load_images(path, Plain()))


@pytest.mark.parametrize("channels", [2, 4])
def test_a_model_of_other_channels_is_refused(tmp_path, channels):
    with pytest.raises(InvalidInput, match=f"{channels} channels, .*1 .grayscale. or 3"):
        load_images(write_npz(tmp_path / "a.npz", pictures(1), [0]), Plain(channels))


def as_mode(mode):
    image = Image.fromarray(pictures(1, 3)[0]).convert(mode)
    if mode == "P":
        image.info["transparency"] = bytes(range(256))
    return image


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("1", "png"), ("L", "bmp"), ("LA", "png"), ("P", "png"), ("P", "gif"), ("RGBA", "webp"), ("CMYK", "jpeg")],
)
def test_pictures_of_other_modes_become_three_channels(tmp_path, mode, kind):
    folder = tmp_path / "ant"
    folder.mkdir()
    image = as_mode(mode)
    if kind == "gif":
        del image.info["transparency"]
    image.save(folder / f"a.{kind.upper()}", kind, **({"lossless": True, "exact": True} if kind == "webp" else {}))
    source = load_images(tmp_path, Plain(3))
    pixels, labels = everything(source)
    assert not source.skipped
    assert labels.tolist() == [0]
    if kind != "jpeg":
        reference = image.convert("RGBA").convert("RGB") if mode == "P" else image.convert("RGB")
        assert torch.equal(pixels, expected_pixels(np.array(reference)[None]))


def test_a_picture_is_turned_as_its_orientation_says(tmp_path):
    array = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) * 7
    exif = Image.Exif()
    exif[0x0112] = 6  # to be flipped clockwise by a quarter
    (tmp_path / "ant").mkdir()
    Image.fromarray(array).save(tmp_path / "ant" / "a.png", exif=exif)
    pixels, _ = everything(load_images(tmp_path, Plain()))
    assert torch.equal(pixels, expected_pixels(np.rot90(array, -1).copy()[None]))


def damaged(tmp_path):
    """A folder with six good pictures and five that cannot be read."""
    folder = write_folder(tmp_path / "images", pictures(6), [0, 0, 1, 1, 2, 2])
    good = encoded(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8), "jpeg")
    (folder / "ant" / "0000-truncated.jpg").write_bytes(good[: len(good) // 2])
    (folder / "ant" / "empty.png").write_bytes(b"")
    (folder / "bee" / "text.png").write_text("no picture")
    (folder / "bee" / "page.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n")
    Image.fromarray(pictures(1)[0].astype(np.uint16) * 200).save(folder / "cat" / "deep.png")
    (folder / "cat" / "notes.txt").write_text("not looked at")
    (folder / "cat" / ".hidden.png").write_text("not looked at")
    return folder


def test_unreadable_images_are_left_out_and_named(tmp_path):
    source = load_images(damaged(tmp_path), Plain())
    assert source.count == 11
    sizes = [len(pixels) for pixels, _ in source.batches(4)]
    assert sizes == [4, 2]
    assert list(source.skipped) == [
        "ant/0000-truncated.jpg",
        "ant/empty.png",
        "bee/page.jpg",
        "bee/text.png",
        "cat/deep.png",
    ]
    assert "truncated" in source.skipped["ant/0000-truncated.jpg"]
    assert source.skipped["bee/text.png"] == "it is no image of a known format"
    assert "more than 8 bits" in source.skipped["cat/deep.png"]
    everything(source)
    assert len(source.skipped) == 5


def test_unreadable_images_are_errors_if_strict(tmp_path):
    with pytest.raises(InvalidInput, match=r"'ant/0000-truncated\.jpg' in .*file is truncated.*--strict"):
        everything(load_images(damaged(tmp_path), Plain(), strict=True))


def test_unreadable_images_are_replaced_in_a_sample(tmp_path):
    folder = damaged(tmp_path)
    source = load_images(folder, Plain())
    sample = source.take(6, seed=0)
    assert sorted(sample.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    assert len(set(sample.names)) == 6
    assert not set(sample.names) & set(source.skipped)
    with pytest.raises(InvalidInput, match=r"holds 6 images \(5 more could not be read\), but 7 are needed"):
        source.take(7, seed=0)


def test_nothing_but_unreadable_images(tmp_path):
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "a.png").write_text("no picture")
    with pytest.raises(InvalidInput, match=r"no image that could be read: 'ant/a\.png' for one, since it is no image"):
        everything(load_images(tmp_path, Plain()))


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    path = write_folder(tmp_path / "images", pictures(2), [0, 1])
    Image.fromarray(np.zeros((5, 9), np.uint8)).save(path / "cat.png")
    (path / "cat").mkdir()
    (path / "cat.png").rename(path / "cat" / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE)
    source = load_images(path, Plain())
    assert len(everything(source)[0]) == 2
    assert list(source.skipped) == ["cat/big.png"]


@pytest.mark.parametrize("size", [(SIDE, SIDE), None])
def test_an_image_of_another_size_is_named(tmp_path, size):
    path = write_folder(tmp_path / "images", pictures(3), [0, 1, 2])
    Image.fromarray(np.zeros((SIDE, 9), np.uint8)).save(path / "bee" / "wide.png")
    with pytest.raises(InvalidInput, match=r"'bee/wide\.png' .*9 x 6 pixels.* 1 x 6 x 9 .*1 x 6 x 6.*does not resize"):
        everything(load_images(path, Plain(size=size)))


def test_all_images_of_a_wrong_size(tmp_path):
    with pytest.raises(InvalidInput, match="1 x 6 x 6 pixels, but the model takes 1 x 8 x 8"):
        load_images(write_npz(tmp_path / "a.npz", pictures(3), [0, 1, 2]), Plain(size=(8, 8))).take(2, seed=0)


def test_an_image_that_the_processor_refuses_is_named(tmp_path):
    class Refusing(Plain):
        def pixels(self, images):
            if any(np.asarray(image)[0, 0] == 0 for image in images):
                raise KeyError("size")
            return super().pixels(images)

    arrays = pictures(3) | 1
    arrays[1, 0, 0] = 0
    source = load_images(write_npz(tmp_path / "a.npz", arrays, [0, 1, 2]), Refusing())
    with pytest.raises(InvalidInput, match=r"'image 1 of a\.npz' .*'size'.*preprocessor_config\.json"):
        everything(source)


def test_pixels_that_are_not_finite(tmp_path):
    class Dividing(Plain):
        def pixels(self, images):
            return super().pixels(images) / 0

    with pytest.raises(InvalidInput, match="NaN or infinite: check image_std"):
        everything(load_images(write_npz(tmp_path / "a.npz", pictures(3) | 1, [0, 1, 2]), Dividing()))


def labels_of(path, preprocessing):
    return everything(load_images(path, preprocessing))[1].tolist()


def test_class_names_are_looked_up_in_the_model(tmp_path):
    shuffled = {"cat": 0, "ant": 1, "bee": 2}
    arrays, numbers = pictures(3), [0, 1, 2]
    texts = [NAMES[number] for number in numbers]
    for path in (
        write_folder(tmp_path / "folder", arrays, numbers),
        write_npz(tmp_path / "a.npz", arrays, texts),
        write_pairs(tmp_path / "a.tar", arrays, texts),
        write_parquet(tmp_path / "a.parquet", arrays, texts),
    ):
        assert labels_of(path, Plain(label2id=shuffled)) == [1, 2, 0]


def test_class_names_may_be_numbers(tmp_path):
    for number in (0, 2, 10):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.png").write_bytes(encoded(pictures(1)[0]))
    assert labels_of(tmp_path, Plain(classes=11)) == [0, 10, 2]


def test_imagenet_folders_are_numbered_in_their_order_if_they_are_all_there(tmp_path):
    identifiers = ["n02119789", "n01440764", "n03000684"]
    for name in identifiers:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(encoded(pictures(1)[0]))
    assert labels_of(tmp_path, Plain(classes=3)) == [0, 1, 2]
    with pytest.raises(InvalidInput, match="label 'n01440764'"):
        labels_of(tmp_path, Plain(classes=4))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "ant", "bee"], [2, 0, 1]),  # the data set counts otherwise than the model: the names decide
        (["0", "1", "wasp"], [0, 1, 2]),  # the model does not know these names: the numbers decide
        (None, [0, 1, 2]),
    ],
)
def test_the_names_of_a_data_sets_classes_decide_if_the_model_knows_them(tmp_path, names, expected):
    features = {"id": {"_type": "Value"}, "image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    path = write_parquet(tmp_path / "a.parquet", pictures(3), [0, 1, 2], features)
    assert labels_of(path, Plain()) == expected


@pytest.mark.parametrize("label", [3, -1, 2**40])
def test_numbers_that_are_no_classes(tmp_path, label):
    path = write_npz(tmp_path / "a.npz", pictures(2), [0, label])
    with pytest.raises(InvalidInput, match=rf"a\.npz' has the label {label}, .*3 classes.* 0 to 2 .*'ant', 'bee'"):
        load_images(path, Plain())


@pytest.mark.parametrize("name", ["dog", "7", "-1", " 1x", "\u0661"])
def test_names_that_are_no_classes(tmp_path, name):
    label2id = {f"name{number}": number for number in range(7)}
    path = write_npz(tmp_path / "a.npz", pictures(2), [name, "name0"])
    with pytest.raises(InvalidInput, match=r"'name3', 'name4', \.\.\.\. Rename"):
        load_images(path, Plain(label2id=label2id, classes=7))


def test_images_without_labels(tmp_path):
    for at, array in enumerate(pictures(5)):
        (tmp_path / f"{at}.png").write_bytes(encoded(array))
    source = load_images(tmp_path, Plain())
    assert not source.labelled
    assert [labels for _, labels in source.batches(3)] == [None, None]
    sample = source.take(4, seed=0)
    assert sample.labels is None
    assert len(set(sample.names)) == 4


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-1, 0), (1, -1), (1, 2**63)])
def test_bad_arguments_of_a_sample(source, count, seed):
    with pytest.raises(InvalidInput, match=r"--samples|--seed"):
        source.take(count, seed=seed)


@pytest.mark.parametrize(("size", "limit"), [(0, None), (1, 0)])
def test_bad_arguments_of_batches(source, size, limit):
    with pytest.raises(InvalidInput, match="is 0, but must be 1 or more"):
        list(source.batches(size, limit=limit))


def test_fewer_images_than_wanted(source):
    with pytest.raises(InvalidInput, match="holds 10 images, but 11 are needed: give more images, or lower --samples"):
        source.take(11, seed=0)


def array_file(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return tmp_path / "a.npz"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros(2, int)}, "no array 'x', only y"),
        ({"x": pictures(2)}, "no array 'y', only x"),
        ({"x": pictures(2), "labels": np.zeros(2, int)}, "no array 'y', only x, labels"),
        ({"x": np.array([{}, None], object), "y": np.zeros(2, int)}, "Python objects"),
        ({"x": pictures(2), "y": np.array([{}, None], object)}, "Python objects"),
        ({"x": pictures(2).astype(np.float32), "y": np.zeros(2, int)}, "float32 .*must be uint8"),
        ({"x": pictures(2)[0], "y": np.zeros(6, int)}, r"shape \(6, 6\)"),
        ({"x": np.zeros((2, 3, 6, 6), np.uint8), "y": np.zeros(2, int)}, "3 channels last"),
        ({"x": pictures(2), "y": np.zeros((2, 1), int)}, r"shape \(N,\)"),
        ({"x": pictures(2), "y": np.zeros(2)}, "labels 'y' of float64"),
        ({"x": pictures(2), "y": np.zeros(3, int)}, "2 images but 3 labels"),
        ({"x": pictures(0), "y": np.zeros(0, int)}, "holds no images"),
        ({"x": np.zeros((2, 0, 6), np.uint8), "y": np.zeros(2, int)}, "holds no images"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, arrays, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        load_images(array_file(tmp_path, **arrays), Plain())
    assert "\n" not in str(caught.value)


def single_array(path):
    with path.open("wb") as file:
        np.save(file, pictures(2))


def half_a_file(path):
    np.savez_compressed(path, x=pictures(50), y=np.zeros(50, int))
    path.write_bytes(path.read_bytes()[:-40])


def flipped_bytes(path):
    np.savez_compressed(path, x=pictures(50), y=np.zeros(50, int))
    data = bytearray(path.read_bytes())
    data[200:220] = bytes(255 - byte for byte in data[200:220])
    path.write_bytes(data)


@pytest.mark.parametrize(
    "write",
    [
        single_array,
        half_a_file,
        flipped_bytes,
        lambda path: path.write_bytes(b"nothing of the kind"),
        lambda path: path.write_bytes(b""),
    ],
)
def test_files_that_are_no_archives_of_arrays(tmp_path, write):
    write(tmp_path / "a.npz")
    with pytest.raises(InvalidInput, match=r"a\.npz' (cannot be read|holds arrays of Python objects, or is no \.npz)"):
        load_images(tmp_path / "a.npz", Plain())


def test_a_folder_without_images(tmp_path):
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "a.txt").write_text("")
    with pytest.raises(InvalidInput, match="holds no images: give a folder that has a folder of images for each"):
        load_images(tmp_path, Plain())


def test_images_beside_class_folders(tmp_path):
    write_folder(tmp_path, pictures(2), [0, 1])
    (tmp_path / "loose.png").write_bytes(encoded(pictures(1)[0]))
    with pytest.raises(InvalidInput, match=r"images of its own \('loose\.png'\) beside folders of images \('ant'\)"):
        load_images(tmp_path, Plain())


def test_images_at_any_depth_have_the_class_of_the_first_folder(tmp_path):
    for folder in ("bee/a/b", "ant"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.png").write_bytes(encoded(pictures(1)[0]))
    assert load_images(tmp_path, Plain()).take(2, seed=0).labels.sort().values.tolist() == [0, 1]


@pytest.mark.parametrize("names", [("test", "train"), ("train",), ("deep/er", "flat")])
def test_every_folder_is_a_class_whatever_its_name_and_whatever_lies_beside_it(tmp_path, names):
    """Where `datasets` would see splits, a class too few, or metadata in the place of labels."""
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.png").write_bytes(encoded(pictures(1)[0]))
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\n")
    classes = [name.split("/")[0] for name in names]
    plain = Plain(classes=len(names), label2id={name: number for number, name in enumerate(classes)})
    assert labels_of(tmp_path, plain) == list(range(len(names)))


def test_pairs_of_an_archive_may_lie_apart_and_have_names_and_formats_of_any_kind(tmp_path):
    """All of which `datasets` refuses."""
    red = encoded(pictures(1)[0], "jpeg")
    members = [
        ("1.png", encoded(pictures(1)[0])),
        ("2.jpg", red),
        ("2.cls", b"cat\n"),
        ("1.cls", b"bee"),
        ("1.json", b"{"),
    ]
    assert labels_of(write_tar(tmp_path / "a.tar", members), Plain()) == [1, 2]


def test_members_that_are_no_images_are_not_looked_at(tmp_path):
    image = encoded(pictures(1)[0])
    path = write_tar(tmp_path / "a.tar", [("a.png", image), ("a.json", b"{}"), ("a.cls", b"1"), (".png", image)])
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("folder"))
    source = load_images(path, Plain())
    assert source.count == 1
    assert everything(source)[1].tolist() == [1]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.txt", b"")], "holds no images"),
        ([("a.png", b""), ("a.cls", b"0"), ("b.png", b"")], r"'b\.png' .* has no label, but others do"),
        ([("a.png", b""), ("a.cls", b"\xff")], "cannot be read as an uncompressed tar"),
    ],
)
def test_archives_that_hold_no_pairs(tmp_path, members, message):
    with pytest.raises(InvalidInput, match=message):
        load_images(write_tar(tmp_path / "a.tar", members), Plain())


def test_a_compressed_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(InvalidInput, match=r"uncompressed tar archive .*if it is compressed"):
        load_images(tmp_path / "a.tar", Plain())


@pytest.mark.parametrize("pattern", ["part-{08..10}", "part-*", "part-??"])
@pytest.mark.parametrize("kind", [".tar", ".parquet"])
def test_several_files_are_one_source(tmp_path, kind, pattern):
    arrays, labels = pictures(9), [0, 1, 2] * 3
    write = {".tar": write_pairs, ".parquet": write_parquet}[kind]
    for at, number in enumerate(("08", "09", "10")):
        write(tmp_path / f"part-{number}{kind}", arrays[at * 3 : at * 3 + 3], labels[at * 3 : at * 3 + 3])
    source = load_images(tmp_path / f"{pattern}{kind}", Plain())
    pixels, found = everything(source)
    assert torch.equal(pixels, expected_pixels(arrays))
    assert found.tolist() == labels
    sample = source.take(6, seed=0)
    assert torch.bincount(sample.labels).tolist() == [2, 2, 2]


def test_a_range_of_files_must_be_there(tmp_path):
    write_pairs(tmp_path / "a-0.tar", pictures(1), [0])
    with pytest.raises(InvalidInput, match=r"no '.*a-1\.tar', which '.*a-\{0\.\.999999999\}\.tar' names"):
        load_images(tmp_path / "a-{0..999999999}.tar", Plain())


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_groups_of_rows_do_not_matter(tmp_path, rows):
    arrays, labels = pictures(10), [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    whole = load_images(write_parquet(tmp_path / "a.parquet", arrays, labels), Plain()).take(7, seed=4)
    parts = write_parquet(tmp_path / "b.parquet", arrays, labels, row_group_size=rows)
    assert load_images(parts, Plain()).take(7, seed=4).digest() == whole.digest()


def test_rows_without_an_image_are_left_out_and_no_path_is_followed(tmp_path):
    (tmp_path / "real.png").write_bytes(encoded(pictures(1)[0]))
    rows = [
        {"bytes": encoded(pictures(1)[0]), "path": None},
        {"bytes": None, "path": str(tmp_path / "real.png")},
        None,
    ]
    type_ = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"image": pyarrow.array(rows, type_), "label": [0, 1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    source = load_images(tmp_path / "a.parquet", Plain())
    assert everything(source)[1].tolist() == [0]
    assert list(source.skipped) == ["row 2 of a.parquet", "row 3 of a.parquet"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"], "label": [0]}, "no column of images .*text, label"),
        ({"left": [b"a"], "right": [b"b"], "label": [0]}, "several columns of images .*'image'"),
        ({"image": [b"a"], "label": [None]}, "Row 1 of .* label that is NoneType"),
        ({"image": [b"a"], "label": [0.5]}, "Row 1 of .* label that is float"),
        ({"image": [b"a"][:0], "label": [0][:0]}, "no column of images|has no rows"),
    ],
)
def test_tables_that_hold_no_labelled_images(tmp_path, columns, message):
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match=message):
        load_images(tmp_path / "a.parquet", Plain())


def test_a_damaged_parquet_file(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(InvalidInput, match=r"a\.parquet' cannot be read"):
        load_images(tmp_path / "a.parquet", Plain())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.npz", "There is no 'missing.npz': give a folder of class folders"),
        ("a/b/c", "There is no 'a/b/c'"),
        ("nothing", "There is no 'nothing'"),
        ("owner/data.npz", "There is no 'owner/data.npz'"),
        ("x" * 5000, "There is no"),
        ("\0", "There is no"),
    ],
)
def test_sources_that_are_not_there(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=message):
        load_images(name, Plain())


def test_a_file_of_an_unknown_kind(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"unknown kind \('\.zip'\): give .*\.npz, \.tar, \.parquet"):
        load_images(tmp_path / "a.zip", Plain())


@pytest.mark.parametrize(
    ("source", "module", "extra"),
    [("a.npz", "PIL.Image", "vision"), ("a.parquet", "pyarrow", "data"), ("owner/name", "datasets", "data")],
)
def test_packages_that_are_missing(tmp_path, monkeypatch, source, module, extra):
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "a.npz", pictures(1), [0])
    write_parquet(tmp_path / "a.parquet", pictures(1), [0])
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InvalidInput, match=rf"'{module}', which is not installed: .*quept\[{extra}\]"):
        load_images(source, Plain())


@pytest.fixture
def hub(monkeypatch):
    """The hub replaced by ten images of three classes; returns what it was asked for."""
    import datasets

    asked = []
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "ant", "bee"])},
    )
    rows = [{"bytes": encoded(array), "path": None} for array in pictures(10)]
    rows[4]["bytes"] = b"no picture"
    held = datasets.Dataset.from_dict({"image": rows, "label": [at % 3 for at in range(10)]}, features=features)

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return held.to_iterable_dataset()

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return asked


def test_a_data_set_of_the_hub_is_streamed(hub):
    source = load_images("owner/name:small", Plain(), split="validation")
    assert hub == [(("owner/name", "small"), {"split": "validation", "streaming": True})]
    pixels, labels = everything(source)
    kept = [at for at in range(10) if at != 4]
    assert torch.equal(pixels, expected_pixels(pictures(10)[kept]))
    assert labels.tolist() == [[2, 0, 1][at % 3] for at in kept]
    assert list(source.skipped) == ["row 5 of owner/name:small"]


def test_a_label_of_the_hub_that_is_no_class_is_told_with_its_image(hub):
    source = load_images("owner/name", Plain(classes=2, label2id={}))
    with pytest.raises(InvalidInput, match=r"'row 3 of owner/name' in 'owner/name' has the label 2, .* 2 classes"):
        everything(source)


def test_a_sample_of_the_hub_is_a_function_of_the_seed(hub):
    def draw(seed):
        return load_images("owner/name", Plain(), split="train").take(6, seed=seed)

    assert draw(0).digest() == draw(0).digest()
    assert draw(0).digest() != draw(1).digest()
    assert len({image.numpy().tobytes() for image in draw(0).pixels}) == 6
    with pytest.raises(InvalidInput, match=r"holds 9 images \(1 more could not be read\), but 10 are needed"):
        load_images("owner/name", Plain()).take(10, seed=0)


@pytest.mark.parametrize(("split", "part"), [("train", "train"), ("test", "validation")])
def test_imagenet_is_evaluated_on_its_validation_part(hub, split, part):
    load_images("imagenet", Plain(), split=split)
    assert hub == [(("ILSVRC/imagenet-1k", None), {"split": part, "streaming": True})]


def test_an_unreachable_hub_points_to_local_files(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("no route\n to host")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(
        InvalidInput, match=r"'owner/name' \(split 'dev'\) could not .*ConnectionError: no route to host"
    ):
        load_images("owner/name", Plain(), split="dev")
