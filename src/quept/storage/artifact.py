"""Loading an artifact as a transformers model, and saving it again."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from quept.assembly import make_elastic
from quept.attention import ATTRIBUTE
from quept.config import MAX_BITS, Recipe
from quept.devices import DeviceMap, choose_device, device_of_map
from quept.errors import CorruptArtifact, InvalidInput, QueptError
from quept.files import checked_path, explained, refusal
from quept.formats.dtypes import DTYPES
from quept.formats.paging import page_out
from quept.layers import ElasticLinear, Execution, learned_names, stored_tensors
from quept.layers.size import resident_bytes
from quept.models import ARCHITECTURES, Architecture, architecture_for, architecture_of
from quept.models.building import without_weights
from quept.models.checkpoint import first_line, quiet
from quept.models.rotary import make_rotary_per_pass
from quept.precision import PrecisionLike, elastic_linears, keep_weights, key_values, set_precision
from quept.storage.checks import fault
from quept.storage.decisions import keep_all
from quept.storage.manifest import FORMAT_VERSION, Manifest, read_manifest, record_files
from quept.storage.tensors import read_shards, write_shards


def shard_stem(part: int, blocks: int) -> str:
    """Return the file stem of part 0 (everything outside the blocks) or of part `i + 1` (block `i`)."""
    return f"elastic-{part:05d}-of-{blocks:05d}"


def is_block_shard(path: Path) -> bool:
    """Return whether a file holds a block or a part of one."""
    return path.match("elastic-*.safetensors") and not path.name.startswith("elastic-00000-")


def load(
    directory: str | Path,
    precision: PrecisionLike = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    integers: bool | None = None,
    packed: bool | None = None,
    exact: bool = False,
    verify: bool = True,
    device_map: DeviceMap = None,
) -> Any:
    """Load an artifact as a transformers model that runs at any of its bit-widths.

    Args:
        directory: Directory that `quept calibrate` wrote. The original model is not needed.
        precision: Bits or plan to start at; None is the master, of 8 bits in a store, else full precision. See
            `set_precision`.
        device: `auto` (CUDA if there is one), `cpu`, `cuda`, or one CUDA device such as `cuda:1`.
        dtype: Dtype of the weights; None keeps the checkpoint's.
        memory_budget: Bytes for the cache of derived weights, which drops the least recently used ones first; None
            leaves room for two bit-widths (if packed, of 8 bits). A switch between resident bit-widths costs nothing.
        integers: If weights and activations are both quantized, multiply integer codes instead of dequantized values;
            the results are equal up to float rounding. None does so on CPUs, but not on CUDA, where it has not been
            measured.
        packed: Multiply weights as packed codes instead of dequantizing them first. None does so on a CPU.
        exact: Multiply packed weights by unrounded activations. Otherwise, if few tokens run at a time, these are
            rounded to 8 bits, with a scale per token and 128 channels, which is faster.
        verify: Check the SHA-256 of every file first.
        device_map: As for `from_pretrained`, instead of `device`; a map to several devices is an error.

    Raises:
        InvalidInput: There is no artifact, it lacks the bit-width, or there is no such device.
        CorruptArtifact: The artifact is damaged or of an unknown format version.
    """
    where = choose_device(device if device_map is None else device_of_map(device_map))
    directory = checked_path(directory, "artifact")
    manifest = read_manifest(directory, verify=verify)
    model = open_skeleton(directory, manifest)
    _fill(model, read_shards(directory / name for name in manifest.shards()), cast_to=dtype, verify=verify)
    model.to(where).eval()
    model.requires_grad_(False)
    layers = elastic_linears(model).values()
    on_cpu = next(iter(layers)).device.type == "cpu"
    execution = Execution(
        integers=on_cpu if integers is None else integers, packed=on_cpu if packed is None else packed, exact=exact
    )
    for layer in layers:
        layer.execution = execution
    keep_all(model, manifest)
    if memory_budget is None:
        dense = sum(layer.numel * layer.dtype.itemsize for layer in layers)
        memory_budget = 2 * (resident_bytes(model, MAX_BITS) if execution.packed else dense)
    if execution.packed:
        page_out(model.parameters())  # the checks have read them; most are needed again only to repack a bit-width
    keep_weights(model, memory_budget)
    model.quept_manifest, model.quept_directory = manifest, directory
    set_precision(model, precision)
    return model


def save(model: Any, directory: str | Path) -> None:
    """Write a model that `load` returned as an artifact; loading that gives an equal model.

    Raises:
        InvalidInput: The model was not loaded by `load`, it has adapters, or `directory` is not empty.
        QueptError: A file cannot be written.
    """
    manifest: Manifest | None = getattr(model, "quept_manifest", None)
    if manifest is None:
        raise InvalidInput(f"This {type(model).__name__} was not loaded by quept.load; only such models can be saved.")
    _check_unwrapped(model)
    target = checked_path(directory, "output")
    partial = checked_path(target.with_name(f"{target.name}.partial"), "output")
    with explained(target):
        for path in (target, partial):
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise InvalidInput(f"The output {path} exists and is not an empty directory; choose another one.")
    source: Path = model.quept_directory
    read_manifest(source)
    architecture = architecture_of(manifest.architecture)
    tensors = stored_tensors(model)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        for name in manifest.files:
            if not name.endswith(".safetensors"):
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, partial / name)
        blocks = len(architecture.block_list(model))
        for part in range(blocks + 1):
            prefix = f"{architecture.block_path(part - 1)}." if part else None
            chosen = {
                name: tensor.contiguous()
                for name, tensor in tensors.items()
                if (name.startswith(prefix) if prefix else not name.startswith(f"{architecture.blocks}."))
            }
            write_shards(partial, shard_stem(part, blocks), chosen)
        dtype = str(next(iter(elastic_linears(model).values())).dtype).removeprefix("torch.")
        manifest.updated(version=FORMAT_VERSION, dtype=dtype, files=record_files(partial)).write(partial)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        raise QueptError(refusal(target, error)) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_unwrapped(model: Any) -> None:
    """Raise `InvalidInput` where something stands in the place of an elastic linear, as PEFT's adapters do."""
    places = dict(model.named_modules(remove_duplicate=False))
    for path, layer in elastic_linears(model).items():
        if places.get(path) is not layer:
            raise InvalidInput(
                f"The model has an adapter at {path}; an artifact holds none. Save the adapter by its own "
                "save_pretrained; the artifact has not changed."
            )


def skeleton(config: Any, recipe: Recipe, dtype: torch.dtype, architecture: Architecture | None = None) -> Any:
    """Return the model of a configuration with elastic layers, without weights.

    `architecture` is the model's family; None takes the registered one.
    """
    architecture = architecture_for(config, architecture)
    with without_weights(), quiet():
        model = architecture.task.model_class.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()  # ties made without weights are none
    make_elastic(model, recipe, architecture)
    make_rotary_per_pass(model)
    return model


def open_skeleton(directory: str | Path, manifest: Manifest) -> Any:
    """Return the artifact's model without weights.

    Raises:
        InvalidInput: Its architecture is not registered.
        CorruptArtifact: No model can be built from the artifact's configuration.
    """
    directory = Path(directory)
    with _explained(directory):
        settings, _ = PreTrainedConfig.get_config_dict(directory, local_files_only=True)
        if (declared := settings.get("model_type")) != manifest.architecture:
            raise ValueError(f"config.json is of {declared!r}, quept.json of {manifest.architecture!r}")
    if manifest.architecture not in ARCHITECTURES:
        raise InvalidInput(
            f"{directory} holds a model of the architecture {manifest.architecture!r}, which is not registered here: "
            "register the architecture that it was calibrated with, by quept.register_architecture, before loading it. "
            f"Known are {', '.join(sorted(ARCHITECTURES))}."
        )
    with _explained(directory):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        if config.num_hidden_layers != manifest.blocks:
            raise ValueError(f"config.json names {config.num_hidden_layers} blocks, the files hold {manifest.blocks}")
        model = skeleton(config, manifest.recipe, DTYPES[manifest.dtype])
        if (directory / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)
    return model


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Silence transformers, and raise `CorruptArtifact` for whatever a damaged file makes it do."""
    try:
        with quiet():
            yield
    except Exception as error:
        raise CorruptArtifact(
            f"The model of the artifact {directory} cannot be built ({first_line(error)}); copy the artifact again."
        ) from None


def _fill(model: Any, tensors: dict[str, Tensor], *, cast_to: torch.dtype | None, verify: bool) -> None:
    """Load the skeleton's weights after checking every name, shape and dtype, and cast those that are not learned.

    Tensors outside the linears that are not learned may also be float32: some models keep a few norms in it.
    """
    layers = elastic_linears(model)
    learned = learned_names(model)
    exact = {f"{path}.weight" for path in layers} | learned
    expected = stored_tensors(model)
    # Artifacts from before keys were centred lack these; they stay zero, which leaves keys as they are.
    optional = {f"{path}.{ATTRIBUTE}.center" for path in key_values(model)}
    if missing := sorted(expected.keys() - tensors.keys() - optional):
        raise CorruptArtifact(f"The artifact lacks {len(missing)} tensors, among them {missing[0]}; copy it again.")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise CorruptArtifact(
            f"The artifact holds {len(extra)} tensors that no layer has, among them {extra[0]}; copy it again."
        )
    for name, tensor in tensors.items():
        place = expected[name]
        wide = tensor.dtype == torch.float32 and name not in exact
        if tensor.shape != place.shape or not (tensor.dtype == place.dtype or wide):
            raise CorruptArtifact(
                f"The tensor {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, but must be {place.dtype} of "
                f"shape {tuple(place.shape)}; copy the artifact again."
            )
        if verify and (wrong := fault(name, tensor)):
            raise CorruptArtifact(f"The tensor {name} holds {wrong}; copy the artifact again, or calibrate again.")
        if cast_to is not None and name not in learned:
            tensors[name] = tensor.to(cast_to)
    for layer in layers.values():
        if cast_to is not None:
            layer.set_dtype(cast_to)
    model.load_state_dict(tensors, strict=False, assign=True)
    if not isinstance(model.get_output_embeddings(), ElasticLinear):  # a quantized head is tied to no embedding
        model.tie_weights()
