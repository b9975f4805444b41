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
from quept.search import SensitivityTable

AMOUNT = DataOptions(sequence_length=16, max_tokens=200)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model, tiny_tokenizer):
    """A folder with a text, an artifact, and its table of sensitivities."""
    folder = tmp_path_factory.mktemp("commands")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    (folder / "text.txt").write_text("a plain text of a few words, again and again. " * 40, encoding="utf-8")
    changes = {"recipe": "paper", "bits": (2, 4, 8), "epochs": 1, "rank": 2}
    data = {"data": folder / "text.txt", "samples": 4, "sequence_length": 16}
    report = quept.calibrate(folder / "model", folder / "artifact", **changes, **data)
    assert report.to_json()["manifest"]["recipe"] == report.manifest.recipe.model_dump(mode="json")
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


def test_calibrate_is_what_the_command_runs(place, tmp_path, tiny_model, windows):
    arguments = ("--data", place / "text.txt", "--samples", 4, "--sequence-length", 16, "--recipe", "paper")
    training = ("--bits", "2,4,8", "--epochs", 1, "--rank", 2, "-q")
    assert run("calibrate", place / "model", "-o", tmp_path / "same", *arguments, *training) == 0
    for shard in (place / "artifact").glob("*.safetensors"):
        assert (tmp_path / "same" / shard.name).read_bytes() == shard.read_bytes()
    model = tiny_model("llama")
    report = quept.calibrate(model, tmp_path / "loaded", data=windows, bits=4, epochs=0)
    assert report.manifest.recipe.bits == (4,)
    assert report.manifest.recipe.name == "best"
    for wrong, told in (
        ({"bits": (4, 9)}, "bit-widths go from 2 to 8"),
        ({"bits": [None]}, "cannot be read"),
        ({"activation_bits": 4, "recipe": "paper"}, "leaves activations at full precision"),
    ):
        with pytest.raises(InvalidInput, match=told):
            quept.calibrate(model, tmp_path / "wrong", data=windows, **wrong)
    with pytest.raises(InvalidInput, match="give a path, a Hub name, or a transformers model"):
        quept.calibrate(object(), tmp_path / "wrong", data=windows, epochs=1)


def test_all_public_names_are_there():
    for name in quept.__all__:
        assert getattr(quept, name).__module__.startswith("quept.")


def test_evaluate_is_what_the_command_measures(place, capfd):
    found = quept.evaluate(place / "artifact", place / "text.txt", bits="2,w4", baseline=True, options=AMOUNT)
    written = shown(
        *(capfd, "evaluate", place / "artifact", "--data", place / "text.txt", "--bits", "2,w4", "--baseline"),
        *("--sequence-length", 16, "--max-tokens", 200),
    )
    assert plain(found).items() <= written.items()
    loaded = quept.load(place / "artifact", 8, packed=False)
    assert quept.evaluate(loaded, place / "text.txt", bits=[2, "w4"], baseline=True, options=AMOUNT) == found
    assert set(quept.precision_of(loaded).bits.values()) == {8, None}  # keys and values have no bits
    with pytest.raises(InvalidInput, match="was not loaded by quept"):
        quept.evaluate(object(), place / "text.txt", options=AMOUNT)
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
    with pytest.raises(InvalidInput, match="give the path of its directory"):
        quept.info(quept.load(place / "artifact"))


def test_generate_takes_a_directory_or_a_loaded_model(place, capfd):
    pieces = []
    one = quept.generate(place / "artifact", "a plain", 4, max_new_tokens=5, on_text=pieces.append)
    assert isinstance(one, Generation)
    assert "".join(pieces).strip() == one.text.strip()
    arguments = ("--prompt", "a plain", "--bits", "4", "--max-new-tokens", 5)
    assert shown(capfd, "generate", place / "artifact", *arguments)["tokens"] == list(one.tokens)
    model, tokenizer = quept.commands.open_generator(place / "artifact", "w4kv4")
    two = quept.generate(model, "a plain", tokenizer=tokenizer, max_new_tokens=5)
    assert quept.generate(model, "a plain", max_new_tokens=5) == two
    assert two.cache is not None
    assert two.cache.bytes < two.cache.bfloat16_bytes
    with pytest.raises(InvalidInput, match="prompt is empty"):
        quept.generate(model, "", tokenizer=tokenizer)
    for wrong in ({"max_new_tokens": 0}, {"temperature": -1.0}):
        with pytest.raises(InvalidInput, match="but must be"):
            quept.generate(model, "a plain", **wrong)
    with pytest.raises(InvalidInput, match="was not loaded by quept"):
        quept.generate(object(), "a plain")


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
    with pytest.raises(InvalidInput, match="refine improves a plan for one budget"):
        quept.allocate(artifact, table, max_kl=0.1, refine=1)
    assert set(quept.allocate(artifact, table, average_bits=6, bits="4").plan.bits.values()) == {4}


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
    with pytest.raises(InvalidInput, match="budgets is 1"):
        quept.plan_front(place / "artifact", place / "table.json", evaluator, budgets=1)


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
    with pytest.raises(InvalidInput, match="tokens is 0, but must be 1 or more"):
        Workload(tokens=0)


def test_a_measurement_of_a_loaded_model_names_its_samples(place, windows, tmp_path):
    model = quept.load(place / "artifact", packed=False)
    table = quept.measure_sensitivity(model, windows[:2], tmp_path / "table.json", metric="gradient")
    assert table.origin.data == "samples"
    with pytest.raises(InvalidInput, match="was not loaded by quept"):
        quept.measure_sensitivity(object(), windows, tmp_path / "other.json")
    with pytest.raises(InvalidInput, match="The samples are a list"):
        quept.measure_sensitivity(model, [[1, 2]], tmp_path / "other.json")
    again = quept.sensitivity(
        quept.load(place / "artifact", integers=False, packed=False),
        place / "text.txt",
        tmp_path / "again.json",
        samples=4,
        sequence_length=16,
    )
    assert again == SensitivityTable.read(place / "table.json")


def test_a_plan_that_measures_worse_than_a_uniform_one_is_not_returned(place, tmp_path):
    table = quept.commands.open_table(place / "table.json", place / "artifact")
    # The last shall be first: what the table calls harmless does the most harm.
    upside_down = {path: {bits: 10 - error for bits, error in each.items()} for path, each in table.parts.items()}
    wrong = table.updated(parts=upside_down, pairs=())
    notes = []
    trusted = quept.allocate(place / "artifact", wrong, average_bits=12, measured=False)
    assert not trusted.tried
    assert set(trusted.plan.bits.values()) == {2}
    found = quept.allocate(place / "artifact", wrong, average_bits=12, note=notes.append)
    assert set(found.plan.bits.values()) == {found.instead} == {8}
    assert found.tried[-1].value == min(each.value for each in found.tried)
    assert any("Uniform 8 bits measure better than the plan that was found" in text for text in notes)
    assert [round(each.allocation.mean_bits) for each in found.tried] == [2, 2, 4, 8]
    right = quept.allocate(place / "artifact", table, average_bits=6)
    assert right.instead is None
    assert right.tried[-1].allocation.plan == right.plan


def test_a_plan_that_cannot_be_measured_says_so(place):
    table = quept.commands.open_table(place / "table.json", place / "artifact")
    for data, reason in (("samples", "it was in memory"), ("gone.txt", "gone.txt")):
        notes = []
        elsewhere = table.updated(origin=table.origin.updated(data=data))
        found = quept.allocate(place / "artifact", elsewhere, average_bits=6, note=notes.append)
        assert not found.tried
        (note,) = notes
        assert note.startswith("The plan is not measured beside uniform bit-widths")
        assert reason in note
