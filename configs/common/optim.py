from detectron2.config import LazyCall as L

from longtail_det2.engine.solver import build_lr_multiplier, build_optimizer

# The trainer hands the model in.
SGD = L(build_optimizer)(name="SGD", base_lr=0.02, momentum=0.9, weight_decay=1e-4, weight_decay_norm=0.0)
AdamW = L(build_optimizer)(name="AdamW", base_lr=0.003, weight_decay=0.05, weight_decay_norm=0.0)

# Detectron2's "1x" for COCO: batch 16, 90,000 iterations.
steps = L(build_lr_multiplier)(
    name="WarmupMultiStepLR",
    max_iter="${train.max_iter}",
    steps=[60000, 80000],
    gamma=0.1,
    warmup_iters=1000,
    warmup_factor=0.001,
)
cosine = L(build_lr_multiplier)(
    name="WarmupCosineLR",
    max_iter="${train.max_iter}",
    end_factor=0.02,
    warmup_iters=50,
    warmup_factor=0.02,
)
