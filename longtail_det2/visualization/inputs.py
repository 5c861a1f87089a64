"""What the drawing scripts have in common: finding the data set that is meant, naming the files."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from longtail_det2.config_files import load_cfg
from longtail_det2.data.build import get_dataset
from longtail_det2.data.datasets.builtin import register_datasets
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.store import AnnotationStore
from longtail_det2.visualization.multi_label_visualizer import labels_metadata

_LONGEST_NAME = 150


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a data set: --store, or --dataset with what registers it."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--store", type=Path, metavar="DIR", help="annotation store")
    source.add_argument(
        "--dataset", metavar="NAME", help="registered data set: a built-in one, or one of DATASETS.STORES"
    )
    add = parser.add_argument
    add("--root", default="", metavar="DIR", help="folder of the built-in data sets")
    add("--config-file", default="", metavar="FILE", help="YAML config: its data sets, and how it augments")
    add("opts", nargs="*", help="config options: KEY VALUE ...")


def open_data(args: argparse.Namespace) -> tuple[Any, Any, CfgNode]:
    """Return the data set (records by index), its metadata for drawing, and the config.

    Args:
        args: with the options of `add_data_arguments`.

    Raises:
        ConfigError: the config or an option is wrong.
        DataError: there is no such data set.
    """
    cfg = load_cfg(args.config_file, args.opts)
    if args.store is not None:
        store = AnnotationStore(args.store)
        return MultiLabelDataset(store), labels_metadata(store.class_names, store.hierarchy), cfg
    register_datasets(args.root or cfg.DATASETS.ROOT, cfg.DATASETS.STORES)
    return get_dataset(args.dataset), MetadataCatalog.get(args.dataset), cfg


def image_names(image_ids: Sequence[object], suffix: str = ".png") -> list[str]:
    """Return file names for drawings of some images, no two the same, without folders."""
    taken: Counter[str] = Counter()
    names = []
    for image_id in image_ids:
        name = str(image_id).replace("/", "_").replace("\\", "_")[-_LONGEST_NAME:]
        taken[name] += 1
        names.append((f"{name}-{taken[name]}" if taken[name] > 1 else name) + suffix)
    return names
