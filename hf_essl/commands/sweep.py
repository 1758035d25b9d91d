"""`hf-essl sweep FILE`: runs every cell of a sweep and prints its table."""

import json
import os
from argparse import Namespace

import yaml
from accelerate import PartialState

from hf_essl.commands.parser import RecipeParser, add_launch_option


def run(argv: list[str]) -> None:
    """Runs the unfinished cells, resumes interrupted ones, and prints the table."""
    parser = _parser()
    options, overrides = parser.parse_known_args(argv)
    if options.metric_args is not None and options.metric is None:
        parser.error("--metric_args is given without --metric; name the metric that it is for")

    from hf_essl.commands.launch import join_slurm_step
    from hf_essl.sweep import load_sweep

    join_slurm_step(os.environ)
    environment = dict(os.environ)  # before load_sweep, whose TrainingArguments may set variables
    sweep = load_sweep(options.recipe, overrides, options.metric, options.metric_args, options.results)
    if options.accelerate_config and not options.table:
        _relaunch(options, overrides, environment)

    from hf_essl.common import write_text
    from hf_essl.pretrain import pretrain
    from hf_essl.reporting.recorded import write_results
    from hf_essl.sweep import run_sweep
    from hf_essl.sweep_cells import check_finished

    if options.table:
        check_finished(sweep.cells)
    else:
        run_sweep(sweep, pretrain, lambda text: print(text, flush=True), options.only)
    if not PartialState().is_main_process:
        return
    text = f"{sweep.title}\n\n{sweep.table()}\n\nmetric: {sweep.metric}\n"
    print(f"\n{text}")
    if results := sweep.finished_cells():
        written = write_results(sweep.folder / "results.json", results)
        print(f"wrote {write_text(sweep.folder / 'table.md', text)}, {written}")


def _parser() -> RecipeParser:
    parser = RecipeParser(
        "sweep",
        "Run every cell of a sweep and print its table; the same command resumes it.",
        named="path of a YAML sweep (with rows or grid), or the name of a packaged one, such as proof/methods",
    )
    add = parser.add_argument
    add("--table", action="store_true", help="only print the table of the finished cells")
    add("--only", nargs="+", default=[], metavar="TEXT", help="run only the cells with one of these in their name")
    add("--results", nargs="+", default=[], metavar="JSON", help="results.json of cells that ran elsewhere: finished")
    add("--metric", metavar="NAME", help="knn, online_probe, linear or finetune [that of the file]")
    add("--metric_args", metavar="YAML", type=_mapping, help='settings of the protocol, such as "{augment: true}"')
    add_launch_option(parser)
    return parser


def _relaunch(options: Namespace, overrides: list[str], environment: dict[str, str]) -> None:
    from hf_essl.commands.launch import find_config, launch_command, relaunch

    words = [options.recipe, *overrides]
    words += ["--only", *options.only] if options.only else []
    words += ["--results", *options.results] if options.results else []
    words += ["--metric", options.metric] if options.metric else []
    words += ["--metric_args", json.dumps(options.metric_args)] if options.metric_args else []
    relaunch(launch_command(find_config(options.accelerate_config), words, "sweep"), environment)


def _mapping(text: str) -> dict:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError from error
    if not isinstance(value, dict):
        raise ValueError
    return value
