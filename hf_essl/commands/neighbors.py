"""`hf-essl neighbors FEATURES`: the images that are nearest to some others, as a table and a picture."""

from pathlib import Path

from hf_essl.commands.parser import Parser, whole


def run(argv: list[str]) -> None:
    parser = Parser("neighbors", "Show the nearest neighbors of some images among those of `hf-essl embed`.")
    add = parser.add_argument
    add("features", metavar="FEATURES", help="parquet file of `hf-essl embed`")
    add("--images", metavar="IMAGES", help="where the images are now [where they were]")
    add("--query", nargs="+", metavar="PATH", help="the queries: paths, or names in the file [4, evenly spaced]")
    add("--neighbors", type=whole(1), default=5, metavar="N", help="neighbors of each query [5]")
    add("--output", default="neighbors.png", metavar="PNG", help="path of the picture [neighbors.png]")
    options = parser.parse_args(argv)

    from hf_essl.common import table
    from hf_essl.evaluation.search import Embeddings
    from hf_essl.reporting.figures import png_path
    from hf_essl.reporting.found import draw_found

    png_path(options.output)  # before the search
    found = Embeddings.read(options.features)
    matches = found.search(options.query or min(4, len(found.paths)), options.neighbors)
    rows = [
        [
            found.paths[match.query],
            *(f"{found.paths[n]} ({c:.3f})" for n, c in zip(match.neighbors, match.cosines, strict=True)),
        ]
        for match in matches
    ]
    print(table(["query", *(f"nearest {number}" for number in range(1, options.neighbors + 1))], rows))
    print(f"wrote {draw_found(found, matches, Path(options.output), options.images)}")
