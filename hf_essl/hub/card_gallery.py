"""A folder of cards: one sub-folder a run, and an index table whose numbers come from their metrics.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

from hf_essl.common import write_text
from hf_essl.config.redact import without_paths
from hf_essl.hub.card import CARD, PICTURES
from hf_essl.reporting.compare import COLUMNS
from hf_essl.reporting.markdown import Row, table
from hf_essl.reporting.metrics import read_metrics

START, END = "<!-- index of runs -->", "<!-- end of the index -->"


def add_card(run: str | Path, folder: str | Path) -> Path:
    """Copies a run's card, pictures, metrics and evaluations, without its weights, into a sub-folder; returns that.

    Raises ValueError where the run has no card yet.
    """
    run = Path(run)
    target = Path(folder) / run.resolve().name
    if not (run / "backbone" / CARD).is_file():
        raise ValueError(f"{run} holds no backbone/{CARD}; `hf-essl card {run}` writes it")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / "backbone" / CARD, target / CARD)
    for name in PICTURES:
        if (run / "backbone" / name).is_file():
            _copy_small(run / "backbone" / name, target / name)
    for path in run.glob("*.json"):
        facts = without_paths(json.loads(path.read_text(encoding="utf-8")))
        write_text(target / path.name, json.dumps(facts, indent=2))
    return target


def write_index(folder: str | Path) -> Path:
    """Writes the table of all runs below a folder into its README.md, between two marks; other text stays.

    Raises ValueError where there is no run.
    """
    folder = Path(folder)
    path = folder / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else "# Runs really made\n"
    block = f"{START}\n{index_table(folder)}\n{END}"
    if START in text and END in text:
        before, after = text.split(START, 1)[0], text.split(END, 1)[1]
        return write_text(path, f"{before}{block}{after}")
    return write_text(path, f"{text.rstrip()}\n\n{block}\n")


def index_table(folder: Path) -> str:
    """A row a run: its card, what made it, and its main numbers; what was not measured is a dash."""
    rows: list[Row] = []
    for place in sorted(path.parent for path in folder.glob("*/metrics.json")):
        metrics = read_metrics(place)
        numbers = ["–" if metrics.get(key) is None else f"{metrics[key]:{form}}" for _, key, form in COLUMNS]
        command = f"`{metrics['command']}`" if metrics.get("command") else "–"
        rows.append((f"[{place.name}]({place.name}/{CARD})", *numbers, metrics.get("device") or "–", command))
    if not rows:
        raise ValueError(f"{folder} holds no sub-folder with a metrics.json; `hf-essl card RUN --into` makes one")
    return table(("run", *(title for title, _, _ in COLUMNS), "hardware", "command"), rows)


def _copy_small(picture: Path, target: Path) -> None:
    """A copy in 256 colours, a third of the size: the gallery is kept under version control."""
    with Image.open(picture) as image:
        image.convert("RGB").quantize(256).save(target, optimize=True)
