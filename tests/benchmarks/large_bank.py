"""Peak memory and seconds of kNN, RankMe and feature std on a million features of 2,048 dimensions, on one thread.

    python tests/benchmarks/large_bank.py [--rows 1000000] [--queries 1000] [--dtype float16] [--only knn rankme std]

The features are random numbers in memory. Peak memory is above that of the features themselves, read from
/proc/self/status; each measurement runs in its own process.
"""

import argparse
import multiprocessing
import time
from pathlib import Path

import torch

from hf_essl import knn_accuracy
from hf_essl.evaluation.metrics import feature_std, rankme

DIMENSIONS, CLASSES = 2048, 1000


def peak() -> float:
    """The largest resident memory so far, in GB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e6


def measure(name: str, rows: int, queries: int, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    features = torch.empty(rows, DIMENSIONS, dtype=dtype)
    for block in features.split(4096):
        block.copy_(torch.randn(len(block), DIMENSIONS))
    labels = torch.arange(rows) % CLASSES
    calls = {
        "knn": lambda: knn_accuracy(features, labels, features[:queries].clone(), labels[:queries]),
        "rankme": lambda: rankme(features),
        "std": lambda: feature_std(features).item(),
    }
    before, start = peak(), time.perf_counter()
    result = calls[name]()
    seconds = time.perf_counter() - start
    print(f"| {name} | {before:.1f} | {peak() - before:.1f} | {seconds:.0f} | {result:.4g} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--only", nargs="+", choices=("knn", "rankme", "std"), default=["knn", "rankme", "std"])
    options = parser.parse_args()
    print(f"{options.rows:,} x {DIMENSIONS:,} {options.dtype}, {options.queries:,} queries, one thread\n")
    print("| measurement | GB with the features | GB more at the peak | seconds | result |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for name in options.only:
        dtype = getattr(torch, options.dtype)
        process = multiprocessing.get_context("spawn").Process(
            target=measure, args=(name, options.rows, options.queries, dtype)
        )
        process.start()
        process.join()


if __name__ == "__main__":
    main()
