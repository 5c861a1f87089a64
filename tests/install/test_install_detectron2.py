"""The installer's refusals, each with a message that says what to do."""

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


def test_command_keeps_it_and_installs_nothing(repository):
    result = subprocess.run(
        [sys.executable, str(repository / "scripts/install_detectron2.py")], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "keeping the Detectron2 that is here" in result.stdout
    assert "building" not in result.stdout


@pytest.mark.parametrize(
    ("check", "advice"), [("check_torch", "tested pair"), ("existing_detectron2", "pip uninstall detectron2")]
)
def test_names_what_cannot_be_imported(installer, monkeypatch, check, advice):
    failure = subprocess.CompletedProcess([], 1, "", "Traceback\nRuntimeError: no operator nms\n")
    monkeypatch.setattr(installer.subprocess, "run", lambda *args, **kwargs: failure)
    with pytest.raises(installer.InstallError, match=rf"\(RuntimeError: no operator nms\)[\s\S]*{advice}"):
        getattr(installer, check)()


def test_refuses_a_wrong_hash(installer, tmp_path):
    damaged = tmp_path / "pb1-detectron2-0.6.tar.gz"
    damaged.write_bytes(b"not the file")
    with pytest.raises(installer.InstallError, match=r"SHA-256 is [\s\S]* nothing was installed"):
        installer.unpack(damaged, tmp_path)
    with pytest.raises(installer.InstallError, match="no such file"):
        installer.unpack(tmp_path / "absent.tar.gz", tmp_path)


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
    for name, *_ in installer.REPAIRS:
        path = tmp_path / "detectron2" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("something else\n")
    with pytest.raises(installer.InstallError, match="passage to repair"):
        installer.repair(tmp_path)
