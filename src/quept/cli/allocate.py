"""`quept allocate`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from quept.cli.console import (
    Device,
    JsonFile,
    ModelDtype,
    Quiet,
    check_target,
    clean,
    figure,
    out,
    parse_size,
    show_table,
    size,
    write_json,
)
from quept.cli.progress import display
from quept.errors import InvalidInput, QueptError

if TYPE_CHECKING:
    from quept.search.allocation import Allocation
    from quept.search.budget import Measurement
    from quept.search.target import SearchTarget

FRONT_BUDGETS = 12


def allocate(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="An artifact.")],
    sensitivity: Annotated[Path, typer.Option(metavar="TABLE", help="What quept sensitivity measured of it.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The plan, a JSON file; with --front a directory, made if need be.")
    ],
    average_bits: Annotated[
        float | None, typer.Option(help="Budget: bits per weight, scales and zero points included; see --count.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Budget: the packed model, embeddings included: 2.5GB, 900MB.")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="The smallest plan found with this KL divergence on --data at most.")
    ] = None,
    max_perplexity: Annotated[
        float | None, typer.Option(help="The smallest plan found with this perplexity on --data at most.")
    ] = None,
    front: Annotated[
        bool, typer.Option("--front", help="Measure a dozen budgets on --data: table, JSON, plots, and the plans.")
    ] = False,
    count: Annotated[
        str, typer.Option(help="What an average is over: bytes of the weights, or layers, each of them alike.")
    ] = "bytes",
    bits: Annotated[
        str | None, typer.Option(help="Bit-widths to choose from: 2-8, or 2,4,8. Default: all that there are.")
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN=BITS", help="Keep linears at a width, as in 'model.layers.0.*=8'; repeatable."),
    ] = None,
    free: Annotated[
        bool, typer.Option("--free", help="Let linears that read the same tensor (q, k, v; gate, up) differ.")
    ] = False,
    additive: Annotated[
        bool,
        typer.Option("--additive", help="Take sensitivities for independent, and make their sum least, exactly."),
    ] = False,
    refine: Annotated[
        int, typer.Option(min=0, help="Improve the plan in up to so many rounds of measuring it on --data.")
    ] = 0,
    data: Annotated[
        str | None, typer.Option(help="Text or images to measure plans on, where something asks for that.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Windows of it (default: 16), or images (256), for --max-kl and --refine.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of it, at most, for perplexities.")] = None,
    max_images: Annotated[int | None, typer.Option(min=1, help="Images of it, at most, for errors.")] = None,
    sequence_length: Annotated[int | None, typer.Option(help="Tokens per window. Default: as calibrated.")] = None,
    device: Device = "auto",
    dtype: ModelDtype = "auto",
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Plan a width for each linear within a budget, from one table of sensitivities.

    Give one of [bold]--average-bits[/], [bold]--max-size[/], [bold]--max-kl[/], [bold]--max-perplexity[/] and
    [bold]--front[/]. The first two take seconds and read no weights. Run the plan with [bold]--plan[/] of
    [bold]quept evaluate[/] and [bold]quept generate[/], or quept.set_precision in Python; it is JSON, to be edited.
    """
    asked = [average_bits is not None, max_size is not None, max_kl is not None, max_perplexity is not None, front]
    if sum(asked) != 1:
        raise InvalidInput(
            "Give one of --average-bits, --max-size, --max-kl, --max-perplexity and --front: what the plan is for."
        )
    measuring = front or refine > 0 or max_kl is not None or max_perplexity is not None
    if measuring and data is None:
        raise InvalidInput("Plans are measured for this, and that needs text or images: give --data.")
    if refine and not (average_bits or max_size):
        raise InvalidInput("--refine improves a plan for one budget; use it with --average-bits or --max-size.")
    check_target("--json", json_file)
    if front:
        _make_directory(output)
    else:
        check_target("--output", output)
    task = Task(directory, sensitivity, count, bits, tuple(fix or ()), free, additive)
    console = out(quiet, json_file)
    with display(quiet, "planning" if not measuring else "opening the model and the data") as shown:
        gauge = None
        if measuring:
            assert data is not None
            limits = (max_tokens, max_images)
            gauge = PlanEvaluator(directory, data, samples, limits, sequence_length, device, dtype, shown.show)
        if front:
            assert gauge is not None
            result = draw_front(task, gauge, output, console)
        else:
            result = plan(task, gauge, average_bits, max_size, max_kl, max_perplexity, refine, output, console)
    write_json(json_file, result)


class Task:
    """A table and constraints, checked against the artifact, as the problem to solve."""

    def __init__(
        self,
        directory: str,
        sensitivity: Path,
        count: str,
        bits: str | None,
        fix: Sequence[str],
        free: bool,
        additive: bool,
    ) -> None:
        from quept.config import parse_bits
        from quept.models import architecture_of
        from quept.search.allocation import Constraints, Problem
        from quept.search.cost import Costs
        from quept.search.table import SensitivityTable, model_digest
        from quept.storage import DTYPES, read_manifest
        from quept.storage.artifact import open_skeleton

        if count not in ("bytes", "layers"):
            raise InvalidInput(f"--count is {count!r}; choose bytes or layers.")
        manifest = read_manifest(directory, verify=False)
        self.directory, self.count = directory, count
        self.table: SensitivityTable = SensitivityTable.read(sensitivity)
        self.table.check_model(model_digest(manifest), str(sensitivity))
        model = open_skeleton(directory, manifest)
        constraints = Constraints(
            allowed=None if bits is None else parse_bits(bits),
            fixed=dict(_fixed(each) for each in fix),
            together=() if free else architecture_of(manifest.architecture).shared_input_groups(model),
        )
        costs = Costs.of(model, DTYPES[manifest.dtype])
        self.problem: Problem = Problem(self.table, costs, constraints, count, pairs=not additive)  # type: ignore[arg-type]


class PlanEvaluator:
    """The artifact's model, opened to measure plans on; `metric` is what is measured, of which lower is better."""

    def __init__(
        self,
        directory: str,
        data: str,
        samples: int | None,
        limits: tuple[int | None, int | None],
        sequence_length: int | None,
        device: str,
        dtype: str,
        report: Callable[[str, int, int | None], None],
    ) -> None:
        from quept.cli.opening import open_any
        from quept.evaluation.judges import DataOptions

        opened = open_any(directory, None, device, dtype)
        self.model, self.report, self.plans = opened.model, report, 0
        self._directory, self._data, self._length = directory, data, sequence_length
        self._samples = opened.task.search_samples if samples is None else samples
        options = DataOptions(sequence_length, max_tokens=limits[0], max_images=limits[1])
        self._judge = opened.task.judge(self.model, opened.processor, data, options)
        self.metric, self.amount = self._judge.metric, self._judge.amount

    def target(self) -> "SearchTarget":
        """The model with samples of the data."""
        from quept.cli.sensitivity import draw_samples
        from quept.search.target import search_target

        drawn = draw_samples(self.model, self._directory, self._data, self._samples, self._length, seed=0)
        return search_target(self.model, drawn)

    def quality(self, precision: Any) -> float:
        """The metric at a plan or width."""
        from quept.precision import at_precision

        self.plans += 1
        with at_precision(self.model, None), at_precision(self.model, precision):
            return self._judge.quality(self.model, f"plan {self.plans}", self.report)


def plan(
    task: Task,
    gauge: PlanEvaluator | None,
    average_bits: float | None,
    max_size: str | None,
    max_kl: float | None,
    max_perplexity: float | None,
    refine: int,
    output: Path,
    console: Console,
) -> dict[str, Any]:
    """One plan, written to `output`; returns what `--json` says of it."""
    from quept.search.budget import refined, smallest
    from quept.search.cost import Budget
    from quept.search.sensitivity import divergence_of

    problem, tried = task.problem, list[Any]()
    if average_bits is not None or max_size is not None:
        max_bytes = None if max_size is None else parse_size(max_size)
        budget = Budget(average_bits, max_bytes, task.count)  # type: ignore[arg-type]
        chosen = problem.solve(budget)
        if refine:
            assert gauge is not None
            report = gauge.report
            tried = refined(
                gauge.target(), problem, problem.limit(budget), refine, lambda done: report("rounds", done, refine)
            )
    else:
        assert gauge is not None
        if max_perplexity is not None and gauge.metric != "perplexity":
            raise InvalidInput("--max-perplexity is for models of language; for images use --max-kl or --front.")
        most = max_kl if max_kl is not None else max_perplexity
        assert most is not None
        target = gauge.target() if max_kl is not None else None
        tried = smallest(
            problem,
            (lambda each: divergence_of(target, each)) if target is not None else gauge.quality,
            most,
        )
    if tried:
        chosen = tried[-1].allocation
        metric = "perplexity" if max_perplexity is not None else "KL divergence"
        show_measured(tried, metric, console)
    chosen.plan.write(output)
    show(task, chosen, output, console)
    measured = [{**described(each.allocation), "measured": each.value} for each in tried]
    return {**described(chosen), "plan": chosen.plan.to_json(), "tried": measured}


def draw_front(task: Task, gauge: PlanEvaluator, output: Path, console: Console) -> dict[str, Any]:
    """A dozen budgets and the uniform widths, measured; table, JSON, plots and plans in the directory `output`."""
    from quept.cli.sensitivity import heat_map
    from quept.files import write_json as write
    from quept.plots import Front, FrontPoint, write_plot
    from quept.search.budget import Measurement, front

    problem = task.problem
    low, high = problem.least, problem.most
    steps = [low + (high - low) * step // (FRONT_BUDGETS - 1) for step in range(FRONT_BUDGETS)]
    full = gauge.quality(None)
    plans = front(problem, gauge.quality, steps)
    uniform = [Measurement(each, gauge.quality(each.plan)) for each in problem.uniform_plans()]
    result: dict[str, Any] = {"metric": gauge.metric, "full_precision": full, "plans": [], "uniform": []}
    for kind, points in (("plans", plans), ("uniform", uniform)):
        for each in points:
            result[kind].append({**described(each.allocation), "measured": each.value})
    for each in plans:
        each.allocation.plan.write(output / f"plan-{each.allocation.average_bits:.3f}.json")

    def drawn(points: "list[Measurement]", name: Callable[["Allocation"], str]) -> tuple[FrontPoint, ...]:
        return tuple(FrontPoint(name(each.allocation), each.allocation.bytes, each.value) for each in points)

    picture = Front(
        f"Plans of {task.directory}",
        gauge.metric,
        full,
        drawn(plans, lambda each: f"{each.average_bits:.3f} bits"),
        drawn(uniform, lambda each: f"uniform {each.mean_bits:g}"),
    )
    write(output / "front.json", result)
    written = ["front.json"]
    try:
        for suffix in (".html", ".png"):
            write_plot(picture, output / f"front{suffix}")
            write_plot(heat_map(task.table, task.directory), output / f"sensitivity{suffix}")
            written += [f"front{suffix}", f"sensitivity{suffix}"]
    except QueptError as error:  # plots need an extra; all else does not
        console.print(f"note: {error}")
    rows = [
        (f"{each.allocation.average_bits:.3f}", kind, size(each.allocation.bytes), figure(each.value))
        for kind, points in (("plan", plans), ("uniform", uniform))
        for each in points
    ]
    metric = gauge.metric[0].upper() + gauge.metric[1:]
    heading = f"{metric} of {task.directory} on {gauge.amount}; full precision {figure(full)}"
    show_table(console, heading, ("bits per weight", "kind", "packed size", gauge.metric), sorted(rows))
    console.print(f"Wrote {', '.join(written)} and {len(plans)} plans to {clean(str(output))}")
    return result


def described(allocation: "Allocation") -> dict[str, Any]:
    """A plan's figures for JSON."""
    return {
        "average_bits": allocation.average_bits,
        "mean_bits": allocation.mean_bits,
        "bytes": allocation.bytes,
        "expected_kl": allocation.expected,
    }


def show(task: Task, chosen: "Allocation", output: Path, console: Console) -> None:
    """What a plan takes, and how many linears have which width."""
    widths = [16 if bits is None else bits for bits in chosen.plan.bits.values()]
    rows = [(str(bits), str(widths.count(bits))) for bits in sorted(set(widths), key=str)]
    heading = (
        f"{chosen.average_bits:.3f} bits per weight (mean width {chosen.mean_bits:.2f}), packed model "
        f"{size(chosen.bytes)}, expected KL divergence {chosen.expected:.4g}"
    )
    show_table(console, heading, ("width", "linears"), rows)
    if chosen.excess:
        console.print(
            "note: more plans are nearly alike than can be told apart; another one may be better, by a divergence of "
            f"{chosen.excess:.2g} at most."
        )
    console.print(f"Wrote {output}. Next: quept evaluate {clean(task.directory)} --plan {output} --data TEXT")


def show_measured(tried: "Sequence[Measurement]", metric: str, console: Console) -> None:
    """The plans that were measured on the way, in order; the last is the answer."""
    rows = [(f"{each.allocation.average_bits:.3f}", size(each.allocation.bytes), f"{each.value:.5g}") for each in tried]
    show_table(console, "Plans that were measured; the last one is taken", ("bits", "packed size", metric), rows)


def _fixed(text: str) -> tuple[str, int]:
    pattern, _, bits = text.rpartition("=")
    if not pattern or not bits.isdecimal():
        raise InvalidInput(f"--fix {text!r} cannot be read; write a path or pattern and a width: 'model.layers.0.*=8'.")
    return pattern, int(bits)


def _make_directory(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise InvalidInput(f"--output {str(output)!r} is a file; with --front give a directory.")
    output.mkdir(parents=True, exist_ok=True)
