"""The hook for compiled operators: built when there are sources and a compiler, never required."""

import importlib.util

import pytest
import setuptools


@pytest.fixture
def setup_module(repository, monkeypatch, tmp_path):
    """Function: (value of LONGTAIL_DET2_BUILD_OPS) -> setup.py as a module that builds below `tmp_path`."""

    def load(build_ops="auto"):
        monkeypatch.setattr(setuptools, "setup", lambda **options: None)
        monkeypatch.setenv("LONGTAIL_DET2_BUILD_OPS", build_ops)
        spec = importlib.util.spec_from_file_location("project_setup", repository / "setup.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(module, "ROOT", tmp_path)
        return module

    return load


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "longtail_det2" / "layers" / "csrc"
    folder.mkdir(parents=True)
    (folder / "ops.cpp").write_text("// nothing\n")


def test_nothing_to_build(setup_module):
    assert setup_module().compiled_operators() == ([], {})


@pytest.mark.usefixtures("sources")
def test_installs_without_a_compiler(setup_module, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert setup_module().compiled_operators() == ([], {})
    assert "no C++ compiler 'no-such-compiler'" in capsys.readouterr().err


@pytest.mark.usefixtures("sources")
def test_says_so_where_operators_are_demanded(setup_module, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match="there is no C\\+\\+ compiler"):
        setup_module("1").compiled_operators()


@pytest.mark.usefixtures("sources")
def test_can_be_switched_off(setup_module):
    assert setup_module("0").compiled_operators() == ([], {})


@pytest.mark.usefixtures("sources")
@pytest.mark.parametrize(("build_ops", "optional"), [("auto", True), ("1", False)])
def test_builds_with_a_compiler(setup_module, monkeypatch, build_ops, optional):
    monkeypatch.setenv("CXX", "sh -c")  # any program that exists: nothing is compiled here
    extensions, commands = setup_module(build_ops).compiled_operators()
    assert [extension.name for extension in extensions] == ["longtail_det2._C"]
    assert extensions[0].sources == ["longtail_det2/layers/csrc/ops.cpp"]
    assert extensions[0].optional is optional
    assert set(commands) == {"build_ext"}
