"""`hf-essl evaluate SOURCE --dataset D`: the accuracy of a trained backbone by kNN, linear probe or fine-tuning."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_essl.commands.parser import Parser, output_file, whole
from hf_essl.commands.run_data import with_those_of_the_run
from hf_essl.common import write_text
from hf_essl.config import DataArguments
from hf_essl.config.fields import check_field, default_of, fields_of, hints_of, kinds
from hf_essl.evaluation.backbone import OF_THE_DATASET, PREFIXES
from hf_essl.evaluation.evaluate_backbone import evaluate_backbone
from hf_essl.evaluation.pooling import POOLS
from hf_essl.evaluation.protocols import PROTOCOLS

DATA = [name for name in fields_of(DataArguments) if name != "streaming"]  # evaluation needs a length
OTHER_DEFAULTS = {"dataset": None, "image_size": "the run's, or twice the resolution"}
OTHER_DEFAULTS |= {
    name: f"{default_of(DataArguments, name) or 'none'}; on the run's data set, the run's" for name in OF_THE_DATASET
}


def run(argv: list[str]) -> None:
    """Prints what is evaluated and the accuracy, and writes them as JSON with --output."""
    options = vars(_parser().parse_args(argv))
    output, protocol = options.pop("output"), PROTOCOLS[options["protocol"]]
    data = {name: check_field(DataArguments, name, value) for name, value in _pop_given(options, DATA).items()}
    data = with_those_of_the_run(options["source"], data)
    image_size = data.pop("image_size", None)
    facts = evaluate_backbone(
        data=DataArguments(**data),
        image_size=image_size,
        settings=_pop_given(options, _setting_names()),
        report=lambda line: print(line, file=sys.stderr, flush=True),
        **options,
    )
    if PartialState().is_main_process:
        settings = ", ".join(f"{name} {facts[name]}" for name in protocol.settings if facts[name] is not None)
        print(f"{facts['title']} {facts['accuracy']:.2f} % ({settings})")
        if output:
            print(f"wrote {write_text(Path(output), json.dumps(facts, indent=2))}")


def _parser() -> Parser:
    summary = "Evaluate a trained backbone; `accelerate launch -m hf_essl evaluate …` uses several GPUs."
    parser = Parser("evaluate", summary)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder of a run, a checkpoint or an exported backbone, or a Hub id")
    described = ", ".join(f"{name} ({protocol.description})" for name, protocol in PROTOCOLS.items())
    add("--protocol", choices=tuple(PROTOCOLS), default="knn", help=f"{described} [knn]")
    add("--which", choices=tuple(PREFIXES), default="student", help="which backbone of a checkpoint [student]")
    add("--backbone", metavar="NAME", help="timm's name, for a checkpoint without the recipe.yaml of its run")
    add("--resolution", type=int, metavar="PX", help="side of the test images [the backbone's own]")
    crop_help = (
        "center crop of the images, as a share of the short side; 1: the whole center square [the backbone's own]"
    )
    add("--crop_pct", type=float, metavar="X", help=crop_help)
    add("--pool", choices=tuple(POOLS), help="features of a ViT: class token, mean of the patches, both [its own]")
    sizes = ", ".join(f"{name} {protocol.batch_size}" for name, protocol in PROTOCOLS.items())
    add("--batch_size", type=int, metavar="N", help=f"images per batch [{sizes}]")
    add("--num_workers", type=whole(0), default=0, metavar="N", help="processes that load images [0]")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="precision of the backbone [no]")
    add("--seed", type=whole(0), default=0, help="seed of sampling, order and augmentation [0]")
    add("--output", type=output_file, metavar="JSON", help="also write the result to this file")
    settings = parser.add_argument_group("settings of the protocols")
    for name in _setting_names():
        owners = {f"{key}:": entry.settings_class for key, entry in PROTOCOLS.items() if name in entry.settings}
        _add_field(settings, name, owners)
    images = parser.add_argument_group("images, as in a recipe")
    for name in DATA:
        _add_field(images, name, {"": DataArguments})
    return parser


def _add_field(group: Any, name: str, owners: dict[str, type]) -> None:
    """Adds the flag of a field, with the help text and the default of each owner; its value is None if not given."""
    texts = []
    for owner, fields in owners.items():
        default = OTHER_DEFAULTS.get(name, default_of(fields, name))
        text = f"{owner} {fields_of(fields)[name].metadata['help']}".strip().replace("%", "%%")
        texts.append(text if default is None or default is False else f"{text} [{default}]")
    types = set().union(*(kinds(hints_of(fields)[name]) for fields in owners.values())) - {type(None)}
    kind: type = next((kind for kind in (bool, int, float) if types == {kind}), str)
    options: dict[str, Any] = {"type": kind, "metavar": {int: "N", float: "X"}.get(kind, "NAME")}
    if kind is bool:
        options = {"action": argparse.BooleanOptionalAction}
    group.add_argument(f"--{name}", help=" ".join(texts), required=name == "dataset", **options)


def _setting_names() -> list[str]:
    return list(dict.fromkeys(name for protocol in PROTOCOLS.values() for name in protocol.settings))


def _pop_given(options: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Removes these options; returns those that were given on the command line."""
    return {name: value for name in names if (value := options.pop(name)) is not None}
