"""`hf-essl recipes`: lists the recipes that come with the package."""

import shutil
import textwrap

from hf_essl.commands.parser import Parser

GPU, CPU = 50e12, 0.12e12  # FLOP/s that a run sustains on one GPU (assumed) and on two cores (as the quickstart did)
TITLE = 20  # characters of a title, at least


def run(argv: list[str]) -> None:
    parser = Parser("recipes", "List the packaged recipes; `hf-essl pretrain NAME` runs one, from any folder.")
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="only recipes whose name or title has all these words"
    )
    parser.add_argument("--show", metavar="NAME", help="print a recipe instead: its header has cost and results")
    options = parser.parse_args(argv)

    from hf_essl.config.packaged import costs, find_recipe, first_line, packaged

    if options.show:
        print(find_recipe(options.show).read_text(encoding="utf-8"), end="")
        return
    found = {name: first_line(path) for name, path in packaged().items()}
    found = {n: t for n, t in found.items() if all(word.lower() in f"{n} {t}".lower() for word in options.words)}
    if not found:
        raise ValueError(f"no packaged recipe has the words {' '.join(options.words)}; `hf-essl recipes` lists all")
    width, known = max(map(len, found)), costs()
    header = f"{'recipe':<{width}} {'runs':>4} {'petaFLOPs':>9} {'one GPU':>9} {'2 cores':>9}"
    print(header)
    for name, title in found.items():
        cells = ["-"] * 4  # of a recipe that is not ours
        if name in known:
            petaflops = known[name]["petaflops"]
            times = [_time(1e15 * petaflops / speed) for speed in (GPU, CPU)]
            cells = [str(known[name]["runs"]), _petaflops(petaflops), *times]
        shown = " ".join(f"{cell:>{size}}" for cell, size in zip(cells, (4, 9, 9, 9), strict=True))
        print(f"{name:<{width}} {shown}{_title(title, len(header))}".rstrip())
    print(
        f"\ntimes are arithmetic, not measured: counted petaFLOPs at {GPU / 1e12:g} TFLOP/s on one GPU and at "
        f"{CPU / 1e12:g} on two cores"
    )


def _title(title: str, used: int) -> str:
    """The title, as far as the terminal has room for it."""
    room = shutil.get_terminal_size().columns - used - 2
    return "  " + textwrap.shorten(title, room, placeholder=" …") if room >= TITLE else ""


def _petaflops(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _time(seconds: float) -> str:
    """`< 1 min`, `3 min`, `5 h` or `12 days`, rounded; small networks do not reach the FLOP/s that it assumes."""
    if seconds < 60:
        return "< 1 min"
    for unit, length, limit in (("min", 60, 90 * 60), ("h", 3600, 72 * 3600)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:,.0f} days"
