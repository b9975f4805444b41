"""The commands as functions: what the command line shows, as values, for paths and for loaded models."""

import json

import pytest
from command_line import run

import quept
import quept.commands
from quept.commands import Workload
from quept.commands.generate import Generation
from quept.errors import InvalidInput
from quept.evaluation.judges import DataOptions

AMOUNT = DataOptions(sequence_length=16, max_tokens=200)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model, tiny_tokenizer):
    """A folder with a text, an artifact, and its table of sensitivities."""
    folder = tmp_path_factory.mktemp("commands")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    (folder / "text.txt").write_text("a plain text of a few words, again and again. " * 40, encoding="utf-8")
    recipe = quept.load_recipe("paper").adjusted(bits="2,4,8", epochs=1, rank=2)
    data = {"data": folder / "text.txt", "samples": 4, "sequence_length": 16}
    quept.calibrate(folder / "model", folder / "artifact", recipe=recipe, **data)
    told = []
    quept.sensitivity(
        folder / "artifact",
        folder / "text.txt",
        folder / "table.json",
        samples=4,
        sequence_length=16,
        progress=lambda *each: told.append(each),
    )
    assert told[-1][1] == told[-1][2]
    return folder


def shown(capfd, *arguments):
    """What a command writes as JSON."""
    capfd.readouterr()
    assert run(*arguments, "--json", "-") == 0
    return json.loads(capfd.readouterr().out)


def plain(result):
    return json.loads(json.dumps(result.to_json(), default=str))


def test_evaluate_is_what_the_command_measures(place, capfd):
    found = quept.evaluate(place / "artifact", place / "text.txt", bits="2,w4", baseline=True, options=AMOUNT)
    written = shown(
        *(capfd, "evaluate", place / "artifact", "--data", place / "text.txt", "--bits", "2,w4", "--baseline"),
        *("--sequence-length", 16, "--max-tokens", 200),
    )
    assert plain(found).items() <= written.items()
    with pytest.raises(InvalidInput, match="5 bits are not in the calibrated set"):
        quept.evaluate(place / "artifact", place / "text.txt", bits="5", options=AMOUNT)
    with pytest.raises(InvalidInput, match="max-images 3 is not for a model that"):
        quept.evaluate(place / "artifact", place / "text.txt", options=DataOptions(max_images=3))


def test_info_is_what_the_command_shows(place, capfd):
    found = quept.info(place / "artifact", memory_budget=20_000)
    assert plain(found) == shown(capfd, "info", place / "artifact", "--memory-budget", "20kB") | {
        "directory": str(place / "artifact")
    }
    assert [each.bits for each in found.precisions] == [2, 4, 8]


def test_generate_takes_a_directory_or_a_loaded_model(place, capfd):
    pieces = []
    one = quept.generate(place / "artifact", "a plain", 4, max_new_tokens=5, on_text=pieces.append)
    assert isinstance(one, Generation)
    assert "".join(pieces).strip() == one.text.strip()
    arguments = ("--prompt", "a plain", "--bits", "4", "--max-new-tokens", 5)
    assert shown(capfd, "generate", place / "artifact", *arguments)["tokens"] == list(one.tokens)
    model, tokenizer = quept.commands.open_generator(place / "artifact", "w4kv4")
    two = quept.generate(model, "a plain", tokenizer=tokenizer, max_new_tokens=5)
    assert two.cache is not None
    assert two.cache.bytes < two.cache.bfloat16_bytes
    with pytest.raises(InvalidInput, match="prompt is empty"):
        quept.generate(model, "", tokenizer=tokenizer)


def test_allocate_takes_a_directory_or_a_loaded_model(place, capfd, tmp_path):
    artifact, table = place / "artifact", place / "table.json"
    one = quept.allocate(artifact, table, average_bits=6, fixed={"*.down_proj": 4})
    two = quept.allocate(quept.load(artifact), table, average_bits=6, fixed={"*.down_proj": 4})
    assert one == two
    written = shown(
        *(capfd, "allocate", artifact, "--sensitivity", table, "-o", tmp_path / "plan.json"),
        *("--average-bits", 6, "--fix", "*.down_proj=4"),
    )
    assert plain(one) == written
    with pytest.raises(InvalidInput, match="Give one of"):
        quept.allocate(artifact, table)
    with pytest.raises(InvalidInput, match="give an evaluator"):
        quept.allocate(artifact, table, max_kl=0.1)


def test_plans_are_measured_with_an_evaluator(place, tmp_path):
    evaluator = quept.PlanEvaluator(place / "artifact", place / "text.txt", samples=4, options=AMOUNT)
    refined = quept.allocate(
        place / "artifact", place / "table.json", average_bits=6, refine=1, evaluator=evaluator, pairs=False
    )
    assert refined.tried[-1].allocation.plan == refined.plan
    assert refined.tried[-1].value == min(each.value for each in refined.tried)
    front = quept.plan_front(place / "artifact", place / "table.json", evaluator, budgets=3)
    front.write(tmp_path)
    assert len(list(tmp_path.glob("plan-*.json"))) == len(front.plans)
    assert [each.allocation.mean_bits for each in front.uniform] == [2, 4, 8]


def test_bench_times_what_it_is_asked(place):
    steps = []
    found = quept.bench(
        place / "artifact",
        bits="4",
        workload=Workload(prompt=8, tokens=2, repeats=1),
        progress=lambda label, done, total: steps.append((done, total)),
    )
    assert steps[-1] == (6, 6)
    assert [each.precision for each in found.results] == ["4"]
    assert found.baseline is not None


def test_a_measurement_of_a_loaded_model_names_its_samples(place, windows, tmp_path):
    model = quept.load(place / "artifact", packed=False)
    table = quept.measure_sensitivity(model, windows[:2], tmp_path / "table.json", metric="gradient")
    assert table.origin.data == "samples"
    with pytest.raises(InvalidInput, match="was not loaded by quept"):
        quept.measure_sensitivity(object(), windows, tmp_path / "other.json")
