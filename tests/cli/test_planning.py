"""Sensitivities, plans and the front on the command line."""

import json

import pytest
import torch
from command_line import run

import quept
from quept.evaluation import evaluate_precisions

SMALL = ("--samples", "4", "--sequence-length", "16")


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model, tiny_tokenizer):
    """An artifact, another one, a text, and the first one's table."""
    folder = tmp_path_factory.mktemp("planning")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    (folder / "text.txt").write_text("a plain text of a few words, again and again. " * 40, encoding="utf-8")
    calibrate = ("calibrate", folder / "model", "--data", folder / "text.txt", *SMALL, "--bits", "2,4,8", "--quiet")
    training = ("--rank", "2", "--epochs", "1")
    assert run(*calibrate, *training, "-o", folder / "artifact") == 0
    assert run(*calibrate, *training, "-o", folder / "other", "--seed", "1") == 0
    table = ("--data", folder / "text.txt", "-o", folder / "table.json", "--kv-bits", "4", *SMALL, "--quiet")
    assert run("sensitivity", folder / "artifact", *table) == 0
    return folder


def allocate(place, *arguments):
    return run("allocate", place / "artifact", "--sensitivity", place / "table.json", *arguments)


def test_a_plan_is_made_measured_and_generated_with(place, tmp_path, capfd):
    plan = tmp_path / "plan.json"
    assert allocate(place, "--average-bits", "5.5", "-o", plan, "--json", tmp_path / "made.json") == 0
    assert "bits per weight" in capfd.readouterr().out
    made = json.loads((tmp_path / "made.json").read_text())
    assert made["average_bits"] <= 5.5
    assert made["plan"] == json.loads(plan.read_text())
    assert len(set(made["plan"]["bits"].values())) > 1

    data = ("--data", place / "text.txt", "--json", "-")
    assert run("evaluate", place / "artifact", "--plan", plan, *data, "--baseline") == 0
    (row,) = json.loads(capfd.readouterr().out)["results"]
    assert (row["precision"], row["bytes"]) == (str(plan), made["bytes"])
    assert 2 < row["bits"] < 8
    assert run("evaluate", place / "artifact", "--plan", plan, "--bits", "4", *data) == 0
    assert [each["precision"] for each in json.loads(capfd.readouterr().out)["results"]] == ["4", str(plan)]

    model = quept.load(place / "artifact")
    tokens = torch.randint(96, (64,), generator=torch.Generator().manual_seed(0))
    by_hand = evaluate_precisions(model, tokens, (), plans={"mine": quept.PrecisionPlan.read(plan)}, sequence_length=16)
    assert by_hand.results[0].bytes == row["bytes"]

    generate = ("generate", place / "artifact", "--prompt", "a plain", "--max-new-tokens", "4", "--json", "-")
    assert run(*generate, "--plan", plan) == 0
    written = json.loads(capfd.readouterr().out)
    model = quept.load(place / "artifact", quept.PrecisionPlan.read(plan))
    prompt = torch.tensor([written["tokens"][:-4]])
    expected = model.generate(prompt, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert written["tokens"] == expected[0].tolist()
    assert run(*generate, "--plan", plan, "--kv-bits", "4") == 0
    assert "cache" in json.loads(capfd.readouterr().out)


def test_a_size_with_fixed_and_free_linears(place, tmp_path):
    plan = tmp_path / "plan.json"
    fixed = ("--fix", "model.layers.0.*=8", "--fix", "*.1.mlp.down_proj=16", "--free", "--additive")
    assert allocate(place, "--max-size", "45kB", *fixed, "-o", plan, "--json", tmp_path / "made.json", "-q") == 0
    bits = json.loads(plan.read_text())["bits"]
    assert {width for path, width in bits.items() if "layers.0" in path} == {8}
    assert bits["model.layers.1.mlp.down_proj"] is None
    assert json.loads((tmp_path / "made.json").read_text())["bytes"] <= 45_000
    info = tmp_path / "info.json"
    assert run("info", place / "artifact", "--json", info, "--quiet") == 0
    widest = json.loads(info.read_text())["widths"][-1]["bytes"]
    assert allocate(place, "--max-size", str(widest), "-o", plan, "--bits", "8", "-q") == 0
    assert allocate(place, "--max-size", str(widest - 1), "-o", plan, "--bits", "8", "-q") == 2


def test_the_smallest_plan_for_an_accuracy(place, tmp_path, capfd):
    plan = tmp_path / "plan.json"
    data = ("--data", place / "text.txt", *SMALL)
    assert allocate(place, "--max-kl", "0.05", *data, "-o", plan, "--json", "-") == 0
    made = json.loads(capfd.readouterr().out)
    assert made["tried"][-1]["measured"] <= 0.05
    assert made["tried"][-1]["bytes"] == made["bytes"]
    assert run("evaluate", place / "artifact", "--data", place / "text.txt", "--bits", "8", "--json", "-") == 0
    most = 1.01 * json.loads(capfd.readouterr().out)["results"][0]["perplexity"]
    assert allocate(place, "--max-perplexity", most, *data, "-o", plan, "--json", "-") == 0
    made = json.loads(capfd.readouterr().out)
    assert made["tried"][-1]["measured"] <= most
    assert allocate(place, "--max-perplexity", "1.5", *data, "-o", plan) == 2
    assert "No plan reaches 1.5" in capfd.readouterr().err


def test_refining_tells_what_it_tried(place, tmp_path, capfd):
    arguments = ("--average-bits", "5", "--refine", "2", "--data", place / "text.txt", *SMALL)
    assert allocate(place, *arguments, "-o", tmp_path / "plan.json", "--json", "-") == 0
    tried = json.loads(capfd.readouterr().out)["tried"]
    assert tried[-1]["measured"] == min(each["measured"] for each in tried)
    assert all(each["average_bits"] <= 5 for each in tried)


def test_the_front_writes_everything(place, tmp_path, capfd):
    folder = tmp_path / "front"
    assert allocate(place, "--front", "--data", place / "text.txt", "-o", folder, "--max-tokens", "200") == 0
    assert "uniform" in capfd.readouterr().out
    result = json.loads((folder / "front.json").read_text())
    assert len(result["uniform"]) == 3
    assert len(result["plans"]) > 5
    sizes = [each["bytes"] for each in result["plans"]]
    assert sizes == sorted(sizes)
    assert len(list(folder.glob("plan-*.json"))) == len(result["plans"])
    for name in ("front", "sensitivity"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "uniform 4" in (folder / "front.html").read_text()
    assert "model.layers.1.mlp.down_proj" in (folder / "sensitivity.html").read_text()


def test_the_gradient_metric_is_compared_with_the_exact_one(place, tmp_path, capfd):
    arguments = ("--data", place / "text.txt", "-o", tmp_path / "g.json", "--metric", "gradient", *SMALL)
    compare = ("--compare", place / "table.json", "--plot", tmp_path / "heat.html", "--json", tmp_path / "report.json")
    assert run("sensitivity", place / "artifact", *arguments, *compare) == 0
    assert "Rank correlation" in capfd.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["rank_correlation"] > 0.9
    plan = tmp_path / "plan.json"
    table = ("--sensitivity", tmp_path / "g.json", "--average-bits", "5")
    assert run("allocate", place / "artifact", *table, "-o", plan, "-q") == 0
    assert plan.exists()


def test_python_plans_as_the_command_does(place, tmp_path):
    model = quept.load(place / "artifact")
    windows = torch.randint(96, (4, 16), generator=torch.Generator().manual_seed(0))
    table = quept.measure_sensitivity(model, windows, tmp_path / "table.json")
    allocation = quept.allocate(model, table, average_bits=5.5)
    written = ("--sensitivity", tmp_path / "table.json", "-o", tmp_path / "plan.json")
    assert run("allocate", place / "artifact", *written, "--average-bits", "5.5", "-q") == 0
    assert quept.PrecisionPlan.read(tmp_path / "plan.json") == allocation.plan
    with pytest.raises(quept.InvalidInput, match="another model"):
        quept.allocate(quept.load(place / "other"), table, average_bits=5.5)
    with pytest.raises(quept.InvalidInput, match="not loaded by quept"):
        quept.allocate(torch.nn.Linear(2, 2), table, average_bits=5.5)


MISTAKES = {
    "no budget": ("{a}", 2, "Give one of --average-bits"),
    "two budgets": ("{a} --average-bits 3 --max-size 1MB", 2, "Give one of --average-bits"),
    "budget below the minimum": ("{a} --average-bits 1.5", 2, "is too small: the smallest that"),
    "size below the minimum": ("{a} --max-size 1kB", 2, "is too small: the smallest that"),
    "size unreadable": ("{a} --max-size big", 2, "cannot be read"),
    "width that is not there": ("{a} --average-bits 5 --bits 3,4", 2, "3 bits are not in the calibrated set [2, 4, 8]"),
    "unknown layer": ("{a} --average-bits 5 --fix model.layers.7.*=4", 2, "There is no linear 'model.layers.7.*'"),
    "fix unreadable": ("{a} --average-bits 5 --fix model", 2, "--fix 'model' cannot be read"),
    "table of another model": ("{o} --average-bits 5", 2, "was measured on another model"),
    "table malformed": ("{b} --average-bits 5", 2, "is not valid JSON"),
    "table missing": ("{m} --average-bits 5", 2, "cannot be read as a sensitivity table"),
    "no data to measure": ("{a} --max-kl 0.1", 2, "give --data"),
    "front without data": ("{a} --front", 2, "give --data"),
    "refining without a budget": ("{a} --max-kl 0.1 --refine 2 --data x.txt", 2, "--refine improves a plan"),
    "another count": ("{a} --average-bits 5 --count words", 2, "choose bytes or layers"),
    "a size in layers": ("{a} --max-size 1MB --count layers", 2, "layers can be counted in an average"),
    "not an artifact": ("{n} --average-bits 5", 2, "not a quept artifact"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_paragraph_and_leaves_nothing(place, tmp_path, capfd, name):
    template, code, told = MISTAKES[name]
    (place / "broken.json").write_text("{")
    table = f"--sensitivity {place}/table.json"
    filled = template.format(
        a=f"{place}/artifact {table}",
        o=f"{place}/other {table}",
        b=f"{place}/artifact --sensitivity {place}/broken.json",
        m=f"{place}/artifact --sensitivity {place}/none.json",
        n=f"{place}/model {table}",
    )
    output = tmp_path / "plan.json"
    capfd.readouterr()
    assert run("allocate", *filled.split(" "), "--output", output) == code
    shown = capfd.readouterr().err
    assert told in shown
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


PLANS = {
    "unknown layer": ('{"bits": {"model.layers.9.*": 4}}', "layers that the model does not have: ['model.layers.9.*']"),
    "width not in the artifact": ('{"bits": {"*": 3}}', "3 bits are not in the calibrated set [2, 4, 8]"),
    "malformed": ('{"bits": ', "is not valid JSON"),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("command", ["evaluate", "generate"])
def test_a_wrong_plan_is_told(place, tmp_path, capfd, command, name):
    text, told = PLANS[name]
    (tmp_path / "plan.json").write_text(text)
    options = {"evaluate": ("--data", place / "text.txt"), "generate": ("--prompt", "a")}[command]
    assert run(command, place / "artifact", "--plan", tmp_path / "plan.json", *options) == 2
    assert told in capfd.readouterr().err


def test_a_measurement_that_cannot_be_is_told(place, tmp_path, capfd):
    output = ("--data", place / "text.txt", "-o", tmp_path / "t.json")
    for wrong, told in (
        (("--metric", "guess"), "choose kl or gradient"),
        (("--metric", "gradient", "--kv-bits", "4"), "use --metric kl"),
        (("--sequence-length", "65"), "above what the model was made for"),
        (("--plot", "x.pdf"), ".png or .html"),
        (("--compare", place / "none.json"), "cannot be read as a sensitivity table"),
        (("--kv-bits", "1"), "widths go from 2 to 8"),
    ):
        assert run("sensitivity", place / "artifact", *output, *wrong) == 2
        assert told in capfd.readouterr().err
    table = ("--data", place / "text.txt", "-o", place / "table.json", *SMALL)
    assert run("sensitivity", place / "artifact", *table) == 2
    assert "belongs to another measurement: keys_values" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
