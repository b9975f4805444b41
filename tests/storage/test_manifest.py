import hashlib
import json
import reprlib
from pathlib import Path

import pytest

from quept.config import Adapter, BitGroups, Data, Merging, Recipe
from quept.errors import CorruptArtifact, InvalidInput
from quept.storage.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    BlockError,
    FileRecord,
    Manifest,
    PredictionError,
    Provenance,
    is_artifact,
    read_manifest,
    record_files,
    sealed,
)

GOLDEN = Path(__file__).parent / "golden" / "format-4" / MANIFEST
FORMAT_2, FORMAT_3 = GOLDEN.parent.parent / "format-2", GOLDEN.parent.parent / "format-3"
CONTENTS = {
    "config.json": b'{"model_type": "llama"}\n',
    "elastic-00000-of-00001.safetensors": b"all outside the blocks",
    "elastic-00001-of-00001.safetensors": b"the block",
    "elastic-00001-of-00001-part2.safetensors": b"the rest of the block",
    "nested/tokenizer.json": b"{}",
}


def record(content):
    return FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def small_manifest():
    return Manifest(
        architecture="llama",
        dtype="bfloat16",
        recipe=Recipe(
            name="small",
            groups=BitGroups(groups=((6, 8), (4,), (2, 3))),
            adapter=Adapter(kind="independent", entry="scale", rank=2),
            merging=Merging(strategy="single-width", single_width=4, weights=(0.5, 0.25, 0.25)),
            data=Data(samples=2, sequence_length=16),
        ),
        provenance=Provenance(
            source="models/täglich",
            model_sha256="a" * 64,
            data="calibration.txt",
            data_sha256="b" * 64,
            seed=0,
            device="cpu",
            compute_dtype="float32",
            versions={"torch": "2.10.0", "quept": "0.1.0"},
        ),
        block_errors=(
            BlockError(block="model.layers.0", bits=2, rounding=0.125, calibrated=1e-07),
            BlockError(
                block="model.layers.0", bits=8, rounding=0.5, calibrated=0.1, weights="rounding", ranges="whole"
            ),
        ),
        prediction_errors=(PredictionError(bits=8, rounding=0.25, calibrated=0.125),),
        files={name: record(content) for name, content in CONTENTS.items()},
    )


def former_manifest(version):
    """The small manifest as earlier format versions had it, which kept all that was learned."""
    kept = tuple(error.updated(weights="learned", ranges="learned") for error in small_manifest().block_errors)
    return small_manifest().updated(version=version, block_errors=kept, prediction_errors=())


@pytest.fixture
def artifact(tmp_path):
    """A directory with every file of the small manifest, and the manifest."""
    for name, content in CONTENTS.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    small_manifest().write(tmp_path)
    return tmp_path


def refused(directory, *words, error=CorruptArtifact):
    with pytest.raises(error) as caught:
        read_manifest(directory)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 2000
    for word in words:
        assert word in message, message


def altered(directory, change):
    """Apply `change` to the manifest's data."""
    data = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    change(data)
    (directory / MANIFEST).write_text(json.dumps(sealed(data)), encoding="utf-8")


# What is written


def test_a_manifest_is_written_as_the_golden_file_byte_for_byte(tmp_path):
    """Artifacts outlive releases: once one is out, a failure here means a new version number."""
    small_manifest().write(tmp_path)
    assert (tmp_path / MANIFEST).read_bytes() == GOLDEN.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_the_golden_file_is_read_as_the_manifest_it_was_written_from():
    assert read_manifest(GOLDEN.parent, verify=False) == small_manifest()
    assert json.loads(GOLDEN.read_bytes())["version"] == FORMAT_VERSION == 4


def test_format_3_is_read_as_a_manifest_that_keeps_all_that_was_learned():
    assert read_manifest(FORMAT_3, verify=False) == former_manifest(3)


def test_format_2_is_read_as_the_same_manifest_under_the_former_names_of_settings():
    assert read_manifest(FORMAT_2, verify=False) == former_manifest(2)
    reconstruction = json.loads((FORMAT_2 / MANIFEST).read_bytes())["recipe"]["reconstruction"]
    assert {"cadence", "text_share", "clipping_start"} <= reconstruction.keys()


def first_version():
    """The golden manifest as format version 1 had it."""
    data = json.loads((FORMAT_2 / MANIFEST).read_bytes())
    del data["recipe"]["store"], data["sha256"]
    return {**data, "version": 1}


def test_a_manifest_from_before_learned_rounding_is_read_with_none(tmp_path):
    data = first_version()
    del data["recipe"]["learned_rounding"], data["provenance"]["compiled"]
    for name in ("isolated", "bits"):
        del data["recipe"]["adapter"][name]
    for name in (
        "bfloat16_bits",
        "cadence",
        "clipping_start",
        "last_block_loss",
        "mixing",
        "normalized",
        "rounding_learning_rate",
    ):
        del data["recipe"]["reconstruction"][name]
    (tmp_path / MANIFEST).write_text(json.dumps(data))
    for name in data["files"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert read_manifest(tmp_path, verify=False) == former_manifest(1).updated(version=1)
    assert small_manifest().recipe.weight_spec.learned_rounding == ()


def test_a_manifest_from_before_activations_is_read_with_none(tmp_path):
    data = first_version()
    del data["recipe"]["activations"], data["recipe"]["rotation"]
    del data["recipe"]["reconstruction"]["activation_learning_rate"], data["recipe"]["granularity"]["symmetric_bits"]
    (tmp_path / MANIFEST).write_text(json.dumps(data))
    for name in data["files"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    recipe = read_manifest(tmp_path, verify=False).recipe
    assert recipe == small_manifest().recipe
    assert recipe.activations.bits == ()
    assert not recipe.rotation.enabled


def test_a_whole_artifact_is_read_and_verified(artifact):
    assert read_manifest(artifact) == read_manifest(str(artifact)) == small_manifest()


def test_shards_are_the_safetensors_files_in_order():
    assert small_manifest().shards() == [
        "elastic-00000-of-00001.safetensors",
        "elastic-00001-of-00001-part2.safetensors",
        "elastic-00001-of-00001.safetensors",
    ]


def test_all_files_below_the_directory_but_the_manifest_are_recorded(artifact):
    assert record_files(artifact) == {name: record(content) for name, content in CONTENTS.items()}


def test_a_directory_is_an_artifact_when_it_holds_a_manifest_of_any_version(artifact, tmp_path):
    assert is_artifact(artifact)
    assert is_artifact(str(artifact))
    altered(artifact, lambda data: data.update(version=99))
    assert is_artifact(artifact)
    assert not is_artifact(tmp_path / "nested")
    assert not is_artifact(tmp_path / "nowhere")


# What is no artifact


def test_where_there_is_no_manifest_the_input_is_at_fault(tmp_path):
    for directory in (tmp_path, tmp_path / "nowhere"):
        refused(directory, str(directory), MANIFEST, "quept calibrate", error=InvalidInput)
    (tmp_path / MANIFEST).mkdir()
    refused(tmp_path, str(tmp_path), error=InvalidInput)


# What is damaged


@pytest.mark.parametrize("version", [0, 5, 99, -1, 1.5, "1", "", None, [1], {"a": 1}, "x" * 10_000], ids=reprlib.repr)
def test_another_format_version_is_refused_with_what_is_read(artifact, version):
    altered(artifact, lambda data: data.update(version=version))
    refused(artifact, "format version", "reads versions 1 to 4")


def test_a_manifest_without_version_is_refused(artifact):
    altered(artifact, lambda data: data.pop("version"))
    refused(artifact, "format version None")


@pytest.mark.parametrize("content", ["[]", "[1]", "1", "null", '"quept"', "{}", "true"])
def test_json_that_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    refused(tmp_path, str(tmp_path), "format version None")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{'a': 1}", b'{"version": 1', b"\0" * 100, b"\xff\xfe{}", b'{"version": ' + b"9" * 5000 + b"}"],
)
def test_what_is_no_json_is_refused(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    refused(tmp_path, str(tmp_path / MANIFEST), "not valid JSON")


def test_a_manifest_cut_anywhere_is_refused(artifact):
    content = (artifact / MANIFEST).read_bytes()
    for length in range(0, len(content.rstrip()), 97):
        (artifact / MANIFEST).write_bytes(content[:length])
        refused(artifact, "not valid JSON")


@pytest.mark.parametrize("depth", [10, 100, 500, 900, 950, *range(960, 1000, 4), 1100, 100_000])
@pytest.mark.parametrize("where", ["version", "architecture", "files", "recipe", "unknown"])
def test_deep_nesting_is_refused_wherever_it_stands(tmp_path, depth, where):
    """Just below Python's recursion limit the JSON is read, and showing it must not fail instead."""
    data = json.loads(GOLDEN.read_bytes())
    data[where] = "NESTED"
    for left, right in (("[", "]"), ('{"a":', "}")):
        nested = left * depth + "1" + right * depth
        (tmp_path / MANIFEST).write_text(json.dumps(data).replace('"NESTED"', nested))
        refused(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "other"),
        ("architecture", 3),
        ("architecture", None),
        ("dtype", ["float32"]),
        ("recipe", []),
        ("recipe", {}),
        ("recipe", {"name": "a", "bits": "2-9"}),
        ("recipe", {"name": "a", "groups": {"groups": [[8, 4], [6]]}}),
        ("provenance", "here"),
        ("provenance", {}),
        ("block_errors", {}),
        ("block_errors", [1]),
        ("block_errors", [{"block": "a", "bits": "two", "rounding": 0, "calibrated": 0}]),
        ("files", []),
        ("files", {"a": 3}),
        ("files", {"a": {"bytes": -1, "sha256": "0" * 64}}),
        ("files", {"a": {"bytes": 1.5, "sha256": "0" * 64}}),
        ("files", {"a": {"bytes": 1, "sha256": "0" * 63}}),
        ("files", {"a": {"bytes": 1, "sha256": "g" * 64}}),
        ("files", {"a": {"bytes": 1, "sha256": "0" * 64 + "\n"}}),
        ("files", {"a": {"bytes": 1}}),
        ("files", {"a\nb": 3}),
        ("unknown", 1),
        ("unknown\nkey", "x" * 100_000),
    ],
    ids=reprlib.repr,
)
def test_a_wrong_value_is_refused_with_the_file_and_the_key(artifact, key, value):
    altered(artifact, lambda data: data.update({key: value}))
    refused(artifact, str(artifact / MANIFEST), key.replace("\n", " "), "copy the artifact again")


@pytest.mark.parametrize("key", sorted({*json.loads(GOLDEN.read_bytes())} - {"format", "version", "sha256"}))
def test_a_manifest_that_lacks_a_key_is_refused_with_it(artifact, key):
    altered(artifact, lambda data: data.pop(key))
    refused(artifact, f"{key}: Field required")


@pytest.mark.parametrize(
    "name",
    [
        *("../outside", "..", "a/../../outside", "a/..", "nested/../config.json", "/etc/hostname", "//a", "/"),
        *("", ".", "./", "a\\b", "..\\outside", "C:\\a", "a\0b", "a\nb", "a\x1b[31mb", "\ud800"),
    ],
)
def test_a_file_name_that_may_leave_the_directory_or_hold_control_characters_is_refused(artifact, name):
    """Checked even where the file is there with the right content."""
    outside = artifact / ".." / "outside"
    outside.write_bytes(b"secret")
    altered(artifact, lambda data: data["files"].update({name: record(b"secret").model_dump()}))
    refused(artifact, MANIFEST, "files")
    outside.unlink()


@pytest.mark.parametrize("name", CONTENTS)
def test_a_missing_file_is_named(artifact, name):
    (artifact / name).unlink()
    refused(artifact, str(artifact / name), "is missing")


def test_a_directory_in_the_place_of_a_file_is_refused(artifact):
    (artifact / "config.json").unlink()
    (artifact / "config.json").mkdir()
    refused(artifact, str(artifact / "config.json"), "is missing")


@pytest.mark.parametrize("name", ["config.json/a", "x" * 300, "y/" * 3000 + "z"], ids=reprlib.repr)
def test_a_file_name_that_the_disk_cannot_hold_is_refused(artifact, name):
    altered(artifact, lambda data: data.update(files={name: record(b"").model_dump()}))
    with pytest.raises(CorruptArtifact) as caught:
        read_manifest(artifact)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_longer_or_shorter_file_is_refused_with_both_sizes(artifact, name):
    content = CONTENTS[name]
    for changed in (content[:-1], content + b"\0", b""):
        (artifact / name).write_bytes(changed)
        refused(artifact, str(artifact / name), f"{len(changed)} bytes instead of {len(content)}")


@pytest.mark.parametrize("name", CONTENTS)
def test_one_flipped_bit_anywhere_in_a_file_is_found(artifact, name):
    content = CONTENTS[name]
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << (position % 8)
        (artifact / name).write_bytes(changed)
        refused(artifact, str(artifact / name), "was altered", "SHA-256")


def test_what_a_manifest_says_cannot_change_without_its_own_checksum(artifact):
    content = (artifact / MANIFEST).read_text(encoding="utf-8")
    for before, after in (
        ('"rank": 2', '"rank": 3'),
        ('"seed": 0', '"seed": 1'),
        ('"dtype": "bfloat16"', '"dtype": "float32"'),
    ):
        (artifact / MANIFEST).write_text(content.replace(before, after), encoding="utf-8")
        refused(artifact, "does not match its own sha256")
    (artifact / MANIFEST).write_text(json.dumps(json.loads(content)), encoding="utf-8")
    assert read_manifest(artifact) == small_manifest()


def test_a_store_in_format_version_1_is_refused(artifact):
    def change(data):
        data.update(version=1)
        data["recipe"]["store"]["master_bits"] = 8

    altered(artifact, change)
    data = json.loads((artifact / MANIFEST).read_text(encoding="utf-8"))
    del data["sha256"]
    (artifact / MANIFEST).write_text(json.dumps(data), encoding="utf-8")
    refused(artifact, "format version 1 keeps weights in floats")


def test_without_verification_only_the_manifest_itself_is_checked(artifact):
    (artifact / "config.json").unlink()
    assert read_manifest(artifact, verify=False) == small_manifest()
    altered(artifact, lambda data: data.update(version=5))
    with pytest.raises(CorruptArtifact):
        read_manifest(artifact, verify=False)
