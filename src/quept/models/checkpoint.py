"""Opening Hugging Face checkpoints: safetensors only, never remote code, every failure explained."""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from quept.errors import CalibrationFailed, InvalidInput
from quept.files import checked_path
from quept.forks import fork_safe_lock
from quept.models.agreement import check_agreement, check_dtypes, check_family
from quept.models.building import building
from quept.models.files import (
    CONFIG,
    check_directory,
    convert_pickles,
    find_file,
    is_a_file,
    read_headers,
    unread_files,
)

NO_CODE = (
    "needs code that the checkpoint carries (auto_map); quept never runs such code, which could do anything on this "
    "machine. Give a model of a family that transformers itself has."
)


def read_config(source: str | Path) -> Any:
    """Return the configuration of a local or Hub model.

    Raises `InvalidInput` if there is none, if only code in the checkpoint could read it, or if the model is quantized.
    """
    checked_path(source, "model")
    where = Path(source)
    if where.exists() and not where.is_dir():
        raise is_a_file(where)
    if not where.exists() and (where.is_absolute() or str(source).startswith(".") or str(source).count("/") > 1):
        raise InvalidInput(f"There is no model directory {source}; check the path, or give a Hub name like org/model.")
    if where.is_dir():
        check_directory(where)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(str(source), trust_remote_code=False, local_files_only=where.is_dir())
    except Exception as error:  # whatever a damaged file makes transformers do
        if has_own_code(source, CONFIG):
            raise InvalidInput(f"The model {str(source)!r} {NO_CODE}") from None
        raise InvalidInput(
            f"The model {str(source)!r} cannot be opened: it is neither a directory with a config.json that "
            f"transformers understands nor a reachable Hub model ({first_line(error)})."
        ) from None
    for part in (config, config.get_text_config()):
        _leave_unquantized(part, source)
    return config


def open_weights(
    auto_class: Any,
    source: str | Path,
    dtype: torch.dtype | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Any:
    """Return a model in evaluation mode, in its checkpoint's dtype unless another is given.

    `auto_class` is the Auto class of transformers to open it with. Weights come from safetensors alone. A model that is
    not what the checkpoint holds is refused: nothing is filled with noise, and nothing is dropped but what is known to
    be harmless, which `note` is told.
    """
    config = read_config(source)
    check_family(config, source)
    headers = read_headers(source, auto_class.__name__)
    check_dtypes(headers, source)
    try:
        with building(), quiet():
            model, report = auto_class.from_pretrained(
                str(source),
                config=config,
                dtype=dtype or "auto",
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=Path(source).is_dir(),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are reported: see `check_agreement`
                adapter_kwargs={"subfolder": "no-adapter"},  # where peft is installed, it would add one that is beside
            )
    except Exception as error:  # whatever a damaged file makes transformers do
        if not headers:
            raise InvalidInput(
                f"The model {str(source)!r} has no safetensors ({first_line(error)}); "
                f"{convert_pickles(source, auto_class.__name__)}"
            ) from None
        raise InvalidInput(
            f"The weights of {str(source)!r} cannot be loaded; quept reads safetensors only, whole and "
            f"unaltered ({first_line(error)})."
        ) from None
    for text in (*check_agreement(model, report, headers, source), *_unread(model, source)):
        note(text)
    return model.eval()


def open_tokenizer(source: str | Path) -> Any:
    """Return the model's tokenizer; raises `InvalidInput` if there is none."""
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(
                str(source), trust_remote_code=False, local_files_only=Path(source).is_dir()
            )
    except Exception as error:  # whatever a damaged file makes transformers do
        if has_own_code(source, "tokenizer_config.json"):
            raise InvalidInput(f"The tokenizer of {str(source)!r} {NO_CODE}") from None
        raise InvalidInput(
            f"The model {str(source)!r} has no tokenizer that transformers can load ({first_line(error)})."
        ) from None


def check_and_digest(model: nn.Module) -> str:
    """Return the SHA-256 over names, shapes, dtypes and bytes of all weights.

    Raises `CalibrationFailed` with the name of a weight that is not finite.
    """
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CalibrationFailed(
                f"The weight {name} holds NaN or infinite values, so the model cannot be calibrated; "
                "get an intact checkpoint."
            )
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(_bytes(tensor))
    return total.hexdigest()


def cast_parameters(module: Any, dtype: torch.dtype) -> Any:
    """Cast a module's parameters in place; buffers stay, since rotary frequencies must keep their precision."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers and its Hub client, since quept reports for itself."""
    with _QUIET.entered():
        yield


class _Quiet:
    """Silence for several threads: settings are global; the first to enter changes, the last to leave restores."""

    def __init__(self) -> None:
        self._lock = fork_safe_lock()
        self._inside: list[int] = []  # threads, by their numbers
        self._restore: Callable[[], None] = lambda: None
        if hasattr(os, "register_at_fork"):  # Windows has no fork
            os.register_at_fork(after_in_child=self._begin_child)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Silence both libraries in this context."""
        thread = threading.get_ident()
        with self._lock:
            self._inside.append(thread)
            if len(self._inside) == 1:
                self._restore = _silence()
        try:
            yield
        finally:
            with self._lock:
                self._inside.remove(thread)
                if not self._inside:
                    self._restore()

    def _begin_child(self) -> None:
        """Leave, in a forked child, for the threads of its parent that are not there."""
        silent, mine = bool(self._inside), threading.get_ident()
        self._inside = [thread for thread in self._inside if thread == mine]
        if silent and not self._inside:
            self._restore()


_QUIET = _Quiet()


def _silence() -> Callable[[], None]:
    """Silence both libraries; returns a function that restores their settings."""
    ours, hub = transformers.utils.logging, huggingface_hub.utils.logging
    before, hub_before, bars = ours.get_verbosity(), hub.get_verbosity(), ours.is_progress_bar_enabled()
    ours.set_verbosity_error()
    hub.set_verbosity(logging.CRITICAL)
    ours.disable_progress_bar()

    def restore() -> None:
        ours.set_verbosity(before)
        hub.set_verbosity(hub_before)
        if bars:
            ours.enable_progress_bar()

    return restore


def has_own_code(source: str | Path, name: str) -> bool:
    """Return whether a file of settings, such as `config.json`, names code in the checkpoint (`auto_map`)."""
    try:
        found = find_file(source, name)
        settings = None if found is None else json.loads(found.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and bool(settings.get("auto_map"))


def _leave_unquantized(config: Any, source: str | Path) -> None:
    """Remove settings of a quantization that quantizes nothing; raises `InvalidInput` for any other quantization."""
    settings = getattr(config, "quantization_config", None)
    if not settings:
        return
    given = settings if isinstance(settings, dict) else settings.to_dict()
    switches = [given[name] for name in ("load_in_8bit", "load_in_4bit") if name in given]
    if not switches or any(switches) or given.get("quant_method", "bitsandbytes") != "bitsandbytes":
        raise InvalidInput(f"The model {str(source)!r} is quantized already; give the model it was made from.")
    del config.quantization_config


def _unread(model: Any, source: str | Path) -> Iterator[str]:
    """Yield what lies in the checkpoint and was not used: code, adapters, further shards."""
    if getattr(model.config, "auto_map", None):
        yield (
            f"The code that the checkpoint carries (auto_map) is not run; the model is the {type(model).__name__} of "
            f"{type(model).__module__.partition('.')[0]}."
        )
    if files := unread_files(source):
        others = f", nor are {len(files) - 1} others" if files[1:] else ""
        yield f"The checkpoint's file {files[0]} is not read{others}."


def _bytes(tensor: Tensor) -> Any:
    """Return the tensor's bytes as a buffer, without a copy where it is contiguous on the CPU."""
    return tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy()


def first_line(error: BaseException) -> str:
    """Return the message of a library's error on one line, shortened."""
    text = " ".join(str(error).split())
    return (text[:300] + " ...") if len(text) > 300 else text or os.strerror(getattr(error, "errno", 0) or 0)
