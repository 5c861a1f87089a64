"""Draw annotated images of an annotation store or of any registered data set: boxes, all labels, masks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from longtail_det2.utils.console import tell
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.wording import pluralize

from .inputs import add_data_arguments, add_drawing_arguments, image_names, open_data

if TYPE_CHECKING:
    from detectron2.config import CfgNode

EPILOG = """\
examples:
  %(prog)s --store datasets/shapes/stores/train --output drawings
  %(prog)s --dataset shapes_train --class "pink cross" --number 5 --output drawings
  %(prog)s --dataset my_train --output drawings \\
      DATASETS.STORES my_train=annotations/train.json:images/train
  %(prog)s --store datasets/shapes/stores/train --output drawings --augmented \\
      --config-file shapes/faster_rcnn_tiny_sigmoid_shapes.yaml

Dashed boxes enclose groups; masks are tinted. With --augmented the drawings show what the model is trained
on: the image after augmentation, each object's labels with their ancestors, how many classes are ignored for
it, and, if the config trains masks (MODEL.MASK_ON), the masks that it learns.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the data, which images are drawn, and how."""
    add_data_arguments(parser)
    add_drawing_arguments(parser)
    add = parser.add_argument
    add("--class", dest="class_name", metavar="NAME", help="only images with this class (name or id)")
    add("--augmented", action="store_true", help="show what the mapper hands to the model")


def run(args: argparse.Namespace) -> None:
    """Draw the images."""
    dataset, metadata, cfg = open_data(args)
    chosen = choose(dataset, metadata, args)
    picture_of = augmented_drawer(metadata, cfg, args) if args.augmented else annotation_drawer(metadata)
    args.output.mkdir(parents=True, exist_ok=True)
    records = [dataset[index] for index in chosen]
    names = image_names([record["image_id"] for record in records])
    for record, name in zip(records, names, strict=True):
        picture_of(record).save(str(args.output / name))
    tell(f"{pluralize(len(chosen), 'image')} in {args.output}")


def choose(dataset: Any, metadata: Any, args: argparse.Namespace) -> list[int]:
    """Return the positions of the images to draw, ascending."""
    import numpy as np

    order = np.random.default_rng(args.seed).permutation(len(dataset)).tolist()
    if args.class_name is None:
        return sorted(order[: args.number])
    label = class_index(dataset, metadata, args.class_name)
    chosen: list[int] = []
    for index in order:
        record = dataset[index]
        labels = [one.get("category_ids", [one["category_id"]]) for one in record.get("annotations", ())]
        if any(label in some for some in (*labels, record.get("pos_category_ids", ()))):
            chosen.append(index)
        if len(chosen) == args.number:
            break
    return sorted(chosen)


def class_index(dataset: Any, metadata: Any, name: str) -> int:
    """Return the index of a class by name or id.

    Raises:
        DataError: there is none.
    """
    names, ids = list(metadata.thing_classes), list(getattr(dataset, "class_ids", ()))
    if name in names:
        return names.index(name)
    if name in ids:
        return ids.index(name)
    raise DataError(f"--class {name!r}: no such class; there are {', '.join(names[:20])} ...")


def annotation_drawer(metadata: Any) -> Callable[[dict[str, Any]], Any]:
    """Draw a record's annotations on its image."""
    from longtail_det2.data.images import read_image
    from longtail_det2.visualization.multi_label_visualizer import MultiLabelVisualizer, room_for

    def picture(record: dict[str, Any]) -> Any:
        pixels = read_image(record["file_name"], "RGB", image_id=record["image_id"])
        room = room_for(len(record.get("annotations", ())))
        return MultiLabelVisualizer(pixels, metadata, min_size=room).draw_dataset_dict(record)

    return picture


def augmented_drawer(
    metadata: Any, cfg: CfgNode, args: argparse.Namespace
) -> Callable[[dict[str, Any]], Any]:
    """Draw what the training mapper makes of a record."""
    from detectron2.data.detection_utils import convert_image_to_rgb

    from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
    from longtail_det2.data.datasets.builtin import register_datasets
    from longtail_det2.visualization.multi_label_visualizer import MultiLabelVisualizer, room_for

    if args.store is not None:
        register_datasets(stores=[f"store_to_draw={args.store}"])
    cfg.DATASETS.TRAIN = (args.dataset or "store_to_draw",)
    mapper = MultiLabelDatasetMapper(**MultiLabelDatasetMapper.from_config(cfg, is_train=True))

    def picture(record: dict[str, Any]) -> Any:
        result = mapper(record)
        pixels = convert_image_to_rgb(result["image"].permute(1, 2, 0), cfg.INPUT.FORMAT)
        if "gt_labels" in result:  # of the whole image
            present = (result["gt_labels"] == 1).nonzero()[:, 0].tolist()
            return MultiLabelVisualizer(pixels, metadata, min_size=room_for(1)).draw_labels(present)
        room = room_for(len(result["instances"]))
        return MultiLabelVisualizer(pixels, metadata, min_size=room).draw_truth(result["instances"])

    return picture
