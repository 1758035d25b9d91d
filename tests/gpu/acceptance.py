"""Does it work on this GPU, and how fast: one command, its results written as they come.

    python -m tests.gpu.acceptance --images FOLDER --out DIR [--minutes 9] [--only STAGE …]

Needs one GPU, no network and no W&B. FOLDER is a dataset with a training and a validation split, such as parquet
files of Imagenette. Stages run, the most important first, each in its own process and with its own time limit; one
that fails or runs out of time does not stop the next. DIR then has report.json, report.md, report.png and each stage's
log.
Without a GPU, the same command is a rehearsal of the code with a tiny network: its figures mean nothing.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from hf_essl.common import write_text
from hf_essl.reporting.figures import BLUE, save_figure
from hf_essl.reporting.metrics import describe_device
from tests.gpu.stages import ROOT, STAGES, Setting

SHORTEST = 5.0  # seconds that a stage needs at least


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.acceptance", description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="dataset with a training and a validation split")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all stages together [9]")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES), help="stages to run [all]")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.stage:
        measure, _ = STAGES[options.stage]
        setting = Setting(options.images, options.out, 60 * options.minutes, options.stage)
        setting.keep(measure(setting))
        return 0
    return run_all(options)


def run_all(options: argparse.Namespace) -> int:
    """Runs the stages; 1 if one of them failed."""
    end = time.monotonic() + 60 * options.minutes
    report: dict[str, Any] = {"machine": machine(), "stages": {}}
    for name in options.only:
        left = end - time.monotonic()
        own = STAGES[name][1] if torch.cuda.is_available() else 0  # a CPU may be slow
        limit = min(own or left, left)
        report["stages"][name] = run_stage(name, options, limit) if limit > SHORTEST else {"state": "no time left"}
        write_report(report, options.out)
        print(f"{name}: {report['stages'][name]['state']}", flush=True)
    return int(any(stage["state"].startswith("failed") for stage in report["stages"].values()))


def machine() -> dict[str, str]:
    """The device and the versions."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    packages = ("torch", "torchvision", "transformers", "accelerate", "timm")
    return {
        "device": describe_device(device),
        "rehearsal": "no" if device.type == "cuda" else "yes, the figures mean nothing",
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def run_stage(name: str, options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """One stage in its own process: its state, seconds and figures."""
    command = [sys.executable, "-m", "tests.gpu.acceptance", "--stage", name, "--images", options.images]
    command += ["--out", str(options.out.resolve()), "--minutes", str(limit / 60)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    result, begin = options.out / f"{name}.json", time.monotonic()
    result.unlink(missing_ok=True)
    with (options.out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT, start_new_session=True)
        try:
            state = "done" if process.wait(limit) == 0 else f"failed, see {name}.log"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # also the processes that it has started
            process.wait()
            state = f"failed: not done in {limit:.0f} s"
    found = json.loads(result.read_text()) if result.exists() else {}
    if found.get("failed") and state == "done":
        state = f"failed: {', '.join(found['failed'])}"
    return {"state": state, "seconds": round(time.monotonic() - begin, 1), "found": found}


def write_report(report: dict[str, Any], out: Path) -> None:
    """report.json, report.md and report.png, of the stages so far."""
    write_text(out / "report.json", json.dumps(report, indent=2))
    write_text(out / "report.md", markdown(report))
    draw(report, out / "report.png")


def markdown(report: dict[str, Any]) -> str:
    """The report as text: the machine, then a section for each stage."""
    lines = ["# Acceptance on " + report["machine"]["device"], ""]
    lines += [f"- {name}: {value}" for name, value in report["machine"].items() if name != "device"]
    for name, stage in report["stages"].items():
        summary = STAGES[name][0].__doc__.splitlines()[0]
        lines += ["", f"## {name}", "", f"{summary} **{stage['state']}**, {stage.get('seconds', 0)} s", ""]
        lines += [f"- {key}: {value}" for key, value in flatten(stage.get("found", {})).items()]
    return "\n".join(lines) + "\n"


def flatten(found: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested figures in one level, rounded."""
    flat: dict[str, str] = {}
    for key, value in found.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}: ")
        else:
            flat[prefix + key] = "not measured" if value is None else f"{value:.4g}" if _real(value) else str(value)
    return flat


def _real(value: Any) -> bool:
    return isinstance(value, float)


def draw(report: dict[str, Any], path: Path) -> Path:
    """Images/s of each stage of both networks as bars, under the share of the bare network's speed."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(f"{report['machine']['device']} · rehearsal: {report['machine']['rehearsal']}", fontsize=10)
    for axis, name in zip(figure.subplots(1, 2), ("resnet50", "resnet18"), strict=True):
        found = report["stages"].get(name, {}).get("found", {})
        stages = found.get("stages", {})
        rates = [stage["images/s"] for stage in stages.values()]
        shares = [f"{stage['of the bare network']:.0%}" for stage in stages.values()]
        bars = axis.bar(list(stages), rates, color=BLUE)
        axis.bar_label(bars, shares, fontsize=9, padding=2)
        axis.margins(y=0.15)
        axis.set_ylabel("images/s")
        speedup = found.get("measured over predicted")
        text = "" if speedup is None else f": measured over predicted speed-up {speedup:.2f}"
        axis.set_title((name if stages else f"{name}: not measured") + text, fontsize=10)
    return save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
