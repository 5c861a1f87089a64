# Where data come from: "name=folder" stores of your own, and the folder of the built-in data sets
# ("": $DETECTRON2_DATASETS, else "datasets").
datasets = dict(stores=[], root="")

train = dict(
    output_dir="",  # ./output/NAME OF THE CONFIG
    init_checkpoint="",
    reset_weights=[],  # beginnings of parameter names that are not loaded from init_checkpoint
    max_iter=90000,
    amp=dict(enabled=False),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=5000, max_to_keep=0),  # 0: all are kept
    eval_period=0,  # 0: once, at the end
    log_period=20,
    device="cuda",
    channels_last=False,
    seed=-1,
)
