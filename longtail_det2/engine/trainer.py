"""Training and evaluation from a YAML config."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer

from longtail_det2.config_files import load_cfg
from longtail_det2.data.build import build_test_loader_from_config, build_train_loader_from_config
from longtail_det2.data.datasets.builtin import class_ids_of
from longtail_det2.data.samplers import phases_of_run
from longtail_det2.data.statistics import read_statistics
from longtail_det2.evaluation.evaluator import build_evaluators
from longtail_det2.utils.errors import ConfigError

from .build import build_model
from .run import Parts, Run, evaluate_model, load_for_evaluation
from .setup import is_set_up, setup, setup_from_arguments, start_logging
from .solver import build_lr_scheduler, build_optimizer, optimizer_arguments


class Trainer(Run):
    """Train what a YAML config describes, with the methods of Detectron2's trainers to override.

    ``Trainer(cfg).train()`` is all that a notebook needs: a config that :func:`.setup.setup` has not seen is
    set up here.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Build everything but the data loader.

        Args:
            cfg: from :func:`longtail_det2.config.get_cfg`, `model_zoo.get_config` or :func:`.setup.setup`.

        Raises:
            ConfigError: the config does not fit the data, or names what does not exist.
            DataError: a data set is unknown or absent.
        """
        if is_set_up(cfg):
            start_logging(cfg.OUTPUT_DIR)
        else:
            cfg = setup(cfg)
        self.cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        super().__init__(self.build_parts(self.cfg))

    def build_parts(self, cfg: CfgNode) -> Parts:
        """Return what the config describes."""
        if cfg.TEST.PRECISE_BN.ENABLED or cfg.TEST.EXPECTED_RESULTS:
            raise ConfigError("TEST.PRECISE_BN.ENABLED must be False, and TEST.EXPECTED_RESULTS empty")
        max_iter = cfg.SOLVER.MAX_ITER
        phases = phases_of_run(cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.PHASES, max_iter)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        # What is wrong with an evaluation shows now, not when it is due.
        evaluators = [self.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        return Parts(
            model=model,
            class_ids=class_ids_of(cfg.DATASETS.TRAIN[0]),
            optimizer=optimizer,
            scheduler=self.build_lr_scheduler(cfg, optimizer),
            build_loader=lambda start, seed: self.build_train_loader(_with_seed(cfg, seed), start),
            batch_size=cfg.SOLVER.IMS_PER_BATCH,
            max_iter=max_iter,
            evaluate=lambda model: self.test(cfg, model, evaluators),
            output_dir=cfg.OUTPUT_DIR,
            seed=cfg.SEED,
            weights=cfg.MODEL.WEIGHTS,
            reset_weights=cfg.MODEL.RESET_WEIGHTS,
            phases=phases,
            mixed_precision=cfg.SOLVER.AMP.ENABLED,
            checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
            max_checkpoints=cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP,
            eval_period=cfg.TEST.EVAL_PERIOD,
            log_period=cfg.SOLVER.LOG_PERIOD,
        )

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """See :func:`longtail_det2.engine.build.build_model`."""
        return build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """See :func:`longtail_det2.engine.solver.build_optimizer`."""
        return build_optimizer(model, **optimizer_arguments(cfg))

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer) -> Any:
        """See :func:`longtail_det2.engine.solver.build_lr_scheduler`."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start: int = 0) -> Iterable[Any]:
        """Return training batches after `start` images; see :func:`build_train_loader_from_config`."""
        return build_train_loader_from_config(cfg, start)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        """Return the images of one test set; see :func:`build_test_loader_from_config`."""
        return build_test_loader_from_config(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Build the evaluator of a test set; see :func:`.evaluator.build_evaluators`."""
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        path = cfg.DATASETS.STATISTICS
        return build_evaluators(
            dataset_name,
            output_dir=output_dir,
            train_counts=read_statistics(path).image_counts if path else None,
            **evaluator_options(cfg),
        )

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """Evaluate a model on all of DATASETS.TEST.

        Args:
            cfg: see the constructor.
            model: with the weights to evaluate.
            evaluators: one for each test set; None builds them.

        Returns:
            The results of the one test set, or those of each by its name; {} on other processes than the main
            one.
        """
        results: dict[str, Any] = {}
        for index, name in enumerate(cfg.DATASETS.TEST):
            evaluator = evaluators[index] if evaluators is not None else cls.build_evaluator(cfg, name)
            results[name] = evaluate_model(model, cls.build_test_loader(cfg, name), evaluator, name)
        return results[cfg.DATASETS.TEST[0]] if len(results) == 1 else results


def evaluator_options(cfg: CfgNode) -> dict[str, Any]:
    """Return the arguments of :func:`.evaluator.build_evaluators` that a config gives."""
    test = cfg.TEST
    return {
        "metrics": tuple(test.METRICS) or (("image_labels",) if cfg.INPUT.IMAGE_LEVEL else ()),
        "tasks": tuple(test.TASKS) or (("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)),
        "open_images": {
            "iou_threshold": test.OPEN_IMAGES.IOU,
            "group_of_weight": test.OPEN_IMAGES.GROUP_OF_WEIGHT,
            "expand_predictions": test.OPEN_IMAGES.EXPAND_PREDICTIONS,
            "write_predictions_csv": test.OPEN_IMAGES.WRITE_PREDICTIONS_CSV,
        },
        "coco": {name.lower(): value for name, value in test.COCO.items()},
        "lvis": {name.lower(): value for name, value in test.LVIS.items()},
        "image_labels": {"score_threshold": test.IMAGE_LABELS.SCORE_THRESH},
        "frequency_thresholds": tuple(test.HEAD_MEDIUM_TAIL),
    }


def _with_seed(cfg: CfgNode, seed: int) -> CfgNode:
    """The config with the seed of the run, which a checkpoint may know better."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed
    cfg.freeze()
    return cfg


def configure(args: argparse.Namespace) -> CfgNode:
    """Return the config of a command line, ready for :class:`Trainer`; see :func:`.setup.setup`."""
    return setup_from_arguments(load_cfg(args.config_file, args.opts), args)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Train, or with ``--eval-only`` evaluate, as the command line says.

    Raises:
        ConfigError: see :func:`longtail_det2.engine.setup.setup`.
        DataError: likewise.
    """
    cfg = configure(args)
    if args.eval_only:
        model, class_ids = Trainer.build_model(cfg), class_ids_of(cfg.DATASETS.TEST[0])
        load_for_evaluation(model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, class_ids, resume=args.resume)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()
