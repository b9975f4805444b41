"""quept: one calibration for every width; the artifact is the output.

With `--leave`, the linears at these paths are not quantized, in any block: quept beside a peer that refuses them.
"""

import json

from exchange import arguments, measured, read_windows
from transformers import AutoConfig, AutoTokenizer

import quept
from quept.models import Architecture, architecture_of


def without(model: str, leave: list[str]) -> Architecture:
    """The model's architecture, with the linears in `leave`, paths in the model, out of every block."""
    architecture = architecture_of(AutoConfig.from_pretrained(model, local_files_only=True).model_type)
    left = {path.removeprefix(f"{architecture.blocks}.").partition(".")[2] for path in leave}
    return architecture.with_linears(path for path in architecture.linears if path not in left)


def main() -> None:
    chosen = arguments(__doc__)
    tokenizer = AutoTokenizer.from_pretrained(chosen.model, local_files_only=True)
    windows = read_windows(chosen.windows)
    artifact = chosen.output / "artifact"
    architecture = without(chosen.model, chosen.leave)
    result, report = measured(
        lambda: quept.calibrate(chosen.model, artifact, data=windows, tokenizer=tokenizer, architecture=architecture)
    )
    settings = result.manifest.recipe.reconstruction
    steps = settings.epochs * (windows.shape[0] // settings.batch_size)
    report |= {"recipe": result.manifest.recipe.name, "steps": steps, "phases": result.seconds}
    (chosen.output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
