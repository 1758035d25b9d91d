"""`hf-essl evaluate SOURCE --dataset D`: the accuracy of a trained backbone by kNN, linear probe or fine-tuning."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hf_essl.commands.parser import Parser

DATA = (
    "dataset dataset_config train_split eval_split eval_holdout image_column label_column cache cache_dir "
    "max_train_samples max_eval_samples"
).split()


def run(argv: list[str]) -> None:
    """Prints what is evaluated and the accuracy, and writes JSON where asked."""
    options = vars(_parser().parse_args(argv))
    output, protocol = options.pop("output"), options["protocol"]
    settings = _own_options(options)

    from accelerate import PartialState

    from hf_essl.common import write_text
    from hf_essl.config import DataArguments
    from hf_essl.evaluation.evaluate_backbone import evaluate_backbone
    from hf_essl.evaluation.protocols import PROTOCOLS

    data = DataArguments(**{name: options.pop(name) for name in DATA if options[name] is not None})
    options = {name: value for name, value in options.items() if name not in DATA}
    facts = evaluate_backbone(
        data=data, settings=settings, report=lambda line: print(line, file=sys.stderr, flush=True), **options
    )
    if PartialState().is_main_process:
        used = ", ".join(f"{name} {facts[name]}" for name in PROTOCOLS[protocol].settings)
        print(f"{PROTOCOLS[protocol].title} {facts['accuracy']:.2f} % ({used})")
        if output:
            print(f"wrote {write_text(Path(output), json.dumps(facts, indent=2))}")


def _parser() -> Parser:
    from hf_essl.evaluation.protocols import PROTOCOLS

    parser = Parser(
        "evaluate", "Evaluate a trained backbone. `accelerate launch -m hf_essl.cli evaluate …` shares it over GPUs."
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder of a run, a checkpoint or an exported backbone, or a Hub id")
    add("--dataset", required=True, help="photo-patches, a folder of images or of parquet files, or a Hub id")
    add("--protocol", choices=tuple(PROTOCOLS), default="knn", help="[knn]")
    add("--which", choices=("student", "teacher"), default="student", help="whose weights of a checkpoint [student]")
    add("--backbone", metavar="NAME", help="timm's name, for a checkpoint without the recipe.yaml of its run")
    add("--resolution", type=int, metavar="PX", help="side of the test images [the backbone's own]")
    add("--image_size", type=int, metavar="PX", help="side of the decoded images [the run's, or the resolution]")
    add("--output", metavar="JSON", help="write the result there as well")

    own = parser.add_argument_group("protocols")
    own.add_argument("--k", type=int, help="neighbours of knn [20]")
    own.add_argument("--temperature", type=float, help="of the votes of knn, exp(cosine / T) [0.07]")
    own.add_argument("--epochs", type=int, help="of linear [90, or as many as make 3,000 steps] and finetune [100]")
    own.add_argument("--learning_rate", type=float, help="of linear [0.8] and finetune [0.1, adamw 0.001]")
    own.add_argument("--augment", action="store_true", default=None, help="linear on crops and flips, anew each epoch")
    own.add_argument("--optimizer", choices=("sgd", "adamw"), help="of finetune [sgd]")

    images = parser.add_argument_group("images, as in a recipe")
    for name in ("dataset_config", "train_split", "eval_split", "image_column", "label_column"):
        images.add_argument(f"--{name}", metavar="NAME")
    images.add_argument("--eval_holdout", type=float, metavar="SHARE", help="of the training split, without another")
    images.add_argument("--cache", choices=("none", "memory", "disk", "device"), help="keep decoded images [none]")
    images.add_argument("--cache_dir", metavar="DIR", help="of cache disk [that of datasets]")
    images.add_argument("--max_train_samples", type=int, metavar="N", help="take N training images, drawn at random")
    images.add_argument("--max_eval_samples", type=int, metavar="N", help="evaluate on N images, evenly spaced")

    machine = parser.add_argument_group("machine")
    machine.add_argument("--batch_size", type=int, metavar="N", help="images a batch [256, finetune 128]")
    machine.add_argument("--num_workers", type=int, default=0, metavar="N", help="processes that load images [0]")
    machine.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), help="of the backbone [no]")
    machine.add_argument("--seed", type=int, default=0, help="of order, augmentation and drawn images [0]")
    return parser


def _own_options(options: dict) -> dict:
    """Takes out the options of the protocols, and refuses those that another one has."""
    from hf_essl.evaluation.protocols import PROTOCOLS

    protocol = options["protocol"]
    names = dict.fromkeys(name for known in PROTOCOLS.values() for name in known.settings)
    given = {name: value for name in names if (value := options.pop(name)) is not None}
    for name in given:
        if name not in PROTOCOLS[protocol].settings:
            takers = [other for other, known in PROTOCOLS.items() if name in known.settings]
            raise ValueError(
                f"--{name} is of protocol {' and '.join(takers)}, not of {protocol}, which takes "
                f"{', '.join(f'--{own}' for own in PROTOCOLS[protocol].settings)}; drop it, or set --protocol"
            )
    return given
