"""The application: its commands, and how every failure leaves it.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

import sys

import typer

from quept import __version__
from quept.cli import allocate, bench, calibrate, demo, evaluate, generate, info, sensitivity
from quept.cli.console import fail
from quept.errors import QueptError

app = typer.Typer(
    name="quept",
    help="Calibrate a Transformer once; run it at every bit-width from 2 to 8.",
    epilog="Start with: quept demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    calibrate.calibrate,
    evaluate.evaluate,
    generate.generate,
    info.info,
    bench.bench,
    sensitivity.sensitivity,
    allocate.allocate,
    demo.demo,
)
for command in COMMANDS:
    app.command()(command)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"quept {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Options before any command."""


def main() -> None:
    """Run the command line; a failure is one paragraph on standard error, never a traceback."""
    try:
        app()
    except QueptError as error:
        sys.exit(fail(str(error), error.exit_code))
    except MemoryError:
        sys.exit(fail("Out of memory. Use fewer or shorter samples, a smaller --batch-size, or a smaller model.", 1))
    except OSError as error:
        sys.exit(fail(f"The operating system refused: {error}.", 1))
