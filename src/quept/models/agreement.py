"""Whether a model is what its checkpoint holds: nothing dropped, nothing missing, nothing of another shape or kind.

transformers fills a model with what fits and drops the rest; some of it, such as layers for predicting several tokens,
without a word. A model that lacks a part still computes something, so whatever is dropped here is either known to be
harmless, and noted, or an error that names it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from quept.errors import InvalidInput
from quept.models.files import Headers, TensorHeader

FLOATS = ("F64", "F32", "F16", "BF16")
INTEGERS = ("BOOL", "U8", "I8", "I16", "I32", "I64")  # of buffers; as weights they are codes


def _is_mask(header: TensorHeader | None) -> bool:
    """Return whether a tensor is a causal mask, or the one value that masked scores have."""
    return header is not None and (header.shape[:2] == (1, 1) or header.shape in ((), (1,)))


FURTHER_TOKENS = "layers that predict further tokens are no part of the model"


@dataclass(frozen=True)
class Harmless:
    """Tensors that a model does not need, by a pattern of their names, and why."""

    pattern: str
    why: str
    when: Callable[[TensorHeader | None], bool] = lambda header: True


HARMLESS = (
    Harmless(r"(^|\.)(original_)?inv_freq$", "rotary frequencies are computed from the configuration"),
    Harmless(r"rotary_emb\.(cos|sin)_cached$", "rotary angles are computed from the configuration"),
    Harmless(r"(^|\.)(position_ids|relative_position_index|relative_coords_table)$", "positions are computed"),
    Harmless(r"att(n|ention)\.(bias|masked_bias)$", "masks are computed", _is_mask),
    Harmless(r"(^|\.)attn_mask$", "masks are computed"),
    Harmless(r"\.(num_batches_tracked|_extra_state)$", "they are a training's bookkeeping"),
    Harmless(r"(^|\.)mtp(_\w+)?\.", FURTHER_TOKENS),
    Harmless(r"(^|\.)pooler\.", "the model's class has no pooler"),
    Harmless(r"embeddings\.mask_token$", "masked patches occur in pre-training alone"),
)
_OF_FURTHER_TOKENS = re.compile(r"\.(eh_proj|enorm|hnorm|shared_head)\b")
_NUMBER = re.compile(r"(?:(?<=\.)|^)(\d+)(?=\.)")
_BECAUSE = (
    (
        r"(scale|scale_inv|scales|biases|zero_point|zeros|qweight|g_idx|SCB|weight_format|absmax|quant_map|packed"
        r"|weight_shape|quant_state\.\w+|codebooks?)$",
        "They belong to quantized weights, though config.json names no quantization; give the model before that.",
    ),
    (
        r"lora_|\.base_layer\.",
        "They are of an adapter that has not been merged; merge it with peft's merge_and_unload, and save the result.",
    ),
)


def check_family(config: Any, source: str | Path) -> None:
    """Raise `InvalidInput` where a configuration names a class of another family than its own."""
    for name in config.architectures or ():
        settings = getattr(getattr(transformers, name, None), "config_class", None)
        if settings is not None and settings.model_type != config.model_type:
            raise InvalidInput(
                f"The config.json of {str(source)!r} has the model_type {config.model_type!r}, but names a {name}, "
                f"which is a {settings.model_type!r}; get the config.json that was saved with the weights."
            )


def check_dtypes(headers: Headers, source: str | Path) -> None:
    """Raise `InvalidInput` for weights in 8 or fewer bits, and for others that are no numbers of the usual kinds."""
    for name, header in headers.items():
        if header.dtype not in (*FLOATS, *INTEGERS):
            raise _not_weights(name, header, source)


def check_agreement(model: Any, report: Mapping[str, Any], headers: Headers, source: str | Path) -> list[str]:
    """Return notes on what was left out of a model; raises `InvalidInput` where it is not what the checkpoint holds.

    Args:
        model: the model as transformers opened it.
        report: transformers' `missing_keys`, `unexpected_keys` and `mismatched_keys`.
        headers: the tensors that the checkpoint holds; empty where that is not known.
        source: the checkpoint, for messages.
    """
    names = _Names(model, headers)
    reasons = {name: names.harmless(name) for name in sorted({*report["unexpected_keys"], *names.hidden()})}
    _check_shapes(sorted(report["mismatched_keys"]), model, source)
    if wrong := [name for name, why in reasons.items() if why is None]:
        raise InvalidInput(
            f"The checkpoint {str(source)!r} holds {len(wrong)} weights that its {names.kind} has no place for: "
            f"{_listed(wrong)}. {names.because(wrong)}"
        )
    _check_missing(sorted(report["missing_keys"]), names, source)
    _check_each(names, source)
    _check_head(model, source)
    return [
        f"{len(left)} tensors of the checkpoint are left out, such as {left[0]}: {why}."
        for why in dict.fromkeys(reasons.values())
        for left in [[name for name in reasons if reasons[name] == why]]
    ]


class _Names:
    """The names of a model's tensors beside those of its checkpoint."""

    def __init__(self, model: Any, headers: Headers) -> None:
        self.headers, self.kind, self.model_type = headers, type(model).__name__, model.config.model_type
        self.prefix = f"{model.base_model_prefix}."
        self.expected = set(model.state_dict())
        self._numbers = _numbers_of({*self.expected, *(name.removeprefix(self.prefix) for name in self.expected)})
        self.buffers = {name for name, _ in model.named_buffers()}
        self.can_tie = bool(getattr(model, "_tied_weights_keys", None))
        found = ((name, _OF_FURTHER_TOKENS.search(name)) for name in headers)
        self._of_further_tokens = {name[: match.start() + 1] for name, match in found if match}
        self._ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]

    def in_model(self, name: str) -> str:
        """Return a tensor's name in the model, which has a prefix where the checkpoint may have none."""
        found = (name, self.prefix + name, name.removeprefix(self.prefix))
        return next((each for each in found if each in self.expected), name)

    def hidden(self) -> list[str]:
        """Return the tensors that transformers leaves out without reporting them."""
        others = [name for name in self.headers if self.in_model(name) not in self.expected]
        return [name for name in others if self._in_table(name) or self._is_ignored(name)]

    def harmless(self, name: str) -> str | None:
        """Return why the model does without a tensor; None where no reason is known."""
        if (found := self._in_table(name)) is not None:
            return found.why
        if (beyond := self.beyond(name)) is not None:
            layer = "{}{}.".format(*beyond)
            return FURTHER_TOKENS if {layer, self.prefix + layer} & self._of_further_tokens else None
        return f"{self.kind} of transformers has no use for them" if self._is_ignored(name) else None

    def beyond(self, name: str) -> tuple[str, int] | None:
        """Return the list of layers and the number of a tensor's layer, where the model's list ends before it."""
        return _beyond(name, self._numbers)

    def because(self, wrong: list[str]) -> str:
        """Return the likely reason why a checkpoint holds these tensors, and what to do."""
        for pattern, why in _BECAUSE:
            if any(re.search(pattern, name) for name in wrong):
                return why
        if numbers := [beyond[1] for name in wrong if (beyond := self.beyond(name)) is not None]:
            return (
                f"By config.json there are fewer layers or experts than in the checkpoint, where they go up to number "
                f"{max(numbers)}; correct config.json, num_hidden_layers above all."
            )
        known = {part for name in self.expected for part in name.removeprefix(self.prefix).split(".")[:1]}
        if not any(_NUMBER.search(name) or name.removeprefix(self.prefix).split(".")[0] in known for name in wrong):
            return f"They are the head of another class; give a model that was saved as a {self.kind}."
        return (
            f"Either config.json was not saved with these weights, or they are not of a {self.model_type}; get their "
            f"own config.json, or a model that was saved as a {self.kind}."
        )

    def _in_table(self, name: str) -> Harmless | None:
        header = self.headers.get(name) or self.headers.get(name.removeprefix(self.prefix))
        return next((each for each in HARMLESS if re.search(each.pattern, name) and each.when(header)), None)

    def _is_ignored(self, name: str) -> bool:
        return any(pattern.search(name) for pattern in self._ignored)


def _numbers_of(names: Iterable[str]) -> dict[str, set[int]]:
    """Return the numbers of the layers in each list of layers, by what the names of its tensors begin with."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        for found in _NUMBER.finditer(name):
            numbers.setdefault(name[: found.start()], set()).add(int(found[1]))
    return numbers


def _beyond(name: str, numbers: Mapping[str, set[int]]) -> tuple[str, int] | None:
    """Return the list of layers and the number of a tensor's layer, where the list has others but not that one."""
    for found in _NUMBER.finditer(name):
        path, number = name[: found.start()], int(found[1])
        if path in numbers and number not in numbers[path]:
            return path, number
    return None


def _check_shapes(mismatched: Sequence[tuple[str, Any, Any]], model: Any, source: str | Path) -> None:
    """Raise `InvalidInput` for tensors of another shape than the configuration's."""
    if not mismatched:
        return
    name, held, wanted = mismatched[0][0], tuple(mismatched[0][1]), tuple(mismatched[0][2])
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None)
    which = "vocab_size" if wanted[:1] == (vocabulary,) and held[1:] == wanted[1:] else "sizes"
    raise InvalidInput(
        f"The checkpoint {str(source)!r} does not fit its config.json in {len(mismatched)} weights: {name} is "
        f"{_shape(held)} in the checkpoint, but {_shape(wanted)} by config.json. Correct its {which}, or get the "
        "config.json that was saved with the weights."
    )


def _check_missing(missing: list[str], names: _Names, source: str | Path) -> None:
    """Raise `InvalidInput` for weights of the model that the checkpoint lacks."""
    if not missing:
        return
    held, remedy = {names.in_model(name) for name in names.headers}, "Get a whole one, with its own config.json."
    if not any(name.startswith(names.prefix) for name in missing):
        tie = 'if its head shares the embeddings\' weight, set "tie_word_embeddings": true in config.json; otherwise '
        remedy = (
            f"It was saved without them: {tie if names.can_tie else ''}give a model that was saved as a {names.kind}."
        )
    elif (numbers := _numbers_of(held)) and all(_beyond(name, numbers) for name in missing):
        remedy = "By config.json there are more layers than in the checkpoint; correct it, num_hidden_layers above all."
    raise InvalidInput(
        f"The checkpoint {str(source)!r} lacks {len(missing)} weights of its {names.kind}: {_listed(missing)}. {remedy}"
    )


def _check_each(names: _Names, source: str | Path) -> None:
    """Raise `InvalidInput` for integers in the place of weights, and for two tensors of one name in the model."""
    seen: dict[str, str] = {}
    for name, header in names.headers.items():
        in_model = names.in_model(name)
        if header.dtype in INTEGERS and in_model not in names.buffers and names.harmless(name) is None:
            raise _not_weights(name, header, source)
        if (other := seen.setdefault(in_model, name)) != name:
            raise InvalidInput(
                f"The checkpoint {str(source)!r} holds both {other} and {name}, which are one weight of the model; "
                "remove one of them."
            )


def _check_head(model: Any, source: str | Path) -> None:
    """Raise `InvalidInput` where the configuration ties the head to the embeddings, and the checkpoint does not."""
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if getattr(model, "_tied_weights_keys", None) and head is not None and head.weight is not embeddings.weight:
        raise InvalidInput(
            f"The checkpoint {str(source)!r} holds a head that differs from the embeddings, but by its config.json "
            '("tie_word_embeddings": true) they are one weight. Set it to false if the model has both, or get the '
            "config.json that was saved with the weights."
        )


def _not_weights(name: str, header: TensorHeader, source: str | Path) -> InvalidInput:
    return InvalidInput(
        f"The checkpoint {str(source)!r} holds {name} as {header.dtype}, which are codes of quantized weights; quept "
        f"takes weights as {', '.join(FLOATS)}. Give the model that was quantized."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _shape(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes)) or "one number"
