#!/usr/bin/env python3
"""The whole road in one command: generate data, train, evaluate officially, write a report.

Each step is a command of longtail-det2, which is printed. What is finished is not done again; training that
was interrupted goes on from its last checkpoint.
"""

import argparse
import logging
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from longtail_det2.cli import main as run_command
from longtail_det2.utils.console import tell_error
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.io import read_json, write_json
from longtail_det2.visualization.report import build_report, duration

CONFIG = "shapes/faster_rcnn_tiny_sigmoid_shapes.yaml"
RESULTS = "run/inference/shapes_validation"
QUICK = {"images": 120, "validation_images": 60, "iterations": 40}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--output", type=Path, default=Path("output/demo"), metavar="DIR", help="default: output/demo")
    add("--iterations", type=int, metavar="N", help="training iterations (default: the config's)")
    add("--images", type=int, metavar="N", help="training images to generate (default: 3000)")
    add("--validation-images", type=int, metavar="N", help="default: 500")
    add("--seed", type=int, default=0, metavar="N", help="of the data and of the training (default: 0)")
    add("--quick", action="store_true", help="a few images and iterations: shows that it works, not how well")
    add("--force", action="store_true", help="start afresh: remove what is in --output from other options")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0, or 2 after an error that the user can mend."""
    args = build_parser().parse_args(arguments)
    # Detectron2 logs its environment, the whole config (it is in config.yaml) and the model.
    logging.getLogger("detectron2").addFilter(lambda record: "\n" not in record.getMessage())
    logging.getLogger("longtail_det2.engine.build").setLevel(logging.INFO)
    if "OMP_NUM_THREADS" not in os.environ:
        # The model is small. A second thread saves little, and costs much where other programs use the cores.
        torch.set_num_threads(1)
    started, output = time.perf_counter(), args.output
    try:
        state = open_demo(args)
        for name, words in commands_of(output, state["options"]).items():
            if status := run_step(output, state, name, words):
                return status
        report = build_report(
            output / "run",
            output / "report.html",
            train_store=output / "datasets/shapes/stores/train",
            val_store=output / "datasets/shapes/stores/validation",
            title="Long-tailed shapes: the demonstration",
            steps=list(state["seconds"].items()),
        )
    except (ConfigError, DataError) as error:
        return tell_error(error)
    print()
    for name, value in read_json(output / RESULTS / "results.json")["summary"]["bbox"].items():
        print(f"  {name:16}{100 * (value or 0):7.2f}")
    print(f"\nall steps: {duration(time.perf_counter() - started)}\nreport: {report}")
    return 0


def open_demo(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options and the seconds of finished steps; --force removes what has other options.

    Raises:
        ConfigError: the folder holds something else and --force is not given.
    """
    given = {key: value for key, value in vars(args).items() if key not in ("output", "quick", "force")}
    options = {key: QUICK[key] if args.quick and value is None else value for key, value in given.items()}
    file = args.output / "demo.json"
    if args.output.exists() and not file.is_file():
        raise ConfigError(f"{args.output} exists and is no demonstration; choose another --output")
    if file.is_file() and not args.force:
        state = read_json(file)
        old = state["options"]
        changed = [f"{key} {old.get(key)} -> {new}" for key, new in options.items() if old.get(key) != new]
        if changed:
            raise ConfigError(
                f"{args.output} holds a demonstration with other options ({', '.join(changed)}); use --force "
                "to replace it, or choose another --output"
            )
        return state
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    state = {"options": options, "seconds": {}}
    write_json(file, state, indent=1)
    return state


def commands_of(output: Path, options: dict[str, Any]) -> dict[str, list[str]]:
    """Return the command of each step."""
    data, notes = output / "datasets/shapes", output / "datasets/shapes/annotations"
    train = {"DATASETS.ROOT": output / "datasets", "OUTPUT_DIR": output / "run", "SEED": options["seed"]}
    commands = {
        "generate": [
            *("shapes", "--output", data, "--seed", options["seed"], "--stores"),
            *given(
                {"--train-images": options["images"], "--validation-images": options["validation_images"]}
            ),
            *([] if sys.stderr.isatty() else ["--quiet"]),
        ],
        "train": [
            *("train", "--resume", "--config-file", CONFIG),
            *given(train | {"SOLVER.MAX_ITER": options["iterations"]}),
        ],
        "evaluate": [
            *("evaluate-openimages", "--boxes", notes / "validation-annotations-bbox.csv"),
            *("--image-labels", notes / "validation-human-imagelabels.csv"),
            *("--classes", notes / "class-descriptions.csv", "--hierarchy", notes / "hierarchy.json"),
            *("--predictions", output / RESULTS / "predictions.csv", "--output", output / "official.json"),
        ],
    }
    return {name: [str(word) for word in words] for name, words in commands.items()}


def given(options: dict[str, Any]) -> list[Any]:
    """Return the words of the options that are not None."""
    return [word for pair in options.items() if pair[1] is not None for word in pair]


def run_step(output: Path, state: dict[str, Any], name: str, words: list[str]) -> int:
    """Run one step unless it is finished, print and remember its time; return the exit status."""
    if name in state["seconds"]:
        print(f"{name}: finished before, in {duration(state['seconds'][name])}", flush=True)
        return 0
    started = time.perf_counter()
    print(f"\n$ longtail-det2 {shlex.join(words)}", flush=True)
    if status := run_command(words):
        return status
    state["seconds"][name] = time.perf_counter() - started
    write_json(output / "demo.json", state, indent=1)
    print(f"{name}: {duration(state['seconds'][name])}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
