"""`quept allocate`."""

from typing import Any

from quept.cli import plan_options as options
from quept.cli.console import check_target, out, parse_size, write_json
from quept.cli.options import ArtifactDir, Device, JsonFile, ModelDtype, Quiet, WindowTokens
from quept.cli.plan_goal import check_goal, make_directory, read_fixed
from quept.cli.progress import display


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
    unmeasured: options.Unmeasured = False,
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
    [bold]--front[/]. A plan for one of the first two is measured beside every uniform bit-width within the budget, on
    the table's data or [bold]--data[/], and the best of these is the answer. Run the plan with [bold]--plan[/] of
    [bold]quept evaluate[/] and [bold]quept generate[/], or quept.set_precision in Python; it is JSON, to be edited.
    """
    goal: dict[str, Any] = {"average_bits": average_bits, "max_bytes": parse_size(max_size)}
    goal |= {"max_kl": max_kl, "max_perplexity": max_perplexity}
    measuring = check_goal(goal, front, refine, data) or not unmeasured
    check_target("--json", json_file)
    make_directory(output) if front else check_target("--output", output)
    from quept import commands
    from quept.cli.plan_output import write
    from quept.evaluation.judges import DataOptions

    rules: dict[str, Any] = {"bits": bits, "count": count, "free": free, "pairs": not additive}
    rules["fixed"] = read_fixed(fix)
    how: dict[str, Any] = {"samples": samples, "device": device, "dtype": dtype}
    how["options"] = DataOptions(sequence_length, max_tokens=max_tokens, max_images=max_images)
    evaluator = None
    found: commands.FoundPlan | commands.PlanFront
    with display(quiet, "opening the model and the data" if measuring else "planning") as shown:
        if measuring:
            commands.open_problem(directory, sensitivity, commands.PlanOptions(**rules))  # wrong input is told first
            how |= {"progress": shown.show, "note": shown.note}
            evaluator = commands.table_evaluator(directory, sensitivity, data, **how)
        if front and evaluator is not None:
            found = commands.plan_front(directory, sensitivity, evaluator, **rules)
        else:
            goal |= {"refine": refine, "evaluator": evaluator, "measured": evaluator is not None, "note": shown.note}
            found = commands.allocate(directory, sensitivity, **goal, **rules)
    metric = "KL divergence" if max_perplexity is None else "perplexity"
    write(found, directory, metric, output, out(quiet, json_file))
    write_json(json_file, found.to_json())
