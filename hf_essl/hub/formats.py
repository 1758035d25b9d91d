"""A trained backbone in a format that others load; every file is checked against PyTorch before it is kept."""

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hf_essl.common import one_line, unknown
from hf_essl.evaluation.backbone import LoadedBackbone, load_backbone
from hf_essl.evaluation.patches import PatchFeatures, check_pool
from hf_essl.hub.export import export_backbone
from hf_essl.run_folder import WEIGHTS

LARGEST_DIFFERENCE = 1e-4  # of a feature, between the written file and PyTorch
CHECKED_BATCHES = (1, 3)  # neither is the size of the traced batch
TRACED_BATCH = 2  # torch.export treats sizes 0 and 1 as constants
ONE_FILE = 1.9e9  # bytes of weights; ONNX puts more than 2 GB into a file of their own
PREPROCESSING = "preprocessing.json"
INPUT, OUTPUT = "pixel_values", "features"

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """How a format is written and read.

    description: one line for help. file: the name of its file. write: a backbone into a folder.
    read: the network of such a folder, float32 B x 3 x r x r to B x D. packages: what it needs beside torch.
    is_graph: whether it holds the operations of the network, and so can return other features.
    """

    description: str
    file: str
    write: Callable[[LoadedBackbone, Path], None]
    read: Callable[[Path], Network]
    packages: tuple[str, ...] = ()
    is_graph: bool = True


@dataclass(frozen=True)
class Exported:
    """What `export` has written. difference: the largest of a feature between the file and PyTorch."""

    path: Path
    bytes: int
    resolution: int
    dimensions: int
    difference: float


def export(
    source: str | Path,
    format: str,
    output: str | Path,
    *,
    which: str = "student",
    backbone: str | None = None,
    resolution: int | None = None,
    crop_pct: float | None = None,
    pool: str | None = None,
    patches: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Writes a backbone and its preprocessing into a folder; each file is moved there after the check.

    Args:
        source, which, backbone, resolution, crop_pct, pool: see `load_backbone`.
        format: one of `FORMATS`.
        output: the folder.
        patches: the graph returns the features of the patches, B x N x D (see `PatchFeatures`).
        overwrite: replace the file of this format.

    Raises ValueError in one line: for an unknown format, missing packages, a file that exists, a network that the
    format cannot express, and features that differ from PyTorch's by more than 1e-4.
    """
    if format not in FORMATS:
        raise ValueError(unknown("format", format, FORMATS))
    chosen, output = FORMATS[format], Path(output)
    _check_packages(format)
    if (output / chosen.file).exists() and not overwrite:
        raise ValueError(f"output {output / chosen.file} exists; choose another --output, or replace it: --overwrite")
    check_pool(pool, patches)
    loaded = load_backbone(source, which=which, backbone=backbone, resolution=resolution, crop_pct=crop_pct, pool=pool)
    if patches and not chosen.is_graph:
        raise ValueError(f"patches is given with format {format}, which holds the whole network; leave out --patches")
    if patches:
        loaded = loaded._replace(backbone=PatchFeatures(loaded.network, loaded.resolution), pool=None)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as name:
        scratch = Path(name) / "files"
        scratch.mkdir()
        difference, dimensions = _write_checked(loaded, format, scratch, source)
        size = sum(file.stat().st_size for file in scratch.iterdir())
        output.mkdir(exist_ok=True)
        for file in scratch.iterdir():
            os.replace(file, output / file.name)
    return Exported(output / chosen.file, size, loaded.resolution, dimensions, difference)


def _write_checked(loaded: LoadedBackbone, format: str, folder: Path, source: str | Path) -> tuple[float, int]:
    """Writes the files of a format; returns their largest difference from PyTorch, and the features' D."""
    with _explained(f"{source} cannot be exported as {format}"):
        FORMATS[format].write(loaded, folder)
        difference, dimensions = _largest_difference(loaded, FORMATS[format].read(folder))
    if not difference <= LARGEST_DIFFERENCE:  # NaN too
        raise ValueError(
            f"features of the {format} file differ from PyTorch's by {difference:.2g}, above "
            f"{LARGEST_DIFFERENCE:g}; nothing is written, choose another --format"
        )
    return difference, dimensions


def _check_packages(format: str) -> None:
    packages = FORMATS[format].packages
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"format {format} needs {', '.join(missing)}; run `pip install {' '.join(packages)}`")


@contextmanager
def _explained(problem: str) -> Iterator[None]:
    """Turns an error into one line; torch's exporters raise errors of many types, of up to hundreds of lines."""
    try:
        yield
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"{problem}: {one_line(first or error)}; choose another --format") from error


@torch.inference_mode()
def _largest_difference(loaded: LoadedBackbone, network: Network) -> tuple[float, int]:
    """Of a feature between the network and PyTorch, over noise in batches of several sizes; and the features' D."""
    generator, size = torch.Generator().manual_seed(0), loaded.resolution
    differences = []
    for batch in CHECKED_BATCHES:
        images = torch.randn(batch, 3, size, size, generator=generator)
        expected = loaded.backbone(images)
        found = network(images)
        if found.shape != expected.shape:
            raise ValueError(f"features have shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
        differences.append((found - expected).abs().max())
    return float(torch.stack(differences).max()), expected.shape[-1]  # Tensor.max keeps NaN, Python's max may not


def _write_safetensors(loaded: LoadedBackbone, folder: Path) -> None:
    export_backbone(
        loaded.network,
        folder,
        input_size=loaded.resolution,
        crop_pct=loaded.crop_pct,
        interpolation=loaded.interpolation,  # type: ignore[arg-type]  # that of its configuration
        pool=loaded.pool,
    )


def _read_safetensors(folder: Path) -> Network:
    return load_backbone(folder).backbone


def _traced(loaded: LoadedBackbone) -> torch.export.ExportedProgram:
    """The network as a graph for any batch size, at one resolution."""
    images = torch.zeros(TRACED_BATCH, 3, loaded.resolution, loaded.resolution)
    free = ({0: torch.export.Dim("batch", min=1)},)
    with torch.no_grad():
        return torch.export.export(loaded.backbone, (images,), dynamic_shapes=free)


def _write_torch(loaded: LoadedBackbone, folder: Path) -> None:
    torch.export.save(_traced(loaded), folder / FORMATS["torch"].file)
    _write_preprocessing(loaded, folder)


def _read_torch(folder: Path) -> Network:
    return torch.export.load(folder / FORMATS["torch"].file).module()


def _write_onnx(loaded: LoadedBackbone, folder: Path) -> None:
    weights = sum(value.numel() * value.element_size() for value in loaded.backbone.state_dict().values())
    torch.onnx.export(
        _traced(loaded),
        f=folder / FORMATS["onnx"].file,
        input_names=[INPUT],
        output_names=[OUTPUT],
        external_data=weights > ONE_FILE,
        verbose=False,
    )
    _write_preprocessing(loaded, folder)


def _read_onnx(folder: Path) -> Network:
    import onnxruntime  # optional

    session = onnxruntime.InferenceSession(folder / FORMATS["onnx"].file, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _write_preprocessing(loaded: LoadedBackbone, folder: Path) -> None:
    """What timm's `create_transform` takes, for formats that contain only the network."""
    size = loaded.resolution
    facts = {
        "input_size": [3, size, size],
        "interpolation": loaded.interpolation,
        "mean": list(loaded.mean),
        "std": list(loaded.std),
        "crop_pct": loaded.crop_pct,
    }
    facts |= {} if loaded.pool is None else {"pool": loaded.pool}
    (folder / PREPROCESSING).write_text(json.dumps(facts, indent=2))


FORMATS = {
    "safetensors": Format(
        "weights and configuration, for timm and transformers",
        WEIGHTS,
        _write_safetensors,
        _read_safetensors,
        is_graph=False,
    ),
    "torch": Format("a graph for torch.export.load, which needs torch alone", "model.pt2", _write_torch, _read_torch),
    "onnx": Format(
        "a graph for ONNX Runtime, with free batch size",
        "model.onnx",
        _write_onnx,
        _read_onnx,
        ("onnx", "onnxscript", "onnxruntime"),
    ),
}
