"""Memory, open files and threads over 200 epochs of a tiny run: `python tests/benchmarks/leaks.py [--epochs 200]`."""

import argparse
import sys
import tempfile
from pathlib import Path

import psutil
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.helpers import small_trainer


class Watch(TrainerCallback):
    """Prints what the process holds every `every` epochs."""

    def __init__(self, every: int):
        self.every, self.process = every, psutil.Process()

    def on_epoch_end(self, args, state, control, **kwargs):
        if (epoch := round(state.epoch)) % self.every == 0:
            held = self.process.memory_info().rss / 1e6, self.process.num_fds(), self.process.num_threads()
            print("epoch {:>4}: {:.0f} MB, {} files, {} threads".format(epoch, *held), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--method", default="byol")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"save_strategy": "epoch", "save_total_limit": 1, "knn_every_epochs": 5, "warmup_epochs": 3}
        watch = Watch(max(options.epochs // 10, 1))
        run = {"num_train_epochs": options.epochs, "dataloader_num_workers": 1, **settings}
        small_trainer(Path(folder) / "run", method=options.method, callbacks=[watch], **run).train()


if __name__ == "__main__":
    main()
