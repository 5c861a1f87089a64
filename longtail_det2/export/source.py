"""The trained detector that is exported, and what there is to know about it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.data import transforms
from detectron2.structures import Instances
from omegaconf import DictConfig
from torch import Tensor, nn

from longtail_det2.config_files import load_cfg, load_lazy
from longtail_det2.config_names import find_config_file, name_of_config
from longtail_det2.data.datasets.builtin import register_datasets
from longtail_det2.engine.setup import lazy_dataset_names
from longtail_det2.model_zoo.model_zoo import build, get_checkpoint, use_weights
from longtail_det2.model_zoo.run_facts import (
    class_names_beside,
    config_without_paths,
    read_plain_yaml,
    value_at,
)
from longtail_det2.utils.errors import ConfigError


@dataclass(frozen=True)
class TrainedDetector:
    """A detector with its weights, on the CPU, in evaluation mode.

    Attributes:
        model: the detector.
        cfg: its config, YAML or lazy.
        config_name: the config as it was named.
        weights: path of the weights file.
        class_ids: identifiers in index order; () if the weights do not say.
        class_names: display names; () if none are known.
        image_format: order of channels that the model wants, "BGR" or "RGB".
        min_size, max_size: test images are scaled to this shorter side, but to no longer side than this.
        fixed_size: or to this (height, width), whatever their aspect ratio; () keeps that.
        test_datasets: names.
    """

    model: nn.Module
    cfg: Any
    config_name: str
    weights: Path
    class_ids: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    image_format: str = "BGR"
    min_size: int = 800
    max_size: int = 1333
    fixed_size: tuple[int, ...] = ()
    test_datasets: tuple[str, ...] = ()

    def input_of(self, picture: np.ndarray, share: float = 1.0) -> Tensor:
        """Return the model's input of an image, or a share of it if sides are not fixed; see `to_input`."""
        sides = round(self.min_size * share), round(self.max_size * share)
        return to_input(picture, *sides, self.fixed_size)

    def config_text(self) -> str:
        """Return the config as YAML, without places of files on this machine."""
        if isinstance(self.cfg, CfgNode):
            return config_without_paths(self.cfg)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.yaml"
            LazyConfig.save(self.cfg, str(path))
            return config_without_paths(read_plain_yaml(path))

    def register_data(self) -> None:
        """Register the data sets that the config names, and the built-in ones.

        Raises:
            ConfigError: an entry is malformed, or a name stands for other data already.
        """
        node = "DATASETS.ROOT", "DATASETS.STORES"
        root, stores = node if isinstance(self.cfg, CfgNode) else map(str.lower, node)
        register_datasets(value_at(self.cfg, root) or "", value_at(self.cfg, stores) or ())


def load_detector(
    config_file: str, weights: str | os.PathLike[str] = "", options: Sequence[str] = ()
) -> TrainedDetector:
    """Build the detector of a config and load trained weights.

    Args:
        config_file: a path or a name in the model zoo, YAML (.yaml) or lazy (.py).
        weights: checkpoint (.pth) or weights file (.safetensors); "" takes the config's published ones.
        options: config options as the train scripts take them, in the config's own syntax.

    Raises:
        ConfigError: a file is missing or damaged, or the weights are not those of a detector of this config.
    """
    lazy = config_file.endswith(".py")
    found = find_config_file(config_file, ".py" if lazy else ".yaml")
    path = str(weights or get_checkpoint(config_file))
    cfg: Any
    if lazy:
        cfg = load_lazy(config_file, options)
        test, sizes = lazy_dataset_names(cfg)[1], _lazy_sizes(cfg)
        image_format = value_at(cfg, "dataloader.test.mapper.image_format") or "BGR"
    else:
        _refuse_saved_lazy(found)
        cfg = load_cfg(config_file, options)
        test, image_format = cfg.DATASETS.TEST, cfg.INPUT.FORMAT
        sizes = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, tuple(cfg.INPUT.FIXED_SIZE)
    class_ids = use_weights(cfg, path)
    return TrainedDetector(
        model=build(cfg, "cpu", load=True).eval(),
        cfg=cfg,
        config_name=name_of_config(found) or found.name,
        weights=Path(path),
        class_ids=class_ids,
        class_names=tuple(class_names_beside(Path(path).parent, class_ids)),
        image_format=image_format,
        min_size=sizes[0],
        max_size=sizes[1],
        fixed_size=sizes[2],
        test_datasets=tuple(test),
    )


def to_input(picture: np.ndarray, min_size: int, max_size: int, fixed_size: tuple[int, ...] = ()) -> Tensor:
    """Scale an image as for a test, with Detectron2's own transforms.

    Args:
        picture: (H, W, 3) uint8.
        min_size: shorter side afterwards; 0 leaves the size.
        max_size: limit of the longer side.
        fixed_size: instead (height, width) afterwards.

    Returns:
        (3, H', W') float32 in 0..255.
    """
    if min_size or fixed_size:
        shortest: Any = transforms.ResizeShortestEdge([min_size, min_size], max_size)
        scale: Any = transforms.Resize(fixed_size) if fixed_size else shortest
        picture = scale.get_transform(picture).apply_image(picture)
    return torch.as_tensor(np.ascontiguousarray(picture.transpose(2, 0, 1)), dtype=torch.float32)


def as_instances(scores: Tensor, image_size: tuple[int, int]) -> Instances:
    """Return the scores (K,) of a whole image as `pred_classes` and `scores`, best first, without boxes."""
    values, classes = scores.sort(descending=True)
    return Instances(image_size, pred_classes=classes, scores=values)


def _refuse_saved_lazy(path: Path) -> None:
    content = read_plain_yaml(path)
    if "model" in content and "MODEL" not in content:
        raise ConfigError(
            f"{path} is the saved form of a lazy config, which could name any code to run: give the .py "
            "config that the run was started with"
        )


def _lazy_sizes(cfg: DictConfig) -> tuple[int, int, tuple[int, ...]]:
    """Return `min_size`, `max_size` and `fixed_size` of a lazy config."""
    for node in value_at(cfg, "dataloader.test.mapper.augmentations") or ():
        scale: Any = instantiate(node)
        if isinstance(scale, transforms.ResizeShortestEdge):
            sides: Any = vars(scale)
            return int(sides["short_edge_length"][0]), int(sides["max_size"]), ()
        if isinstance(scale, transforms.Resize):
            return 0, 0, tuple(map(int, vars(scale)["shape"]))
    raise ConfigError(
        "dataloader.test.mapper.augmentations has neither ResizeShortestEdge nor Resize: the size of test "
        "images is unknown"
    )
