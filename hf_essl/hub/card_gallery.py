"""A folder of cards: one sub-folder a run, and an index table whose numbers come from their metrics.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hf_essl.files import write_text
from hf_essl.hub.card import CARD, PICTURES
from hf_essl.hub.card_facts import read_metrics
from hf_essl.hub.card_tables import Row, show, table
from hf_essl.hub.public import without_paths

START, END = "<!-- index of runs -->", "<!-- end of the index -->"
COLUMNS = (
    ("kNN (%)", "knn_accuracy", "{:.1f}"),
    ("random init (%)", "random_init_knn_accuracy", "{:.1f}"),
    ("petaFLOPs", "petaflops", "{:.4g}"),
    ("training (s)", "train_seconds", "{:.0f}"),
    ("speed-up, predicted", "predicted_speedup", "{:.2f}"),
    ("speed-up, measured", "measured_speedup", "{:.2f}"),
)


def add_card(run: str | Path, folder: str | Path) -> Path:
    """Copies a run's card, pictures, metrics and evaluations, without its weights, into a sub-folder; returns that.

    Raises ValueError where the run has no card yet.
    """
    run = Path(run)
    target = Path(folder) / run.resolve().name
    if not (run / "backbone" / CARD).is_file():
        raise ValueError(f"{run} holds no backbone/{CARD}; `hf-essl card {run}` writes it")
    target.mkdir(parents=True, exist_ok=True)
    for name in (CARD, *PICTURES):
        if (run / "backbone" / name).is_file():
            shutil.copyfile(run / "backbone" / name, target / name)
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
        numbers = [show(metrics, form, key) or "–" for _, key, form in COLUMNS]
        command = f"`{metrics['command']}`" if metrics.get("command") else "–"
        rows.append((f"[{place.name}]({place.name}/{CARD})", *numbers, metrics.get("device") or "–", command))
    if not rows:
        raise ValueError(f"{folder} holds no sub-folder with a metrics.json; `hf-essl card RUN --into` makes one")
    return table(("run", *(title for title, _, _ in COLUMNS), "hardware", "command"), rows)
