"""The commands' options; those of `quept allocate` are in `plan_options`."""

from pathlib import Path
from typing import Annotated

import typer

ArtifactDir = Annotated[str, typer.Argument(metavar="DIR", help="An artifact.")]
Data = Annotated[
    str,
    typer.Option(
        help="Text: a .txt, .jsonl or .parquet file, or one of wikitext2, ptb, c4, pile, redpajama. Images: a "
        "folder of class folders, a .npz, .parquet or .tar file, or a data set of the Hub."
    ),
]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Also write the result as JSON ('-': standard output)."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table; errors are still reported.")]
Device = Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu or cuda.")]
ModelDtype = Annotated[
    str,
    typer.Option("--dtype", help="auto (float32 on a CPU, the checkpoint's elsewhere), float32, bfloat16 or float16."),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory for packed weights: 2.5GB, 900MB. Those not used for longest go first. Default: two of 8 bits.",
    ),
]
Precisions = Annotated[
    str | None,
    typer.Option(help="Bit-widths: 2-8, or 2,4,8, or of weights and activations: w4a8. Default: all there are."),
]
WindowTokens = Annotated[int | None, typer.Option(help="Tokens per window. Default: as calibrated.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at an image that cannot be read.")]
KvBits = Annotated[int | None, typer.Option(help="Bit-width of keys and values, 2 to 8. Default: full precision.")]
Plans = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="A plan by quept allocate, or one of your own; may be given several times."),
]
Baseline = Annotated[bool, typer.Option("--baseline", help="Also plain rounding to nearest, at the same granularity.")]
Original = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The language model that was calibrated: also how far predictions are from its own (KL divergence).",
    ),
]
EvaluatedTokens = Annotated[
    int | None, typer.Option(help="Tokens per window. Default: as calibrated, or 2048 or the model's limit.")
]
Stride = Annotated[
    int | None, typer.Option(help="Tokens between window starts. Default: the window, as in the literature.")
]
RoundingRecipe = Annotated[
    str | None, typer.Option(help="For a model that is no artifact: whose granularity to round at.")
]
AccuracyPlot = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Also draw accuracy, or with --original divergence, against bits: .png or .html."
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(help="A shipped recipe's name, or a TOML file. Default: best, or for images vision-best."),
]
ActivationBits = Annotated[
    str | None,
    typer.Option(help="Bit-widths of activations, where the recipe has them. Default: the same as of weights."),
]
CalibratedTokens = Annotated[
    int | None, typer.Option(help="Tokens per window. Default: the recipe's, or the model's limit if lower.")
]
Compiled = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="Train compiled code. Default: where that saves time, on a CPU."),
]
StreamMemory = Annotated[
    float, typer.Option(metavar="GB", help="Hidden states held in memory; beyond it they live in mapped files.")
]
RunBits = Annotated[
    str | None,
    typer.Option(help="The precision to run at: 4, w4a8 or w4a4kv4. Default: the master, of 8 bits or full precision."),
]
RunPlan = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Run by a plan instead, layer by layer; see quept allocate.")
]
RunKvBits = Annotated[
    int | None, typer.Option(help="Bit-width at which keys and values are kept, 2 to 8. Default: full precision.")
]
KvRecent = Annotated[int, typer.Option(min=0, help="The latest tokens whose keys and values stay in full precision.")]
OtherData = Annotated[
    str, typer.Option(help="Text or images, as for quept calibrate; better other ones than it was given.")
]
MetricName = Annotated[
    str,
    typer.Option(help="kl: run the model for every linear and bit-width. gradient: estimate from one backward pass."),
]
MeasuredKvBits = Annotated[
    str | None, typer.Option(help="Also keys and values at these bits, block by block: 2-8, or 2,4,8.")
]
SampleCount = Annotated[int | None, typer.Option(help="Windows of text (default: 16), or images (default: 256).")]
ComparedTable = Annotated[
    Path | None,
    typer.Option(metavar="TABLE", help="Tell the rank correlation with another table of this artifact."),
]
HeatMapPlot = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also draw the table as a heat map: a .png or .html file.")
]
