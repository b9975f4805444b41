"""`quept allocate`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from quept.cli import plan_options as options
from quept.cli.console import check_target, clean, out, parse_size, write_json
from quept.cli.options import ArtifactDir, Device, JsonFile, ModelDtype, Quiet, WindowTokens
from quept.cli.progress import display
from quept.errors import InvalidInput, QueptError

if TYPE_CHECKING:
    from quept.commands import FoundPlan, PlanFront


def allocate(
    directory: ArtifactDir,
    sensitivity: options.Table,
    output: options.Output,
    average_bits: options.AverageBits = None,
    max_size: options.MaxSize = None,
    max_kl: options.MaxKl = None,
    max_perplexity: options.MaxPerplexity = None,
    front: options.FrontFlag = False,
    count: options.CountOption = "bytes",
    bits: options.AllowedBits = None,
    fix: options.Fix = None,
    free: options.Free = False,
    additive: options.Additive = False,
    refine: options.Refine = 0,
    data: options.PlanData = None,
    samples: options.Samples = None,
    max_tokens: options.MaxTokens = None,
    max_images: options.MaxImages = None,
    sequence_length: WindowTokens = None,
    device: Device = "auto",
    dtype: ModelDtype = "auto",
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Plan a bit-width for each linear within a budget, from one table of sensitivities.

    Give one of [bold]--average-bits[/], [bold]--max-size[/], [bold]--max-kl[/], [bold]--max-perplexity[/] and
    [bold]--front[/]. The first two take seconds and read no weights. Run the plan with [bold]--plan[/] of
    [bold]quept evaluate[/] and [bold]quept generate[/], or quept.set_precision in Python; it is JSON, to be edited.
    """
    goal: dict[str, Any] = {"average_bits": average_bits, "max_bytes": parse_size(max_size)}
    goal |= {"max_kl": max_kl, "max_perplexity": max_perplexity}
    measuring = _check_goal(goal, front, refine, data)
    check_target("--json", json_file)
    _make_directory(output) if front else check_target("--output", output)
    from quept import commands
    from quept.config import parse_bits
    from quept.evaluation.judges import DataOptions

    rules: dict[str, Any] = {"count": count, "fixed": _fixed(fix or ()), "free": free, "pairs": not additive}
    rules["bits"] = None if bits is None else parse_bits(bits)
    amount = DataOptions(sequence_length, max_tokens=max_tokens, max_images=max_images)
    how: dict[str, Any] = {"samples": samples, "options": amount, "device": device, "dtype": dtype}
    found: FoundPlan | PlanFront
    with display(quiet, "opening the model and the data" if measuring else "planning") as shown:
        commands.open_problem(directory, sensitivity, commands.PlanOptions(**rules))  # wrong input is told first
        evaluator = None
        if measuring:
            evaluator = commands.PlanEvaluator(directory, str(data), **how, progress=shown.show, note=shown.note)
        if front and evaluator is not None:
            found = commands.plan_front(directory, sensitivity, evaluator, **rules)
        else:
            found = commands.allocate(directory, sensitivity, **goal, refine=refine, evaluator=evaluator, **rules)
    metric = "KL divergence" if max_perplexity is None else "perplexity"
    _write(found, directory, metric, output, out(quiet, json_file))
    write_json(json_file, found.to_json())


def _check_goal(goal: Mapping[str, object], front: bool, refine: int, data: str | None) -> bool:
    """Return whether plans have to be measured; raises `InvalidInput` for options that do not go together."""
    given = [name for name, value in goal.items() if value is not None]
    if len(given) + front != 1:
        raise InvalidInput(
            "Give one of --average-bits, --max-size, --max-kl, --max-perplexity and --front: what the plan is for."
        )
    measuring = front or refine > 0 or given[0] in ("max_kl", "max_perplexity")
    if measuring and data is None:
        raise InvalidInput("Plans are measured for this, and that needs text or images: give --data.")
    if refine and (front or given[0] not in ("average_bits", "max_bytes")):
        raise InvalidInput("--refine improves a plan for one budget; use it with --average-bits or --max-size.")
    return measuring


def _fixed(written: Sequence[str]) -> dict[str, int]:
    """Return the bit-widths by path or pattern of `--fix PATTERN=BITS`."""
    fixed = {}
    for text in written:
        pattern, _, bits = text.rpartition("=")
        if not pattern or not bits.isdecimal():
            raise InvalidInput(
                f"--fix {text!r} cannot be read; write a path or pattern and a bit-width: 'model.layers.0.*=8'."
            )
        fixed[pattern] = int(bits)
    return fixed


def _make_directory(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise InvalidInput(f"--output {str(output)!r} is a file; with --front give a directory.")
    output.mkdir(parents=True, exist_ok=True)


def _write(found: "FoundPlan | PlanFront", directory: str, metric: str, output: Path, console: Console) -> None:
    from quept.commands import FoundPlan

    if isinstance(found, FoundPlan):
        _write_plan(found, directory, metric, output, console)
    else:
        _write_front(found, directory, output, console)


def _write_plan(found: "FoundPlan", directory: str, metric: str, output: Path, console: Console) -> None:
    from quept.cli.tables.planning import show_plan

    found.plan.write(output)
    show_plan(found, metric, console)
    console.print(f"Wrote {output}. Next: quept evaluate {clean(directory)} --plan {output} --data TEXT")


def _write_front(found: "PlanFront", directory: str, output: Path, console: Console) -> None:
    from quept.cli.drawings import draw_front
    from quept.cli.tables.planning import show_front

    found.write(output)
    written = ["front.json"]
    try:
        written += draw_front(found, directory, output)
    except QueptError as error:  # plots need an extra; all else does not
        console.print(f"note: {error}")
    show_front(found, directory, console)
    console.print(f"Wrote {', '.join(written)} and {len(found.plans)} plans to {clean(str(output))}")
