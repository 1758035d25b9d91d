"""The shortened quickstart on the lowest and the newest versions that pyproject.toml allows, from the built wheel.

    python tests/versions.py [--python 3.11 3.12] [--resolutions lowest-direct highest] [--folder FOLDER]

Needs `pip install uv`, the Pythons, and a package index; an environment takes about 5 GB and some minutes. It prints a
line for each environment and exits with 1 if a run fails.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHORT = "--max_train_samples 512 --max_eval_samples 200 --epochs 2 --use_cpu --report_to none --overwrite_output_dir"
SHOWN = "torch transformers accelerate datasets timm kornia numpy"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="+", default=[f"{sys.version_info.major}.{sys.version_info.minor}"])
    parser.add_argument("--resolutions", nargs="+", default=["lowest-direct", "highest"])
    parser.add_argument("--folder", help="keeps the environments here [a temporary folder]")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.folder or scratch)
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT)
        for python in options.python:
            for resolution in options.resolutions:
                found = tried(folder, python, resolution)
                failed |= "failed" in found
                print(f"Python {python}, {resolution}: {found}", flush=True)
    return int(failed)


def tried(folder: Path, python: str, resolution: str) -> str:
    """The versions of an environment, and what the quickstart in it has reached."""
    place, wanted = folder / f"{python}-{resolution}", folder / f"{python}-{resolution}.txt"
    compiled = ("--resolution", resolution, "--python-version", python, ROOT / "pyproject.toml", "-o", wanted)
    run("uv", "pip", "compile", "--quiet", *compiled)
    run("uv", "venv", "--quiet", "--clear", "--python", python, place)
    (wheel,) = folder.glob("hf_essl-*.whl")
    run("uv", "pip", "install", "--quiet", "--python", place, "-r", wanted)
    run("uv", "pip", "install", "--quiet", "--python", place, "--no-deps", wheel)
    code = (
        f"from importlib.metadata import version as v; print(*(n + ' ' + v(n) for n in '{SHOWN}'.split()), sep=', ')"
    )
    versions = run(place / "bin" / "python", "-c", code).strip()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [place / "bin" / "hf-essl", "pretrain", "quickstart", *SHORT.split()]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    lines = [line.strip() for line in (done.stdout if done.returncode == 0 else done.stderr).splitlines()]
    result = next((line for line in lines if line.startswith("kNN accuracy")), f"failed: {lines[-1:]}")
    return f"{versions}: {' '.join(result.split())}"


def run(*command: object) -> str:
    return subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
