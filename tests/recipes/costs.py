"""What the packaged recipes and sweeps cost, for `hf-essl recipes`: `python -m tests.recipes.costs` writes it."""

import json

from hf_essl.config.packaged import COSTS, packaged
from hf_essl.reporting.costs import CostEstimator
from hf_essl.sweep_cells import load_cells
from tests.helpers import quickstart_teacher


def counted() -> dict[str, dict[str, float]]:
    """Runs and counted petaFLOPs of each recipe, four digits, by name."""
    estimator, found = CostEstimator(), {}
    for name, path in packaged().items():
        cells = load_cells(path)
        with quickstart_teacher():
            total = sum(estimator.estimate(cell.recipe)[1].counted_petaflops for cell in cells)
        found[name] = {"runs": len(cells), "petaflops": float(f"{total:.4g}")}
    return found


if __name__ == "__main__":
    lines = (f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in counted().items())
    COSTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
