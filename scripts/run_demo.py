#!/usr/bin/env python3
"""The whole road in one command: generate data, prepare stores, train, evaluate officially, write a report.

Each step is the library function behind the script of the same purpose (generate_shapes.py,
prepare_openimages.py, train_net.py, evaluate_open_images.py, make_report.py). What is finished is not done
again; training that was interrupted goes on from its last checkpoint.
"""

import argparse
import json
import logging
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from longtail_det2.cli.run import USER_ERROR, parse_args
from longtail_det2.data.datasets.openimages import prepare_openimages
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.open_images_csv import read_classes
from longtail_det2.engine.trainer import main as train_main
from longtail_det2.evaluation.openimages_io import read_detections, read_ground_truth
from longtail_det2.evaluation.openimages_metric import evaluate_detections, expand_ground_truth
from longtail_det2.shapes import ShapesOptions, generate_shapes
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.io import atomic_writer
from longtail_det2.visualization.report import build_report
from longtail_det2.visualization.run_data import Evaluation, read_evaluation
from longtail_det2.visualization.style import duration

CONFIG = "shapes/faster_rcnn_tiny_sigmoid_shapes.yaml"
TRAIN, VALIDATION = "shapes_train", "shapes_validation"
SPLITS = ("train", "validation")
STATE_FILE = "demo.json"
QUICK = {"images": 120, "validation_images": 60, "iterations": 40}
Result = TypeVar("Result")


@dataclass
class Demo:
    """Folders of a demonstration and what is known about its steps.

    Attributes:
        output: folder of everything.
        options: what decides about the content of data and run.
        overrides: further config options, KEY VALUE ...
        seconds: time of each finished step.
    """

    output: Path
    options: dict[str, Any]
    overrides: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """Folder of the built-in data sets, as DATASETS.ROOT takes it."""
        return self.output / "datasets"

    @property
    def data(self) -> Path:
        """The generated data set."""
        return self.root / "shapes"

    @property
    def run(self) -> Path:
        """OUTPUT_DIR of the training."""
        return self.output / "run"

    @property
    def evaluation(self) -> Path:
        """Folder of the evaluation's results."""
        return self.run / "inference" / VALIDATION

    def store(self, split: str) -> Path:
        """The annotation store of a split."""
        return self.data / "stores" / split

    def annotations(self, split: str) -> dict[str, Path]:
        """The annotation files of a split."""
        folder = self.data / "annotations"
        return {
            "boxes": folder / f"{split}-annotations-bbox.csv",
            "image_labels": folder / f"{split}-human-imagelabels.csv",
            "classes": folder / "class-descriptions.csv",
            "hierarchy": folder / "hierarchy.json",
        }


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
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    args = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="torch.meshgrid")  # of Detectron2's anchors
    started = time.perf_counter()
    try:
        demo = open_demo(args)
        report = run_steps(demo, args.force)
        print_results(demo)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    print(f"\nall steps: {duration(time.perf_counter() - started)}\nreport: {report}")
    return 0


def open_demo(args: argparse.Namespace) -> Demo:
    """Folders and options; with `--force` what was made with other options is removed.

    Raises:
        ConfigError: the folder holds a demonstration with other options and `--force` is not given.
    """
    given = {name: getattr(args, name) for name in QUICK}
    defaults = QUICK if args.quick else {"images": 3000, "validation_images": 500, "iterations": None}
    options = {name: defaults[name] if value is None else value for name, value in given.items()}
    options.update(seed=args.seed, config_file=args.config_file, opts=list(args.opts))
    demo = Demo(args.output, options, list(args.opts))
    try:
        state = json.loads((args.output / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        state = {}
    if state.get("options") == options and not args.force:
        demo.seconds = dict(state.get("seconds", {}))
        return demo
    if state and not args.force:
        old = state.get("options", {})
        changed = [
            f"{name} {old.get(name)} -> {value}" for name, value in options.items() if old.get(name) != value
        ]
        raise ConfigError(
            f"{args.output} holds a demonstration with other options ({', '.join(changed)}); "
            "use --force to replace it, or choose another --output"
        )
    if demo.run.exists():
        if not state and not args.force:
            raise ConfigError(f"{demo.run} exists and was not made by this script; choose another --output")
        shutil.rmtree(demo.run)
    save_state(demo)
    return demo


def save_state(demo: Demo) -> None:
    """Remembers options and times."""
    demo.output.mkdir(parents=True, exist_ok=True)
    with atomic_writer(demo.output / STATE_FILE) as stream:
        json.dump({"options": demo.options, "seconds": demo.seconds}, stream, indent=1)


def run_steps(demo: Demo, force: bool) -> Path:
    """Runs what is not done yet; returns the report."""
    steps = 5
    step(demo, f"1/{steps}", "generate", lambda: generate(demo, force))
    step(demo, f"2/{steps}", "prepare", lambda: prepare(demo))
    step(demo, f"3/{steps}", "train", lambda: train(demo))
    step(demo, f"4/{steps}", "evaluate", lambda: evaluate(demo))
    return step(demo, f"5/{steps}", "report", lambda: report(demo))


def step(demo: Demo, number: str, name: str, work: Callable[[], Result]) -> Result:
    """Runs one step, prints and remembers its time."""
    print(f"[{number}] {name}", flush=True)
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    reused = name in demo.seconds and seconds < 0.5 * demo.seconds[name]
    if not reused:
        demo.seconds[name] = seconds
        save_state(demo)
    before = f" (finished before, in {duration(demo.seconds[name])})" if reused else ""
    print(f"[{number}] {name}: {duration(seconds)}{before}\n", flush=True)
    return result


def generate(demo: Demo, force: bool) -> None:
    """Images and annotation files."""
    options = ShapesOptions(
        train_images=demo.options["images"],
        validation_images=demo.options["validation_images"],
        seed=demo.options["seed"],
    )
    generation = generate_shapes(
        demo.data, options, workers=os.cpu_count() or 1, force=force, progress=sys.stderr.isatty()
    )
    for split in SPLITS:
        counts = generation["counts"][split]
        print(
            f"  {split}: {counts['images']:,} images, {counts['objects']:,} objects, {counts['rows']:,} rows"
        )


def prepare(demo: Demo) -> None:
    """Annotation files to annotation stores."""
    for split in SPLITS:
        files = demo.annotations(split)
        store = prepare_openimages(
            [files["boxes"]],
            [files["image_labels"]],
            files["classes"],
            files["hierarchy"],
            demo.data / "images" / split,
            demo.store(split),
            workers=1,  # for so few files a second process costs more than it saves
            progress=sys.stderr.isatty(),
        )
        print(f"  {split}: {store.num_objects:,} objects with {len(store.labels):,} labels")


def train(demo: Demo) -> None:
    """Training from scratch with the evaluation at its end, or the rest of it."""
    finished = (demo.run / "model_final.pth").is_file()
    if finished and (demo.evaluation / "results.json").is_file():
        return
    quiet_setup()
    choose_threads()
    options = [
        "DATASETS.ROOT",
        str(demo.root),
        "OUTPUT_DIR",
        str(demo.run),
        "SEED",
        str(demo.options["seed"]),
    ]
    if demo.options["iterations"] is not None:
        options += ["SOLVER.MAX_ITER", str(demo.options["iterations"])]
    how = ["--eval-only", "--resume"] if finished else ["--resume"]
    train_main(parse_args(["--config-file", demo.options["config_file"], *how, *options, *demo.overrides]))


def quiet_setup() -> None:
    """Keeps the environment, the whole config (it is in config.yaml) and the model out of the terminal."""
    # Detectron2 logs them by its root logger; the filter of a logger does not see its children's records.
    logging.getLogger("detectron2").addFilter(lambda record: "\n" not in record.getMessage())
    logging.getLogger("longtail_det2.engine.build").setLevel(logging.INFO)


def choose_threads() -> None:
    """One thread for the training, unless $OMP_NUM_THREADS asks for another number.

    The model is small: on two idle cores a second thread saves a quarter of the time, but where other
    programs use the cores, threads that wait for each other make an iteration several times slower.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def evaluate(demo: Demo) -> None:
    """The official metric once more, from the released files alone, as scripts/evaluate_open_images.py does.

    Raises:
        DataError: it is not what the training's evaluator said.
    """
    files = demo.annotations("validation")
    class_ids, _ = read_classes(files["classes"])
    truth, image_ids, _ = read_ground_truth(files["boxes"], files["image_labels"], class_ids)
    detections, _ = read_detections(demo.evaluation / "predictions.csv", class_ids, image_ids)
    hierarchy = LabelHierarchy.from_json(files["hierarchy"], class_ids)
    result = evaluate_detections(expand_ground_truth(truth, hierarchy), detections, len(class_ids))
    evaluation = evaluation_of(demo)
    trained = evaluation.summary["bbox"]["mAP50"] or math.nan
    print(f"  {result.num_images:,} images, {len(detections):,} predictions")
    print(f"  mAP@0.5 from the CSV files {100 * result.mean_ap:.2f} %, in the run {100 * trained:.2f} %")
    if not math.isclose(result.mean_ap, trained, abs_tol=1e-3):
        raise DataError(
            f"{demo.evaluation}: the metric of the run ({trained:.5f}) is not that of its predictions.csv "
            f"({result.mean_ap:.5f}); run with --force"
        )


def report(demo: Demo) -> Path:
    """The report, with the times of the steps before it."""
    steps = [(name, demo.seconds[name]) for name in ("generate", "prepare", "train", "evaluate")]
    return build_report(
        demo.run,
        demo.output / "report.html",
        train_store=demo.store("train"),
        val_store=demo.store("validation"),
        dataset=VALIDATION,
        title="Long-tailed shapes: the demonstration",
        steps=steps,
    )


def evaluation_of(demo: Demo) -> Evaluation:
    """Results of the run.

    Raises:
        DataError: there are none.
    """
    evaluation = read_evaluation(demo.run, VALIDATION)
    if evaluation is None:
        raise DataError(f"{demo.evaluation}: the evaluation left no results.json; run with --force")
    return evaluation


def print_results(demo: Demo) -> None:
    """Means with the classes and training images behind them."""
    evaluation = evaluation_of(demo)
    for name, value in evaluation.summary["bbox"].items():
        counts = [one["train_images"] for one in evaluation.members(name)]
        group = name.partition("_")[2]
        label = {"": "all classes (official)", "expanded": "all, expanded predictions"}.get(group, group)
        behind = (
            f"{len(counts):3} classes, {min(counts):,} to {max(counts):,} training images" if counts else ""
        )
        print(f"  {label:26} {100 * (value or 0):6.2f}   {behind}")


if __name__ == "__main__":
    sys.exit(main())
