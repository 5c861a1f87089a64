"""A run records which config it was started with; its published card says so, without the user's paths."""

import json

import pytest

from longtail_det2.engine import lazy, trainer
from longtail_det2.model_zoo.publishing import publish
from longtail_det2.utils.errors import ConfigError

NAME = "shapes/faster_rcnn_tiny_softmax_shapes"


@pytest.fixture
def train(yaml_args, lazy_args, tmp_path):
    """Function: config -> folder of a run that was started with it."""

    def run(config):
        if str(config).endswith(".py"):
            lazy.main(lazy_args(config=config, max_iter=1))
        else:
            trainer.main(yaml_args(config=config, max_iter=1))
        return tmp_path / "run"

    return run


def published(run, tmp_path):
    """The card, after a check that no text of the folder names a place on this machine."""
    done = publish(run, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        if path != done.weights:
            assert str(tmp_path) not in path.read_text() and "/configs/" not in path.read_text()
    return (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("how", "suffix"), [("name", "yaml"), ("absolute", "yaml"), ("relative", "yaml"), ("link", "py")]
)
def test_config_of_the_project_however_it_was_named(train, tmp_path, repository, monkeypatch, how, suffix):
    path = repository / f"configs/{NAME}.{suffix}"
    if how == "relative":
        monkeypatch.chdir(repository)
        config = f"configs/{NAME}.{suffix}"
    elif how == "link":
        (tmp_path / "linked").symlink_to(repository / "configs")
        config = tmp_path / "linked" / f"{NAME}.{suffix}"
    else:
        config = f"{NAME}.{suffix}" if how == "name" else path
    run = train(config)
    monkeypatch.chdir(tmp_path)  # published from elsewhere
    card = published(run, tmp_path)
    assert f"| config | {NAME}.{suffix} (" in card and f"--config-file {NAME}.{suffix} " in card
    assert json.loads((tmp_path / "out/metrics.json").read_text())["config"] == f"{NAME}.{suffix}"
    assert publish(run, zoo=tmp_path / "zoo").weights.parent == tmp_path / "zoo" / NAME


def test_own_yaml_config(train, tmp_path, repository):
    own = tmp_path / "my_config.yaml"
    own.write_text(f"_BASE_: {repository}/configs/{NAME}.yaml\n")
    run = train(own)
    card = published(run, tmp_path)
    assert "| config | my_config.yaml (" in card and "# my_config\n" in card
    assert "--config-file config.yaml MODEL.WEIGHTS model_final" in card  # which lies beside the card
    with pytest.raises(ConfigError, match="give it with --name"):
        publish(run, zoo=tmp_path / "zoo")
