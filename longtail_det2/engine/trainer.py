"""Training and evaluation from a YAML config."""

from __future__ import annotations

import argparse
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, verify_results
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer

from longtail_det2.checkpoint import ClassAwareCheckpointer
from longtail_det2.config_files import load_cfg
from longtail_det2.data.build import build_test_loader_from_config, build_train_loader_from_config
from longtail_det2.data.datasets.builtin import class_ids_of, get_metadata
from longtail_det2.data.samplers import stages_of_run
from longtail_det2.evaluation.build import StoreEvaluators
from longtail_det2.utils.errors import ConfigError

from .activation_checkpoint import checkpoint_activations
from .build import build_model
from .gradient_log import ClassGradients
from .sampling_log import SamplingLog
from .setup import frequency_counts, setup_from_arguments
from .solver import build_lr_scheduler, build_optimizer, optimizer_arguments
from .training import default_hooks, distribute, evaluate_model, prepare_start
from .training_step import ResumableLoader, make_training_step


class Trainer(DefaultTrainer):
    """Detectron2's default trainer on this project's data, losses, schedules and metric.

    What differs: a checkpoint keeps the optimizer's state too, and a resumed run goes on with the images that
    were next; the data loader is built at the first step.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Builds everything but the data loader.

        Args:
            cfg: from :func:`longtail_det2.engine.setup.setup`.
        """
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        self._results: OrderedDict[str, Any] = OrderedDict()
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        stages = stages_of_run(cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.STAGES, self.max_iter)
        sampling_log = SamplingLog(cfg.OUTPUT_DIR, stages, self.max_iter, cfg.SOLVER.IMS_PER_BATCH)
        model = self.build_model(cfg)
        checkpoint_activations(model, cfg.MODEL.ACTIVATION_CHECKPOINT)
        class_ids = class_ids_of(cfg.DATASETS.TRAIN[0])
        logs: list[HookBase | None] = [sampling_log]
        if cfg.MODEL.ROI_BOX_HEAD.LOG_CLASS_GRADIENTS:
            logs.append(ClassGradients(model, class_ids, cfg.OUTPUT_DIR))
        optimizer = self.build_optimizer(cfg, model)
        self._loader = ResumableLoader(
            lambda start, seed: sampling_log.watch(self.build_train_loader(_with_seed(cfg, seed), start)),
            cfg.SOLVER.IMS_PER_BATCH,
            cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        )
        self._trainer = make_training_step(
            distribute(model, broadcast_buffers=False),
            self._loader,
            optimizer,
            cfg.SOLVER.AMP.ENABLED,
            cfg.OUTPUT_DIR,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = ClassAwareCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            class_ids=class_ids,
            reset_weights=cfg.MODEL.RESET_WEIGHTS,
            trainer=weakref.proxy(self),
        )
        self.register_hooks([*logs, *self.build_hooks()])

    def resume_or_load(self, resume: bool = True) -> None:
        """Loads the newest checkpoint of OUTPUT_DIR if `resume` and there is one, else MODEL.WEIGHTS.

        Raises:
            ConfigError: the weights are of other classes or shapes.
        """
        super().resume_or_load(resume=resume)
        prepare_start(self.checkpointer, self._loader, self.start_iter, resume=resume)

    def build_hooks(self) -> list[HookBase | None]:
        """See :func:`default_hooks`."""
        cfg = self.cfg
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise ConfigError("TEST.PRECISE_BN.ENABLED is not supported: set it to False")
        for name in cfg.DATASETS.TEST:  # what is wrong with an evaluation shows now, not when it is due
            if get_metadata(name).get("evaluator_type") != "coco":  # which reads all annotations
                self.build_evaluator(cfg, name)

        def evaluate() -> OrderedDict[str, Any]:
            self._results = self.test(cfg, self._trainer.model)
            return self._results

        return default_hooks(
            optimizer=self._trainer.optimizer,
            scheduler=self.scheduler,
            checkpointer=self.checkpointer,
            checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
            max_checkpoints=cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP,
            evaluate=evaluate,
            eval_period=cfg.TEST.EVAL_PERIOD,
            output_dir=cfg.OUTPUT_DIR,
            max_iter=self.max_iter,
        )

    def train(self) -> OrderedDict[str, Any]:
        """Runs from `start_iter` to the end.

        Returns:
            Results of the last evaluation, on the main process.
        """
        TrainerBase.train(self, self.start_iter, self.max_iter)
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            verify_results(self.cfg, self._results)
        return self._results

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks and, which Detectron2 0.6 leaves out, the optimizer."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave."""
        if "_trainer" not in state_dict:
            raise ConfigError(
                "the checkpoint has no optimizer state, so training cannot resume from it: load it as "
                "MODEL.WEIGHTS, without --resume"
            )
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

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
        """Training batches after `start` images; see :func:`build_train_loader_from_config`."""
        return build_train_loader_from_config(cfg, start)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        """Images of one test set; see :func:`build_test_loader_from_config`."""
        return build_test_loader_from_config(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator that the data set asks for: `StoreEvaluators` for stores, COCO's for COCO's.

        Raises:
            ConfigError: there is none for data of its kind.
        """
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        kind = get_metadata(dataset_name).get("evaluator_type")
        if kind == "coco":
            return COCOEvaluator(dataset_name, output_dir=output_dir, use_fast_impl=False)
        if kind != "openimages":
            raise ConfigError(f"data set {dataset_name!r}: there is no evaluator for data of kind {kind!r}")
        keys, lvis = cfg.TEST.OPEN_IMAGES, cfg.TEST.LVIS
        by_default = ("bbox", "segm") if cfg.MODEL.MASK_ON and not lvis.TASKS else ()
        return StoreEvaluators(
            dataset_name,
            output_dir=output_dir,
            train_counts=frequency_counts(keys.FREQUENCY_DATASET or cfg.DATASETS.TRAIN),
            iou_threshold=keys.IOU,
            group_of_weight=keys.GROUP_OF_WEIGHT,
            expand_predictions=keys.EXPAND_PREDICTIONS,
            write_predictions_csv=keys.WRITE_PREDICTIONS_CSV,
            frequency_thresholds=keys.HEAD_MEDIUM_TAIL or None,
            open_images=keys.ENABLED,
            coco_tasks=cfg.TEST.COCO.TASKS or by_default,
            coco_max_detections=cfg.TEST.COCO.MAX_DETECTIONS,
            lvis_tasks=lvis.TASKS,
            lvis_max_detections=lvis.MAX_DETECTIONS,
            lvis_fixed_ap_detections=lvis.FIXED_AP_DETECTIONS,
        )

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[DatasetEvaluator] | None = None
    ) -> OrderedDict[str, Any]:
        """Evaluates a model on all of DATASETS.TEST.

        Args:
            cfg: see the constructor.
            model: with the weights to evaluate.
            evaluators: one for each test set; None builds them.

        Returns:
            The results of the one test set, or those of each by its name; empty but on the main process.
        """
        results: OrderedDict[str, Any] = OrderedDict()
        for index, name in enumerate(cfg.DATASETS.TEST):
            evaluator = evaluators[index] if evaluators is not None else cls.build_evaluator(cfg, name)
            results[name] = evaluate_model(model, cls.build_test_loader(cfg, name), evaluator, name)
        return results[cfg.DATASETS.TEST[0]] if len(results) == 1 else results


def _with_seed(cfg: CfgNode, seed: int) -> CfgNode:
    """The config with the seed of the run, which differs where SEED is -1 or a checkpoint knows better."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed
    cfg.freeze()
    return cfg


def configure(args: argparse.Namespace) -> CfgNode:
    """Return the config of a command line, ready for :class:`Trainer`; see :func:`.setup.setup`."""
    return setup_from_arguments(load_cfg(args.config_file, args.opts), args)


def main(args: argparse.Namespace) -> OrderedDict[str, Any]:
    """Trains, or with ``--eval-only`` evaluates, as the command line says.

    Raises:
        ConfigError: see :func:`longtail_det2.engine.setup.setup`.
        DataError: likewise.
    """
    cfg = configure(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = ClassAwareCheckpointer(
            model, cfg.OUTPUT_DIR, class_ids=class_ids_of(cfg.DATASETS.TEST[0])
        )
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()
