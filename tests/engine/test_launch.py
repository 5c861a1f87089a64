import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from runs import run_script

from longtail_det2.engine.launch import launch
from longtail_det2.utils.errors import ConfigError

NOTE_RANK = """
import json, sys
from pathlib import Path
from detectron2.utils import comm
from longtail_det2.cli.run import parse_args, run

def main(args):
    ranks = comm.all_gather(comm.get_rank())
    folder = Path(args.opts[0])
    facts = [comm.get_rank(), comm.get_world_size(), comm.get_local_rank(), comm.get_local_size(), ranks]
    (folder / f"{comm.get_rank()}.json").write_text(json.dumps(facts))

if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
"""


LIST_THREADS = """
import sys
from pathlib import Path
import torch.distributed as dist
from detectron2.utils import comm
from longtail_det2.engine.launch import _run_in_group

def gloo_threads():
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return sum("gloo" in name for name in names)

def main():
    dist.barrier(comm._get_global_gloo_group())
    print(gloo_threads())

_run_in_group(0, 1, main, (), {"init_method": f"file://{sys.argv[1]}", "rank": 0, "world_size": 1})
print(gloo_threads())
"""


EVALUATE = """
import json, sys
from pathlib import Path
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from longtail_det2.engine.launch import launch
from longtail_det2.engine.run import evaluate_model

class Model(torch.nn.BatchNorm1d):
    def forward(self, batch):
        return [self.running_mean.tolist()]

class Seen(DatasetEvaluator):
    def reset(self):
        self.found = []

    def process(self, inputs, outputs):
        self.found.append(outputs)

    def evaluate(self):
        comm.synchronize()

def main(folder):
    model, seen, rank = Model(1), Seen(), comm.get_rank()
    model.running_mean.fill_(rank + 1)
    model.register_buffer("flag", torch.tensor(rank == 0))
    evaluate_model(model, [[{}]], seen, "any")
    state = [seen.found, model.running_mean.item(), model.flag.item()]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(state))

if __name__ == "__main__":
    launch(main, 2, args=sys.argv[1:])
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "note_rank.py"
    path.write_text(NOTE_RANK)
    return path


def test_numbers_that_do_not_fit(monkeypatch):
    for numbers in ({"processes_per_machine": 0}, {"num_machines": 0}, {"machine_rank": 1}):
        with pytest.raises(ConfigError, match="at least one process"):
            launch(print, **numbers)
    with pytest.raises(ConfigError, match="--dist-url"):
        launch(print, num_machines=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="--num-gpus 2"):
        launch(print, processes_per_machine=2)


def assert_two_processes(done, folder):
    """Both noted who they are and whom they met."""
    assert done.returncode == 0, done.stderr
    facts = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    assert facts == [[0, 2, 0, 2, [0, 1]], [1, 2, 1, 2, [0, 1]]]


def test_torchrun_wins_over_the_flag(script, tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", 0, "--standalone")
    assert_two_processes(run_script(*torchrun, script, "--num-gpus", 7, tmp_path), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists threads as Linux does")
def test_no_thread_outlives_the_process_group(tmp_path):
    done = run_script("-c", LIST_THREADS, tmp_path / "rendezvous")
    before, after = map(int, done.stdout.split())
    assert before > 0 and after == 0, done.stderr


@pytest.mark.slow
def test_all_processes_evaluate_what_the_checkpoint_has(tmp_path):
    """BN's running statistics differ by process; after the evaluation each has its own again."""
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    done = run_script(tmp_path / "evaluate.py", tmp_path)
    assert done.returncode == 0, done.stderr
    states = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert states == [[[[[1.0]]], 1.0, True], [[[[1.0]]], 2.0, False]]


@pytest.mark.slow
def test_two_jobs_on_one_machine_do_not_meet(script, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor() as pool:
        jobs = list(pool.map(lambda folder: run_script(script, "--num-gpus", 2, folder), folders))
    for job, folder in zip(jobs, folders, strict=True):
        assert_two_processes(job, folder)
