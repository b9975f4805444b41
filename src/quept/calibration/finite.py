"""Full precision is checked before anything trains: an overflow in the model itself would pass for what to learn.

A few samples run through the whole model, block by block, in the dtype that calibration computes in and in float16
where weights are stored in that: its largest number is 65,504, and the artifact will run in it.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quept.calibration.block import CalibrationBlock
from quept.calibration.capture import BlockCall, ModelHead, ModelStem
from quept.errors import CalibrationFailed
from quept.formats.dtypes import DTYPES
from quept.layers.overflow import first_overflow, outliers
from quept.models.checkpoint import cast_parameters
from quept.storage.checks import fault
from quept.storage.manifest import BlockError

if TYPE_CHECKING:
    from quept.calibration.job import Job

TOKENS = 2048  # in the samples that run through the model
HALF = ", or convert the model to bfloat16 or float32, which hold larger numbers"


def check_full_precision(job: "Job") -> None:
    """Raise `CalibrationFailed` that names the weight, or the layer, at which a model stops being finite."""
    check_tensors(job.model.state_dict())
    stored = DTYPES[job.stored_dtype]
    dtypes = {job.compute_dtype, stored} if stored == torch.float16 else {job.compute_dtype}
    for dtype in sorted(dtypes, key=str, reverse=True):  # float32 first
        try:
            _run(job, dtype)
        except (RuntimeError, NotImplementedError) as error:
            if "not implemented for" not in str(error) or dtype == job.compute_dtype:
                raise  # a device that lacks an operation in float16 cannot run the artifact in it either


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raise `CalibrationFailed` for a tensor that no artifact may hold: it could not be loaded."""
    for name, tensor in tensors.items():
        if wrong := fault(name, tensor):
            raise CalibrationFailed(f"The weight {name} holds {wrong}, so the model cannot be calibrated; correct it.")


def checked_output(block: CalibrationBlock, hidden: Tensor) -> Tensor:
    """Return what a block makes of hidden states at full precision; raises `CalibrationFailed` where it overflows."""
    output = block.run(hidden)
    _check(output, block.module, partial(block.run, hidden), block.path)
    return output


def checked_errors(errors: list[BlockError], block: CalibrationBlock) -> list[BlockError]:
    """Return a block's errors; raises `CalibrationFailed` where one is NaN or infinite."""
    for error in errors:
        if not torch.tensor([error.rounding, error.calibrated]).isfinite().all():
            raise CalibrationFailed(_blamed(f"The error of block {block.path} at {error.bits} bits", block))
    return errors


def loss_message(block: CalibrationBlock, hidden: Tensor, bits: int, loss: float) -> str:
    """Return why a loss may not be finite: a layer that overflows, a weight far above all others, or training."""
    found = first_overflow(block.module, lambda: block.call(block.module, hidden), block.path)
    if found is not None:
        return f"The reconstruction loss of block {block.path} at {bits} bits is {loss}: {found} is not finite."
    return _blamed(f"The reconstruction loss of block {block.path} at {bits} bits is {loss}", block)


def _blamed(what: str, block: CalibrationBlock) -> str:
    # As the model has them: transforms may have moved an outlier to another layer.
    blamed = [f"{block.path}.{path}, {weight}" for path, weight in outliers(block.original)]
    if blamed:
        return (
            f"{what}, probably because of {'; '.join(blamed)}. Correct the weight, or leave the layer in full "
            "precision with a rule of the recipe."
        )
    return (
        f"{what}. Lower the learning rates (reconstruction.adapter_learning_rate and clipping_learning_rate in the "
        "recipe), or leave this bit-width out with --bits."
    )


@torch.no_grad()
def _run(job: "Job", dtype: torch.dtype) -> None:
    """Run a few samples through the whole model in one dtype."""
    architecture, model = job.architecture, job.model
    tokens = architecture.task.tokens_per_sample(model.config, job.samples)
    samples = job.samples[: max(1, TOKENS // tokens)]
    stem = ModelStem(model, architecture, dtype)
    hidden = stem.hidden_states(samples)
    _check(hidden, stem.part, partial(stem.hidden_states, samples), "")
    calls = stem.calls(samples)
    del stem
    hidden = hidden.to(job.device)
    for index, (block, call) in enumerate(zip(architecture.block_list(model), calls, strict=True)):
        path = architecture.block_path(index)
        hidden = _through(cast_parameters(copy.deepcopy(block).to(job.device), dtype).eval(), call, hidden, path)
    head = ModelHead(model, architecture, dtype, job.device, samples[:1])
    for states in torch.split(hidden, 1):  # one at a time, since logits are large
        _check(head(states), head.model, partial(head, states), "")


def _through(block: nn.Module, call: BlockCall, hidden: Tensor, path: str) -> Tensor:
    """Return a block's output."""
    run = partial(call.to(hidden.device), block, hidden)
    output = run()
    _check(output, block, run, path)
    return output


def _check(output: Tensor, module: nn.Module, run: Callable[[], object], path: str) -> None:
    """Raise `CalibrationFailed` that names the layer where the output of a module, as `run` gives it, is not finite."""
    if bool(torch.isfinite(output).all()):
        return
    found = first_overflow(module, run, path) or path
    dtype = str(output.dtype).removeprefix("torch.")
    raise CalibrationFailed(
        f"The model overflows at full precision, in {dtype}, before anything is quantized: {found} is NaN or infinite. "
        f"Correct the weights{HALF if output.dtype == torch.float16 else ''}."
    )
