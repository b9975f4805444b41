"""`quept evaluate`."""

from typing import Annotated, Any

import typer

from quept.cli.console import check_plot, check_target, out, write_json
from quept.cli.options import (
    AccuracyPlot,
    Baseline,
    Data,
    Device,
    EvaluatedTokens,
    JsonFile,
    KvBits,
    ModelDtype,
    Original,
    Plans,
    Precisions,
    Quiet,
    RoundingRecipe,
    Strict,
    Stride,
)
from quept.cli.progress import display


def evaluate(
    model: Annotated[str, typer.Argument(metavar="DIR_OR_MODEL", help="An artifact, or a Hugging Face model.")],
    data: Data,
    bits: Precisions = None,
    kv_bits: KvBits = None,
    plan: Plans = None,
    baseline: Baseline = False,
    original: Original = None,
    sequence_length: EvaluatedTokens = None,
    stride: Stride = None,
    max_tokens: Annotated[int | None, typer.Option(help="Read no more than this many tokens.")] = None,
    max_images: Annotated[int | None, typer.Option(help="Read no more than this many images.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one pass.")] = 128,
    strict: Strict = False,
    recipe: RoundingRecipe = None,
    plot: AccuracyPlot = None,
    device: Device = "auto",
    dtype: ModelDtype = "auto",
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure perplexity, or of an image classifier accuracy, at each bit-width, beside full precision.

    Works on artifacts, and on plain Hugging Face models, for which it measures full precision and, with
    [bold]--baseline[/], what rounding does to them.
    """
    check_plot("--plot", plot)
    check_target("--json", json_file)
    from quept import commands
    from quept.cli.tables.evaluation import show
    from quept.evaluation.judges import DataOptions

    options = DataOptions(sequence_length, stride, max_tokens, max_images, batch_size, strict)
    what: dict[str, Any] = {
        "bits": bits,
        "kv_bits": kv_bits,
        "plans": plan or (),
        "baseline": baseline,
        "original": original,
    }
    with display(quiet, "opening the model and the data") as shown:
        told: dict[str, Any] = {"progress": shown.show, "note": shown.note}
        found = commands.evaluate(
            model, data, **what, options=options, recipe=recipe, device=device, dtype=dtype, **told
        )
    show(found, model, out(quiet, json_file))
    write_json(json_file, {**found.to_json(), "model": model, "data": data})
    if plot is not None:
        from quept.cli.drawings import curve
        from quept.plots import write_plot

        write_plot(curve(found, model), plot)
