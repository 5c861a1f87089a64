"""Losses, targets and runs of tiny models for the tests of several folders."""

import numpy as np
import torch
from detectron2.utils.events import EventStorage

from longtail_det2.checkpoint import ClassAwareCheckpointer
from longtail_det2.config_files import load_cfg
from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.engine.build import build_model
from longtail_det2.evaluation.evaluator import build_evaluators
from longtail_det2.modeling import losses as package
from longtail_det2.structures.multi_label import MultiLabelTargets


def some_rates(size=5):
    """Co-occurrence rates, several of them exactly 1."""
    generator = torch.Generator().manual_seed(5)
    rates = torch.rand(size, size, generator=generator)
    rates[torch.rand(rates.shape, generator=generator) < 0.3] = 1.0
    return rates.fill_diagonal_(0.0)


def make_loss(name, num_classes=5, **options):
    """A classification loss by the name of its class, with the statistics that it needs."""
    if "Concurrent" in name and "rates" not in options:
        options["rates"] = some_rates(num_classes)
    if "Distribution" in name and "image_counts" not in options:
        options.update(image_counts=torch.tensor([0, 3, 40, 900, 1000])[-num_classes:], num_images=1000)
    if "MultiFocal" in name and "image_counts" not in options:
        options["image_counts"] = torch.tensor([0, 3, 40, 900, 1000])[-num_classes:]
    return getattr(package, name)(num_classes=num_classes, **options)


def multi_label_targets(rows=12, num_classes=5):
    """Random targets: background, ignored entries, several labels per row, the last row ignored."""
    generator = torch.Generator().manual_seed(3)
    classes = torch.randint(0, num_classes + 1, (rows,), generator=generator)
    classes[:2] = num_classes
    labels = torch.randint(-1, 2, (rows, num_classes + 1), generator=generator).to(torch.int8)
    labels[:, -1] = 0
    labels[torch.arange(rows), classes] = 1
    background = classes == num_classes
    labels[background] = 0
    labels[background, -1] = 1
    classes[-1], labels[-1] = -1, -1
    return MultiLabelTargets(classes, labels)


def single_label_targets(rows=12, num_classes=5):
    """Rows of each class in turn and of background."""
    return MultiLabelTargets.from_classes(torch.arange(rows) % (num_classes + 1), num_classes)


def random_logits(width, rows=12, dtype=torch.float32, scale=1.0):
    """(rows, width) logits that want a gradient; `width` may be a loss."""
    width = getattr(width, "num_logits", width)
    logits = scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(7))
    return logits.to(dtype).requires_grad_()


DETECTORS = ["MultiLabelROIHeads", "MultiLabelCascadeROIHeads", "MultiLabelRetinaNet", "MultiLabelFCOS"]


def use_detector(cfg, name, loss=None):
    """Make a config of the tiny Faster R-CNN one of the `DETECTORS`, with a classification loss."""
    if "ROIHeads" in name:
        cfg.MODEL.ROI_HEADS.NAME = name
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = "Cascade" in name
        cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = loss or cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS
        return cfg
    cfg.MODEL.META_ARCHITECTURE = name
    for node in (cfg.MODEL.RETINANET, cfg.MODEL.FCOS):
        node.IN_FEATURES, node.NUM_CONVS, node.SCORE_THRESH_TEST = ["p3"], 1, 0.0
    cfg.MODEL.FCOS.NORM = ""
    cfg.MODEL.DENSE_HEAD.CLASSIFICATION_LOSS = loss or cfg.MODEL.DENSE_HEAD.CLASSIFICATION_LOSS
    return cfg


def tiny_classifier(num_classes=6):
    """(model, config) of the tiny classifier of images, whose scores are spread."""
    torch.manual_seed(0)
    options = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", str(num_classes)]
    options += ["MODEL.TINY_BACKBONE.STAGE_CHANNELS", "(8,8,8)", "MODEL.IMAGE_HEAD.FC_DIM", "8"]
    options += ["INPUT.FIXED_SIZE", "(32,48)"]
    cfg = load_cfg("shapes/classifier_tiny_sigmoid_shapes.yaml", options)
    model = build_model(cfg).eval()
    torch.nn.init.normal_(model.classifier.weight)
    return model, cfg


def classifier_run(folder, store):
    """The folder of an evaluated run of the tiny classifier; it has no log."""
    model, cfg = tiny_classifier(store.num_classes)
    folder.mkdir()
    ClassAwareCheckpointer(model, str(folder), class_ids=store.class_ids).save("model_final", iteration=9)
    (folder / "config.yaml").write_text(cfg.dump())
    counts = np.bincount(store.present_labels[1], minlength=store.num_classes)
    results = folder / "inference" / "tiny"
    evaluators = build_evaluators(str(store.path), output_dir=results, train_counts=counts)
    evaluators.reset()
    mapper = MultiLabelDatasetMapper(**MultiLabelDatasetMapper.from_config(cfg, is_train=False))
    with torch.no_grad():
        for record in map(mapper, MultiLabelDataset(store)):
            evaluators.process([record], model([record]))
    evaluators.evaluate()
    return folder


def training_step(model, batch, seed=0):
    """The losses of a batch and what was logged, in an iteration that logs everything."""
    torch.manual_seed(seed)
    with EventStorage(19) as storage:
        return model.train()(batch), storage.latest()


def assert_trains(losses, model):
    """The losses are finite and give every parameter a finite gradient."""
    model.zero_grad()
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def detect(model, batch):
    """The detections of the first image."""
    with torch.no_grad():
        return model.eval()(batch)[0]["instances"]


def assert_same_detections(found, expected):
    """Equal classes; equal scores and boxes up to rounding; and there are some."""
    assert len(found) > 0 and torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def without_label_matrix(batch):
    """The batch as Detectron2's own data sets give it: one class per object."""
    for image in batch:
        image["instances"].remove("gt_labels")
    return batch


def of_one_class(batch):
    """The batch with all objects of class 0 of 1."""
    for image in batch:
        objects = image["instances"]
        objects.gt_classes[:] = 0
        objects.gt_labels = torch.ones(len(objects), 1, dtype=torch.int8)
    return batch
