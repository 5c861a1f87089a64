"""The Kubernetes examples: well-formed, consistent, and their torchrun call trains."""

import os
import re
import socket
import subprocess
import sys

import pytest
import yaml
from torch.distributed.run import get_args_parser

FILES = ["kubernetes.yaml", "kubernetes_pytorchjob.yaml"]
FIRST_POD = {"JOB_COMPLETION_INDEX": "0", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def load(repository, name):
    return list(yaml.safe_load_all((repository / "scripts/launchers" / name).read_text(encoding="utf-8")))


def pod_specs(documents):
    """The pod specs of all replicas of the last document."""
    spec = documents[-1]["spec"]
    replicas = spec.get("pytorchReplicaSpecs")
    templates = [one["template"] for one in replicas.values()] if replicas else [spec["template"]]
    return [template["spec"] for template in templates]


def expand(argument, variables):
    """What Kubernetes makes of $(NAME) in an argument."""
    return re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], argument)


def torchrun_arguments(pod, variables):
    [container] = pod["containers"]
    assert container["command"] == ["torchrun"]
    return [expand(str(argument), variables) for argument in container["args"]]


@pytest.mark.parametrize("name", FILES)
def test_torchrun_call(repository, name):
    from longtail_det2.cli.run import parse_args
    from longtail_det2.config_files import load_cfg

    documents = load(repository, name)
    for pod in pod_specs(documents):
        args = get_args_parser().parse_args(torchrun_arguments(pod, FIRST_POD))
        assert int(args.nproc_per_node) == pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
        assert args.node_rank == 0 and args.master_port == 29500
        assert (repository / args.training_script).is_file()
        train = parse_args(args.training_script_args)
        assert train.resume
        cfg = load_cfg(train.config_file, train.opts)
        assert cfg.SOLVER.IMS_PER_BATCH % (int(args.nnodes) * int(args.nproc_per_node)) == 0
        mounts = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
        assert cfg.OUTPUT_DIR.startswith("/data/") and cfg.DATASETS.ROOT.startswith("/data/")
        assert {"/data", "/dev/shm"} <= set(mounts)
        assert {volume["name"] for volume in pod["volumes"]} == {"data", "shm"}


def test_pods_of_the_indexed_job_find_the_first(repository):
    service, job = load(repository, "kubernetes.yaml")
    name = job["metadata"]["name"]
    spec = job["spec"]
    [pod] = pod_specs([service, job])
    args = get_args_parser().parse_args(torchrun_arguments(pod, FIRST_POD))
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(args.nnodes)
    # An indexed job's pod is called <job>-<index>; the headless service is its domain.
    assert args.master_addr == f"{name}-0.{pod['subdomain']}"
    assert service["metadata"]["name"] == pod["subdomain"] and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}


def test_machines_of_the_pytorchjob(repository):
    [job] = load(repository, "kubernetes_pytorchjob.yaml")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    args = get_args_parser().parse_args(torchrun_arguments(replicas["Worker"]["template"]["spec"], FIRST_POD))
    assert sum(one["replicas"] for one in replicas.values()) == int(args.nnodes)
    assert all(pod["containers"][0]["name"] == "pytorch" for pod in pod_specs([job]))


def test_image_user_is_the_dockerfiles(repository):
    dockerfile = (repository / "Dockerfile").read_text(encoding="utf-8")
    for name in FILES:
        for pod in pod_specs(load(repository, name)):
            assert f"--uid {pod['securityContext']['runAsUser']}" in dockerfile


@pytest.mark.slow
def test_the_call_trains_on_two_machines(repository, tiny_training, tmp_path):
    """Both pods' commands, side by side here, each with one process on the CPU."""
    [pod] = pod_specs(load(repository, "kubernetes.yaml"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pods = []
    for index in range(2):
        arguments = torchrun_arguments(pod, {"JOB_COMPLETION_INDEX": str(index)})
        place = arguments.index("--config-file")
        flags = [
            re.sub(r"--master-addr=.*", "--master-addr=127.0.0.1", one)
            .replace("--nproc-per-node=8", "--nproc-per-node=1")
            .replace("29500", str(port))
            for one in arguments[:place]
        ]
        command = [sys.executable, "-m", "torch.distributed.run", *flags, *tiny_training(tmp_path / "run", 3)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pods.append(subprocess.Popen(command, cwd=repository, env=environment, stderr=subprocess.PIPE))
    for process in pods:
        error = process.communicate(timeout=300)[1]
        assert process.returncode == 0, error.decode()
    assert "World size: 2" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert (tmp_path / "run" / "model_final.pth").is_file()
