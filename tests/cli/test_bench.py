"""`quept bench` and the memory that bit-widths take: tables, JSON, and what is refused."""

import json

import pytest
from command_line import run

import quept
from quept.evaluation.speed import measure_speed, read_per_token
from quept.layers.size import resident_bytes


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, tiny_model, windows):
    output = tmp_path_factory.mktemp("bench") / "artifact"
    recipe = quept.load_recipe("paper").updated(store={"master_bits": 8})
    recipe = recipe.updated(
        reconstruction=recipe.reconstruction.updated(epochs=0, keep="learned"), adapter={"kind": "none"}
    )
    quept.calibrate(tiny_model("llama"), output, data=windows, recipe=recipe)
    return output


SHORT = ("--prompt", "8", "--tokens", "4", "--repeats", "2")


def test_all_bit_widths_are_timed_beside_bfloat16(artifact, tmp_path, capfd):
    assert run("bench", artifact, *SHORT, "--json", tmp_path / "r.json", "--plot", tmp_path / "p.html") == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert [row["precision"] for row in result["widths"]] == [str(bits) for bits in range(2, 9)]
    assert result["baseline"]["precision"] == "full"
    for row in (*result["widths"], result["baseline"]):
        assert row["prefill"] > 0
        assert row["decode"] > 0
        assert 0 < row["weight_bytes"] < row["memory_bytes"]
    read = [row["weight_bytes"] for row in result["widths"]]
    assert read == sorted(read)
    assert "milliseconds per token" in (tmp_path / "p.html").read_text()
    assert capfd.readouterr().out.count("x bf16") == 2


def test_one_bit_width_without_a_baseline_on_standard_output(artifact, capfd):
    assert run("bench", artifact, *SHORT, "--bits", "4", "--no-baseline", "--exact", "--json", "-") == 0
    result = json.loads(capfd.readouterr().out)
    assert result["baseline"] is None
    assert [row["precision"] for row in result["widths"]] == ["4"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompt", "60", "--tokens", "8"), "more than the model's 64"),
        (("--bits", "9"), "widths go from 2 to 8"),
        (("--memory-budget", "much"), "cannot be read"),
        (("--plot", "x.gif"), "must end in .png or .html"),
    ],
)
def test_what_cannot_be_timed_is_told(artifact, arguments, words, capfd):
    assert run("bench", artifact, *arguments) == 2
    assert words in " ".join(capfd.readouterr().err.split())


def test_what_a_token_reads_is_what_is_held_but_for_the_embedding(artifact):
    model = quept.load(artifact, 4)
    speed = measure_speed(model, 4, prompt=4, tokens=2, repeats=1)
    embedding = model.get_input_embeddings().weight.nbytes
    assert speed.memory_bytes - speed.weight_bytes == embedding
    others = model.get_output_embeddings().weight.nbytes + sum(
        value.nbytes for name, value in model.named_parameters() if "norm" in name
    )
    assert read_per_token(model) == resident_bytes(model, 4) + others


def test_info_tells_what_bit_widths_cost_in_memory_and_which_fit_together(artifact, tmp_path):
    model = quept.load(artifact)
    sizes = {bits: resident_bytes(model, bits) for bits in range(2, 9)}
    budget = sizes[2] + sizes[3] + sizes[4]
    assert run("info", artifact, "--memory-budget", budget, "--json", tmp_path / "i.json", "--quiet") == 0
    result = json.loads((tmp_path / "i.json").read_text())
    assert {row["bits"]: row["resident_bytes"] for row in result["widths"]} == sizes
    assert result["resident_together"] == [2, 3, 4]
    assert run("info", artifact, "--memory-budget", budget - 1, "--json", tmp_path / "i.json", "--quiet") == 0
    assert json.loads((tmp_path / "i.json").read_text())["resident_together"] == [2, 3]
