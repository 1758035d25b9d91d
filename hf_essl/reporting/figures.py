"""What all pictures share, and the picture of the views."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from hf_essl.config import ViewArguments
from hf_essl.schedules import Curriculum
from hf_essl.storage import try_folder
from hf_essl.views.tiles import PADDING, tile_side, tile_views

RED, BLUE, GREY, DARK = "#c0392b", "#2471a3", "#7f8c8d", "#404040"
PALETTE = (RED, BLUE, "#229954", "#af7ac5", "#d68910", "#17a2b8", "#5d4037")

Pairs = Sequence[tuple[int, int]]  # two columns of views for each image
PICKED_BY = {"start": "the untrained", "end": "the trained"}


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a PNG next to its destination, then moves it there, so that readers never see half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as scratch:
        figure.savefig(Path(scratch) / path.name, format="png", dpi=120)
        os.replace(Path(scratch) / path.name, path)
    return path


def png_path(path: str | Path) -> Path:
    """The path of a picture, before it is made. Raises ValueError if it is not a PNG or cannot be written."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"output is {path}, which is a folder; name the picture, such as {path / 'picture.png'}")
    if path.suffix.lower() != ".png":
        raise ValueError(f"output is {path}; the picture is a PNG, name it {path.with_suffix('.png')}")
    try:
        try_folder(path.parent)  # one new folder, but no chain of them: a longer one is a typing mistake
    except OSError as error:
        raise ValueError(f"output is {path}, but {path.parent} cannot be written: {error.strerror}") from None
    return path


def draw_views(
    images: Tensor,
    args: ViewArguments,
    curriculum: Curriculum,
    path: str | Path,
    columns: int = 6,
    seed: int = 0,
    aspect: Tensor | None = None,
    chosen: Mapping[str, Pairs | None] | None = None,
    patches: Callable[[int], int] | None = None,
) -> Path:
    """Draws augmented views at the start, the middle and the end of the curriculum, next to their originals.

    Args:
        images: uint8 N x 3 x S x S, one row each.
        columns: views of each image.
        aspect: N, width / height of the whole images; by default they are squares.
        chosen: by stage, the two views of each image that train, which are framed; see `shown_pairs`.
        patches: the patch tokens of a view by its resolution; those that a ViT drops are gray.
    """
    tiles = columns + args.local_views + 1
    figure = Figure(figsize=(1.35 * tiles, 1.35 * len(images) * 3 + 1.2), layout="constrained")
    stages = {"start": 0.0, "middle": 0.5, "end": 1.0}
    for axis, (name, progress) in zip(figure.subplots(3, 1), stages.items(), strict=True):
        size, magnitude = curriculum.size(progress), curriculum.magnitude(progress)
        count = patches(size.resolution) if patches is not None and size.tokens < 1 else None
        seen = (aspect, size.tokens, count)
        axis.imshow(tile_views(images, args, size.resolution, magnitude, columns, seed, *seen))
        pairs = (chosen or {}).get(name) or []
        framed = f"\nframed: the pair that {PICKED_BY[name]} network picks" if pairs else ""
        beside = args.local_size(size.resolution)
        local = f", {beside} px for the last {args.local_views}" if args.local_views else ""
        title = f"{name}: {size}{local}, magnitude {magnitude:.2f}; originals left{framed}"
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
        _frame(axis, pairs, tile_side(images))
    return save_figure(figure, path)


def _frame(axis: Axes, pairs: Pairs, side: int) -> None:
    """Frames two views of each row of `tile_views`, whose first column are the originals.

    A frame lies inside its tile: one around it would also touch the tiles beside it.
    """
    step, inset = side + PADDING, side / 48
    for row, pair in enumerate(pairs):
        for view in pair:
            corner = (PADDING + (view + 1) * step + inset - 0.5, PADDING + row * step + inset - 0.5)
            size = side - 2 * inset
            axis.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=RED, linewidth=3.5))
