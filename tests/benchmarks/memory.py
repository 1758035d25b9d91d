"""Memory of a training from `cache: disk`, by the number of its images.

    python tests/benchmarks/memory.py [--images 200000] [--small 2000] [--image_size 64] [--epochs 1]

Each number of images trains in its own process, from a cache that another process has built, for as many steps as the
larger set needs for its epochs. After every step it reads from /proc/self/status what the process uses: RssAnon,
allocated memory; RssFile, mapped pages of files, which belong to libraries; VmRSS, their sum. The system's page cache
does not count: it keeps what has been read until the memory is needed. The script compares the largest values of the
last nine tenths of each run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from hf_essl.config import DataArguments, SSLTrainingArguments, ViewArguments
from hf_essl.data import as_images
from hf_essl.methods import SSLModel
from hf_essl.trainer import SSLTrainer


class Synthetic(torch.utils.data.Dataset):
    """Noise images, each seeded by its index."""

    def __init__(self, count, size):
        self.count, self.size, self.fingerprint = count, size, f"synthetic {count} {size}"

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, self.size, self.size), dtype=torch.uint8, generator=generator)


class Watch(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        self.seen.append(
            {name[:-1]: int(rest[0]) / 1024 for name, *rest in lines if name.startswith(("VmRSS", "Rss"))}
        )


def load(options, count):
    args = DataArguments(image_size=options.image_size, cache="disk", cache_dir=options.folder)
    return as_images(Synthetic(count, options.image_size), args)


def train(options, count):
    torch.manual_seed(0)
    watch = Watch()
    trainer = SSLTrainer(
        SSLModel.from_timm("test_resnet", method_args={"projector_dim": 64, "predictor_hidden": 32}),
        SSLTrainingArguments(
            output_dir=str(Path(options.folder) / "run"),
            per_device_train_batch_size=options.batch_size,
            max_steps=round(options.epochs * options.images) // options.batch_size,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        load(options, count),
        as_images(Synthetic(256, options.image_size), DataArguments(image_size=options.image_size, cache="memory")),
        bank_dataset=as_images(Synthetic(256, options.image_size), DataArguments(image_size=options.image_size)),
        view_args=ViewArguments(resolution=options.resolution),
        callbacks=[watch],
    )
    trainer.train()
    late = watch.seen[len(watch.seen) // 10 :]
    return {"steps": len(watch.seen)} | {name: round(max(one[name] for one in late)) for name in late[0]}


def measured(options, what, count):
    flags = [f"--{name}={value}" for name, value in vars(options).items() if name != "what"]
    start = time.perf_counter()
    words = [sys.executable, __file__, what, str(count), *flags]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": round(time.perf_counter() - start)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help=argparse.SUPPRESS)
    integers = {"images": 200_000, "small": 2_000, "image_size": 64, "batch_size": 64, "resolution": 32}
    for name, default in integers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--folder")
    options = parser.parse_args()
    if options.what:
        what, count = options.what[0], int(options.what[1])
        print(json.dumps(train(options, count) if what == "train" else {"images": len(load(options, count))}))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        options.folder = folder
        found = []
        for count in (options.small, options.images):
            built = measured(options, "build", count)
            found.append({"build_seconds": built["seconds"], **measured(options, "train", count)})
            print(json.dumps({"images": count, "MB": found[-1]}), flush=True)
    small, large = found
    print(json.dumps({"grown_MB": {name: large[name] - small[name] for name in ("RssAnon", "RssFile", "VmRSS")}}))


if __name__ == "__main__":
    main()
