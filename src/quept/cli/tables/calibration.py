"""The table and the progress of `quept calibrate`."""

from rich.console import Console

from quept.calibration import Report
from quept.cli.console import show_table
from quept.cli.progress import Display
from quept.storage.decisions import describe
from quept.storage.manifest import PredictionError


def show(report: Report, console: Console) -> None:
    """Print the blocks' mean errors at each bit-width, rounded and calibrated, and what is kept."""
    rows, manifest = [], report.manifest
    for bits in manifest.recipe.bits:
        errors = [error for error in manifest.block_errors if error.bits == bits]
        rounding = sum(error.rounding for error in errors) / len(errors)
        calibrated = sum(error.calibrated for error in errors) / len(errors)
        ratio = calibrated / rounding if rounding else 1.0
        predictions = next((each for each in manifest.prediction_errors if each.bits == bits), None)
        figures = (f"{rounding:.4g}", f"{calibrated:.4g}", f"{ratio:.2f}", predicted(predictions))
        rows.append((manifest.recipe.label(bits), *figures, describe(manifest.block_errors, bits)))
    title = "Errors against full precision on held-out samples: the blocks' mean, and KL divergence of the predictions"
    show_table(console, title, ("bits", "rounding", "calibrated", "ratio", "KL ratio", "kept"), rows)


def predicted(error: PredictionError | None) -> str:
    """Return the predictions' error relative to rounding's; `-` where an earlier version did not measure it."""
    return "-" if error is None or error.ratio is None else f"{error.ratio:.2f}"


class CalibrationDisplay:
    """Passes a calibration's progress on to a display, and keeps its notes."""

    def __init__(self, shown: Display) -> None:
        self.shown, self.notes = shown, list[str]()
        self._blocks = self._steps = self._block = self._done = 0
        self._stage = ""

    def stage(self, name: str) -> None:
        """Show the current stage; training changes between two with every step."""
        name = "training" if name in ("forward and backward", "optimizer") else name
        if name != self._stage:
            self._stage = name
            self._show("")

    def start(self, blocks: int, steps: int) -> None:
        """Take in the amount of work."""
        self._blocks, self._steps = blocks, steps
        self._show("")

    def step(self, block: int, step: int, loss: float) -> None:
        """Show one more step."""
        self._done = block * self._steps + step
        self._block = block  # until the next one's first step: what follows the last is still about this one
        self._show("read back" if loss != loss else f"loss {loss:.4g}")

    def note(self, text: str) -> None:
        """Keep and show a note."""
        self.notes.append(text)
        self.shown.note(text)

    def _show(self, detail: str) -> None:
        if not self._blocks:
            self.shown.show(self._stage)
            return
        label = f"block {self._block + 1}/{self._blocks}, {self._stage}"
        self.shown.show(label, self._done, self._blocks * self._steps, detail)
