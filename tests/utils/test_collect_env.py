"""The environment report names what is there and what is wrong."""

import longtail_det2
from longtail_det2.utils import collect_env


def test_reports_versions_and_no_problem(capsys):
    assert collect_env.main([]) == 0
    text = capsys.readouterr().out
    for expected in (longtail_det2.__version__, "pyarrow", "detectron2", "PyTorch", "Problems: none"):
        assert expected in text


def test_check_is_silent_where_all_is_well(capsys):
    assert collect_env.main(["--check"]) == 0
    assert capsys.readouterr().out == ""


def test_names_a_missing_library(monkeypatch, capsys):
    monkeypatch.setattr(collect_env, "LIBRARIES", ("numpy", "no_such_library_here"))
    assert collect_env.main(["--check"]) == 1
    assert "no_such_library_here: not installed" in capsys.readouterr().out


def test_names_operators_that_do_not_load(monkeypatch, capsys):
    import torchvision

    def refuse(*arguments):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", refuse)
    assert collect_env.main([]) == 1
    text = capsys.readouterr().out
    assert "do not load: operator torchvision::nms does not exist" in text
    assert "tested pair" in text
