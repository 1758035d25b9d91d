"""One rank of the two-process resume test: a whole run beside one that was cut and resumed, for some methods."""

import sys
from pathlib import Path

import torch

from tests.helpers import small_trainer
from tests.test_trainer import StopAfter

SETTINGS = {
    "per_device_train_batch_size": 8,
    "num_train_epochs": 2,
    "warmup_epochs": 1,
    "learning_rate": 0.005,
    "sync_batchnorm": False,
    "online_probe": True,
}


def run(folder: Path, method: str) -> dict:
    whole = small_trainer(folder / method / "whole", method=method, **SETTINGS)
    whole.train()
    small_trainer(folder / method / "cut", method=method, callbacks=[StopAfter(8)], **SETTINGS).train()
    resumed = small_trainer(folder / method / "cut", method=method, **SETTINGS)
    torch.manual_seed(1234)
    resumed.train(resume_from_checkpoint=True)
    return {
        "world_size": whole.args.world_size,
        "wrapped": type(whole.model_wrapped).__name__,
        "steps": (whole.state.global_step, resumed.state.global_step),
        "whole": whole.model.state_dict(),
        "resumed": resumed.model.state_dict(),
        "whole_probe": whole.online_probe.state_dict(),
        "resumed_probe": resumed.online_probe.state_dict(),
        "knn": [e["eval_knn_accuracy"] for e in whole.state.log_history if "eval_knn_accuracy" in e],
    }


def main(folder: Path, methods: list[str]) -> None:
    found = {method: run(folder, method) for method in methods}
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
