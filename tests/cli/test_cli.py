"""The command line, as a user meets it: results, JSON, and one paragraph for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import run

import quept
from quept.storage.manifest import record_files, sealed


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_model, tiny_tokenizer):
    """A model directory, texts, and an artifact."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    (folder / "text.txt").write_text("a plain text of a few words, again and again. " * 40, encoding="utf-8")
    (folder / "short.txt").write_text("too short", encoding="utf-8")
    (folder / "empty.txt").write_text("", encoding="utf-8")
    assert run("calibrate", folder / "model", "-o", folder / "artifact", "--data", folder / "text.txt", *SMALL) == 0
    return folder


SMALL = ("--samples", "4", "--sequence-length", "16", "--rank", "2", "--epochs", "1", "--quiet")


def test_evaluate_writes_the_documented_json(workplace, tmp_path):
    file = tmp_path / "result.json"
    arguments = ("evaluate", workplace / "artifact", "--data", workplace / "text.txt", "--bits", "2-8", "--baseline")
    assert run(*arguments, "--json", file, "--plot", tmp_path / "plot.html") == 0
    result = json.loads(file.read_text())
    assert result["metric"] == "perplexity"
    assert result["full_precision"] > 1
    assert [row["bits"] for row in result["results"]] == [2, 3, 4, 5, 6, 7, 8]
    assert all(row["perplexity"] > 1 and row["baseline"] > 1 for row in result["results"])
    sizes = [row["bytes"] for row in result["results"]]
    assert sizes == sorted(sizes)
    assert sizes[-1] < result["full_precision_bytes"]
    assert "<svg" in (tmp_path / "plot.html").read_text()


def test_a_plot_that_cannot_be_drawn_is_told_before_anything_is_measured(workplace, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("quept.commands.evaluate", lambda *args, **options: pytest.fail("measured"))
    arguments = ("evaluate", workplace / "artifact", "--data", workplace / "text.txt")
    assert run(*arguments, "--plot", tmp_path / "plot.html") == 1
    assert "pip install 'quept[plots]'" in capfd.readouterr().err


def test_evaluate_measures_a_plain_model_with_rounding(workplace, tmp_path):
    file = tmp_path / "result.json"
    arguments = ("evaluate", workplace / "model", "--data", workplace / "text.txt", "--baseline", "--bits", "2,8")
    assert run(*arguments, "--json", file, "--quiet") == 0
    result = json.loads(file.read_text())
    assert [row["perplexity"] for row in result["results"]] == [None, None]
    assert result["results"][1]["baseline"] == pytest.approx(result["full_precision"], rel=0.05)


def test_json_on_standard_output_is_nothing_but_json(workplace, capfd):
    assert run("evaluate", workplace / "artifact", "--data", workplace / "text.txt", "--bits", "4", "--json", "-") == 0
    assert json.loads(capfd.readouterr().out)["results"][0]["bits"] == 4
    assert run("info", workplace / "artifact", "--json", "-") == 0
    assert json.loads(capfd.readouterr().out)["manifest"]["architecture"] == "llama"


def test_a_bit_width_that_is_not_there_is_told_before_anything_is_measured(workplace, capfd, tmp_path, monkeypatch):
    import quept.evaluation.precisions as widths

    narrow = tmp_path / "narrow"
    arguments = ("calibrate", workplace / "model", "-o", narrow, "--data", workplace / "text.txt", "--bits", "2,4")
    assert run(*arguments, *SMALL) == 0
    monkeypatch.setattr(widths, "perplexity", lambda *args, **options: pytest.fail("measured"))
    capfd.readouterr()
    assert run("evaluate", narrow, "--data", workplace / "text.txt", "--bits", "2-4", "--baseline") == 2
    assert "3 bits are not in the calibrated set [2, 4]" in capfd.readouterr().err


def test_generate_continues_the_prompt_at_a_bit_width(workplace, capfd, tmp_path):
    file = tmp_path / "text.json"
    arguments = ("generate", workplace / "artifact", "--prompt", "a plain", "--bits", "3", "--max-new-tokens", "5")
    assert run(*arguments, "--json", file) == 0
    result = json.loads(file.read_text())
    assert result["text"].startswith("a plain")
    assert capfd.readouterr().out.startswith("a plain")

    model = quept.load(workplace / "artifact", 3)
    prompt = result["tokens"][:-5]
    expected = model.generate(
        input_ids=__import__("torch").tensor([prompt]), max_new_tokens=5, do_sample=False, pad_token_id=0
    )
    assert result["tokens"] == expected[0].tolist()


@pytest.fixture(scope="module")
def rounded_activations(workplace):
    """An artifact of weights and activations."""
    arguments = ("calibrate", workplace / "model", "-o", workplace / "activations", "--data", workplace / "text.txt")
    recipe = ("--recipe", "weight-activation", "--bits", "2,4,8", "--activation-bits", "4,8")
    assert run(*arguments, *recipe, *SMALL) == 0
    return workplace / "activations"


def test_precisions_of_several_kinds_are_measured_side_by_side(rounded_activations, workplace, capfd):
    data = ("--data", workplace / "text.txt", "--sequence-length", "16", "--baseline")
    assert run("evaluate", rounded_activations, *data, "--bits", "2,w4a8,w4a4kv2,kv8", "--json", "-") == 0
    results = json.loads(capfd.readouterr().out)["results"]
    assert [(row["bits"], row["precision"]) for row in results] == [
        (2, "2"),
        (4, "w4a8"),
        (4, "w4a4kv2"),
        (16, "kv8"),
    ]
    assert len({row["perplexity"] for row in results}) == len({row["baseline"] for row in results}) == 4
    assert run("evaluate", rounded_activations, *data, "--bits", "4", "--kv-bits", "2", "--json", "-") == 0
    (row,) = json.loads(capfd.readouterr().out)["results"]
    assert row["perplexity"] == pytest.approx(results[2]["perplexity"])
    assert run("evaluate", rounded_activations, *data) == 0
    assert "w4a8" not in capfd.readouterr().out


def test_generate_tells_what_a_packed_cache_saves(rounded_activations, capfd):
    arguments = ("generate", rounded_activations, "--prompt", "a plain text", "--bits", "w4a8", "--max-new-tokens", "8")
    assert run(*arguments, "--kv-bits", "4") == 0
    shown = capfd.readouterr().out
    assert "Keys and values of" in shown
    assert "in bfloat16" in shown
    assert run(*arguments, "--kv-bits", "4", "--json", "-") == 0
    packed = json.loads(capfd.readouterr().out)
    assert packed["precision"] == "w4a8kv4"
    assert packed["cache"]["tokens"] == len(packed["tokens"]) - 1
    model = quept.load(rounded_activations, "w4a8kv4")
    prompt = torch.tensor([packed["tokens"][:-8]])
    expected = model.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert packed["tokens"] == expected[0].tolist(), "the simulated cache"


def test_info_names_what_is_rounded(rounded_activations, capfd):
    assert run("info", rounded_activations) == 0
    shown = capfd.readouterr().out
    for expected in (
        "QuaRot",
        "at 4,8 bits, symmetric, one range per token",
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj; self_attn.o_proj; mlp.gate_proj mlp.up_proj",
        "w2a8",
        "w4a4",
        "per output channel",
    ):
        assert expected in " ".join(shown.split())


def test_info_names_bit_widths_recipe_and_origin(workplace, capfd):
    assert run("info", workplace / "artifact") == 0
    shown = capfd.readouterr().out
    for expected in (
        "llama",
        "best",
        "{8} {7} {6} {5} {4} {3} {2}",
        "at 2,3,4 bits",
        "8 bits, one scale per row",
        "4 x 16 tokens",
        str(workplace / "model"),
    ):
        assert expected in shown


HEAVY = """
import sys
from command_line import run
run(sys.argv[1], "--help")
sys.exit(str({"torch", "transformers", "numpy", "matplotlib"} & {*sys.modules}))
"""


@pytest.mark.parametrize("command", ["calibrate", "allocate"])
def test_help_is_answered_without_loading_pytorch(command):
    place = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", HEAVY, command], capture_output=True, text=True, cwd=place)
    assert "--json" in result.stdout
    assert result.stderr.strip() == "set()"


def test_quiet_prints_nothing(workplace, capfd):
    assert run("evaluate", workplace / "artifact", "--data", workplace / "text.txt", "--bits", "4", "--quiet") == 0
    assert capfd.readouterr() == ("", "")


MISTAKES = {
    "unknown model path": ("calibrate {w}/nowhere {data} {out}", 2, "nowhere"),
    "model is a file": ("calibrate {w}/text.txt {data} {out}", 2, "directory"),
    "no model in the directory": ("calibrate {w} {data} {out}", 2, "config.json"),
    "unknown architecture": ("calibrate {w}/bert {data} {out}", 2, "adding-an-architecture"),
    "bits out of range": ("calibrate {w}/model {data} {out} --bits 1-8", 2, "2 to 8"),
    "bits above": ("calibrate {w}/model {data} {out} --bits 4,9", 2, "2 to 8"),
    "bits unreadable": ("calibrate {w}/model {data} {out} --bits four", 2, "four"),
    "group size zero": ("calibrate {w}/model {data} {out} --group-size 0", 2, "group_size"),
    "group size negative": ("calibrate {w}/model {data} {out} --group-size -4", 2, "group_size"),
    "rank too high": ("calibrate {w}/model {data} {out} --rank 17", 2, "rank 17"),
    "rank zero": ("calibrate {w}/model {data} {out} --rank 0", 2, "rank"),
    "fewer than no epochs": ("calibrate {w}/model {data} {out} --epochs -1", 2, "epochs"),
    "text too short": ("calibrate {w}/model --data {w}/short.txt {out}", 2, "tokens"),
    "text empty": ("calibrate {w}/model --data {w}/empty.txt {out}", 2, "empty"),
    "text missing": ("calibrate {w}/model --data {w}/none.txt {out}", 2, "none.txt"),
    "windows too long": ("calibrate {w}/model {data} {out} --sequence-length 65", 2, "64"),
    "unknown device": ("calibrate {w}/model {data} {out} --device tpu", 2, "tpu"),
    "unknown recipe": ("calibrate {w}/model {data} {out} --recipe good", 2, "paper"),
    "overlapping bit groups": ("calibrate {w}/model {data} {out} --recipe {w}/overlapping.toml", 2, "overlap"),
    "incomplete bit groups": ("calibrate {w}/model {data} {out} --recipe {w}/incomplete.toml", 2, "missing"),
    "unknown setting": ("calibrate {w}/model {data} {out} --recipe {w}/unknown.toml", 2, "speed"),
    "output taken": ("calibrate {w}/model {data} --output {w}", 2, "empty"),
    "output missing": ("calibrate {w}/model {data}", 2, "--output"),
    "unknown command": ("quantize", 2, "quantize"),
    "weights truncated": ("calibrate {w}/truncated {data} {out}", 2, "safetensors"),
    "no artifact": ("evaluate {w}/nowhere {data}", 2, "nowhere"),
    "width that is none": ("generate {w}/artifact --prompt a --bits 9", 2, "widths go from 2 to 8"),
    "precision unreadable": ("generate {w}/artifact --prompt a --bits w4x8", 2, "w4a8"),
    "activations not calibrated": ("generate {w}/artifact --prompt a --bits w4a8", 2, "weight-activation"),
    "keys and values of 9 bits": ("generate {w}/artifact --prompt a --kv-bits 9", 2, "widths go from 2 to 8"),
    "recent keys without a width": ("generate {w}/artifact --prompt a --kv-recent 4", 2, "give --kv-bits"),
    "keys and values of 1 bit": ("evaluate {w}/artifact {data} --kv-bits 1", 2, "widths go from 2 to 8"),
    "activations of a recipe without": (
        "calibrate {w}/model {data} {out} --recipe paper --activation-bits 4",
        2,
        "weight-activation-best",
    ),
    "activation bits unreadable": (
        "calibrate {w}/model {data} {out} --recipe weight-activation --activation-bits four",
        2,
        "cannot be read",
    ),
    "prompt empty": ("generate {w}/artifact --prompt  --bits 4", 2, "prompt"),
    "evaluate: windows too long": ("evaluate {w}/artifact {data} --sequence-length 65", 2, "64"),
    "plot of another kind": ("evaluate {w}/artifact {data} --plot plot.pdf", 2, ".png"),
    "json in no directory": ("evaluate {w}/artifact {data} --json {w}/none/x.json", 2, "--json"),
    "json is a directory": ("info {w}/artifact --json {w}", 2, "--json"),
    "plot in no directory": ("evaluate {w}/artifact {data} --plot {w}/none/x.png", 2, "--plot"),
    "recipe for an artifact": ("evaluate {w}/artifact {data} --recipe paper", 2, "--recipe"),
    "no window": ("evaluate {w}/artifact {data} --sequence-length 0", 2, "0"),
    "output is the root": ("calibrate {w}/model {data} --output /", 2, "/"),
    "brackets in a name": ("calibrate {w}/[/red]x {data} {out}", 2, "[/red]x"),
    "quantized already": ("calibrate {w}/quantized {data} {out}", 2, "quantized already"),
    "heads that do not divide": ("calibrate {w}/heads {data} {out}", 2, "heads"),
    "artifact altered": ("info {w}/altered", 1, "altered"),
    "artifact truncated": ("info {w}/cut", 1, "bytes"),
    "artifact of another version": ("info {w}/newer", 1, "format version 5"),
}


@pytest.fixture(scope="module")
def broken(workplace):
    """Damaged copies and wrong recipes beside the good ones."""
    copy_tree(workplace / "model", workplace / "bert", {"config.json": lambda text: text.replace('"llama"', '"bert"')})
    quantized = lambda text: text.replace("{", '{"quantization_config": {"quant_method": "gptq", "bits": 4},', 1)  # noqa: E731
    copy_tree(workplace / "model", workplace / "quantized", {"config.json": quantized})
    heads = lambda text: text.replace('"num_attention_heads": 4', '"num_attention_heads": 0')  # noqa: E731
    copy_tree(workplace / "model", workplace / "heads", {"config.json": heads})
    copy_tree(workplace / "model", workplace / "truncated", {"model.safetensors": lambda data: data[:-100]})
    shard = "elastic-00001-of-00002.safetensors"
    copy_tree(workplace / "artifact", workplace / "cut", {shard: lambda data: data[:-100]})
    flip = lambda data: data[:-50] + bytes([data[-50] ^ 1]) + data[-49:]  # noqa: E731
    copy_tree(workplace / "artifact", workplace / "altered", {shard: flip})
    newer = lambda text: text.replace('"version": 4', '"version": 5')  # noqa: E731
    copy_tree(workplace / "artifact", workplace / "newer", {"quept.json": newer})
    for name, text in {
        "overlapping": 'name = "x"\nbits = "2-4"\ngroups = [[4, 3], [3, 2]]\n',
        "incomplete": 'name = "x"\nbits = "2-4"\ngroups = [[4], [2]]\n',
        "unknown": 'name = "x"\nbits = "2-4"\nspeed = 3\n',
    }.items():
        (workplace / f"{name}.toml").write_text(text)
    return workplace


def copy_tree(source: Path, target: Path, changes: dict) -> None:
    target.mkdir()
    for path in source.iterdir():
        data = path.read_bytes()
        if change := changes.get(path.name):
            data = change(data.decode()).encode() if path.suffix == ".json" else change(data)
        (target / path.name).write_bytes(data)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_paragraph_without_traceback_and_leaves_nothing(broken, tmp_path, capfd, name):
    template, code, told = MISTAKES[name]
    output = tmp_path / "out"
    filled = {"w": str(broken), "data": f"--data {broken}/text.txt", "out": f"--output {output}"}
    arguments = template.format(**filled).split(" ")
    if arguments[0] == "calibrate":
        for option, value in zip(SMALL[::2], SMALL[1::2], strict=False):
            arguments += [option, value] if option not in arguments else []
    capfd.readouterr()
    assert run(*arguments) == code
    shown = capfd.readouterr().err
    assert told in shown
    assert "Traceback" not in shown
    message = shown.strip()
    assert message.startswith("error:") is ("Usage:" not in message)
    assert "\n\n" not in message or "Usage:" in message
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported_and_leaves_no_half_written_file(workplace, tmp_path, capfd, monkeypatch):
    import quept.storage.tensors as tensors

    def full(*arguments: object, **options: object) -> None:
        Path(str(arguments[1])).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    arguments = ("calibrate", workplace / "model", "-o", tmp_path / "out", "--data", workplace / "text.txt", *SMALL)
    assert run(*arguments) == 1
    assert "disk is full" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_says_how_to_go_on(workplace, tmp_path, capfd, monkeypatch):
    from quept.calibration import pipeline

    monkeypatch.setattr(pipeline, "reconstruct", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
    arguments = ("calibrate", workplace / "model", "-o", tmp_path / "out", "--data", workplace / "text.txt", *SMALL)
    assert run(*arguments) == 130
    assert "--resume" in capfd.readouterr().err


def test_generation_heeds_the_checkpoints_end_tokens(workplace, tmp_path):
    file = tmp_path / "text.json"
    arguments = ("generate", workplace / "artifact", "--prompt", "a plain", "--max-new-tokens", "6", "--json", file)
    assert run(*arguments, "--quiet") == 0
    tokens = json.loads(file.read_text())["tokens"]
    stop = tokens[-4]

    model = quept.load(workplace / "artifact")
    config = json.loads((workplace / "artifact" / "generation_config.json").read_text())
    other = tmp_path / "artifact"
    quept.save(model, other)
    (other / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": [stop, 95]}))
    manifest = json.loads((other / "quept.json").read_text())
    manifest["files"] = {name: record.model_dump() for name, record in record_files(other).items()}
    (other / "quept.json").write_text(json.dumps(sealed(manifest)))
    assert run(*(other if argument == workplace / "artifact" else argument for argument in arguments), "--quiet") == 0
    shorter = json.loads(file.read_text())["tokens"]
    assert shorter[-1] == stop
    assert len(shorter) < len(tokens)


def test_the_demo_shows_its_table_draws_its_plots_and_leaves_a_working_artifact(tmp_path, capfd, monkeypatch):
    import quept.builtin
    import quept.calibration

    full = quept.calibration.calibrate
    ran = []

    def short(*args, recipe, **options):
        ran.append(recipe)
        recipe = recipe.updated(reconstruction=recipe.reconstruction.updated(epochs=1))
        return full(*args, **{**options, "recipe": recipe, "samples": 8, "sequence_length": 64})

    text = tmp_path / "test.txt"
    text.write_text(quept.builtin.test_text_path().read_text()[:4000])
    monkeypatch.setattr(quept.builtin, "test_text_path", lambda: text)
    monkeypatch.setattr(quept.calibration, "calibrate", short)
    output = tmp_path / "demo"
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib.figure", None)
        assert run("demo", "--output", output) == 0
    shown = capfd.readouterr().out
    assert (
        "accuracy.png are missing. Plots need matplotlib, which is not installed: run `pip install 'quept[plots]'"
        in shown
    )
    assert [path.name for path in output.iterdir()] == ["artifact"]
    # The second demo replaces the first.
    assert run("demo", "--output", output, "--recipe", "paper", "--json", tmp_path / "demo.json") == 0
    assert [each.name for each in ran] == ["best", "paper"]
    shown = capfd.readouterr().out
    result = json.loads((tmp_path / "demo.json").read_text())
    assert [row["bits"] for row in result["results"]] == [2, 3, 4, 5, 6, 7, 8]
    assert f"{result['results'][0]['baseline']:.3f}" in shown
    assert f"{result['results'][0]['kl']:.2g}" in shown
    assert result["results"][0]["kl"] <= result["results"][0]["baseline_kl"]
    assert (output / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (output / "accuracy.html").read_text()
    quept.load(output / "artifact", 4)

    assert run("demo", "--output", output, "--recipe", "nope") == 2
    assert (output / "artifact").is_dir()
    (output / "letter.txt").write_text("mine")
    assert run("demo", "--output", output) == 2
    assert (output / "letter.txt").exists()
    assert (output / "artifact").is_dir()
