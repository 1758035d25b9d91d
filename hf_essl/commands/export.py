"""`hf-essl export RUN --format FORMAT`: the backbone in a format that others load."""

from hf_essl.commands.parser import Parser, output_folder


def run(argv: list[str]) -> None:
    from hf_essl.evaluation.backbone import PREFIXES
    from hf_essl.evaluation.pooling import POOLS
    from hf_essl.hub.formats import FORMATS, export

    formats = "\n".join(f"  {name:<12}{format.description}" for name, format in FORMATS.items())
    parser = Parser(
        "export",
        "Write the backbone of a run in a format that others load.",
        f"formats:\n{formats}\n\nEach is checked"
        " against PyTorch; a feature that differs by more than 1e-4 is an error.",
    )
    add = parser.add_argument
    add("source", metavar="RUN", help="folder of a run, a checkpoint or an exported backbone, or a Hub id")
    add("--format", required=True, choices=tuple(FORMATS), help="see below")
    add("--output", type=output_folder, default="exported", metavar="FOLDER", help="folder of the files [exported]")
    add("--which", choices=tuple(PREFIXES), default="student", help="which backbone of a checkpoint [student]")
    add("--backbone", metavar="NAME", help="timm's name, for a checkpoint without the recipe.yaml of its run")
    add("--resolution", type=int, metavar="PX", help="side of the images [the backbone's own]")
    add("--crop_pct", type=float, metavar="X", help="center crop, as a share of the short side [the backbone's own]")
    add("--pool", choices=tuple(POOLS), help="features of a ViT: class token, mean of the patches, both [its own]")
    add("--patches", action="store_true", help="a graph that returns the features of the patches, B x N x D")
    add("--overwrite", action="store_true", help="replace the file")
    done = export(**vars(parser.parse_args(argv)))
    print(
        f"wrote {done.path}: {done.dimensions} features at {done.resolution} px, {done.bytes / 1e6:,.1f} MB; "
        f"largest difference from PyTorch {done.difference:.2g}"
    )
