"""Plan a bit-width for each linear within a budget, and run the plan.

python examples/plan.py
"""

import tempfile
from pathlib import Path

import quept
from quept import builtin
from quept.evaluation.judges import DataOptions

with tempfile.TemporaryDirectory() as folder:
    artifact, table = Path(folder, "elastic"), Path(folder, "table.json")
    text, short = builtin.calibration_text_path(), {"samples": 32, "sequence_length": 64, "epochs": 1}
    quept.calibrate(builtin.model_path(), artifact, data=text, bits="2,4,8", **short)

    # Once for an artifact: the cost of each linear at each bit-width.
    quept.sensitivity(artifact, text, table, samples=4, sequence_length=64)

    # As often as wanted, in a fraction of a second: the best plan within a budget.
    plan = quept.allocate(artifact, table, average_bits=3.5)
    print(f"{plan.average_bits:.2f} bits per weight, {plan.bytes:,} bytes, expected divergence {plan.expected:.3g}")
    plan.plan.write(Path(folder, "plan.json"))

    # A plan is JSON: paths or patterns, of which the last that names a linear counts.
    model = quept.load(artifact, quept.PrecisionPlan.read(Path(folder, "plan.json")))
    chosen = quept.precision_of(model).bits
    print({bits: list(chosen.values()).count(bits) for bits in sorted(set(chosen.values()), key=str)})

    tokens = DataOptions(max_tokens=4096)
    found = quept.evaluate(
        artifact, builtin.test_text_path(), plans=[f"{folder}/plan.json"], bits="2,4", options=tokens
    )
    for each in found.results:
        print(f"{Path(each.precision).name:10} perplexity {each.perplexity:.3f}, {each.bytes:,} bytes")
