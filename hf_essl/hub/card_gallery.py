"""A folder of cards: one sub-folder per run, and an index whose numbers come from their metrics.json."""

import json
import shutil
from pathlib import Path

from PIL import Image

from hf_essl.common import table, write_text
from hf_essl.config.redact import without_paths
from hf_essl.evaluation.nearest import FILE as NEIGHBORS_AT_START
from hf_essl.hub.card import CARD, PICTURES
from hf_essl.reporting.compare import COLUMNS
from hf_essl.reporting.metrics import read_metrics

START, END = "<!-- index of runs -->", "<!-- end of the index -->"


def add_card(run: str | Path, folder: str | Path) -> Path:
    """Copies a run's card, pictures and numbers, but no weights, into a sub-folder, and returns the sub-folder.

    Raises ValueError for a run without a card.
    """
    backbone, target = Path(run) / "backbone", Path(folder) / Path(run).resolve().name
    if not (backbone / CARD).is_file():
        raise ValueError(f"{run} does not contain backbone/{CARD}; `hf-essl card {run}` writes it")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(backbone / CARD, target / CARD)
    for name in PICTURES:
        if (backbone / name).is_file():
            with Image.open(backbone / name) as image:  # 256 colors are a third of the size, for version control
                image.convert("RGB").quantize(256).save(target / name, optimize=True)
    for path in set(Path(run).glob("*.json")) - {Path(run) / NEIGHBORS_AT_START}:
        facts = without_paths(json.loads(path.read_text(encoding="utf-8")))
        write_text(target / path.name, json.dumps(facts, indent=2))
    return target


def write_index(folder: str | Path) -> Path:
    """Writes the table of all runs in a folder into its README.md, between two marks; other text stays.

    Raises ValueError for a folder without runs.
    """
    path = Path(folder) / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else "# Results and model cards\n"
    if START not in text or END not in text:
        text = f"{text.rstrip()}\n\n{START}{END}\n"
    before, after = text.split(START, 1)[0], text.split(END, 1)[1]
    return write_text(path, f"{before}{START}\n{_index(Path(folder))}\n{END}{after}")


def _index(folder: Path) -> str:
    """One row per run: its card, its main numbers, and the command that made it; a dash for what was not measured."""
    rows = []
    for place in sorted(path.parent for path in folder.glob("*/metrics.json")):
        metrics = read_metrics(place)
        numbers = ["–" if metrics.get(key) is None else f"{metrics[key]:{form}}" for _, key, form in COLUMNS]
        command = f"`{metrics['command']}`" if metrics.get("command") else "–"
        rows.append([f"[{place.name}]({place.name}/{CARD})", *numbers, metrics.get("device") or "–", command])
    if not rows:
        raise ValueError(
            f"{folder} has no sub-folder with a metrics.json; `hf-essl card RUN --into {folder}` adds one"
        )
    return table(("run", *(title for title, _, _ in COLUMNS), "hardware", "command"), rows)
