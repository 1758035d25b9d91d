"""The paper's printed costs and speed-ups against what comes out of the recipes: no figure of ours is typed in.

A figure agrees if it is within 2 % of the printed one, or rounds to it. The others are in NOT_EXPLAINED, and must stay
unexplained: a change that explains one has to remove it there.
"""

from pathlib import Path

import pytest

from hf_essl.reporting.costs import CostEstimator, compare_costs
from hf_essl.sweep import cells_to_price

RECIPES = Path(__file__).parents[1] / "recipes"
PRINTED = {
    # table: {(files), (column of the row), printed by row}
    "Table 1, ResNet-18, pF": ("imagenet/simsiam_resnet18_baseline", {"simsiam_resnet18_baseline": 3756}),
    "Table 1, ResNet-50, pF": ("imagenet/simsiam_resnet50_baseline", {"simsiam_resnet50_baseline": 8494}),
    "Table 2, SimSiam, pF": ("imagenette/simsiam_resnet50_baseline", {"simsiam_resnet50_baseline": 248}),
    "Table 2, BYOL, pF": ("imagenette/byol_resnet50_baseline", {"byol_resnet50_baseline": 371}),
    "Table 2, SimCLR, pF": ("imagenette/simclr_resnet50_baseline", {"simclr_resnet50_baseline": 247}),
    "Table 2, MoCov2+, pF": ("imagenette/mocov2_resnet50_baseline", {"mocov2_resnet50_baseline": 371}),
    "Table 2, DINO, pF": ("imagenette/dino_resnet50_baseline", {"dino_resnet50_baseline": 372}),
    "Table 3": (
        "ablations/table3_components",
        {"ca": 1.0, "f1": 1.7, "ca_hard": 1.8, "f1_progressive": 2.7, "f1_hard": 1.5, "f1_progressive_hard": 2.4},
    ),
    "Table 6": ("ablations/table6_min_resolution", {"full": 1.0, "r128": 1.40, "r96": 1.60, "r64": 1.82}),
    "Table 8": (
        "ablations/table8_positives",
        {"num_views4": 5.4, "num_views5": 6.8, "num_views6": 8.2, "num_views8": 10.9},
    ),
}
SPEEDUPS = {
    ("Table 1, ResNet-18", "imagenet/simsiam_resnet18"): 2.3,
    ("Table 1, ResNet-50", "imagenet/simsiam_resnet50"): 2.3,
    ("Table 2, SimSiam", "imagenette/simsiam_resnet50"): 2.3,
    ("Table 2, BYOL", "imagenette/byol_resnet50"): 2.7,
    ("Table 2, SimCLR", "imagenette/simclr_resnet50"): 2.3,
    ("Table 2, MoCov2+", "imagenette/mocov2_resnet50"): 2.7,
    ("Table 2, DINO", "imagenette/dino_resnet50"): 2.4,
}
NOT_EXPLAINED = {
    "Table 1, ResNet-18": "120 of 200 epochs at these settings save more than is printed",
    "Table 1, ResNet-50": "the same",
    "Table 2, SimSiam": "the run of Table 3's last row, which prints 2.4",
    "Table 2, SimCLR": "the same cost as SimSiam's",
    "Table 2, BYOL": "a teacher's forward pass shrinks with the resolution as everything else does",
    "Table 2, MoCov2+": "the same",
}


@pytest.fixture(scope="module")
def estimator():
    return CostEstimator()


def rows(estimator, *files):
    priced = cells_to_price([str(RECIPES / f"{file}.yaml") for file in files], ["--use_cpu"])
    return {row.name: row for row in compare_costs(priced, estimator)}


def agrees(value, printed):
    decimals = len(str(printed).split(".")[1]) if isinstance(printed, float) else 0
    return abs(value / printed - 1) <= 0.02 or round(value, decimals) == printed


@pytest.mark.slow
@pytest.mark.parametrize("table", PRINTED)
def test_the_printed_figures_come_out_of_the_recipes(table, estimator):
    file, printed = PRINTED[table]
    found = rows(estimator, file)
    assert found.keys() == printed.keys()
    for name, expected in printed.items():
        row = found[name]
        if table.endswith("pF"):
            value = row.cost.paper_petaflops
        else:
            value = row.cost.paper_selection_overhead if table == "Table 8" else row.paper_speedup
        assert agrees(value, expected), f"{table}, {name}: {value:.3f}, printed {expected}"


@pytest.mark.slow
@pytest.mark.parametrize(("table", "stem"), SPEEDUPS)
def test_the_printed_speedups_come_out_of_the_recipes_or_are_listed(table, stem, estimator):
    efficient = rows(estimator, f"{stem}_efficient")[f"{Path(stem).name}_efficient"]
    agreed = agrees(efficient.paper_speedup, SPEEDUPS[table, stem])
    assert agreed == (table not in NOT_EXPLAINED), f"{table}: {efficient.paper_speedup:.3f}"
