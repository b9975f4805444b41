"""The support matrix: families, recipes and devices, each with how it is tested."""

from pathlib import Path

from markdown import table

from quept import recipes
from quept.models import ARCHITECTURES, TEXT_GENERATION, Architecture, Values

DEVICES = Path(__file__).with_name("devices.md")
# Tests in which small random models are calibrated with a recipe, loaded and run: of every family of its modality, or
# of those named.
TESTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "best": ("tests/layers/test_packed_layers.py", ("llama", "gpt2")),
    "paper": ("tests/models/test_families.py", ()),
    "weight-activation": ("tests/models/test_weight_activation.py", ()),
    "weight-activation-best": ("tests/models/test_weight_activation.py", ()),
    "vision": ("tests/models/test_vision.py", ()),
    "vision-best": ("tests/models/test_vision.py", ()),
}
# Trained models that recipes were measured on, with the section of docs/results.md.
MEASURED: dict[str, dict[str, str]] = {
    "llama": {
        "best": "#beside-quantizers-of-one-bit-width",
        "paper": "#the-papers-ablations",
        "weight-activation": "#weights-and-activations",
        "weight-activation-best": "#weights-and-activations",
    },
    "vit": dict.fromkeys(("vision", "vision-best", "vision-weights"), "#vision-transformers"),
    "deit": {"vision-best": "#vision-transformers"},
    "swin": {"vision-best": "#vision-transformers"},
}


def page() -> list[str]:
    """Return the lines of the page."""
    last = list(TESTED)[-1]
    language = [each for each in ARCHITECTURES.values() if each.task is TEXT_GENERATION]
    vision = [each for each in ARCHITECTURES.values() if each.task is not TEXT_GENERATION]
    return [
        "# Support matrix",
        "",
        "A family is a `model_type` of transformers; [another](adding-an-architecture.md) is twenty lines of data.",
        "Every recipe runs with every family of its modality. The cells say how that is known:",
        "",
        "- **measured**: the accuracy of a trained model is in [Results](results.md).",
        "- **tested**: the tests calibrate small random models of the family with this recipe, load and run them:",
        *(f"  `{name}` in `{tests}`{',' if name != last else '.'}" for name, (tests, _) in TESTED.items()),
        "- **runs**: the tests cover the family and the recipe, but not this pair.",
        "",
        "## Language models",
        "",
        *_matrix(language, vision=False),
        "",
        "How the weights of a family are prepared, and what else is tested for each:",
        "",
        *table(
            ("family", "smoothing", "rotation of the residual stream", "rotation of values", "key-value cache", "head"),
            map(_preparation, language),
        ),
        "",
        "Where the configuration forbids a rotation in the weights (OPT with norms last, or biases with nowhere to",
        "go), linears' inputs are rotated as the model runs (`tests/transforms/test_rotation.py`). The packed cache",
        "gives the same tokens as a simulated one in every family (`tests/generation/test_cache.py`).",
        "",
        "## Image classifiers",
        "",
        *_matrix(vision, vision=True),
        "",
        "Attention's products, patch embedding and classifier are quantized in every family.",
        "",
        *DEVICES.read_text(encoding="utf-8").rstrip().splitlines(),
    ]


def shipped(vision: bool) -> list[str]:
    """Return the recipes of a modality."""
    return [name for name in recipes.names() if ("vision" in name) == vision and not name.startswith("demo")]


def _matrix(families: list[Architecture], vision: bool) -> list[str]:
    named = shipped(vision)
    rows = [[f"`{each.model_type}`", *(_cell(each.model_type, name) for name in named)] for each in families]
    return table(["family", *(f"`{name}`" for name in named)], rows)


def _cell(family: str, recipe: str) -> str:
    if section := MEASURED.get(family, {}).get(recipe):
        return f"[measured](results.md{section})"
    _, families = TESTED.get(recipe, ("", ("none",)))
    return "tested" if not families or family in families else "runs"


def _preparation(each: Architecture) -> list[str]:
    values = any(isinstance(site.channels, Values) for site in each.sites)
    return [
        f"`{each.model_type}`",
        f"{len(each.sites)} sites",
        "in the weights" if each.residual is not None else "as the model runs",
        "in the weights" if values else "as the model runs",
        "yes" if each.task.keeps_keys_values else "no",
        "yes" if each.outer else "no",
    ]
