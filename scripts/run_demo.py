#!/usr/bin/env python3
"""The whole road in one command: generate data, prepare stores, train, evaluate officially, write a report.

Each step is a command of longtail-det2, which is printed. What is finished is not done again; training that
was interrupted goes on from its last checkpoint.
"""

import argparse
import logging
import math
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
from longtail_det2.visualization.report import build_report
from longtail_det2.visualization.run_data import read_evaluation
from longtail_det2.visualization.style import duration

CONFIG = "shapes/faster_rcnn_tiny_sigmoid_shapes.yaml"
VALIDATION = "shapes_validation"
QUICK = {"images": 120, "validation_images": 60, "iterations": 40}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("output/demo"), metavar="DIR", help="default: output/demo")
    add("--config-file", default=CONFIG, metavar="FILE", help=f"YAML config (default: {CONFIG})")
    add("--iterations", type=int, metavar="N", help="training iterations (default: the config's)")
    add("--images", type=int, metavar="N", help="training images to generate (default: 3000)")
    add("--validation-images", type=int, metavar="N", help="default: 500")
    add("--seed", type=int, default=0, help="of the data and of the training (default: 0)")
    add("--quick", action="store_true", help="a few images and iterations: shows that it works, not how well")
    add("--force", action="store_true", help="start afresh: remove what is in --output from other options")
    add("opts", nargs=argparse.REMAINDER, help="config options for the training: KEY VALUE ...")
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
    started = time.perf_counter()
    try:
        state = open_demo(args)
        for name, commands in steps_of(args.output, state["options"]).items():
            if status := run_step(args.output, state, name, commands):
                return status
        report = write_report(args.output, state["seconds"])
    except (ConfigError, DataError) as error:
        return tell_error(error)
    print(f"\nall steps: {duration(time.perf_counter() - started)}\nreport: {report}")
    return 0


def open_demo(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options and the seconds of finished steps; --force removes what has other options.

    Raises:
        ConfigError: the folder holds something else and --force is not given.
    """
    defaults = QUICK if args.quick else {"images": 3000, "validation_images": 500, "iterations": None}
    options = {name: getattr(args, name) or value for name, value in defaults.items()}
    options |= {"seed": args.seed, "config_file": args.config_file, "opts": args.opts}
    file = args.output / "demo.json"
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
    if args.output.exists() and not file.is_file():
        raise ConfigError(f"{args.output} exists and is no demonstration; choose another --output")
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    state = {"options": options, "seconds": {}}
    write_json(file, state, indent=1)
    return state


def steps_of(output: Path, options: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Return the commands of each step."""
    data, run = output / "datasets/shapes", output / "run"
    files = data / "annotations"
    classes = ["--classes", f"{files}/class-descriptions.csv", "--hierarchy", f"{files}/hierarchy.json"]
    annotations = {
        split: [
            *("--boxes", f"{files}/{split}-annotations-bbox.csv"),
            *("--image-labels", f"{files}/{split}-human-imagelabels.csv", *classes),
        ]
        for split in ("train", "validation")
    }
    places = {
        split: ["--images", data / "images" / split, "--output", data / "stores" / split]
        for split in annotations
    }
    generate = ["--train-images", options["images"], "--validation-images", options["validation_images"]]
    train = ["--config-file", options["config_file"], "DATASETS.ROOT", output / "datasets", "OUTPUT_DIR", run]
    train += [] if options["iterations"] is None else ["SOLVER.MAX_ITER", options["iterations"]]
    commands = {
        "generate": [["shapes", "--output", data, "--seed", options["seed"], *generate, "--force"]],
        "prepare": [
            # For this few files a second process costs more than it saves.
            ["prepare", "openimages", *annotations[split], "--workers", 1, *places[split]]
            for split in annotations
        ],
        "train": [["train", "--resume", *train, "SEED", options["seed"], *options["opts"]]],
        "evaluate": [
            [
                "evaluate-openimages",
                *annotations["validation"],
                *("--predictions", run / "inference" / VALIDATION / "predictions.csv"),
                "--output",
                output / "official.json",
            ]
        ],
    }
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    for command in commands["generate"] + commands["prepare"]:
        command += quiet
    return {name: [[str(word) for word in one] for one in parts] for name, parts in commands.items()}


def run_step(output: Path, state: dict[str, Any], name: str, commands: list[list[str]]) -> int:
    """Run one step unless it is finished, print and remember its time; return the exit status."""
    if name in state["seconds"]:
        print(f"{name}: finished before, in {duration(state['seconds'][name])}", flush=True)
        return 0
    started = time.perf_counter()
    for words in commands:
        print(f"\n$ longtail-det2 {shlex.join(words)}", flush=True)
        if status := run_command(words):
            return status
    state["seconds"][name] = time.perf_counter() - started
    write_json(output / "demo.json", state, indent=1)
    print(f"{name}: {duration(state['seconds'][name])}", flush=True)
    return 0


def write_report(output: Path, seconds: dict[str, float]) -> Path:
    """Print the results and write the report.

    Raises:
        DataError: there are no results, or the official ones are not what the training's evaluator said.
    """
    evaluation = read_evaluation(output / "run", VALIDATION)
    if evaluation is None:
        raise DataError(f"{output}/run: the evaluation left no results.json; run with --force")
    official, trained = (read_json(output / "official.json")["mAP"], evaluation.summary["bbox"]["mAP50"])
    if not math.isclose(official or 0, trained or 0, abs_tol=1e-3):
        raise DataError(
            f"{output}: mAP@0.5 of the run ({trained}) is not that of its predictions.csv ({official}); "
            "run with --force"
        )
    print()
    for name, value in evaluation.summary["bbox"].items():
        counts = [one["train_images"] for one in evaluation.members(name)]
        group = name.partition("_")[2]
        label = {"": "all classes (official)", "expanded": "all, expanded predictions"}.get(group, group)
        images = (
            f"{len(counts):3} classes, {min(counts):,} to {max(counts):,} training images" if counts else ""
        )
        print(f"  {label:26} {100 * (value or 0):6.2f}   {images}")
    return build_report(
        output / "run",
        output / "report.html",
        train_store=output / "datasets/shapes/stores/train",
        val_store=output / "datasets/shapes/stores/validation",
        dataset=VALIDATION,
        title="Long-tailed shapes: the demonstration",
        steps=list(seconds.items()),
    )


if __name__ == "__main__":
    sys.exit(main())
