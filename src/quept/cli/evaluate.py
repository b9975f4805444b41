"""`quept evaluate`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from quept.cli.accuracy import error_points, full_size, reference, show_accuracy
from quept.cli.console import (
    Device,
    JsonFile,
    ModelDtype,
    Quiet,
    check_plot,
    check_target,
    figure,
    out,
    show_table,
    size,
    write_json,
)
from quept.cli.opening import open_any, open_original, roundable_twin
from quept.cli.progress import Display, display
from quept.errors import InvalidInput

if TYPE_CHECKING:
    from quept.config import Precision
    from quept.evaluation import AccuracyEvaluation, Evaluation


def evaluate(
    model: Annotated[str, typer.Argument(metavar="DIR_OR_MODEL", help="An artifact, or a Hugging Face model.")],
    data: Annotated[
        str,
        typer.Option(
            help="Text: a .txt, .jsonl or .parquet file, or one of wikitext2, ptb, c4, pile, redpajama. Images: a "
            "folder of class folders, a .npz, .parquet or .tar file, or a data set of the Hub."
        ),
    ],
    bits: Annotated[
        str | None,
        typer.Option(help="Bit-widths: 2-8, or 2,4,8, or of weights and activations: w4a8. Default: all there are."),
    ] = None,
    kv_bits: Annotated[
        int | None, typer.Option(help="Width of keys and values, 2 to 8. Default: full precision.")
    ] = None,
    plan: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A plan by quept allocate, or one of your own; may be given several times."),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also plain rounding to nearest, at the same granularity.")
    ] = False,
    original: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The language model that was calibrated: also how far predictions are from its own (KL divergence).",
        ),
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(help="Tokens per window. Default: as calibrated, or 2048 or the model's limit."),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens between window starts. Default: the window, as in the literature."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Read no more than this many tokens.")] = None,
    max_images: Annotated[int | None, typer.Option(help="Read no more than this many images.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one pass.")] = 128,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at an image that cannot be read.")] = False,
    recipe: Annotated[
        str | None, typer.Option(help="For a model that is no artifact: whose granularity to round at.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also draw accuracy, or with --original divergence, against bits: .png or .html."
        ),
    ] = None,
    device: Device = "auto",
    dtype: ModelDtype = "auto",
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure perplexity, or of an image classifier accuracy, at each width, beside full precision.

    Works on artifacts, and on plain Hugging Face models, for which it measures full precision and, with
    [bold]--baseline[/], what rounding does to them.
    """
    check_plot("--plot", plot)
    check_target("--json", json_file)
    with display(quiet, "opening the model and the data") as shown:
        evaluation = measure(
            model,
            data,
            shown,
            bits=bits,
            kv_bits=kv_bits,
            plans=plan or (),
            baseline=baseline,
            original=original,
            sequence_length=sequence_length,
            stride=stride,
            max_tokens=max_tokens,
            max_images=max_images,
            batch_size=batch_size,
            strict=strict,
            recipe=recipe,
            device=device,
            dtype=dtype,
        )
    show(evaluation, model, out(quiet, json_file))
    write_json(json_file, {**evaluation.to_json(), "model": model, "data": data})
    if plot is not None:
        draw(evaluation, model, plot)


def measure(
    model: str,
    data: str,
    shown: Display,
    *,
    bits: str | None = None,
    kv_bits: int | None = None,
    plans: Sequence[Path] = (),
    baseline: bool = False,
    original: str | None = None,
    sequence_length: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    max_images: int | None = None,
    batch_size: int = 128,
    strict: bool = False,
    recipe: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> "Evaluation | AccuracyEvaluation":
    """What `quept evaluate` measures, telling `shown` how far it is; see there for the arguments."""
    from quept.config import PrecisionPlan, parse_precisions
    from quept.evaluation.judges import DataOptions

    if plans and kv_bits is not None:
        raise InvalidInput(
            '--kv-bits is not for plans, which say so themselves: add an entry like "model.layers.*": "kv4".'
        )
    named = {str(path): PrecisionPlan.read(path) for path in plans}
    wanted = () if bits is None and plans else None if bits is None else parse_precisions(bits)
    opened = open_any(model, recipe, device, dtype)
    if named and not opened.calibrated and not baseline:
        raise InvalidInput(f"Plans are for artifacts, which {model} is not; with --baseline it is rounded by them.")
    chosen = _all_widths(opened.model) if wanted is None else wanted
    precisions = [widths.with_keys_values(kv_bits) for widths in chosen]
    opened.task.check_options(
        original=original, kv_bits=kv_bits, sequence_length=sequence_length, stride=stride, max_tokens=max_tokens
    )
    options = DataOptions(sequence_length, stride, max_tokens, max_images, batch_size, strict)
    judge = opened.task.judge(opened.model, opened.processor, data, options, note=shown.note)
    before = None if original is None else open_original(original, opened.model)
    return judge.evaluate(
        opened.model,
        precisions,
        plans=named,
        calibrated=opened.calibrated,
        baseline=baseline,
        original=before,
        roundable=None if before is None or not opened.calibrated else roundable_twin(before, opened.model),
        stored=opened.stored,
        report=shown.show,
    )


def _all_widths(model: Any) -> "list[Precision]":
    from quept.config import Precision
    from quept.precision import elastic_linears

    calibrated = (layer.spec.groups for layer in elastic_linears(model).values() if not layer.spec.fixed)
    return [Precision(weights=bits) for bits in next(calibrated).bits]


def show(evaluation: "Evaluation | AccuracyEvaluation", title: str, console: Console) -> None:
    """The table for people."""
    from quept.evaluation import AccuracyEvaluation

    if isinstance(evaluation, AccuracyEvaluation):
        show_accuracy(evaluation, title, console)
        return
    compared, stored = evaluation.original is not None, evaluation.reference != "full precision"

    def row(
        name: str, value: float | None, rounding: float | None, kl: float | None, rounding_kl: float | None, bytes_: str
    ) -> tuple[str, ...]:
        divergences = tuple("-" if each is None else f"{each:.2g}" for each in (kl, rounding_kl))
        return name, figure(value), figure(rounding), *(divergences if compared else ()), bytes_

    rows = [
        row(each.precision, each.perplexity, each.baseline, each.kl, each.baseline_kl, size(each.bytes))
        for each in evaluation.results
    ]
    before = size(evaluation.full_precision_bytes)
    if compared:
        rows.insert(0, row("original", evaluation.original, None, 0.0, None, before))
    else:
        rows.insert(0, row(reference(evaluation), evaluation.full_precision, None, None, None, full_size(evaluation)))
    heading = f"Perplexity of {title} on {evaluation.tokens:,} tokens, windows of {evaluation.sequence_length}"
    columns = ["bits", "quept", "rounding", *(["KL quept", "KL rounding"] if compared else []), "packed size"]
    show_table(console, heading, columns, rows)
    if compared:
        console.print("KL: how far predictions are from the original model's, in nats per token; 0 is the same.")
    if stored:
        console.print(
            f"The {evaluation.reference} is what the artifact stores of each weight, rounded to nearest; all other "
            f"widths are made from it. Before it was calibrated the model took {before}."
        )


def draw(evaluation: "Evaluation | AccuracyEvaluation", title: str, path: Path) -> None:
    """The plot, as PNG or HTML by the ending of `path`."""
    from quept.evaluation import AccuracyEvaluation
    from quept.plots import Curve, Point, write_plot

    if isinstance(evaluation, AccuracyEvaluation):
        metric = "top-1 error (%)"
        full_precision, points = error_points(evaluation)
    elif evaluation.original is not None:
        metric, full_precision = "KL divergence (nats per token)", math.nan  # of the original itself it is zero
        points = tuple(
            Point(int(result.bits), result.kl, result.baseline_kl, result.bytes)
            for result in evaluation.results
            if result.kl is not None and result.precision.isdigit()
        )
    else:
        metric, full_precision = evaluation.metric, evaluation.full_precision
        points = tuple(
            Point(int(result.bits), result.perplexity, result.baseline, result.bytes)
            for result in evaluation.results
            if result.perplexity is not None and result.precision.isdigit()
        )
    if not points:
        raise InvalidInput(
            "There is nothing to plot: plots are of calibrated models at plain widths (--bits 2-8). Give an artifact."
        )
    write_plot(Curve(title, metric, full_precision, points, evaluation.full_precision_bytes), path)
