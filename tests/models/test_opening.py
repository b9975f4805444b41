"""A model is what its checkpoint holds, or opening it is an error that names the difference."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import quept
from quept.errors import InvalidInput
from quept.evaluation.judges import DataOptions
from quept.models import open_model
from quept.models.checkpoint import open_tokenizer, read_config

Q = "model.layers.0.self_attn.q_proj.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture(scope="module")
def saved(tiny_model, tiny_classifier, tmp_path_factory):
    """Directories of checkpoints by family, to be copied."""
    folder = tmp_path_factory.mktemp("saved")
    for family in ("llama", "gpt2", "gpt_neox", "opt"):
        tiny_model(family).save_pretrained(folder / family)
    tiny_classifier("vit").save_pretrained(folder / "vit")
    return folder


@pytest.fixture
def checkpoint(saved, tmp_path):
    """`checkpoint(family, tensors={}, drop=(), rename=None, **settings)`: the directory of an altered checkpoint.

    `tensors` are added, names in `drop` and None in `settings` are removed, `rename` maps every name.
    """

    def make(family="llama", tensors=None, drop=(), rename=lambda name: name, **settings):
        directory = tmp_path / family
        shutil.copytree(saved / family, directory)
        held = {rename(name): tensor for name, tensor in load_file(directory / "model.safetensors").items()}
        held = {name: tensor for name, tensor in held.items() if not any(re.search(each, name) for each in drop)}
        save_file({**held, **(tensors or {})}, directory / "model.safetensors", {"format": "pt"})
        config = {**json.loads((directory / "config.json").read_text()), **settings}
        (directory / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        return directory

    return make


def numbers(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


WRONG = {
    "fewer layers": ({"num_hidden_layers": 1}, r"holds 9 weights .*model.layers.1.* fewer layers .* up to number 1"),
    "more layers": ({"num_hidden_layers": 3}, r"lacks 9 weights .*model.layers.2.* more layers"),
    "scales of fp8": ({"tensors": {f"{Q}_scale_inv": numbers(1, 1)}}, rf"1 weights .*{Q}_scale_inv.* quantized"),
    "scales of int8": ({"tensors": {Q.replace("weight", "SCB"): numbers(32)}}, r"SCB.* quantized"),
    "scales of nf4": ({"tensors": {f"{Q}.absmax": numbers(8)}}, r"absmax.* quantized"),
    "packed weights": (
        {
            "drop": [re.escape(Q)],
            "tensors": {Q.replace("weight", "qweight"): numbers(4, 32, dtype=torch.int32)},
        },
        r"qweight.* quantized",
    ),
    "fp8 without scales": ({"drop": [Q], "tensors": {Q: numbers(32, 32).to(torch.float8_e4m3fn)}}, rf"{Q} as F8_E4M3"),
    "integers as weights": ({"drop": [Q], "tensors": {Q: numbers(32, 32, dtype=torch.int8)}}, rf"{Q} as I8"),
    "another family": (
        {"rename": lambda name: name.replace("model.layers", "transformer.h")},
        r"18 weights .*transformer.h.0.* not of a llama",
    ),
    "a class of another family": ({"model_type": "mistral"}, r"model_type 'mistral', but names a LlamaForCausalLM"),
    "a head beside": ({"tensors": {"score.weight": numbers(2, 32)}}, r"score.weight.* head of another class"),
    "a nested head": ({"tensors": {"classifier.dense.weight": numbers(2, 32)}}, r"head of another class"),
    "another head": (
        {"rename": lambda name: name.replace("lm_head", "score"), "drop": ["lm_head"]},
        r"score.weight.* head of another class",
    ),
    "no head": (
        {"drop": ["lm_head"]},
        r"lacks 1 weights .*lm_head.* set \"tie_word_embeddings\": true .*LlamaForCausalLM",
    ),
    "a bias that the configuration has not": ({"tensors": {Q.replace("weight", "bias"): numbers(32)}}, r"q_proj.bias"),
    "an adapter": ({"tensors": {f"{Q[:-7]}.lora_A.weight": numbers(4, 32)}}, r"lora_A.* has not been merged"),
    "a mask that is none": ({"tensors": {"model.layers.0.self_attn.bias": numbers(32)}}, r"self_attn.bias"),
    "two heads where one is meant": ({"tie_word_embeddings": True}, r"head that differs .*tie_word_embeddings.* true"),
    "another vocabulary": (
        {"vocab_size": 80},
        r"2 weights: lm_head.weight is 96 x 32 in the checkpoint, but 80 x 32 .*vocab_size",
    ),
    "another width of the MLP": ({"intermediate_size": 40}, r"6 weights: .* 32 x 44 .* 32 x 40 .*sizes"),
    "a name twice": ({"tensors": {Q.removeprefix("model."): numbers(32, 32)}}, r"both .*layers.0.* one weight"),
    "a layer further on that predicts nothing": (
        {"tensors": {"model.layers.2.norm.weight": numbers(32)}},
        r"fewer layers",
    ),
    "a classifier's head": (
        {"family": "vit", "tensors": {"head.weight": numbers(2, 32)}},
        r"head.weight.* another class",
    ),
    "another number of classes": (
        {"family": "vit", "id2label": {"0": "a"}, "label2id": {"a": 0}},
        r"classifier.bias is 5 .* but 1 by",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_model_that_is_not_what_the_checkpoint_holds_is_refused(checkpoint, case):
    changes, message = WRONG[case]
    directory = checkpoint(**changes)
    with pytest.raises(InvalidInput, match=message):
        open_model(directory)


HARMLESS = {
    "frequencies": ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": numbers(4)}, "frequencies are computed"),
    "position ids": (
        "opt",
        {"model.decoder.embed_positions.position_ids": numbers(1, 9, dtype=torch.int64)},
        "positions",
    ),
    "masks": (
        "gpt2",
        {
            "transformer.h.0.attn.bias": numbers(1, 1, 9, 9, dtype=torch.uint8),
            "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        },
        "2 tensors .* masks are computed",
    ),
    "masks that transformers hides": (
        "gpt_neox",
        {"gpt_neox.layers.0.attention.bias": numbers(1, 1, 9, 9, dtype=torch.bool)},
        "masks are computed",
    ),
    "a layer for further tokens": (
        "llama",
        {"model.layers.2.eh_proj.weight": numbers(4), "model.layers.2.mlp.up_proj.weight": numbers(4)},
        "2 tensors .* further tokens",
    ),
    "heads for further tokens": ("llama", {"mtp.layers.0.mlp.up_proj.weight": numbers(4)}, "further tokens"),
    "a pooler": ("vit", {"vit.pooler.dense.weight": numbers(4, 4)}, "no pooler"),
    "a token of pre-training": ("vit", {"vit.embeddings.mask_token": numbers(1, 1, 32)}, "masked patches"),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_tensors_that_are_known_to_be_harmless_are_left_out_and_noted(checkpoint, saved, case):
    family, tensors, message = HARMLESS[case]
    notes = []
    model = open_model(checkpoint(family, tensors), note=notes.append)
    (note,) = notes
    assert re.search(message, note)
    assert min(tensors) in note
    original = open_model(saved / family)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in original.state_dict().items())


def test_whole_models_open_without_a_note(saved, tiny_model, tiny_classifier, tmp_path):
    from families import FAMILIES, VISION

    for family in (*FAMILIES, *VISION):
        model = (tiny_model if family in FAMILIES else tiny_classifier)(family)
        model.save_pretrained(tmp_path / family)
        notes = []
        opened = open_model(tmp_path / family, note=notes.append).state_dict()
        assert not notes, family
        assert all(torch.equal(opened[name], tensor) for name, tensor in model.state_dict().items()), family


def test_tied_models_may_hold_their_head_twice(tiny_model, tmp_path):
    model = tiny_model("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    save_file({**held, "lm_head.weight": held["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors")
    opened = open_model(tmp_path)
    assert opened.lm_head.weight is opened.model.embed_tokens.weight
    without_prefix = {name.removeprefix("model."): tensor for name, tensor in held.items()}
    save_file(without_prefix, tmp_path / "model.safetensors")
    assert torch.equal(open_model(tmp_path).lm_head.weight, model.lm_head.weight)


def test_every_way_to_a_full_precision_model_checks_and_notes(checkpoint, tiny_tokenizer, tmp_path):
    directory = checkpoint(tensors={"model.layers.0.self_attn.rotary_emb.inv_freq": numbers(4)})
    tiny_tokenizer.save_pretrained(directory)
    (tmp_path / "text.txt").write_text("some plain text, which is enough. " * 20)
    notes = []

    class Told(quept.Progress):
        def note(self, text):
            notes.append(text)

    small = {"samples": 2, "sequence_length": 16, "epochs": 0, "bits": "4"}
    quept.calibrate(directory, tmp_path / "out", data=tmp_path / "text.txt", progress=Told(), **small)
    assert "frequencies" in notes[0]
    notes.clear()
    how = {"options": DataOptions(max_tokens=64, sequence_length=16), "note": notes.append}
    quept.evaluate(directory, tmp_path / "text.txt", **how)
    quept.evaluate(tmp_path / "out", tmp_path / "text.txt", original=directory, bits="4", **how)
    assert len(notes) == 2
    assert all("frequencies" in note for note in notes)


@pytest.fixture
def sharded(tiny_model, tmp_path):
    """A checkpoint in several shards."""
    tiny_model("llama").save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    return tmp_path / "sharded"


def test_shards_and_their_index_must_agree(sharded):
    index = sharded / "model.safetensors.index.json"
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 2
    assert len(open_model(sharded).model.layers) == 2
    whole = json.loads(index.read_text())

    held = load_file(shards[0])
    dropped, *rest = sorted(held)
    save_file({name: held[name] for name in rest}, shards[0])
    with pytest.raises(InvalidInput, match=f"no {dropped} in {shards[0].name}"):
        open_model(sharded)
    save_file({**held, **dict(list(load_file(shards[1]).items())[:1])}, shards[0])
    with pytest.raises(InvalidInput, match="in two files"):
        open_model(sharded)
    save_file(held, shards[0])

    unnamed = {name: shard for name, shard in whole["weight_map"].items() if shard != shards[-1].name}
    index.write_text(json.dumps({**whole, "weight_map": unnamed}))
    with pytest.raises(InvalidInput, match=f"does not name {shards[-1].name}"):
        open_model(sharded)
    shards[-1].unlink()
    index.write_text(json.dumps(whole))
    with pytest.raises(InvalidInput, match=f"lacks {shards[-1].name}"):
        open_model(sharded)
    for damaged in ("{", "[]", '{"weight_map": {"a": 1}}', '{"weight_map": []}'):
        index.write_text(damaged)
        with pytest.raises(InvalidInput, match=r"index .* cannot be read"):
            open_model(sharded)


def test_files_that_are_not_read_are_noted(checkpoint):
    directory, notes = checkpoint(), []
    shutil.copy(directory / "model.safetensors", directory / "consolidated.safetensors")
    open_model(directory, note=notes.append)
    assert notes == ["The checkpoint's file consolidated.safetensors is not read."]


OTHER_FILES = {
    "pytorch_model.bin": r"pytorch_model.bin; quept reads safetensors .*AutoModelForCausalLM.from_pretrained\(",
    "consolidated.00.pth": r"consolidated.00.pth",
    "model-q8.gguf": r"model-q8.gguf is in GGUF.*gguf_file='model-q8.gguf'",
    "consolidated.safetensors": r"consolidated.safetensors, but neither model.safetensors",
    "tf_model.h5": r"tf_model.h5; quept reads safetensors only: convert",
    "training_args.bin": r"holds no weights",
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_weights_in_other_files_are_told_with_what_to_do(checkpoint, name):
    directory = checkpoint()
    (directory / "model.safetensors").rename(directory / name)
    with pytest.raises(InvalidInput, match=OTHER_FILES[name]):
        open_model(directory)
    if name.endswith(".gguf"):
        for given in (directory / name, directory):
            (directory / "config.json").unlink(missing_ok=True)
            with pytest.raises(InvalidInput, match=OTHER_FILES[name]):
                open_model(given)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
def test_a_pointer_of_git_lfs_is_told(checkpoint, name):
    directory = checkpoint()
    (directory / name).write_text(POINTER)
    with pytest.raises(InvalidInput, match=f"{name} is a Git LFS pointer.*git lfs pull"):
        open_model(directory)


def test_an_adapter_is_no_model_unless_it_lies_beside_one(checkpoint, saved, tmp_path):
    adapter = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/model", "r": 4})
    directory, notes = checkpoint(), []
    (directory / "adapter_config.json").write_text(adapter)
    model = open_model(directory, note=notes.append)  # merged
    assert torch.equal(model.state_dict()[Q], load_file(saved / "llama" / "model.safetensors")[Q])
    assert not notes
    (directory / "adapter_model.safetensors").write_bytes(b"never read")
    open_model(directory, note=notes.append)
    assert notes == ["The checkpoint's file adapter_model.safetensors is not read."]
    (directory / "model.safetensors").unlink()
    for name in ("optimizer.pt", "training_args.bin"):
        (directory / name).write_bytes(b"")
    for _ in range(2):
        with pytest.raises(InvalidInput, match=r"PEFT adapter.*AutoPeft.*merge_and_unload\(\).save_pretrained"):
            open_model(directory)
        (directory / "config.json").unlink(missing_ok=True)


def test_code_in_a_checkpoint_is_never_run(checkpoint, tiny_tokenizer):
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    directory, notes = checkpoint(auto_map=code), []
    (directory / "own.py").write_text("raise SystemExit('run')")
    open_model(directory, note=notes.append)
    (note,) = notes
    assert re.search(r"\(auto_map\) is not run; the model is the LlamaForCausalLM of transformers", note)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "model_type": "own"}))
    with pytest.raises(InvalidInput, match="needs code that the checkpoint carries"):
        read_config(directory)
    tiny_tokenizer.save_pretrained(directory)
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}})
    )
    with pytest.raises(InvalidInput, match=r"tokenizer of .* needs code that the checkpoint carries"):
        open_tokenizer(directory)


def test_a_quantization_that_quantizes_nothing_is_accepted(checkpoint):
    off = {
        "quant_method": "bitsandbytes",
        "load_in_8bit": False,
        "load_in_4bit": False,
        "bnb_4bit_use_double_quant": False,
    }
    model = open_model(checkpoint(quantization_config=off))
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "fp8", "load_in_8bit": False},
        {"quant_method": "bitsandbytes"},
    ],
)
def test_any_other_quantization_is_refused(checkpoint, settings):
    with pytest.raises(InvalidInput, match="quantized already"):
        read_config(checkpoint(quantization_config=settings))
