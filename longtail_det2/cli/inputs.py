"""Arguments that several commands share, and what they name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from longtail_det2.export.source import TrainedDetector

_LONGEST_NAME = 150


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the config options that end a command line."""
    help_text = "config options, last: KEY VALUE ..., of a lazy config key=value ..."
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="OPTIONS", help=help_text)


def add_data_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add the options that name a data set: --store, or --dataset with what registers it."""
    add = parser.add_mutually_exclusive_group(required=True).add_argument
    action, more = ("append", "; may be repeated") if several else ("store", "")
    add("--store", action=action, type=Path, metavar="DIR", help=f"annotation store{more}")
    registered = f"registered data set: a built-in one, or one of DATASETS.STORES{more}"
    add("--dataset", action=action, metavar="NAME", help=registered)
    add = parser.add_argument
    add("--config-file", default="", metavar="CONFIG", help="YAML config: its data sets and augmentation")
    add_overrides(parser)


def add_drawing_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the images to draw and where they go."""
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the drawings")
    add("--number", type=int, default=16, metavar="N", help="how many images (default: 16)")
    add("--seed", type=int, default=0, metavar="N", help="which images are drawn (default: 0)")


def add_detector_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a trained detector."""
    add = parser.add_argument
    weights = "folder of a run, or a file (default: published weights)"
    add("--weights", default="", metavar="RUN", help=weights)
    config = "path or name in the model zoo, .yaml or .py (default: config.yaml beside the weights)"
    add("--config-file", default="", metavar="CONFIG", help=config)
    add_overrides(parser)


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Add Detectron2's arguments for training and for evaluation, but --eval-only."""
    add = parser.add_argument
    add("--config-file", default="", metavar="CONFIG", help="path, or name in the model zoo; .yaml or .py")
    add("--resume", action="store_true", help="go on from the newest checkpoint of OUTPUT_DIR")
    add("--num-gpus", type=int, default=1, metavar="N", help="processes on this machine (default: 1)")
    add("--num-machines", type=int, default=1, metavar="N", help="machines of the job (default: 1)")
    add("--machine-rank", type=int, default=0, metavar="N", help="number of this machine (default: 0)")
    url = "tcp://HOST:PORT; auto: a free port of this machine"
    add("--dist-url", default="auto", metavar="URL", help=url)
    add_overrides(parser)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add Detectron2's arguments."""
    parser.add_argument("--eval-only", action="store_true", help="evaluate the weights, do not train")
    add_process_arguments(parser)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of a train script of your own; None for the process's own."""
    parser = argparse.ArgumentParser(description="Train or evaluate the detector that a config describes.")
    add_train_arguments(parser)
    return parser.parse_args(argv)


def open_data(args: argparse.Namespace) -> tuple[Any, Any, CfgNode]:
    """Return the data set (records by index), its metadata for drawing, and the config.

    Args:
        args: with the options of `add_data_arguments`.

    Raises:
        ConfigError: the config or an option is wrong.
        DataError: there is no such data set.
    """
    from detectron2.data import MetadataCatalog

    from longtail_det2.config_files import load_cfg
    from longtail_det2.data.build import get_dataset
    from longtail_det2.data.datasets.builtin import register_datasets
    from longtail_det2.data.datasets.dataset import MultiLabelDataset
    from longtail_det2.data.store import AnnotationStore
    from longtail_det2.visualization.multi_label_visualizer import labels_metadata

    cfg = load_cfg(args.config_file, args.opts)
    if args.store is not None:
        store = AnnotationStore(args.store)
        return MultiLabelDataset(store), labels_metadata(store.class_names, store.hierarchy), cfg
    register_datasets(cfg.DATASETS.ROOT, cfg.DATASETS.STORES)
    return get_dataset(args.dataset), MetadataCatalog.get(args.dataset), cfg


def open_detector(args: argparse.Namespace) -> TrainedDetector:
    """Return the detector that the options of `add_detector_arguments` name.

    Raises:
        ConfigError: there is no such run, file or config, or they do not fit each other.
    """
    from longtail_det2.export.source import load_detector
    from longtail_det2.model_zoo.publishing import find_checkpoint_file
    from longtail_det2.utils.errors import ConfigError

    if not (args.weights or args.config_file):
        raise ConfigError("which detector? Give a run's folder with --weights, or --config-file")
    weights = str(find_checkpoint_file(args.weights)) if args.weights else ""
    return load_detector(args.config_file or str(Path(weights).parent / "config.yaml"), weights, args.opts)


def image_names(image_ids: Sequence[object]) -> list[str]:
    """Return file names for drawings of some images, without folders; see :func:`distinct_names`."""
    names = [str(image_id).replace("/", "_").replace("\\", "_")[-_LONGEST_NAME:] for image_id in image_ids]
    return distinct_names(names, ".png")


def distinct_names(names: Sequence[str], suffix: str) -> list[str]:
    """Return the names with the suffix, and with a number where one would come twice."""
    taken: dict[str, None] = {}
    for name in names:
        number, target = 1, name
        while target in taken:
            number += 1
            target = f"{name}-{number}"
        taken[target] = None
    return [name + suffix for name in taken]
