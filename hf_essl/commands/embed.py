"""`hf-essl embed BACKBONE IMAGES`: the features of every image, in one parquet file."""

from hf_essl.commands.parser import Parser, output_file, whole
from hf_essl.evaluation.backbone import PREFIXES
from hf_essl.evaluation.pooling import POOLS

NAMED = 10  # unreadable images that are named
DATA = ("dataset", "dataset_config", "image_column", "label_column", "white_level")  # of `DataArguments`


def run(argv: list[str]) -> None:
    options = vars(_parser().parse_args(argv))
    from hf_essl.commands.run_data import with_those_of_the_run
    from hf_essl.config import DataArguments
    from hf_essl.evaluation.embed import embed

    given = {name: value for name in DATA if (value := options.pop(name)) is not None}
    data = with_those_of_the_run(options["source"], given)
    done = embed(options.pop("source"), DataArguments(**data), options.pop("output"), **options)
    if done.unreadable:
        images = "1 image has" if len(done.unreadable) == 1 else f"{len(done.unreadable):,} images have"
        print(f"{images} no row, unreadable: {_shown(done.unreadable)}")
    rate = f", {done.computed / done.seconds:,.0f} images/s" if done.computed else ""
    each = " per patch" if options["patches"] else ""
    print(f"wrote {done.path}: {done.rows:,} rows of {done.dimensions} features{each}{rate}")


def _parser() -> Parser:
    parser = Parser(
        "embed",
        "Write the features of every image of a dataset into a parquet file, with the columns path, split (of\n"
        "several), label and class (if known) and embedding. The same command continues after an interruption.",
    )
    add = parser.add_argument
    add("source", metavar="BACKBONE", help="folder of a run, a checkpoint or an exported backbone, or a Hub id")
    add("dataset", metavar="IMAGES", help="a folder of images or of parquet files, a parquet file, or a Hub id")
    add(
        "--output",
        type=output_file,
        default="features.parquet",
        metavar="FILE",
        help="the parquet file [features.parquet]",
    )
    add("--which", choices=tuple(PREFIXES), default="student", help="which backbone of a checkpoint [student]")
    add("--backbone", metavar="NAME", help="timm's name, for a checkpoint without the recipe.yaml of its run")
    add("--resolution", type=whole(1), metavar="PX", help="side of the images [the backbone's own]")
    add("--crop_pct", type=float, metavar="X", help="center crop, as a share of the short side [the backbone's own]")
    add("--pool", choices=tuple(POOLS), help="features of a ViT: class token, mean of the patches, both [its own]")
    add("--image_size", type=whole(1), metavar="PX", help="side of the decoded images [that of the backbone's run]")
    add("--dataset_config", metavar="NAME", help="configuration (subset) of a Hub dataset")
    add("--image_column", metavar="NAME", help="column of the images [image; on the run's data set, the run's]")
    add("--label_column", metavar="NAME", help="column of the labels [label; on the run's data set, the run's]")
    add("--white_level", type=float, metavar="X", help="white of images of more than 8 bits [the run's, or 65535]")
    add("--batch_size", type=whole(1), default=256, metavar="N", help="images per batch [256]")
    add("--num_workers", type=whole(0), default=0, metavar="N", help="processes that load images [0]")
    add("--patches", action="store_true", help="features of the patches, N x D per image, instead of one vector")
    add("--overwrite", action="store_true", help="replace the file, and parts with other settings")
    return parser


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
