"""One rank of the two-process test: trains a small run and writes down what it saw."""

import json
import sys
from pathlib import Path

import torch

from hf_essl.recipe import Recipe
from tests.helpers import patches, small_trainer


def main(folder: Path) -> None:
    trainer = small_trainer(folder / "run", train=patches("train", 96), per_device_train_batch_size=8, max_steps=4)
    rank, seen, drawn = trainer.args.process_index, [], []
    choose_pair, render = trainer.choose_pair, trainer.render

    def watched_images(images, aspect=None):
        seen.extend(image.float().mean().item() for image in images)
        return choose_pair(images, aspect)

    def watched_choice(images, chosen):
        drawn.append(chosen.first.box.flatten().tolist())
        return render(images, chosen)

    trainer.choose_pair, trainer.render = watched_images, watched_choice
    trainer.train()
    facts = {
        "world_size": trainer.args.world_size,
        "wrapped": type(trainer.model_wrapped).__name__,
        "seen": seen,
        "drawn": drawn,
        "weights": torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).double().sum().item(),
        "total_flos": trainer.state.total_flos,
        "flops_of_an_image": [trainer.flop_counter.step(r).total for r in (32, 16, 24, 32)],
        "log": [{k: e[k] for k in ("loss", "resolution")} for e in trainer.state.log_history if "loss" in e],
        "knn": [e["eval_knn_accuracy"] for e in trainer.state.log_history if "eval_knn_accuracy" in e],
        "retrieval": [e["eval_retrieval"] for e in trainer.state.log_history if "eval_retrieval" in e],
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(facts))
    report(folder)


def report(folder: Path) -> None:
    """The report of a run whose selection compares losses, for which all processes must take part."""
    trainer = small_trainer(
        folder / "simclr", method="simclr", views={"selection_score": "loss"}, max_steps=2, ddp_timeout=60
    )
    trainer.train()
    trainer.report(Recipe.of(trainer.model.config, trainer.data_args, trainer.views.args, trainer.args, "patches"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
