import json
import sys
import types

import pytest

from longtail_det2 import model_zoo
from longtail_det2.checkpoint.weights import sha256_of
from longtail_det2.model_zoo import zoo_index
from longtail_det2.model_zoo.zoo_index import Checkpoint, find_checkpoint, index_document, read_index
from longtail_det2.utils.errors import ConfigError

NAME = "shapes/faster_rcnn_tiny_sigmoid_shapes"


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A zoo of one file; its path is in the environment."""
    (tmp_path / NAME).mkdir(parents=True)
    file = tmp_path / NAME / "weights.safetensors"
    file.write_bytes(b"weights")
    entry = Checkpoint(NAME, f"{NAME}/weights.safetensors", sha256_of(file), 9, {"set": {"bbox/mAP50": 1.5}})
    (tmp_path / "checkpoints.json").write_text(index_document({NAME: entry}))
    monkeypatch.setenv("LONGTAIL_DET2_ZOO", str(tmp_path))
    return tmp_path


def edit(zoo, **changes):
    content = json.loads((zoo / "checkpoints.json").read_text())
    content["checkpoints"][NAME].update(changes)
    (zoo / "checkpoints.json").write_text(json.dumps(content))


def test_own_index_is_part_of_the_package():
    assert read_index(zoo_index._OWN_INDEX) == {}


def test_index_round_trip(zoo):
    found = read_index(zoo / "checkpoints.json")[NAME]
    assert (found.num_classes, found.metrics) == (9, {"set": {"bbox/mAP50": 1.5}})


@pytest.mark.parametrize("suffix", ["", ".yaml", ".py"])
def test_twins_share_their_weights(zoo, suffix):
    assert model_zoo.get_checkpoint(NAME + suffix) == str(zoo / NAME / "weights.safetensors")


def test_damaged_file_is_refused(zoo):
    (zoo / NAME / "weights.safetensors").write_bytes(b"weighty")
    with pytest.raises(ConfigError, match=r"weights\.safetensors is damaged .* Fetch it again"):
        find_checkpoint(NAME)


def test_missing_file(zoo):
    (zoo / NAME / "weights.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no shapes/.*weights\.safetensors"):
        find_checkpoint(NAME)


def test_unknown_name_lists_the_known(zoo, monkeypatch):
    with pytest.raises(ConfigError, match=f"no published weights for 'other.yaml': .* has {NAME}"):
        find_checkpoint("other.yaml")
    monkeypatch.delenv("LONGTAIL_DET2_ZOO")
    with pytest.raises(ConfigError, match=r"LONGTAIL_DET2_ZOO is not set, and the package itself lists none"):
        find_checkpoint(NAME)


@pytest.mark.parametrize("file", ["../secret", "/etc/passwd", "", "a/../../b", "a\\b"])
def test_files_outside_the_zoo(zoo, file):
    edit(zoo, file=file)
    with pytest.raises(ConfigError, match="has no file below the zoo"):
        find_checkpoint(NAME)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"sha256": "12"}, "has no SHA-256"), ({"metrics": [1]}, "metrics that are no mapping")],
)
def test_odd_entries(zoo, changes, message):
    edit(zoo, **changes)
    with pytest.raises(ConfigError, match=message):
        find_checkpoint(NAME)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "longtail_det2.zoo", "version": 2}', "\x80"])
def test_odd_indices(zoo, text):
    (zoo / "checkpoints.json").write_text(text, encoding="latin1")
    with pytest.raises(ConfigError, match=r"checkpoints\.json"):
        find_checkpoint(NAME)
    (zoo / "checkpoints.json").unlink()
    with pytest.raises(ConfigError, match=r"has no checkpoints\.json"):
        find_checkpoint(NAME)


class TestHub:
    @pytest.fixture
    def hub(self, zoo, monkeypatch):
        """A library that serves the local zoo as the repository somebody/zoo."""

        def download(repository, file):
            if repository != "somebody/zoo":
                raise OSError("404 Client Error\nand a long explanation")
            return str(zoo / file)

        module = types.ModuleType("huggingface_hub")
        module.hf_hub_download = download
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        monkeypatch.chdir(zoo / "shapes")
        return monkeypatch

    def test_repository(self, hub, zoo):
        hub.setenv("LONGTAIL_DET2_ZOO", "somebody/zoo")
        assert find_checkpoint(NAME) == zoo / NAME / "weights.safetensors"

    def test_own_index_names_the_repository(self, hub, zoo):
        edit(zoo, repository="somebody/zoo")
        hub.setattr(zoo_index, "_OWN_INDEX", zoo / "checkpoints.json")
        hub.delenv("LONGTAIL_DET2_ZOO")
        assert find_checkpoint(NAME) == zoo / NAME / "weights.safetensors"

    def test_errors(self, hub):
        hub.setenv("LONGTAIL_DET2_ZOO", "nobody/zoo")
        with pytest.raises(ConfigError, match=r"nobody/zoo cannot be fetched: 404 Client Error$"):
            find_checkpoint(NAME)
        hub.setenv("LONGTAIL_DET2_ZOO", "not/a/repository")
        with pytest.raises(ConfigError, match="neither a folder nor a repository"):
            find_checkpoint(NAME)
        hub.setenv("LONGTAIL_DET2_ZOO", "somebody/zoo")
        hub.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(ConfigError, match=r"pip install \"longtail-det2\[hub\]\""):
            find_checkpoint(NAME)
