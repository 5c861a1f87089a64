"""The installer's refusals, each with a message that says what to do."""

import importlib.metadata
import importlib.util
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def installer(repository):
    spec = importlib.util.spec_from_file_location(
        "install_detectron2", repository / "scripts/install_detectron2.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_keeps_a_detectron2_that_imports(installer):
    assert "detectron2" in installer.existing_detectron2()


@pytest.mark.parametrize(
    ("version", "outdated"), [("0.6+pure.1", True), ("0.6", False), ("0.6+cu111", False), (None, False)]
)
def test_only_an_earlier_wheel_of_this_script_is_replaced(installer, monkeypatch, version, outdated):
    def installed(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(installer.importlib.metadata, "version", installed)
    assert installer.is_outdated_wheel() == outdated


def test_command_keeps_it_and_installs_nothing(repository):
    result = subprocess.run(
        [sys.executable, str(repository / "scripts/install_detectron2.py")], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "keeping the Detectron2 that is here" in result.stdout
    assert "building" not in result.stdout


@pytest.mark.parametrize("missing", ["torch", "torchvision"])
def test_names_the_missing_module(installer, monkeypatch, missing):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        installer.importlib.util, "find_spec", lambda name: None if name == missing else real(name)
    )
    with pytest.raises(installer.InstallError, match=rf"{missing} is not installed .*\n.*pip install"):
        installer.check_torch()


def test_names_a_pair_whose_operators_do_not_load(installer, monkeypatch):
    failure = subprocess.CompletedProcess(
        [], 1, "", "RuntimeError: operator torchvision::nms does not exist\n"
    )
    monkeypatch.setattr(installer.subprocess, "run", lambda *args, **kwargs: failure)
    with pytest.raises(installer.InstallError, match=r"nms does not exist[\s\S]*tested pair"):
        installer.check_torch()


def test_refuses_a_wrong_hash(installer, tmp_path):
    damaged = tmp_path / "pb1-detectron2-0.6.tar.gz"
    damaged.write_bytes(b"not the file")
    with pytest.raises(installer.InstallError, match=r"SHA-256 is [\s\S]* nothing was installed"):
        installer.check_hash(damaged)
    with pytest.raises(installer.InstallError, match="no such file"):
        installer.check_hash(tmp_path / "absent.tar.gz")


def test_says_when_the_network_is_away(installer, monkeypatch, tmp_path):
    class Unreachable:
        def parse_args(self, arguments):
            raise ConnectionError("Network is unreachable")

    class Commands:
        create_command = staticmethod(lambda name: Unreachable())

    monkeypatch.setattr(installer.importlib, "import_module", lambda name: Commands)
    with pytest.raises(installer.InstallError, match=r"Network is unreachable[\s\S]*--sdist FILE"):
        installer.fetch_sdist(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_refuses_sources_it_does_not_know(installer, tmp_path):
    for item in installer.REPAIRS:
        path = tmp_path / item.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("something else\n")
    with pytest.raises(installer.InstallError, match="passage to repair"):
        installer.repair(tmp_path)


def test_stub_explains_what_is_missing(installer):
    namespace = {}
    exec(installer.STUB, namespace)
    assert namespace["has_cuda"]() is False
    with pytest.raises(AttributeError, match="deform_conv_forward is a compiled operator"):
        namespace["__getattr__"]("deform_conv_forward")
