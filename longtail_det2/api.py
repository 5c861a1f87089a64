"""The short way, for a notebook: register data, get a config, train, predict.

::

    from longtail_det2 import api

    api.register_coco("birds_train", "train.json", "images/train")
    api.register_coco("birds_val", "val.json", "images/val")
    cfg = api.get_config("own_data/faster_rcnn_small_photos.yaml", train="birds_train", test="birds_val")
    results = api.train(cfg, "output/birds", max_iter=2000)
    predict = api.load("output/birds")
    instances = predict("photo.jpg")
    predict.draw("photo.jpg", "drawn.jpg")

Nothing heavy is imported before it is needed. User errors raise ConfigError or DataError with one line.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from detectron2.config import CfgNode
    from detectron2.structures import Instances
    from PIL.Image import Image

__all__ = [
    "Detector",
    "get_config",
    "load",
    "register_coco",
    "register_openimages",
    "register_store",
    "train",
]


def register_coco(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    hierarchy: str | os.PathLike[str] | None = None,
) -> None:
    """Register a COCO or LVIS JSON file; see :func:`longtail_det2.data.datasets.builtin.register_coco`."""
    from longtail_det2.data.datasets import builtin

    builtin.register_coco(name, json_file, image_root, hierarchy)


def register_openimages(
    name: str,
    boxes: str | os.PathLike[str],
    classes: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    image_labels: str | os.PathLike[str] | None = None,
    hierarchy: str | os.PathLike[str] | None = None,
) -> None:
    """Register Open Images CSV files; their store is made beside `boxes`, once, and again when they change.

    Args:
        name: data set name.
        boxes: box CSV, see :func:`longtail_det2.data.datasets.openimages.prepare_openimages`.
        classes: class descriptions, LabelName,DisplayName without header.
        image_root: folder with the images at any depth.
        image_labels: CSV of human-verified image labels.
        hierarchy: JSON file.
    """
    from longtail_det2.data.datasets import builtin
    from longtail_det2.data.datasets.openimages import prepare_openimages

    store = Path(boxes).absolute().parent / ".longtail_det2" / name
    labels = [] if image_labels is None else [Path(image_labels)]
    tree = None if hierarchy is None else Path(hierarchy)
    prepare_openimages([Path(boxes)], labels, Path(classes), tree, Path(image_root), store)
    builtin.register_store(name, store)


def register_store(name: str, path: str | os.PathLike[str]) -> None:
    """Register a store that ``longtail-det2 prepare`` made."""
    from longtail_det2.data.datasets import builtin

    builtin.register_store(name, path)


def get_config(
    name: str,
    *,
    train: str | Sequence[str] = (),
    test: str | Sequence[str] = (),
    loss: str = "",
    sampler: str = "",
    options: Sequence[str] = (),
) -> CfgNode:
    """Return a YAML config, to be changed further like any of Detectron2's.

    Args:
        name: a path, or a name of the model zoo.
        train: training data sets; () leaves the config's.
        test: test data sets; () leaves the config's.
        loss: classification loss of the box head, such as "SeesawLoss", of dense detectors and of classifiers
            of images that of their head.
        sampler: such as "RepeatFactorTrainingSampler" (docs/sampling.md).
        options: KEY VALUE KEY VALUE ..., as on the command line.

    Raises:
        ConfigError: there is no such config or key.
    """
    from longtail_det2.config import HEAD_NODES
    from longtail_det2.config_files import load_cfg, merge_options

    cfg = load_cfg(name)
    for key, names in (("TRAIN", train), ("TEST", test)):
        if names:
            cfg.DATASETS[key] = (names,) if isinstance(names, str) else tuple(names)
    if loss:
        cfg.MODEL[HEAD_NODES.get(cfg.MODEL.META_ARCHITECTURE, "ROI_BOX_HEAD")].CLASSIFICATION_LOSS = loss
    if sampler:
        cfg.DATALOADER.SAMPLER_TRAIN = sampler
    merge_options(cfg, options)
    return cfg


def train(
    cfg: CfgNode, output_dir: str = "", *, max_iter: int | None = None, resume: bool = False
) -> dict[str, Any]:
    """Train a config and evaluate it on its test sets; the log is shown.

    Args:
        cfg: from :func:`get_config`; not changed.
        output_dir: folder of the run, which gets config.yaml, run.json, log.txt, metrics.json, checkpoints
            and results; "" takes the config's.
        max_iter: iterations, instead of the config's.
        resume: go on from the newest checkpoint of the folder.

    Returns:
        Results by task and metric in percent, such as ``results["coco_bbox"]["AP"]``.

    Raises:
        ConfigError: the config does not fit the data, or names what does not exist.
        DataError: a data set is unknown, absent or damaged.
    """
    from longtail_det2.engine.setup import setup
    from longtail_det2.engine.trainer import Trainer

    if max_iter is not None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.MAX_ITER = max_iter
    trainer = Trainer(setup(cfg, output_dir, resume=resume))
    trainer.resume_or_load(resume=resume)
    return trainer.train()


def load(run: str | os.PathLike[str], config: str = "", *, device: str = "") -> Detector:
    """Load a trained detector.

    Args:
        run: a run's folder, or weights (``.pth``, ``.safetensors``).
        config: the config of the weights; "" takes config.yaml beside them.
        device: such as "cuda"; "" takes CUDA where there is some.

    Raises:
        ConfigError: there are no weights or no config, or they do not fit each other.
    """
    from longtail_det2.export.source import load_detector
    from longtail_det2.model_zoo.publishing import find_checkpoint_file

    weights = find_checkpoint_file(Path(run))
    return Detector(load_detector(config or str(weights.parent / "config.yaml"), weights), device)


class Detector:
    """A trained detector, or classifier of images, for single images.

    Attributes:
        class_names: K names in index order; the ids where no names are known.
    """

    def __init__(self, trained: Any, device: str = "") -> None:
        """Wrap a :class:`longtail_det2.export.TrainedDetector`."""
        from longtail_det2.visualization.predictions import Predictor

        self._predictor = Predictor(trained, device)
        self.class_names = tuple(trained.class_names or trained.class_ids)

    def __call__(self, image: str | os.PathLike[str] | np.ndarray | Image) -> Instances:
        """Return the detections of an image, on the CPU, boxes in its pixels; see :meth:`.Predictor.predict`.

        Args:
            image: a path, a PIL image, or an array (H, W, 3) uint8 in BGR order, as Detectron2's
                `DefaultPredictor` takes it.

        Raises:
            DataError: the file cannot be read as an image, or the array has another form.
        """
        return self._predictor.predict(self._pixels(image))

    def draw(
        self,
        image: str | os.PathLike[str] | np.ndarray | Image,
        output: str | os.PathLike[str] | None = None,
        *,
        score_threshold: float = 0.5,
    ) -> Image:
        """Return the image with its detections, a box with all its labels once; write it to `output`.

        Labels of whole images stand below the image.
        """
        from longtail_det2.visualization.multi_label_visualizer import labels_metadata
        from longtail_det2.visualization.predictions import draw_predictions

        pixels = self._pixels(image)
        metadata = labels_metadata(self.class_names)
        drawn = draw_predictions(pixels, self._predictor.predict(pixels), metadata, score_threshold)
        if output is not None:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            drawn.save(output)
        return drawn

    def _pixels(self, image: Any) -> np.ndarray:
        """(H, W, 3) uint8 in RGB order."""
        import numpy as np
        from PIL import Image, ImageOps

        from longtail_det2.data.images import read_image
        from longtail_det2.utils.errors import DataError

        if isinstance(image, (str, os.PathLike)):
            return read_image(Path(image), "RGB")
        if isinstance(image, Image.Image):
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        if getattr(image, "dtype", None) != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", type(image).__name__)
            raise DataError(
                f"an image is a path, a PIL image or a (H, W, 3) uint8 array, not {shape} {dtype}"
            )
        return np.ascontiguousarray(image[:, :, ::-1])
