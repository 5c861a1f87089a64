"""Phases with two processes of two workers each: who draws what, and a kill inside the second phase."""

import itertools
import json
import time

import numpy as np
import pytest
from runs import SECONDS, differences, finish, kill, start_ranks

from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.samplers import PhasedTrainingSampler
from longtail_det2.engine.sampling_log import SAMPLED_CLASSES_FILE

pytestmark = pytest.mark.slow
PHASES = [["UniformTrainingSampler", 11], ["SoftBalanceTrainingSampler", 9, {"lambda_": 0.5}]]
BATCH = 8
STARTS = [0, 3, 10, 11, 12, 17]
"""Iterations done before, around the boundary too."""

DRAW = """
import itertools, json, sys
import numpy as np
from detectron2.utils import comm
from longtail_det2.data.build import build_train_loader
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.engine.launch import launch

PHASES, BATCH, STARTS = {phases!r}, {batch!r}, {starts!r}

def mapper(record):
    return record["image_id"], record["width"] > record["height"], np.random.random()

def draw(store, output):
    assert comm.get_world_size() == 2
    found = {{}}
    for grouping in (False, True):
        for start in STARTS:
            loader = build_train_loader(
                MultiLabelDataset(store), mapper=mapper, sampler="PhasedTrainingSampler", phases=PHASES,
                total_batch_size=BATCH, aspect_ratio_grouping=grouping, num_workers=2, seed=4,
                start=start * BATCH,
            )
            found[f"{{grouping}} {{start}}"] = list(itertools.islice(loader, 20 - start))
    with open(f"{{output}}/{{comm.get_rank()}}.json", "w") as file:
        json.dump(found, file)

if __name__ == "__main__":
    launch(draw, args=sys.argv[1:])
"""


@pytest.fixture
def shaped_store(tmp_path, store_maker):
    """The pictures of the other tests, a third of which claim to be landscape."""
    path = store_maker(tmp_path / "many", images=60)
    sizes = np.load(path / "image_size.npy")
    sizes[::3, 1] = 96
    np.save(path / "image_size.npy", sizes)
    return path


def test_two_ranks_with_two_workers(shaped_store, tmp_path):
    script = tmp_path / "draw.py"
    script.write_text(DRAW.format(phases=PHASES, batch=BATCH, starts=STARTS))
    log = tmp_path / "output.txt"
    finish(start_ranks([script, shaped_store, tmp_path], log), log)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    dataset = MultiLabelDataset(shaped_store)
    sampler = PhasedTrainingSampler.from_dataset(dataset, seed=4, phases=PHASES, batch_size=BATCH)
    stream = [dataset[index]["image_id"] for index in itertools.islice(sampler, 20 * BATCH)]
    for grouping in (False, True):
        whole = [found[f"{grouping} 0"] for found in ranks]
        for rank, start in itertools.product(range(2), STARTS):  # images, batches and augmentation
            assert ranks[rank][f"{grouping} {start}"] == whole[rank][start:]
        for begin, end in ((0, 11), (11, 20)):
            drawn = [one[0] for part in whole for batch in part[begin:end] for one in batch]
            assert sorted(drawn) == sorted(stream[begin * BATCH : end * BATCH])
        mixed = [len({one[1] for one in batch}) == 2 for part in whole for batch in part]
        if not grouping:
            for rank in range(2):
                assert [one[0] for batch in whole[rank] for one in batch] == stream[rank::2]
        else:
            last = {number % 20 for number, flag in enumerate(mixed) if flag}
            assert last and last <= {10, 19}  # the last batches of the phases
    randoms = {one[2] for found in ranks for batch in found["False 0"] for one in batch}
    assert len(randoms) == 20 * BATCH  # no two draws share their random numbers


def test_killed_inside_the_second_phase(yaml_args, repository, tmp_path):
    """SIGKILL to all, resumed: all is equal to the bit, frequencies and what the loss counted included."""
    phases = "(('UniformTrainingSampler', 8), ('SoftBalanceTrainingSampler', 20, {'lambda_': 0.5}))"

    def command(run, workers, *flags):
        options = [
            *("DATALOADER.SAMPLER_TRAIN", "PhasedTrainingSampler", "DATALOADER.PHASES", phases),
            *("SEED", "2", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.CHECKPOINT_PERIOD", "3"),
            *("DATALOADER.ASPECT_RATIO_GROUPING", "True", "DATALOADER.NUM_WORKERS", str(workers)),
            *("MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS", "SeesawLoss"),
            *("SOLVER.LOG_PERIOD", "20", "SOLVER.BASE_LR", "0.002"),
        ]
        args = yaml_args(*options, "DATASETS.TEST", "()", "OUTPUT_DIR", str(run), max_iter=28)
        script = repository / "scripts/train_net.py"
        return [script, *flags, "--config-file", args.config_file, *args.opts]

    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "output.txt"
    finish(start_ranks(command(whole, 0), log), log)
    processes = start_ranks(command(killed, 2), log)
    end = time.monotonic() + SECONDS
    while not (killed / "model_0000011.pth").is_file():  # four iterations into the second phase
        assert all(process.poll() is None for process in processes) and time.monotonic() < end
        time.sleep(0.01)
    kill(processes)
    assert not (killed / "model_final.pth").is_file()
    finish(start_ranks(command(killed, 2, "--resume"), log), log)
    assert differences(whole, killed) == []
    assert (whole / SAMPLED_CLASSES_FILE).read_text() == (killed / SAMPLED_CLASSES_FILE).read_text()
    phases = json.loads((whole / SAMPLED_CLASSES_FILE).read_text())["phases"]
    assert [phase["images_drawn"] for phase in phases] == [32, 80]  # over both processes
    lines = [json.loads(line) for line in (killed / "metrics.json").read_text().splitlines()]
    assert {line["iteration"]: line["phase"] for line in lines if "phase" in line} == {19: 2, 27: 2}
