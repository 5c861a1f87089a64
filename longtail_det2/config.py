"""The config keys that this project adds to Detectron2's, one node per method, a comment per key."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg as detectron2_cfg

from longtail_det2.utils.errors import ConfigError

NUM_CLASSES_FROM_DATA = -1
"""Value of ``MODEL.ROI_HEADS.NUM_CLASSES`` that means: as many as the training data set has."""

HEAD_NODES = {
    "MultiLabelRetinaNet": "DENSE_HEAD",
    "MultiLabelFCOS": "DENSE_HEAD",
    "MultiLabelClassifier": "IMAGE_HEAD",
}
"""Node of ``MODEL`` with the classification loss, by meta-architecture; of others it is ``ROI_BOX_HEAD``."""


def add_longtail_config(cfg: CfgNode) -> None:
    """Add this project's keys, with their defaults, to a Detectron2 config; its own keys keep their values.

    Args:
        cfg: what :func:`detectron2.config.get_cfg` returns; changed in place.
    """
    _add_data_keys(cfg)
    _add_model_keys(cfg)
    _add_image_keys(cfg)
    _add_dense_keys(cfg)
    _add_solver_keys(cfg)
    _add_test_keys(cfg)


def get_cfg() -> CfgNode:
    """Return Detectron2's default config with this project's keys; four of Detectron2's defaults change."""
    cfg = detectron2_cfg()
    add_longtail_config(cfg)
    # Number of classes, of every detector. -1: taken from the first training data set.
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES_FROM_DATA
    # Detectron2's own number of classes of RetinaNet. -1: MODEL.ROI_HEADS.NUM_CLASSES, which holds for all.
    cfg.MODEL.RETINANET.NUM_CLASSES = NUM_CLASSES_FROM_DATA
    # The mask head of MODEL.MASK_ON; Detectron2's own learns masks of an object's most specific label only.
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MultiLabelMaskHead"
    # "UniformTrainingSampler", "RepeatFactorTrainingSampler" (see DATALOADER.REPEAT_THRESHOLD),
    # "ClassAwareTrainingSampler", "SoftBalanceTrainingSampler" (see SOFT_BALANCE) or "PhasedTrainingSampler"
    # (see PHASES). Detectron2's name "TrainingSampler" means the uniform one.
    cfg.DATALOADER.SAMPLER_TRAIN = "UniformTrainingSampler"
    return cfg


def num_classes_key(model: Mapping[str, Any]) -> str:
    """Return the key below a lazy config's ``model`` that has its number of classes."""
    return "roi_heads.num_classes" if "roi_heads" in model else "num_classes"


def own_arguments(
    cls: type, node: Mapping[str, Any], key: str = "MODEL.CLASSIFICATION_LOSS.OWN"
) -> dict[str, Any]:
    """Return the arguments, by name, that a config node with free keys sets of a class.

    Args:
        cls: its ``__init__`` has the keys in lower case as arguments.
        node: of the config.
        key: where it stands, for the message.

    Raises:
        ConfigError: the class has no such argument.
    """
    parameters = inspect.signature(cls.__init__).parameters.values()
    if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
        known = [one.name.upper() for one in parameters if one.name != "self"]
        for name in node:
            if name.upper() not in known:
                near = difflib.get_close_matches(name.upper(), known, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(known)}."
                raise ConfigError(f"{key}.{name}: {cls.__name__} has no such argument. {hint}")
    return {name.lower(): value for name, value in node.items()}


def _add_data_keys(cfg: CfgNode) -> None:
    # Own data with no code: "name=folder of an annotation store", registered by the train scripts.
    cfg.DATASETS.STORES = ()
    # Folder of the built-in data sets. Empty: $DETECTRON2_DATASETS, else "datasets".
    cfg.DATASETS.ROOT = ""
    # File of class statistics. Empty: computed from DATASETS.TRAIN, and kept in OUTPUT_DIR/statistics.json.
    cfg.DATASETS.STATISTICS = ""

    # Boxes that enclose a group of objects: "keep" trains on them as on others, "drop" leaves them out.
    cfg.INPUT.GROUP_OF = "keep"
    # Whether descendants of an object's most specific label have no loss. False: they are negatives.
    cfg.INPUT.IGNORE_DESCENDANTS = True
    # Truth is the labels of whole images, for the meta-architecture "MultiLabelClassifier".
    cfg.INPUT.IMAGE_LEVEL = False

    # "ClassAwareTrainingSampler"
    cfg.DATALOADER.CLASS_AWARE = CN()
    # Images of a class before the next of a shuffled list of classes; the released code of DB loss has 3. 0:
    # every image is of a class drawn anew.
    cfg.DATALOADER.CLASS_AWARE.NUM_SAMPLES_PER_CLASS = 0
    # With those, an epoch has as many images as the most frequent class, times the classes, divided by this.
    cfg.DATALOADER.CLASS_AWARE.REDUCE = 4
    cfg.DATALOADER.SOFT_BALANCE = CN()
    # Classes are drawn in proportion to N ** (1 - LAMBDA), with N the images that have the class: 0 as often
    # as in the data, 1 all equally often, up to 2 rare ones more often than frequent ones.
    cfg.DATALOADER.SOFT_BALANCE.LAMBDA = 0.7
    # Whether an image of a class is also one of the class's ancestors. False: labels count as annotated.
    cfg.DATALOADER.SOFT_BALANCE.ANCESTORS = False
    # Samplers one after the other in one run, for "PhasedTrainingSampler": [sampler, iterations] each, or
    # [sampler, iterations, {option: value}]; together SOLVER.MAX_ITER iterations. Natural, then balanced:
    # such as [["UniformTrainingSampler", 90000], ["SoftBalanceTrainingSampler", 90000, {"lambda_": 0.5}]].
    cfg.DATALOADER.PHASES = ()


def _add_model_keys(cfg: CfgNode) -> None:
    # Best (box, class) pairs per image that go into non-maximum suppression. 0: all above SCORE_THRESH_TEST.
    cfg.MODEL.ROI_HEADS.PRE_NMS_TOPK_TEST = 0
    # Name in CLASSIFICATION_LOSS_REGISTRY: "SoftmaxCrossEntropyLoss", "SigmoidBCELoss",
    # "SigmoidFocalLoss", "ConcurrentSoftmaxLoss", "SeesawLoss", "ConcurrentSeesawLoss",
    # "DistributionBalancedLoss", "AsymmetricLoss", "MultiFocalModifierLoss".
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = "SoftmaxCrossEntropyLoss"
    # Layer that makes the logits: "Linear", or "NormalizedLinear", which compares directions only.
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER = "Linear"
    # What the normalised layer multiplies the cosines with.
    cfg.MODEL.ROI_BOX_HEAD.TEMPERATURE = 20.0
    # Name in BOX_BRANCH_REGISTRY: what makes predictions from features and proposals, in each stage:
    # "BoxBranch", or "TSDBoxBranch" (see MODEL.TSD).
    cfg.MODEL.ROI_BOX_HEAD.BRANCH = "BoxBranch"
    # What the classification and box losses are divided by: sampled "regions", "foreground" regions, their
    # moving average "foreground_average", or regions x classes "elements" (the box loss: regions).
    cfg.MODEL.ROI_BOX_HEAD.LOSS_NORMALIZER = "regions"
    # Guided loss scaling: the classification losses are scaled to this many times the box loss. 0: they are
    # not. What the box loss is divided by should be foreground then.
    cfg.MODEL.ROI_BOX_HEAD.GUIDED_SCALE = 0.0
    # Scores have to exceed, besides SCORE_THRESH_TEST, what follows from the shares of the classes in the
    # regions of training: "per_class" n_j / N, "foreground" N_f / N, "shared" N_f / (N K). Empty: nothing.
    cfg.MODEL.ROI_BOX_HEAD.ADAPTIVE_THRESHOLD = ""
    # The same as in ROI_BOX_HEAD, for the losses of "NormalizedRPN".
    cfg.MODEL.RPN.LOSS_NORMALIZER = "regions"
    # See MODEL.ROI_BOX_HEAD.GUIDED_SCALE.
    cfg.MODEL.RPN.GUIDED_SCALE = 0.0
    # Score of every anchor of "NormalizedRPN" before training. 0: the share of foreground in
    # DATASETS.STATISTICS, a file of the command anchor-statistics.
    cfg.MODEL.RPN.PRIOR_PROB = 0.5
    # Parts of MODEL.WEIGHTS that are not loaded but start afresh, as beginnings of parameter names. To
    # fine-tune a detector on other classes: ("roi_heads.box_predictor",)
    cfg.MODEL.RESET_WEIGHTS = ()
    # What computes the classification losses of RetinaNet and FCOS on a GPU: "torch"; or "triton", which is
    # experimental, where the loss is "SigmoidFocalLoss", "SigmoidBCELoss" or "DistributionBalancedLoss".
    cfg.MODEL.KERNELS = "torch"
    # Keep convolution weights, and with them activations, in channels-last order (faster on CPUs).
    cfg.MODEL.CHANNELS_LAST = False

    cfg.MODEL.CLASSIFICATION_LOSS = CN()
    cfg.MODEL.CLASSIFICATION_LOSS.SIGMOID_BCE = CN()
    # Score of every class before training; sets the classifier's bias to log(p / (1 - p)). Dense heads go by
    # MODEL.RETINANET.PRIOR_PROB instead, with any loss.
    cfg.MODEL.CLASSIFICATION_LOSS.SIGMOID_BCE.PRIOR_PROB = 0.01
    cfg.MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX = CN()
    # r_ij weakens class j as a rival of class i. It is P(j | i) for "given_row", P(i | j) for "given_column",
    # the larger of both for "maximum". Rates come from DATASETS.STATISTICS; those in loaded weights go first.
    cfg.MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX.DIRECTION = "given_row"
    # Loss in training: "concurrent", or "softmax", the cross entropy with several labels.
    cfg.MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX.TRAIN = "concurrent"
    # Scores: "concurrent" or "softmax".
    cfg.MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX.TEST = "concurrent"
    cfg.MODEL.CLASSIFICATION_LOSS.SEESAW = CN()
    # Frequent classes suppress rarer ones less, the more the higher this exponent; 0: not so.
    cfg.MODEL.CLASSIFICATION_LOSS.SEESAW.P = 0.8
    # But not classes that are mistaken for the true one, the less the higher this exponent; 0: not so.
    cfg.MODEL.CLASSIFICATION_LOSS.SEESAW.Q = 2.0
    # Lower bound on the true-class score in the compensation factor.
    cfg.MODEL.CLASSIFICATION_LOSS.SEESAW.EPS = 0.01
    # Foreground and background have logits of their own, and classes compete among themselves only.
    cfg.MODEL.CLASSIFICATION_LOSS.SEESAW.OBJECTNESS = True
    # Labels of a region that are learned: "all", or "most_specific", the one that the published loss knows.
    # "auto": the most specific where no training object has several labels, ancestors included, else all.
    cfg.MODEL.CLASSIFICATION_LOSS.SEESAW.LABELS = "auto"
    # "FocalSeesawLoss" and "ConcurrentFocalSeesawLoss", for dense heads: SEESAW and a focal loss
    cfg.MODEL.CLASSIFICATION_LOSS.FOCAL_SEESAW = CN()
    # Weight of foreground; background has 1 - ALPHA. Below 0: 1 for both.
    cfg.MODEL.CLASSIFICATION_LOSS.FOCAL_SEESAW.ALPHA = 0.25
    # How fast well classified anchors lose weight.
    cfg.MODEL.CLASSIFICATION_LOSS.FOCAL_SEESAW.GAMMA = 2.0
    # "ConcurrentSeesawLoss" and "ConcurrentFocalSeesawLoss": SEESAW, and labels that occur together do not
    # suppress each other in the scores either.
    cfg.MODEL.CLASSIFICATION_LOSS.CONCURRENT_SEESAW = CN()
    # As of CONCURRENT_SOFTMAX.DIRECTION.
    cfg.MODEL.CLASSIFICATION_LOSS.CONCURRENT_SEESAW.DIRECTION = "given_row"
    # "DistributionBalancedLoss": the published mean over classes is LOSS_NORMALIZER "elements".
    cfg.MODEL.CLASSIFICATION_LOSS.DISTRIBUTION_BALANCED = CN()
    # Weights of the entries: "rebalance" as published, from the labels of a region and the training images of
    # each class (DATASETS.STATISTICS; counts in loaded weights go first); "none"; or per class "inverse",
    # "sqrt_inverse" or "class_balanced".
    cfg.MODEL.CLASSIFICATION_LOSS.DISTRIBUTION_BALANCED.WEIGHTING = "rebalance"
    # Re-balanced weights are ALPHA + sigmoid(BETA (r - MU)), where r compares how often a region would be
    # drawn for the class with how often for all its labels. Their least value.
    cfg.MODEL.CLASSIFICATION_LOSS.DISTRIBUTION_BALANCED.ALPHA = 0.1
    # Their steepness.
    cfg.MODEL.CLASSIFICATION_LOSS.DISTRIBUTION_BALANCED.BETA = 10.0
    # The r in the middle of their range. The authors' values: 0.2 for COCO-MLT, 0.3 for VOC-MLT.
    cfg.MODEL.CLASSIFICATION_LOSS.DISTRIBUTION_BALANCED.MU = 0.2
    # "class_balanced" weights are (1 - CB_BETA) / (1 - CB_BETA ** images of the class).
    cfg.MODEL.CLASSIFICATION_LOSS.DISTRIBUTION_BALANCED.CB_BETA = 0.9
    # Whether regions are drawn by ancestors of their labels too, in r. False: by the most specific only.
    cfg.MODEL.CLASSIFICATION_LOSS.DISTRIBUTION_BALANCED.COUNT_ANCESTORS = True
    # The paper's lambda: gradients of negatives fall off this much faster. The authors' values: 2 for
    # COCO-MLT, 5 for VOC-MLT; 1: as fast as those of positives.
    cfg.MODEL.CLASSIFICATION_LOSS.DISTRIBUTION_BALANCED.NEGATIVE_SCALE = 2.0
    # Logits are shifted in the loss by KAPPA times the logit of the share of images with the class. 0: not.
    cfg.MODEL.CLASSIFICATION_LOSS.DISTRIBUTION_BALANCED.KAPPA = 0.05
    # "released": that shift divided by NEGATIVE_SCALE, as in the code of the published results; "paper".
    cfg.MODEL.CLASSIFICATION_LOSS.DISTRIBUTION_BALANCED.BIAS_FORM = "released"
    # Exponent of the focal form; 0: without it.
    cfg.MODEL.CLASSIFICATION_LOSS.DISTRIBUTION_BALANCED.GAMMA = 2.0
    # Factor of the focal form, for positives and negatives alike; without the focal form there is none.
    cfg.MODEL.CLASSIFICATION_LOSS.DISTRIBUTION_BALANCED.BALANCE = 2.0
    # As of SIGMOID_BCE.PRIOR_PROB.
    cfg.MODEL.CLASSIFICATION_LOSS.DISTRIBUTION_BALANCED.PRIOR_PROB = 0.01
    # "AsymmetricLoss"
    cfg.MODEL.CLASSIFICATION_LOSS.ASYMMETRIC = CN()
    # How fast well classified positives lose weight; 0: not.
    cfg.MODEL.CLASSIFICATION_LOSS.ASYMMETRIC.GAMMA_POSITIVE = 0.0
    # The same of negatives.
    cfg.MODEL.CLASSIFICATION_LOSS.ASYMMETRIC.GAMMA_NEGATIVE = 4.0
    # Negatives have no loss up to this score, and that of a score so much lower above it.
    cfg.MODEL.CLASSIFICATION_LOSS.ASYMMETRIC.MARGIN = 0.05
    # Whether those weights are constants in the gradient, as in the released code's training.
    cfg.MODEL.CLASSIFICATION_LOSS.ASYMMETRIC.DETACH_FOCUS = False
    # As of SIGMOID_BCE.PRIOR_PROB. Below MARGIN, background has no loss until scores have risen.
    cfg.MODEL.CLASSIFICATION_LOSS.ASYMMETRIC.PRIOR_PROB = 0.01
    # "MultiFocalModifierLoss": ASYMMETRIC with a factor per class, from DATASETS.STATISTICS (counts in loaded
    # weights go first), on the loss and added to GAMMA_NEGATIVE
    cfg.MODEL.CLASSIFICATION_LOSS.MULTI_FOCAL = CN()
    # Factors are (1 + log(images of the most frequent class / images of the class)) ** POWER; 0: all are 1.
    cfg.MODEL.CLASSIFICATION_LOSS.MULTI_FOCAL.POWER = 1 / 6
    # As of ASYMMETRIC.
    cfg.MODEL.CLASSIFICATION_LOSS.MULTI_FOCAL.GAMMA_POSITIVE = 0.0
    # As of ASYMMETRIC; the factor of the class is added, which is at least 1.
    cfg.MODEL.CLASSIFICATION_LOSS.MULTI_FOCAL.GAMMA_NEGATIVE = 4.0
    # As of ASYMMETRIC.
    cfg.MODEL.CLASSIFICATION_LOSS.MULTI_FOCAL.MARGIN = 0.05
    # As of ASYMMETRIC.
    cfg.MODEL.CLASSIFICATION_LOSS.MULTI_FOCAL.DETACH_FOCUS = True
    # As of ASYMMETRIC.
    cfg.MODEL.CLASSIFICATION_LOSS.MULTI_FOCAL.PRIOR_PROB = 0.01
    # Keys of a loss of your own (docs/own_loss.md): the one node that takes keys which are not listed here.
    cfg.MODEL.CLASSIFICATION_LOSS.OWN = CN(new_allowed=True)

    # MODEL.ROI_BOX_HEAD.BRANCH "TSDBoxBranch"
    cfg.MODEL.TSD = CN()
    # Width of the layers that predict where a proposal's bins move.
    cfg.MODEL.TSD.HIDDEN_DIM = 256
    # Offsets are multiples of GAMMA times the size of the proposal; 0: nothing moves.
    cfg.MODEL.TSD.GAMMA = 0.1
    # Samples of a moved bin along each side; at least 1.
    cfg.MODEL.TSD.SAMPLING_RATIO = 4
    # "aligned", which is RoIAlign where nothing moves; "legacy" for weights of the released code.
    cfg.MODEL.TSD.POOLING = "aligned"
    # Last layers that predict offsets: "random" as in the released code, or "zero", to start unmoved.
    cfg.MODEL.TSD.OFFSET_INIT = "random"
    # Offsets of boxes learn from pooling and from overlaps only, not from regression targets as well.
    cfg.MODEL.TSD.DETACH_TARGETS = False
    # In training a plain head learns beside the two. At test time there is none.
    cfg.MODEL.TSD.SIBLING = True
    # "shrinking": the sibling's score s is to be exceeded by min(margin, 1 - s); "constant": by the margin.
    cfg.MODEL.TSD.CONSTRAINT = "shrinking"
    # By how much to exceed the sibling: in the scores of an object's classes, and in the overlap with it.
    cfg.MODEL.TSD.MARGINS = (0.3, 0.3)
    # Weights of loss_pc_cls and loss_pc_loc; 0: without this constraint.
    cfg.MODEL.TSD.CONSTRAINT_WEIGHTS = (1.0, 1.0)

    # Regions per image, on average, that masks are trained on, drawn from the positive ones. 0: all.
    cfg.MODEL.ROI_MASK_HEAD.BATCH_SIZE_PER_IMAGE = 0
    # Its last layer: "Conv2d", or "NormalizedConv2d", which compares directions only.
    cfg.MODEL.ROI_MASK_HEAD.PREDICTOR = "Conv2d"
    # What the normalised layer multiplies the cosines with.
    cfg.MODEL.ROI_MASK_HEAD.TEMPERATURE = 20.0

    # Small backbone for training from scratch on CPUs ("build_tiny_backbone"): one level "p3" of stride 8.
    cfg.MODEL.TINY_BACKBONE = CN()
    # Channels of the first convolution (stride 2).
    cfg.MODEL.TINY_BACKBONE.STEM_CHANNELS = 16
    # Channels of the stages of stride 4, 8, 16.
    cfg.MODEL.TINY_BACKBONE.STAGE_CHANNELS = (32, 64, 128)
    # Channels of "p3".
    cfg.MODEL.TINY_BACKBONE.OUT_CHANNELS = 64
    # Normalisation after every convolution. From scratch, "BN" learns far faster than "GN".
    cfg.MODEL.TINY_BACKBONE.NORM = "BN"

    # "build_timm_fpn_backbone": a model of the package timm below Detectron2's FPN. Its levels, named by
    # their strides, are MODEL.FPN.IN_FEATURES: such as ["stride8", "stride16", "stride32"].
    cfg.MODEL.TIMM = CN()
    # As timm.create_model takes it.
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # File of its weights, .pth or .safetensors. Empty: random. Not read where MODEL.WEIGHTS is set. Pixels
    # that it was trained with, in RGB: longtail_det2.modeling.backbone.timm_pixels(NAME).
    cfg.MODEL.TIMM.WEIGHTS = ""
    # The layers that make the level of this stride are not trained. 0: all are.
    cfg.MODEL.TIMM.FREEZE_STRIDE = 0
    # Batch normalisation keeps its statistics and its weights; that of frozen layers always does.
    cfg.MODEL.TIMM.FREEZE_NORM = True
    # Levels of "build_timm_backbone", the same model without a pyramid.
    cfg.MODEL.TIMM.OUT_FEATURES = ["stride32"]


def _add_image_keys(cfg: CfgNode) -> None:
    # Images are resized to this (height, width), in training and testing; aspect ratios change. Empty: by
    # their shorter side, INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST.
    cfg.INPUT.FIXED_SIZE = ()

    # Brightness, contrast and saturation of training images vary at random by this share, in [0, 1).
    cfg.INPUT.COLOR_JITTER = 0.0

    # "MultiLabelClassifier": labels of whole images, with INPUT.IMAGE_LEVEL.
    cfg.MODEL.IMAGE_HEAD = CN()
    # Levels of the backbone, whose averages over the image are joined.
    cfg.MODEL.IMAGE_HEAD.IN_FEATURES = ["res5"]
    # Width of the layer before the classifier, with batch normalisation. 0: there is none.
    cfg.MODEL.IMAGE_HEAD.FC_DIM = 256
    # Share of the features before the classifier that are set to 0 in training.
    cfg.MODEL.IMAGE_HEAD.DROPOUT = 0.5
    # See MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS.
    cfg.MODEL.IMAGE_HEAD.CLASSIFICATION_LOSS = "SigmoidBCELoss"
    # See MODEL.ROI_BOX_HEAD.CLASSIFIER.
    cfg.MODEL.IMAGE_HEAD.CLASSIFIER = "Linear"
    # See MODEL.ROI_BOX_HEAD.TEMPERATURE.
    cfg.MODEL.IMAGE_HEAD.TEMPERATURE = 20.0
    # See MODEL.ROI_BOX_HEAD.LOSS_NORMALIZER; the regions are images.
    cfg.MODEL.IMAGE_HEAD.LOSS_NORMALIZER = "elements"
    # Score of every class before training.
    cfg.MODEL.IMAGE_HEAD.PRIOR_PROB = 0.5


def _add_dense_keys(cfg: CfgNode) -> None:
    cfg.MODEL.DENSE_HEAD = CN()
    # Loss of "MultiLabelRetinaNet" and "MultiLabelFCOS": a name in CLASSIFICATION_LOSS_REGISTRY, such as
    # "SigmoidFocalLoss" (its keys are MODEL.RETINANET.FOCAL_LOSS_ALPHA and FOCAL_LOSS_GAMMA),
    # "SigmoidBCELoss", "SoftmaxCrossEntropyLoss", "ConcurrentSoftmaxLoss", "FocalSeesawLoss",
    # "ConcurrentFocalSeesawLoss". MODEL.RETINANET.PRIOR_PROB is the score before training.
    cfg.MODEL.DENSE_HEAD.CLASSIFICATION_LOSS = "SigmoidFocalLoss"
    # What the losses are divided by; see MODEL.ROI_BOX_HEAD.LOSS_NORMALIZER.
    cfg.MODEL.DENSE_HEAD.LOSS_NORMALIZER = "foreground_average"
    # Of loss_box_reg.
    cfg.MODEL.DENSE_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    # Score before training: "fixed" is MODEL.RETINANET.PRIOR_PROB; "shared" and "per_class" are the shares of
    # positive anchors, over the classes or of each, in DATASETS.STATISTICS (command anchor-statistics).
    cfg.MODEL.DENSE_HEAD.PRIOR = "fixed"
    # See MODEL.ROI_BOX_HEAD.GUIDED_SCALE.
    cfg.MODEL.DENSE_HEAD.GUIDED_SCALE = 0.0
    # Steps after which the scale is frozen, and the losses have learned weights. 0: a new scale in each step.
    cfg.MODEL.DENSE_HEAD.GUIDED_WARMUP = 0
    # See MODEL.ROI_BOX_HEAD.ADAPTIVE_THRESHOLD; of all anchors.
    cfg.MODEL.DENSE_HEAD.ADAPTIVE_THRESHOLD = ""

    # Detectron2 has FCOS in lazy configs only; the defaults are those of its class.
    cfg.MODEL.FCOS = CN()
    # Levels of the backbone.
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Convolutions before the last one, in each of the two branches.
    cfg.MODEL.FCOS.NUM_CONVS = 4
    # Their normalisation.
    cfg.MODEL.FCOS.NORM = "GN"
    # A location is positive within so many strides of an object's centre.
    cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 1.5
    # Detections need sqrt(score x centerness) above this.
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.2
    # So many best (location, class) pairs of a level go into non-maximum suppression.
    cfg.MODEL.FCOS.TOPK_CANDIDATES_TEST = 1000
    # Overlap above which the lower of two boxes of a class is dropped.
    cfg.MODEL.FCOS.NMS_THRESH_TEST = 0.6


def _add_solver_keys(cfg: CfgNode) -> None:
    # "SGD" or "AdamW"
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Learning rate that WarmupCosineLR ends at (the meaning it has in newer Detectron2).
    cfg.SOLVER.BASE_LR_END = 0.0
    # The newest checkpoints that are kept, beside the final one. 0: all. 1: none to fall back on.
    cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP = 0
    # Iterations between two lines of the log and of metrics.json.
    cfg.SOLVER.LOG_PERIOD = 20
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE has one more value than in Detectron2: "full_model" clips the norm of
    # all gradients together ("norm" clips each parameter by itself).


def _add_test_keys(cfg: CfgNode) -> None:
    # Metrics of annotation stores: any of "open_images", "coco", "lvis", or "image_labels". Empty: what fits
    # the data. LVIS and COCO files get their own; the metric of Open Images is for its data and, beside the
    # others, for data with a hierarchy and for COCO files with image-level labels; that of image labels is
    # for classifiers of images.
    cfg.TEST.METRICS = ()
    # What COCO's and LVIS's metric compare: "bbox", "segm" or both. Empty: boxes, and masks with MASK_ON.
    cfg.TEST.TASKS = ()
    # (low, high) training images: tail has fewer than `low`, head at least `high`. Empty: thirds of leaves.
    cfg.TEST.HEAD_MEDIUM_TAIL = ()

    cfg.TEST.OPEN_IMAGES = CN()
    # A detection finds an object when their boxes overlap by this much.
    cfg.TEST.OPEN_IMAGES.IOU = 0.5
    # Weight of a group-of box as ground truth: 1 in the 2019 challenge, 0 ignores groups.
    cfg.TEST.OPEN_IMAGES.GROUP_OF_WEIGHT = 1.0
    # Also evaluate with each prediction repeated for its class's ancestors (a second number, mAP50_expanded).
    cfg.TEST.OPEN_IMAGES.EXPAND_PREDICTIONS = True
    # Write inference/<data set>/predictions.csv in the challenge's form.
    cfg.TEST.OPEN_IMAGES.WRITE_PREDICTIONS_CSV = True

    cfg.TEST.IMAGE_LABELS = CN()
    # F1 takes classes with a higher score as predicted. Average precision has no threshold.
    cfg.TEST.IMAGE_LABELS.SCORE_THRESH = 0.5

    cfg.TEST.COCO = CN()
    # Detections of a class in an image that count, the best ones.
    cfg.TEST.COCO.MAX_DETECTIONS = 100

    cfg.TEST.LVIS = CN()
    # Best detections per image that count, over all classes; TEST.DETECTIONS_PER_IMAGE should be the same.
    cfg.TEST.LVIS.MAX_DETECTIONS = 300
    # Detections of a class over all images that count for fixed AP, the best ones. 0: no fixed AP.
    cfg.TEST.LVIS.FIXED_AP_DETECTIONS = 10000
