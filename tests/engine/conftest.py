"""A data set of eight pictures, made the way users' own data come in: through an annotation store."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from factories import store_columns
from PIL import Image

from longtail_det2.cli.run import parse_args
from longtail_det2.data.masks import encode_masks
from longtail_det2.data.store import write_store
from longtail_det2.engine import lazy, trainer

CLASSES = ["animal", "cat", "dog", "ball"]
PARENTS = {"cat": ["animal"], "dog": ["animal"]}


def make_store(path, *, classes=CLASSES, parents=PARENTS, images=8, seed=0):
    """A store of noise pictures with one coloured rectangle each, its label cycling through the classes.

    The rectangle is also the object's mask.
    """
    generator = np.random.default_rng(seed)
    folder = path.parent / f"{path.name}-images"
    folder.mkdir(parents=True)
    boxes = []
    for index in range(images):
        pixels = generator.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        x, y = generator.integers(2, 30, 2)
        pixels[y : y + 28, x : x + 24] = 60 * (index % len(classes)) + 60
        boxes.append(np.array([x, y, x + 24, y + 28]))
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    boxes.pop()  # the last picture has no object
    names = [f"{index:03}" for index in range(images)]
    objects = [(index, box / 64, [index % len(classes)], 0) for index, box in enumerate(boxes)]
    masks = encode_masks([[box[[0, 1, 2, 1, 2, 3, 0, 3]]] for box in boxes])
    columns = store_columns(names, (64, 64), objects, **masks)
    write_store(path, columns, classes, parents=parents, image_root=folder)
    return path


@pytest.fixture
def store_maker():
    """The function that makes a store of noise pictures."""
    return make_store


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Folder with the stores "train" and "test", and "others" with other classes."""
    folder = tmp_path_factory.mktemp("pictures")
    make_store(folder / "train")
    make_store(folder / "test", images=4, seed=1)
    make_store(folder / "others", classes=["car", "bus"], parents={}, images=3)
    make_store(folder / "renamed", classes=["animal", "cat", "wolf", "ball"], parents={}, images=3)
    return folder


@pytest.fixture
def yaml_args(pictures, tmp_path):
    """Function: (config options...) -> parsed command line of a short training of a tiny model."""

    def make(*options, flags=(), config="shapes/faster_rcnn_tiny_softmax_shapes.yaml", max_iter=3):
        small = [
            *("DATASETS.STORES", f"mini_train={pictures}/train,mini_test={pictures}/test"),
            *("DATASETS.TRAIN", "mini_train", "DATASETS.TEST", "mini_test"),
            *("SOLVER.MAX_ITER", str(max_iter), "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "1"),
            *("SOLVER.LOG_PERIOD", "1"),
            *("MODEL.TINY_BACKBONE.STAGE_CHANNELS", "4,8,8", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
            *("INPUT.MIN_SIZE_TRAIN", "64", "INPUT.MIN_SIZE_TEST", "64"),
            *("MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "run")),
        ]
        return parse_args([*flags, "--config-file", str(config), *small, *options])

    return make


@pytest.fixture
def lazy_args(pictures, tmp_path):
    """The same for the lazy twin."""

    def make(*options, flags=(), config="shapes/faster_rcnn_tiny_softmax_shapes.py", max_iter=3, tiny=True):
        small = [
            f"datasets.stores=['mini_train={pictures}/train','mini_test={pictures}/test']",
            "dataloader.train.dataset.names=mini_train",
            "dataloader.test.dataset.names=mini_test",
            f"train.max_iter={max_iter}",
            "dataloader.train.total_batch_size=2",
            "lr_multiplier.warmup_iters=1",
            "train.log_period=1",
            "train.device=cpu",
            f"train.output_dir={tmp_path / 'run'}",
        ]
        if "classifier" not in str(config):  # of images of a fixed size
            small += [
                "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
                "dataloader.test.mapper.augmentations.0.short_edge_length=64",
            ]
        if tiny:
            small += [
                "model.backbone.stage_channels=[4,8,8]",
                "model.roi_heads.box_head.fc_dims=[16,16]",
                "model.roi_heads.box_predictor.input_shape.channels=16",
            ]
        return parse_args([*flags, "--config-file", str(config), *small, *options])

    return make


@dataclass
class Front:
    """One of the two forms of a config: what makes its arguments, and what runs them."""

    name: str
    make: Callable
    main: Callable

    def args(self, yaml=(), lazy=(), **more):
        """The arguments of a short training with the options of the form."""
        return self.make(*(yaml if self.name == "yaml" else lazy), **more)

    def train(self, yaml=(), lazy=(), **more):
        return self.main(self.args(yaml, lazy, **more))


@pytest.fixture(params=["yaml", "lazy"])
def front(request, yaml_args, lazy_args):
    """Each of the two forms in turn."""
    if request.param == "yaml":
        return Front("yaml", yaml_args, trainer.main)
    return Front("lazy", lazy_args, lazy.main)
