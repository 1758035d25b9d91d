"""What the acceptance command measures: one function per stage, from `Setting` to figures for JSON."""

import json
import subprocess
import sys
import time
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_STD as IMAGENET_STD

from hf_essl.benchmark import benchmark
from hf_essl.budget import Budget, fit_budget
from hf_essl.common import write_text
from hf_essl.config import ViewArguments
from hf_essl.cost import FlopCounter, peak_flops
from hf_essl.data import load_images
from hf_essl.methods import METHODS, SSLModel
from hf_essl.pretrain import build_trainer, pretrain
from hf_essl.recipe import Recipe, load_recipe
from hf_essl.reporting.costs import CostEstimator, Priced, compare_costs
from hf_essl.selection import HardAugment
from hf_essl.training.step import endless
from hf_essl.views import Views

ROOT = Path(__file__).parents[2]
RESNET50 = ROOT / "recipes" / "imagenette" / "simsiam_resnet50_efficient.yaml"
RESNET18 = ROOT / "recipes" / "imagenette" / "simsiam_resnet18_cpu.yaml"
AT_128 = {
    "resolution": 128,
    "min_resolution": 64,
    "resolution_step": 16,
    "image_size": 144,
    "selection_resolution": 48,
}
SMALL = {"backbone": "test_resnet", "resolution": 48, "min_resolution": 32, "resolution_step": 16, "image_size": 48}
SMALL |= {"selection_resolution": 32, "num_views": 3, "per_device_train_batch_size": 16, "total_batch_size": "none"}
PLAIN = {"selection": "none", "num_views": 2, "resolution_schedule": "constant", "lr_schedule": "cosine"}
PLAIN |= {"warmup_epochs": 0}
SELECTION = ("candidates", "selection")  # the parts of a step that Hard Augment adds


@dataclass(frozen=True)
class Setting:
    """Where the images are, where to write, the seconds of the stage, and whether it is a rehearsal on a CPU."""

    images: str
    out: Path
    seconds: float
    stage: str

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def is_rehearsal(self) -> bool:
        return self.device.type == "cpu"

    def keep(self, found: dict[str, Any]) -> None:
        """Writes the figures so far; what a stage has when its time is over stays."""
        write_text(self.out / f"{self.stage}.json", json.dumps(found, indent=2))

    def recipe(self, path: Path, **fields: Any) -> Recipe:
        """A recipe on the images, in bfloat16 on a GPU and with a tiny network on a CPU."""
        common = {"dataset": self.images, "report_to": "none", "disable_tqdm": "true", "measure_speedup": "false"}
        common |= {"output_dir": self.out / "run", "overwrite_output_dir": "true", "eval_crop_pct": 1.0}
        plain = {key: value for key, value in fields.items() if key in PLAIN}
        if self.is_rehearsal:
            fields |= SMALL | {"max_train_samples": 64, "max_eval_samples": 64, "use_cpu": "true"}
        else:
            fields = {"bf16": "true"} | fields
        words = [word for key, value in (common | fields | plain).items() for word in (f"--{key}", str(value))]
        return load_recipe(path, words)


def tests(setting: Setting) -> dict[str, Any]:
    """The tests that need a GPU, except slow ones; on a CPU they are skipped."""
    report = setting.out / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "not slow"]
    command += ["--import-mode=importlib", f"--junitxml={report}", "tests/gpu/test_gpu.py"]
    done = subprocess.run(command, cwd=ROOT)  # into the stage's log
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}")
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    wrong = (case for case in suite.iter("testcase") if {"failure", "error"} & {part.tag for part in case})
    failed = [case.get("name") for case in wrong]
    return counts | {"failed": failed}


def equality(setting: Setting) -> dict[str, Any]:
    """The largest differences from the CPU: of views, and of each method's losses and gradients (relative)."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    images = torch.randint(0, 256, (16, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    views = Views(ViewArguments(resolution=64), seed=0)
    params = views.sample_all(images, (0, 1))
    there = [views.render_all(images.to(device), params).cpu() for device in ("cpu", setting.device)]
    found: dict[str, Any] = {"views": float((there[0] - there[1]).abs().max())}
    for name in METHODS:
        torch.manual_seed(0)
        model = SSLModel.from_timm("test_resnet", name, method_args=METHODS[name].small_args).train()
        sides = [_loss_and_gradient(model, there[0], device) for device in (torch.device("cpu"), setting.device)]
        (loss, gradient), (other, changed) = sides
        found[f"{name}_loss"] = float((loss - other).abs().max())
        found[f"{name}_gradient"] = float((gradient - changed).norm() / gradient.norm())
        setting.keep(found)
    return found | {"failed": [name for name, value in found.items() if not value <= _tolerance(name)]}


def _tolerance(name: str) -> float:
    """The largest difference between two devices that rounding explains; `not <=` also catches NaN."""
    if name == "views":
        return 2 / 255 / min(IMAGENET_STD)  # two gray values
    return 1e-3 if name.endswith("_loss") else 1e-2


def _loss_and_gradient(model: SSLModel, views: torch.Tensor, device: torch.device):
    model = model.to(device)
    model.zero_grad()
    torch.manual_seed(0)
    losses = model(*views.to(device))["loss"]
    losses.mean().backward()
    gradient = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
    return losses.detach().cpu(), gradient


def waits(setting: Setting) -> dict[str, Any]:
    """How often the parts of a step wait for the device; only the selection may, once, for the chosen pairs."""
    images = torch.randint(0, 256, (16, 3, 96, 96), dtype=torch.uint8).to(setting.device)
    found: dict[str, Any] = {}
    for name in METHODS:
        model = (
            SSLModel.from_timm("test_resnet", name, method_args=METHODS[name].small_args).to(setting.device).train()
        )
        args = ViewArguments(resolution=64, selection="hard", num_views=4, selection_resolution=32)
        augment = HardAugment(Views(args, seed=0))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def step(model=model, augment=augment, optimizer=optimizer):
            chosen = augment(model, images)
            yield "selection"
            views = chosen.render(augment.views, images)
            yield "views"
            model.before_step(0.5, 1.0)
            with torch.autocast(setting.device.type, torch.bfloat16):
                loss = model(**views)["loss"].mean()
            loss.backward()
            yield "forward and backward"
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            model.after_step()
            optimizer.zero_grad()
            yield "optimizer"

        list(step())  # compiles and allocates
        found |= {f"{name}: {part}": count for part, count in _count_waits(step, setting).items()}
        setting.keep(found)
    allowed = {name: 1 if name.endswith(": selection") else 0 for name in found}
    return found | {"failed": [name for name, count in found.items() if count is not None and count > allowed[name]]}


def _count_waits(step: Callable, setting: Setting) -> dict[str, int | None]:
    """Synchronizations by part of a step; None where there is no device to wait for."""
    counts: dict[str, int | None] = {}
    parts = step()
    while True:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if not setting.is_rehearsal:
                torch.cuda.set_sync_debug_mode("warn")
            part = next(parts, None)
            if not setting.is_rehearsal:
                torch.cuda.set_sync_debug_mode("default")
        if part is None:
            return counts
        seen = sum("called a synchronizing" in str(one.message) for one in caught)  # not the first use's own warning
        counts[part] = None if setting.is_rehearsal else seen


def resnet50(setting: Setting) -> dict[str, Any]:
    """ResNet-50 at 224 px in bf16, batch 256: each stage, and the efficient recipe over the plain one."""
    return _speeds(setting, RESNET50, {"per_device_train_batch_size": 256, "total_batch_size": 256})


def resnet18(setting: Setting) -> dict[str, Any]:
    """The same for ResNet-18 at 128 px."""
    return _speeds(setting, RESNET18, {**AT_128, "per_device_train_batch_size": 256, "total_batch_size": 256})


def compiled(setting: Setting) -> dict[str, Any]:
    """ResNet-18 at 128 px with and without `torch_compile`: images/s of the whole step at full resolution."""
    fields = {**AT_128, **PLAIN, "per_device_train_batch_size": 256, "total_batch_size": 256, **_few(setting)}
    found = {}
    for name in ("false", "true"):
        speeds = benchmark(setting.recipe(RESNET18, **fields, torch_compile=name), **_repeats(setting))
        found[f"compile {name}"] = speeds.images_per_second(speeds.stages[-1])["whole"]
        setting.keep(found)
    return found


def _few(setting: Setting) -> dict[str, Any]:
    return {"max_train_samples": 2048, "max_eval_samples": 64, "cache": "memory", "dataloader_num_workers": 0}


def _repeats(setting: Setting) -> dict[str, int]:
    return {"steps": 1, "rounds": 1} if setting.is_rehearsal else {"steps": 5, "rounds": 3}


def _speeds(setting: Setting, path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    efficient, plain = (setting.recipe(path, **fields, **_few(setting), **extra) for extra in ({}, PLAIN))
    if not setting.is_rehearsal:
        torch.cuda.reset_peak_memory_stats()
    speeds = benchmark(efficient, **_repeats(setting))
    model = efficient.build_model().to(efficient.training.device)
    counter, peak = FlopCounter.of(model, efficient.views), peak_flops(setting.device)
    stages = {}
    for stage in speeds.stages:
        rates, seconds = speeds.images_per_second(stage), stage.seconds
        flops = counter.step(stage.resolution, stage.tokens).total * rates["whole"]
        stages[f"{stage.resolution} px"] = {
            "images/s": rates["whole"],
            "of the bare network": stage.of_limit,
            "images/s, views alone": rates["views"],
            "Hard Augment's overhead": sum(seconds.get(part, 0) for part in SELECTION) / seconds["bare"],
            "model TFLOP/s": flops / 1e12,
            "MFU": None if peak is None else flops / peak,
        }
    setting.keep({"stages": stages})
    whole = benchmark(plain, **_repeats(setting))
    step = sum(stage.share * stage.seconds["whole"] for stage in speeds.stages)
    priced = compare_costs([Priced("efficient", efficient)], CostEstimator())[0]
    measured = whole.stages[-1].seconds["whole"] / step
    return {
        "stages": stages,
        "plain images/s": whole.images_per_second(whole.stages[-1])["whole"],
        "speed-up at equal epochs, measured": measured,
        "speed-up at equal epochs, predicted": priced.counted_speedup,
        "measured over predicted": measured / priced.counted_speedup,
        "GiB": None if setting.is_rehearsal else torch.cuda.max_memory_allocated() / 2**30,
    }


def feeding(setting: Setting) -> dict[str, Any]:
    """Images/s of the loader and the transfer alone, for each cache."""
    found = {}
    for cache in ("none", "memory", "device"):
        workers = 8 if cache == "none" and not setting.is_rehearsal else 0
        fields = {**AT_128, **_few(setting), "cache": cache, "dataloader_num_workers": workers}
        recipe = setting.recipe(RESNET18, **fields, per_device_train_batch_size=256, total_batch_size=256)
        trainer = build_trainer(recipe, load_images(recipe.data, recipe.training.device))
        batches, seen = endless(trainer.get_train_dataloader()), 0
        for _ in range(2 + 2 * workers):
            trainer.feed(next(batches))
        begin = time.perf_counter()
        while time.perf_counter() - begin < (0.5 if setting.is_rehearsal else 5):
            seen += len(trainer.feed(next(batches))["image"])
        if not setting.is_rehearsal:
            torch.cuda.synchronize()
        found[f"images/s, cache {cache}"] = seen / (time.perf_counter() - begin)
        setting.keep(found)
        batches.close()
    return found


def training(setting: Setting) -> dict[str, Any]:
    """SimSiam on ResNet-18 at 128 px by the efficient recipe for as many epochs as fit, with the kNN accuracy."""
    fields = {**AT_128, "num_views": 6, "per_device_train_batch_size": 256, "total_batch_size": 256}
    fields |= {"save_strategy": "no"}  # its budget counts no checkpoints
    recipe = setting.recipe(RESNET18, **fields, num_train_epochs=480, warmup_epochs=80, knn_every_epochs=0)
    budget = Budget.parse("1epochs" if setting.is_rehearsal else f"{0.9 * setting.seconds:.0f}s")
    recipe, images, _ = fit_budget(recipe, budget)
    metrics = pretrain(recipe, images)
    keys = ("epochs", "knn_accuracy", "random_init_knn_accuracy", "train_seconds", "images_per_second", "petaflops")
    return {key: metrics[key] for key in keys}


STAGES: dict[str, tuple[Callable[[Setting], dict[str, Any]], float]] = {
    "tests": (tests, 90),
    "equality": (equality, 40),
    "waits": (waits, 40),
    "resnet50": (resnet50, 140),
    "resnet18": (resnet18, 60),
    "feeding": (feeding, 60),
    "compiled": (compiled, 60),
    "training": (training, 0),
}
"""The most important first: what measures it, and its limit in seconds on a GPU; 0 is all the time that is left."""
