"""Stands in for scripts/train_net.py: writes what a training writes, in no time.

The result depends on the options, as a real one would: SOLVER.BASE_LR plus a part of the seed; an evaluation
adds TEST.DETECTIONS_PER_IMAGE. SOLVER.MAX_ITER steps of SOLVER.WARMUP_FACTOR seconds are taken, with a
checkpoint each; MODEL.DEVICE "broken" fails; every call is noted in calls.jsonl beside this file.
"""

import json
import os
import sys
import time
from pathlib import Path

words = sys.argv[1:]
flags = [word for word in words if word.startswith("--") and word != "--config-file"]
rest = words[words.index("--config-file") + 2 :]
rest = [word for word in rest if not word.startswith("--")]
if "=" in rest[0]:  # a lazy config's
    options = dict(word.split("=", 1) for word in rest)
    names = {"train.output_dir": "OUTPUT_DIR", "train.seed": "SEED", "train.max_iter": "SOLVER.MAX_ITER"}
    options = {names.get(key, key): value.strip("'") for key, value in options.items()}
else:
    options = dict(zip(rest[::2], rest[1::2], strict=True))
run = Path(options["OUTPUT_DIR"])
run.mkdir(parents=True, exist_ok=True)
with (Path(__file__).parent / "calls.jsonl").open("a") as calls:
    call = {"flags": flags, "options": options, "threads": os.environ["OMP_NUM_THREADS"], "pid": os.getpid()}
    calls.write(json.dumps(call) + "\n")
if options.get("MODEL.DEVICE") == "broken":
    sys.stderr.write("step 1\nstep 2\nerror: the device is broken\n")
    sys.exit(2)
weights = run / "model_final.pth"
if "--eval-only" in flags and "--resume" not in flags:
    assert Path(options["MODEL.WEIGHTS"]).is_file(), options["MODEL.WEIGHTS"]
elif "--eval-only" not in flags:
    if options.get("MODEL.WEIGHTS"):
        assert Path(options["MODEL.WEIGHTS"]).is_file()
    last = run / "last_checkpoint"
    start = int(last.read_text().split("_")[1].split(".")[0]) + 1 if last.exists() else 0
    for step in range(start, int(options["SOLVER.MAX_ITER"])):
        time.sleep(float(options.get("SOLVER.WARMUP_FACTOR", 0)))
        (run / f"model_{step:07}.pth").write_text(options.get("SOLVER.BASE_LR", "0"))
        last.write_text(f"model_{step:07}.pth")
        with (run / "steps.txt").open("a") as steps:
            steps.write(f"{step}\n")
    weights.write_text("weights")
    last.write_text("model_final.pth")
seed = int(options["SEED"])
value = float(options.get("SOLVER.BASE_LR", 0.1)) + 0.01 * seed + 0.001 * seed * (seed - 1)
value += 0.0001 * float(options.get("TEST.DETECTIONS_PER_IMAGE", 0))
folder = run / "inference" / "shapes_validation"
folder.mkdir(parents=True, exist_ok=True)
summary = {"mAP50": value, "mAP50_leaves": value / 2, "mAP50_tail": None}
(folder / "results.json").write_text(json.dumps({"summary": {"bbox": summary}}))
