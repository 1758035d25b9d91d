"""The fault campaign: `python tests/faults.py [--quick] [--blocks kills caches …]` prints what was tried and held.

Each block is a module `tests/fault_NAME.py` whose `run(count)` returns (tried, held); a fault that did not hold prints
a line to stderr. A fault holds if nothing is lost and nothing false: the run resumes bit for bit, or one line says why
not.
"""

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCKS = {  # name: (what is tried, how often, how often with --quick); kills come first, they fork a fresh process
    "kills": ("kill -9, also inside a save, 1 and 2 processes", 60, 7),
    "checkpoints": ("damaged checkpoints", 60, 12),
    "caches": ("damaged disk caches", 20, 6),
    "resumes": ("resumes with another setting", 40, 9),
    "storage": ("disks that fail", 12, 4),
    "inputs": ("drawn inputs", 10_000, 200),
    "alarms": ("sabotaged and healthy runs", 60, 6),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Runs the fault campaign.")
    parser.add_argument("--blocks", nargs="+", choices=BLOCKS, default=list(BLOCKS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a few faults of each block")
    options = parser.parse_args(argv)
    print(f"{'block':<50}{'tried':>8}{'held':>8}{'seconds':>9}", flush=True)
    fell_short = False
    for name, (title, full, quick) in BLOCKS.items():
        if name not in options.blocks or not (ROOT / "tests" / f"fault_{name}.py").exists():
            continue
        start = time.perf_counter()
        tried, held = importlib.import_module(f"tests.fault_{name}").run(quick if options.quick else full)
        print(f"{title:<50}{tried:>8,}{held:>8,}{time.perf_counter() - start:>9.0f}", flush=True)
        fell_short |= held < tried
    return int(fell_short)


if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", WANDB_MODE="offline", HF_HUB_OFFLINE="1", MPLBACKEND="Agg")
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
