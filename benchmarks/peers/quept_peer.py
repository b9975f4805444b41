"""quept: one calibration for every width; the artifact is the output."""

import json

from exchange import arguments, measured, read_windows
from transformers import AutoTokenizer

import quept


def main() -> None:
    chosen = arguments(__doc__)
    tokenizer = AutoTokenizer.from_pretrained(chosen.model, local_files_only=True)
    windows = read_windows(chosen.windows)
    artifact = chosen.output / "artifact"
    work = lambda: quept.calibrate(chosen.model, artifact, data=windows, tokenizer=tokenizer)  # noqa: E731
    result, report = measured(work)
    settings = result.manifest.recipe.reconstruction
    steps = settings.epochs * (windows.shape[0] // settings.batch_size)
    report |= {"recipe": result.manifest.recipe.name, "steps": steps, "phases": result.seconds}
    (chosen.output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
