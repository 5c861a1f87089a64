"""Random changes of bytes in CSV, JSON and JPEG files: success or a named error, never anything else.

Each mutation is a function of a seed; a failure prints the seed.
"""

import copy
import json
import random
import traceback
import warnings

import numpy as np
import pytest
from hostile_data import Data
from PIL import Image

from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.datasets.image_labels import prepare_image_labels
from longtail_det2.data.datasets.mlt import prepare_mlt
from longtail_det2.data.images import read_image_size
from longtail_det2.data.store import AnnotationStore
from longtail_det2.evaluation.openimages_io import read_detections
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.visualization.predictions import read_predictions

TOKENS = [
    *(b'"', b",", b"\n", b"\r\n", b"\0", b"\xff", b"\xc3\x28", b"-1", b"1e400", b"NaN", b"Infinity", b"null"),
    *(b"true", b"[]", b"{}", b"{", b"]", b"9" * 30, b"9" * 5000, b"\\ud800", b"\\u0000", b"\\", b":", b" "),
    *(b"'", b"/m/man", b"../", b"\xef\xbb\xbf", b"-", b".", b"0", b"e", b"[" * 3000),
]
VALUES = [
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, 10**400, 0.5, 1e308, -1e308, float("nan"), float("inf")),
    *("", "a", "1", "a.jpg", "\0", "\ud800", "../a.jpg", "cat", "dog", "/m/man", "x" * 5000, "é", "\n", []),
    *({}, [1], [[]], [None], {"a": 1}, {"LabelName": "a"}, [0, 0, 1, 1], [1, 2, 2]),
]
TARGETS = ["boxes", "labels", "classes", "hierarchy", "image", "predictions", "results"]
TARGETS += ["coco", "coco_hierarchy", "image_csv", "class_list", "image_list"]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to four changes: a bit, a byte, a token, a piece left out, repeated or moved, the rest cut off."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        start = rng.randrange(len(data) + 1)
        length = min(rng.choice([1, 1, 2, 5, 20, 100]), len(data) - start)
        kind = rng.randrange(8)
        if kind == 0 and start < len(data):
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 1 and start < len(data):
            data[start] = rng.randrange(256)
        elif kind == 2:
            data[start:start] = rng.choice(TOKENS)
        elif kind == 3:
            data[start : start + length] = rng.choice(TOKENS)
        elif kind == 4:
            del data[start : start + length]
        elif kind == 5:
            data[start:start] = data[start : start + length] * rng.choice([1, 2, 50])
        elif kind == 6:
            piece = bytes(data[start : start + length])
            del data[start : start + length]
            place = rng.randrange(len(data) + 1)
            data[place:place] = piece
        else:
            del data[start:]
    return bytes(data)


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """One or two values, or keys, of a JSON file become something else."""
    tree = {"root": json.loads(content)}
    for _ in range(rng.choice([1, 1, 2])):
        places = []
        pending = [tree]
        while pending:
            node = pending.pop()
            for key in list(node) if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                if isinstance(node[key], (dict, list)):
                    pending.append(node[key])
        node, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[rng.choice(["id", "name", "LabelName", "category_ids", "x", ""])] = node.pop(key)
        elif kind == 2 and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        else:
            node[key] = copy.deepcopy(rng.choice(VALUES))
        if "root" not in tree:
            tree["root"] = None
    return json.dumps(tree["root"]).encode()


class Attempts:
    """Everything that reads the files of a data set, one mutation after the other."""

    def __init__(self, root):
        self.data = Data(root)
        rows = [
            "ImageID,LabelName,Score,XMin,XMax,YMin,YMax",
            "a,/m/man,0.5,0.1,0.5,0.2,0.6",
            "b,/m/dog,0.25,0,1,0,1",
        ]
        self.data.predictions = self.data.write("predictions.csv", "\n".join(rows) + "\n")
        results = [
            {"image_id": "a", "category_id": "/m/man", "bbox": [1, 2, 3.5, 4], "score": 0.5},
            {"image_id": "b", "category_id": "/m/dog", "bbox": [1, 2, 3, 4], "score": 1},
        ]
        self.data.results = self.data.write("results.json", json.dumps(results))
        table = 'image,labels,absent\na.jpg,cat|dog,animal\nb.jpg,"dog",\nc.jpg,,cat\n'
        self.data.image_csv = self.data.write("image_labels.csv", table)
        self.data.class_list = self.data.write("class_list.csv", "id,name\n1,animal\n2,cat\n3,dog\n")
        self.data.image_list = self.data.write("image_list.csv", "image_id,labels\n2,1\n3,2\n")
        self.data.image = self.data.images / "b.jpg"
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 1, "maker"
        with Image.open(self.data.image) as image:
            image.save(self.data.image, exif=exif, quality=80)
        self.sound = {name: getattr(self.data, name).read_bytes() for name in TARGETS}
        self.store = self.data.open_images("reference")

    def run(self, seed: int) -> str:
        """Applies one mutation; returns the target, and "ok" or the name of the error."""
        rng = random.Random(seed)
        target = rng.choice(TARGETS)
        path = getattr(self.data, target)
        change = mutate_json if path.suffix == ".json" and rng.random() < 0.6 else mutate
        path.write_bytes(change(self.sound[target], rng))
        try:
            self.use(target, rng)
            outcome = "ok"
        except (DataError, ConfigError) as error:
            outcome = type(error).__name__
            assert str(error) and "\n" not in str(error).strip(), error
        finally:
            path.write_bytes(self.sound[target])
        assert not self.data.left_over()
        return f"{target}: {outcome}"

    def use(self, target: str, rng: random.Random) -> None:
        """The function that a user would call with the file."""
        if target == "predictions":
            read_detections(self.data.predictions, self.store.class_ids, ["a", "b", "c"])
        elif target == "results":
            read_predictions(self.data.results, self.store)
        elif target == "image":
            self.use_image()
        else:
            lenient = rng.random() < 0.5
            if target.startswith("coco"):
                self.check(lambda: self.data.prepare_coco(skip_bad=lenient))
            elif target in ("image_csv", "class_list"):
                source = self.data.image_csv, self.data.images, self.data.root / "store"
                classes = self.data.class_list if target == "class_list" or lenient else None
                self.check(lambda: prepare_image_labels(*source, classes=classes, skip_bad=lenient))
            elif target == "image_list":
                given = {"image_root": self.data.images, "image_list": self.data.image_list}
                output = self.data.root / "store"
                self.check(lambda: prepare_mlt(self.data.coco, output, **given, skip_bad=lenient))
            else:
                options = {"skip_bad": True, "on_unknown_label": "skip"} if lenient else {}
                self.check(lambda: self.data.open_images(**options))

    def use_image(self) -> None:
        """Reading in training, and the header in preparation, which must agree where both succeed."""
        mapper = MultiLabelDatasetMapper(True, augmentations=[], hierarchy=self.store.hierarchy)
        record = next(one for one in MultiLabelDataset(self.store) if one["image_id"] == "b")
        try:
            size = read_image_size(self.data.image)
        except Exception as error:  # what preparation reports of the file, whatever it is
            assert str(error) or repr(error)
            size = None
        result = mapper(record)
        assert size == result["image"].shape[1:] and size[0] * size[1] <= Image.MAX_IMAGE_PIXELS

    def check(self, prepare) -> None:
        """A store that was made opens and gives sound records; a failure leaves the one before as it was."""
        path = self.data.root / "store"
        before = (path / "header.json").read_bytes() if path.exists() else None
        try:
            store = prepare()
        except (DataError, ConfigError):
            after = (path / "header.json").read_bytes() if path.exists() else None
            assert after == before
            raise
        for record in MultiLabelDataset(AnnotationStore(store.path)):
            for one in record["annotations"]:
                x0, y0, x1, y1 = one["bbox"]
                assert 0 <= x0 <= x1 <= record["width"] and 0 <= y0 <= y1 <= record["height"]
                assert one["category_ids"] and np.isfinite(one["bbox"]).all()
        store.hierarchy.encode([[0]])


def run_many(attempt, seeds) -> list[str]:
    """What attempts with many seeds return; a failure of any is one of all."""
    outcomes, failures = [], []
    for seed in seeds:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcomes.append(attempt(seed))
        except Exception:
            failures.append(f"seed {seed}:\n{traceback.format_exc(limit=-4)}")
    assert not failures, f"{len(failures)} failures\n" + "\n".join(failures[:10])
    return outcomes


def test_hundred_mutations(tmp_path):
    outcomes = run_many(Attempts(tmp_path / "data").run, range(100))
    assert any("ok" in one for one in outcomes) and any("DataError" in one for one in outcomes)


@pytest.mark.slow
def test_thousand_mutations(tmp_path):
    outcomes = run_many(Attempts(tmp_path / "data").run, range(1000, 2000))
    assert {one.split(":")[0] for one in outcomes} == set(TARGETS)
    assert sum(one.endswith(": ok") for one in outcomes) > 100
