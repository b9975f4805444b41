"""`quept info`."""

from quept.cli.console import check_target, out, parse_size, write_json
from quept.cli.options import ArtifactDir, JsonFile, MemoryBudget, Quiet
from quept.cli.progress import display


def info(
    directory: ArtifactDir,
    memory_budget: MemoryBudget = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Show the contents of an artifact: bit-widths, sizes, block errors, where it came from.

    Beside the size of each bit-width stands the memory that its packed weights take while they are resident, and the
    last line says which are resident at once within [bold]--memory-budget[/], the lowest first.
    """
    check_target("--json", json_file)
    budget = parse_size(memory_budget)
    from quept import commands
    from quept.cli.tables.info import show

    with display(quiet, "opening the artifact"):
        found = commands.info(directory, memory_budget=budget)
    show(found, out(quiet, json_file))
    write_json(json_file, found.to_json())
