"""`python -m quept.ops [--json]`: which kernels run here, and why the others do not."""

import argparse
import json
from collections.abc import Sequence

from quept.ops.cpu.extension import describe
from quept.ops.report import report, table


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m quept.ops", description="Show which kernels run here.")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    if parser.parse_args(arguments).json:
        print(json.dumps(report(), indent=2))
    else:
        print(f"{describe()}\n\n{table()}")


if __name__ == "__main__":
    main()
