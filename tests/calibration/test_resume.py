"""An interrupted calibration goes on where it stopped, and ends in the same bytes."""

import copy
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import quept
from quept import ops
from quept.calibration import job, workspace
from quept.calibration.job import _versions
from quept.calibration.stream import StreamStore
from quept.errors import CalibrationFailed, CorruptArtifact, InvalidInput, QueptError
from quept.models import architecture_of


class Killed(BaseException):
    """Stands for the death of the process."""


@pytest.fixture(params=["paper", "weight-activation"])
def recipe(request):
    paper = quept.load_recipe(request.param).with_bits((2, 4, 8))
    return paper.updated(adapter=paper.adapter.updated(rank=2), reconstruction=paper.reconstruction.updated(epochs=1))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_model, tiny_tokenizer):
    """A model directory and a text beside it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model("llama", num_hidden_layers=3).save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    (folder / "text.txt").write_text("a plain text of a few words, again and again. " * 60, encoding="utf-8")
    return folder


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def command(checkpoint: Path, output: Path, *more: str) -> list[str]:
    options = ["--samples", "8", "--sequence-length", "24", "--rank", "2", "--epochs", "12", "--quiet"]
    text = str(checkpoint / "text.txt")
    return [
        *(sys.executable, "-m", "quept", "calibrate", str(checkpoint / "model")),
        *("--output", str(output), "--data", text, *options, *more),
    ]


def test_a_run_killed_at_any_write_resumes_to_the_same_bytes(tiny_model, windows, recipe, tmp_path, monkeypatch):
    model = tiny_model("llama", num_hidden_layers=3)
    whole = tmp_path / "whole"
    quept.calibrate(model, whole, data=windows, recipe=recipe)
    expected = contents(whole)

    renames = 0
    first = 0 if recipe.name == "paper" else 7  # writes are the same for all recipes: the others from the first block
    rename = Path.replace

    def dying(path: Path, target: Path) -> Path:
        nonlocal renames
        if renames == death:
            raise Killed
        renames += 1
        return rename(path, target)

    # As when the process dies: nothing is tidied up.
    monkeypatch.setattr(workspace.Workspace, "abandon_if_empty", lambda self: None)
    for death in range(first, 20):
        output, renames = tmp_path / f"killed-{death}", 0
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dying)
            try:
                quept.calibrate(model, output, data=windows, recipe=recipe)
            except Killed:
                assert not output.exists()
            else:
                break
        quept.calibrate(model, output, data=windows, recipe=recipe, resume=True)
        assert contents(output) == expected, f"killed at write {death}"
        assert not output.with_name(output.name + ".partial").exists()
    assert death == 13, "the ledger, and again after each part; all else, three blocks, two settings and the manifest"


def test_a_process_killed_by_the_system_resumes_to_the_same_bytes(checkpoint, tmp_path, monkeypatch):
    # Like the tests themselves, on one thread.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    subprocess.run(command(checkpoint, tmp_path / "whole"), check=True, capture_output=True, timeout=120)

    output = tmp_path / "killed"
    partial = output.with_name("killed.partial")
    process = subprocess.Popen(command(checkpoint, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(partial.glob("elastic-*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"

    refused = subprocess.run(command(checkpoint, output), capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    subprocess.run(command(checkpoint, output, "--resume"), check=True, capture_output=True, timeout=120)
    assert contents(output) == contents(tmp_path / "whole")


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory, tiny_model, tiny_tokenizer, windows):
    """Arguments of a calibration of three blocks, and copies of its work when the first two were finished."""
    paper = quept.load_recipe("paper").with_bits((2, 4))
    recipe = paper.updated(adapter=paper.adapter.updated(rank=2), reconstruction=paper.reconstruction.updated(epochs=1))
    model, folder = tiny_model("llama", num_hidden_layers=3), tmp_path_factory.mktemp("unfinished")
    given = {"model": model, "data": windows, "recipe": recipe, "tokenizer": tiny_tokenizer}
    quept.calibrate(output=folder / "whole", **given)

    class Stops:
        def stage(self, name: str) -> None: ...
        def start(self, blocks: int, steps: int) -> None: ...
        def note(self, text: str) -> None: ...
        def step(self, block: int, step: int, loss: float) -> None:
            if block == 2:
                raise Killed

    for seed in (0, 1):
        with pytest.raises(Killed):
            quept.calibrate(output=folder / f"seed-{seed}", seed=seed, progress=Stops(), **given)
    return folder, given


class Notes:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def stage(self, name: str) -> None: ...
    def start(self, blocks: int, steps: int) -> None: ...
    def step(self, block: int, step: int, loss: float) -> None: ...
    def note(self, text: str) -> None:
        self.texts.append(text)


def resumed(unfinished, folder: Path, damage=lambda partial, other: None, **changes) -> list[str]:
    """Damage a copy of unfinished work, go on with it, and return the notes; the result must be as without damage."""
    source, given = unfinished
    for seed in (0, 1):
        shutil.copytree(source / f"seed-{seed}.partial", folder / f"seed-{seed}.partial")
    damage(folder / "seed-0.partial", folder / "seed-1.partial")
    notes = Notes()
    quept.calibrate(**{**given, "output": folder / "seed-0", "resume": True, "progress": notes, **changes})
    assert contents(folder / "seed-0") == contents(source / "whole")
    return notes.texts


BLOCKS = [f"elastic-0000{number}-of-00003.safetensors" for number in range(4)]


def flip(path: Path, place: int = -9) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def swap(partial: Path, other: Path) -> None:
    (partial / BLOCKS[1]).rename(partial / "aside")
    (partial / BLOCKS[2]).rename(partial / BLOCKS[1])
    (partial / "aside").rename(partial / BLOCKS[2])


DAMAGED_BLOCKS = {
    "a bit in the data": (1, lambda partial, other: flip(partial / BLOCKS[1])),
    "a bit in the note": (1, lambda partial, other: flip(partial / BLOCKS[2], 60)),
    "truncated": (1, lambda partial, other: os.truncate(partial / BLOCKS[2], 2000)),
    "empty": (1, lambda partial, other: (partial / BLOCKS[1]).write_bytes(b"")),
    "missing": (1, lambda partial, other: (partial / BLOCKS[1]).unlink()),
    "swapped": (2, swap),
    "of another block": (1, lambda partial, other: shutil.copy(partial / BLOCKS[1], partial / BLOCKS[2])),
    "of another run": (1, lambda partial, other: shutil.copy(other / BLOCKS[1], partial / BLOCKS[1])),
    "outside the blocks": (0, lambda partial, other: flip(partial / BLOCKS[0])),
    "settings": (0, lambda partial, other: flip(partial / "config.json")),
    "temporary files": (
        0,
        lambda partial, other: [
            (partial / name).write_text("half") for name in (".tmpL9A9hl", f"{BLOCKS[3]}.writing", "stream-abc")
        ],
    ),
    "another that was never finished": (0, lambda partial, other: shutil.copy(other / BLOCKS[1], partial / BLOCKS[3])),
}


@pytest.mark.parametrize(("trained_again", "damage"), DAMAGED_BLOCKS.values(), ids=DAMAGED_BLOCKS)
def test_a_finished_file_that_was_altered_is_named_and_made_again(unfinished, tmp_path, trained_again, damage):
    notes = resumed(unfinished, tmp_path, damage)
    assert len([text for text in notes if "altered since it was written; its block is trained again" in text]) == (
        trained_again
    )


def former(partial: Path, other: Path) -> None:
    """As versions before wrote it: the fingerprint alone."""
    ledger = json.loads((partial / "calibration.json").read_text())
    (partial / "calibration.json").write_text(json.dumps(ledger["fingerprint"], sort_keys=True))


def deleted(partial: Path, other: Path) -> None:
    (partial / "calibration.json").unlink()
    (partial / "calibration.lock").touch()  # as a killed process leaves it


def edited(partial: Path, other: Path) -> None:
    text = (partial / "calibration.json").read_text()
    assert '"seed": 0' in text
    (partial / "calibration.json").write_text(text.replace('"seed": 0', '"seed": 1'))


DAMAGED_LEDGERS = {
    "deleted": ("no calibration.json", deleted),
    "edited": ("altered or is half-written", edited),
    "half-written": (
        "altered or is half-written",
        lambda partial, other: (partial / "calibration.json").write_bytes(
            (partial / "calibration.json").read_bytes()[:500]
        ),
    ),
    "not JSON of ours": (
        "altered or is half-written",
        lambda partial, other: (partial / "calibration.json").write_text("[]"),
    ),
    "former": ("another version of quept", former),
    "of another run": (
        "seed differ",
        lambda partial, other: shutil.copy(other / "calibration.json", partial / "calibration.json"),
    ),
}


@pytest.mark.parametrize(("message", "damage"), DAMAGED_LEDGERS.values(), ids=DAMAGED_LEDGERS)
def test_blocks_of_unknown_origin_are_refused_and_left_alone(unfinished, tmp_path, message, damage):
    def damaged(partial: Path, other: Path) -> None:
        damage(partial, other)
        before.update(contents(partial))
        before.pop("calibration.lock", None)

    before: dict[str, bytes] = {}
    with pytest.raises((CorruptArtifact, InvalidInput), match=message):
        resumed(unfinished, tmp_path, damaged)
    assert contents(tmp_path / "seed-0.partial") == before


def test_all_that_decides_on_the_result_is_compared_and_what_differs_is_named(unfinished, tmp_path, tiny_tokenizer):
    _, given = unfinished

    def with_config(**changes):
        model = copy.deepcopy(given["model"])
        for name, value in changes.items():
            setattr(model.config, name, value)
        return {"model": model}

    eager = copy.deepcopy(given["model"])
    eager.set_attn_implementation("eager")
    turned = copy.deepcopy(given["model"])
    turned.model.rotary_emb.inv_freq *= 2
    other_tokenizer = copy.deepcopy(tiny_tokenizer)
    other_tokenizer.add_tokens(["new"])
    rope = {**given["model"].config.rope_parameters, "rope_theta": 500.0}
    architecture = architecture_of("llama")
    changes = {
        r"seed differ": {"seed": 1},
        r"recipe\.groups\.groups differ": {"recipe": given["recipe"].with_bits((2, 3))},
        r"data_sha256 differ": {"data": given["data"].flip(0)},
        r"config\.rms_norm_eps differ": with_config(rms_norm_eps=1e-3),
        r"config\.hidden_act differ": with_config(hidden_act="gelu"),
        r"config\.rope_parameters\.rope_theta differ": with_config(rope_parameters=rope),
        r"setup\.attention differ": {"model": eager},
        r"setup\.buffers differ": {"model": turned},
        r"setup\.architecture differ": {"architecture": replace(architecture, residual=None)},
        r"files\.tokenizer\.json differ": {"tokenizer": other_tokenizer},
        r"files\.tokenizer\.json.* differ": {"tokenizer": None},
    }
    before: dict[str, bytes] = {}
    for number, (message, change) in enumerate(changes.items()):
        folder = tmp_path / str(number)
        with pytest.raises(InvalidInput, match=f"belongs to another calibration: .*{message}"):
            resumed(unfinished, folder, lambda partial, other: before.update(contents(partial)), **change)
        assert contents(folder / "seed-0.partial") == before
    assert not [text for text in resumed(unfinished, tmp_path / "unchanged") if "trained again" in text]


def test_another_version_is_not_gone_on_with(unfinished, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "__version__", "99.0")
    with pytest.raises(InvalidInput, match=r"versions\.quept differ"):
        resumed(unfinished, tmp_path)


def test_a_block_altered_while_the_run_goes_on_is_never_sealed(unfinished, tmp_path):
    source, given = unfinished
    shutil.copytree(source / "seed-0.partial", tmp_path / "seed-0.partial")

    class Damages(Notes):
        def step(self, block: int, step: int, loss: float) -> None:
            if block == 2 and step == 1:
                flip(tmp_path / "seed-0.partial" / name)

    for name in (BLOCKS[1], BLOCKS[0], "tokenizer.json"):
        with pytest.raises(CorruptArtifact, match=f"{name} is missing or was altered"):
            quept.calibrate(output=tmp_path / "seed-0", resume=True, progress=Damages(), **given)
        assert not (tmp_path / "seed-0").exists()
        (tmp_path / "seed-0.partial" / BLOCKS[3]).unlink()
    (tmp_path / "seed-0.partial" / "chat_template.jinja").write_text("not ours")
    with pytest.raises(InvalidInput, match=r"chat_template\.jinja, which is not of this calibration"):
        quept.calibrate(output=tmp_path / "seed-0", resume=True, **given)
    (tmp_path / "seed-0.partial" / "chat_template.jinja").unlink()
    quept.calibrate(output=tmp_path / "seed-0", resume=True, **given)
    assert contents(tmp_path / "seed-0") == contents(source / "whole")


def test_a_finished_output_of_other_settings_is_refused(unfinished, tmp_path):
    source, given = unfinished
    shutil.copytree(source / "whole", tmp_path / "whole")
    again = {**given, "output": tmp_path / "whole", "resume": True}
    quept.calibrate(**again)
    model = copy.deepcopy(given["model"])
    model.config.rms_norm_eps = 1e-3
    for message, change in {
        r"config\.rms_norm_eps": {"model": model},
        r"files\.tokenizer": {"tokenizer": None},
    }.items():
        with pytest.raises(InvalidInput, match=message):
            quept.calibrate(**{**again, **change})


def test_a_finished_run_is_left_alone_by_resume_and_protected_without(tiny_model, windows, recipe, tmp_path):
    model, output = tiny_model("llama"), tmp_path / "out"
    quept.calibrate(model, output, data=windows, recipe=recipe)
    before = contents(output)
    report = quept.calibrate(model, output, data=windows, recipe=recipe, resume=True)
    assert report.trained_tokens == 0
    assert contents(output) == before
    with pytest.raises(InvalidInput, match="not an empty directory"):
        quept.calibrate(model, output, data=windows, recipe=recipe)


def test_a_nan_or_infinite_weight_is_named_and_leaves_nothing(tiny_model, windows, recipe, tmp_path):
    for value in (float("nan"), float("inf")):
        model = tiny_model("llama")
        model.model.layers[1].mlp.up_proj.weight.data[3, 4] = value
        with pytest.raises(CalibrationFailed, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
            quept.calibrate(model, tmp_path / "out", data=windows, recipe=recipe)
    assert list(tmp_path.iterdir()) == []


def test_a_non_finite_loss_names_block_bit_width_and_remedy_and_leaves_nothing(tiny_model, windows, recipe, tmp_path):
    exploding = recipe.updated(reconstruction=recipe.reconstruction.updated(adapter_learning_rate=1e38, epochs=3))
    with pytest.raises(CalibrationFailed, match=r"block model\.layers\.0 at \d bits .* Lower the learning rates"):
        quept.calibrate(tiny_model("llama"), tmp_path / "out", data=windows, recipe=exploding)
    assert list(tmp_path.iterdir()) == []


def test_streams_in_files_give_the_same_artifact_as_streams_in_memory(tiny_model, windows, recipe, tmp_path):
    model = tiny_model("llama")
    quept.calibrate(model, tmp_path / "memory", data=windows, recipe=recipe)
    quept.calibrate(model, tmp_path / "files", data=windows, recipe=recipe, stream_memory=0)
    assert contents(tmp_path / "memory") == contents(tmp_path / "files")


def test_streams_go_to_files_beyond_the_budget_and_leave_none(tmp_path):
    store = StreamStore(budget=4 * 2 * 3 * 5 * 4, folder=tmp_path, device=torch.device("cpu"))
    streams = [store.empty(2, 3, 5, torch.float32) for _ in range(6)]
    assert store.in_memory == 4 * 2 * 3 * 5 * 4
    assert store.in_files == 2 * 2 * 3 * 5 * 4
    for number, stream in enumerate(streams):
        stream.write(slice(0, 2), torch.full((2, 3, 5), float(number)))
    assert [float(stream.read([1]).mean()) for stream in streams] == [0, 1, 2, 3, 4, 5]
    assert list(tmp_path.iterdir()) == []


def test_the_callers_model_is_untouched(tiny_model, windows, recipe, tmp_path):
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quept.calibrate(model, tmp_path / "out", data=windows, recipe=recipe)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_disk_too_full_for_a_stream_is_reported_before_it_is_written(tmp_path, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(QueptError, match="disk is full"):
        StreamStore(budget=0, folder=tmp_path, device=torch.device("cpu")).empty(2, 3, 5, torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_a_generation_config_that_transformers_would_not_save_is_carried_over(tiny_model, windows, recipe, tmp_path):
    model = tiny_model("llama")
    model.generation_config.update(temperature=0.6, do_sample=False)  # as in LLaMA-2's published checkpoint
    quept.calibrate(model, tmp_path / "out", data=windows, recipe=recipe)
    assert quept.load(tmp_path / "out").generation_config.temperature == 0.6


def test_a_folder_that_is_no_unfinished_calibration_is_left_alone(tiny_model, windows, recipe, tmp_path):
    folder = tmp_path / "out.partial"
    folder.mkdir()
    for name in ("photo.jpg", "thesis.writing", "stream-of-consciousness.txt"):
        (folder / name).write_text("mine")
    before = contents(tmp_path)
    for resume in (False, True):
        with pytest.raises(InvalidInput, match="in the way"):
            quept.calibrate(tiny_model("llama"), tmp_path / "out", data=windows, recipe=recipe, resume=resume)
        assert contents(tmp_path) == before


def test_a_second_run_on_the_same_output_is_refused_and_does_no_harm(tiny_model, windows, recipe, tmp_path):
    model, output, refusals = tiny_model("llama"), tmp_path / "out", []

    class Second:
        def stage(self, name: str) -> None: ...
        def start(self, blocks: int, steps: int) -> None: ...
        def note(self, text: str) -> None: ...

        def step(self, block: int, step: int, loss: float) -> None:
            if step == 1:
                with pytest.raises(InvalidInput, match="at work") as refusal:
                    quept.calibrate(model, output, data=windows, recipe=recipe, resume=True)
                refusals.append(refusal)

    quept.calibrate(model, output, data=windows, recipe=recipe, progress=Second())
    quept.calibrate(model, tmp_path / "alone", data=windows, recipe=recipe)
    assert len(refusals) == 2
    assert contents(output) == contents(tmp_path / "alone")


def test_an_output_that_is_a_link_is_followed(tiny_model, windows, recipe, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    quept.calibrate(tiny_model("llama"), tmp_path / "link", data=windows, recipe=recipe)
    quept.load(tmp_path / "target")


@pytest.mark.parametrize(("tied", "flag"), [(True, False), (False, True)])
def test_a_model_unlike_its_configuration_is_refused_before_any_work(tiny_model, windows, recipe, tmp_path, tied, flag):
    model = tiny_model("llama", tie_word_embeddings=tied)
    model.config.tie_word_embeddings = flag
    with pytest.raises(InvalidInput, match=r"lm_head\.weight.*tie_word_embeddings"):
        quept.calibrate(model, tmp_path / "out", data=windows, recipe=recipe)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": None},
        {"data": torch.ones(2, 8)},
        {"data": torch.ones(2, 8, dtype=torch.bool)},
        {"data": torch.ones(2, 65, dtype=torch.int64)},
        {"data": torch.full((2, 8), 96)},
        {"seed": -1},
        {"seed": 1.5},
        {"data": "text.txt"},
        {"device": "tpu"},
        {"output": ""},
        {"output": "/"},
        {"model": torch.nn.Linear(2, 2)},
        {"device": "cuda:x"},
    ],
)
def test_wrong_arguments_are_invalid_input(tiny_model, windows, recipe, tmp_path, wrong):
    arguments = {"model": tiny_model("llama"), "output": tmp_path / "out", "data": windows, "recipe": recipe, **wrong}
    with pytest.raises(InvalidInput) as error:
        quept.calibrate(**arguments)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not ops.paths(), reason="quept was installed without kernels")
def test_kernels_that_rotate_are_part_of_what_a_run_is():
    with ops.using(None):
        assert "kernels" not in _versions(rotated=True)
    assert _versions(rotated=True)["kernels"] == ops.REVISION
    assert "kernels" not in _versions(rotated=False)
