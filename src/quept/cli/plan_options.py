"""The options of `quept allocate`."""

from pathlib import Path
from typing import Annotated

import typer

Table = Annotated[Path, typer.Option(metavar="TABLE", help="The table that quept sensitivity measured of it.")]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="The plan, a JSON file; with --front a directory, made if need be.")
]
AverageBits = Annotated[
    float | None, typer.Option(help="Budget: bits per weight, scales and zero points included; see --count.")
]
MaxSize = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Budget: the packed model, embeddings included: 2.5GB, 900MB.")
]
MaxKl = Annotated[float | None, typer.Option(help="The smallest plan found with this KL divergence on --data at most.")]
MaxPerplexity = Annotated[
    float | None, typer.Option(help="The smallest plan found with this perplexity on --data at most.")
]
FrontFlag = Annotated[
    bool, typer.Option("--front", help="Measure a dozen budgets on --data: table, JSON, plots, and the plans.")
]
CountOption = Annotated[
    str, typer.Option(help="What an average is over: bytes of the weights, or layers, each of them alike.")
]
AllowedBits = Annotated[
    str | None, typer.Option(help="Bit-widths to choose from: 2-8, or 2,4,8. Default: all that there are.")
]
Fix = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN=BITS", help="Keep linears at a bit-width, as in 'model.layers.0.*=8'; repeatable."),
]
Free = Annotated[bool, typer.Option("--free", help="Let linears that read the same tensor (q, k, v; gate, up) differ.")]
Additive = Annotated[
    bool, typer.Option("--additive", help="Take sensitivities for independent, and make their sum least, exactly.")
]
Refine = Annotated[int, typer.Option(min=0, help="Improve the plan in up to so many rounds of measuring it on --data.")]
Unmeasured = Annotated[
    bool,
    typer.Option("--unmeasured", help="Trust the table: do not measure the plan beside uniform bit-widths. Seconds."),
]
PlanData = Annotated[
    str | None, typer.Option(help="Text or images to measure plans on. Default: what the table was measured on.")
]
Samples = Annotated[
    int | None, typer.Option(min=1, help="Windows of it (default: 16), or images (256), for --max-kl and --refine.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Tokens of it, at most, for perplexities.")]
MaxImages = Annotated[int | None, typer.Option(min=1, help="Images of it, at most, for errors.")]
