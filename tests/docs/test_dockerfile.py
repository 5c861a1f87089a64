"""The image without a Docker engine: instructions, copied files, and (on request) its commands run."""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ON_REQUEST = "LONGTAIL_DET2_TEST_DOCKERFILE"


def instructions(text):
    """Pairs (instruction, arguments) with continuation lines joined."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def steps(repository):
    return instructions((repository / "Dockerfile").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def ignored(repository):
    """Whether .dockerignore leaves a path out: its patterns begin at the root, unless they begin with **/."""
    lines = (repository / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]

    def is_ignored(name):
        parts = Path(name).parts
        for pattern in patterns:
            places = parts if pattern.startswith("**/") else parts[:1]
            if any(fnmatch.fnmatch(part, pattern.removeprefix("**/")) for part in places):
                return True
        return False

    return is_ignored


def arguments_of(steps, name):
    return [arguments for instruction, arguments in steps if instruction == name]


def test_base_image_is_pinned_by_tag(steps):
    assert steps[0][0] == "FROM"
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d\d\.\d\d", steps[0][1])


def test_the_user_is_not_root(steps):
    [user] = arguments_of(steps, "USER")
    assert user not in ("root", "0")
    place = next(index for index, step in enumerate(steps) if step[0] == "USER")
    later = [arguments for name, arguments in steps[place:] if name == "RUN"]
    assert later and not any(re.search(r"\b(apt-get|useradd|chown)\b", command) for command in later)


def test_entry_point_is_the_command(steps):
    [entry] = arguments_of(steps, "ENTRYPOINT")
    assert json.loads(entry) == ["longtail-det2"]


def test_copied_files_exist_and_are_not_ignored(steps, repository, ignored):
    for copied in arguments_of(steps, "COPY"):
        for source in [word for word in copied.split() if not word.startswith("--")][:-1]:
            assert (repository / source).exists(), source
            assert source == "." or not ignored(source), source


def test_what_the_installation_reads_is_not_ignored(repository, ignored):
    needed = ["README.md", "LICENSE", "pyproject.toml", "setup.py", "longtail_det2/config.py"]
    needed += ["configs/Base-RCNN-FPN-OpenImages.yaml", "scripts/train_net.py"]
    needed += ["longtail_det2/data/datasets/builtin.py"]
    for name in needed:
        assert (repository / name).is_file() and not ignored(name), name
    for name in [".git", ".venv", "output", "datasets", "tests", "longtail_det2/__pycache__"]:
        assert ignored(name), name


def test_commands_pass_shellcheck(steps, tmp_path):
    shellcheck = shutil.which("shellcheck", path=os.path.dirname(sys.executable))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    script = tmp_path / "run.sh"
    script.write_text("\n".join(["#!/bin/sh", *arguments_of(steps, "RUN")]), encoding="utf-8")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get(ON_REQUEST), reason=f"downloads 5 GB; set {ON_REQUEST}=1")
def test_commands_of_the_user_run_in_a_clean_folder(steps, repository, ignored, tmp_path):
    """The RUN, COPY and ENTRYPOINT lines after USER, with /opt and /workspace below a temporary folder."""
    workspace, venv = tmp_path / "workspace", tmp_path / "venv"
    workspace.mkdir()
    environment = {"PATH": f"{venv}/bin:{os.environ['PATH']}", "HOME": str(tmp_path)}
    environment.update({key: os.environ[key] for key in os.environ if key.startswith("PIP_")})
    environment.update(PIP_NO_CACHE_DIR="1", PYTHONUNBUFFERED="1")
    tracked = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True)
    files = [name for name in tracked.stdout.splitlines() if not ignored(name)]
    place = next(index for index, step in enumerate(steps) if step[0] == "USER")
    for name, arguments in steps[place:]:
        if name == "COPY":
            sources = [word for word in arguments.split() if not word.startswith("--")][:-1]
            copy([one for one in files if "." in sources or one in sources], repository, workspace)
        elif name == "RUN":
            command = arguments.replace("/opt/venv", str(venv))
            subprocess.run(["sh", "-c", command], cwd=workspace, env=environment, check=True)
    [entry] = arguments_of(steps, "ENTRYPOINT")
    done = subprocess.run(
        [str(venv / "bin" / json.loads(entry)[0]), "train", "--help"],
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "--config-file" in done.stdout


def copy(names, source, target):
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)
