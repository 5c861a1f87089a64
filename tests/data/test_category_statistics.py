"""The script that counts classes: files, plots, summary, errors."""

import json
import shutil

import numpy as np
import pytest
from factories import CAR, CLASS_IDS, DOG, FISH, Picture
from PIL import Image

from longtail_det2 import cli
from longtail_det2.data.statistics import FREQUENCY_BINS, compute_statistics, read_statistics


def main(words):
    return cli.main(["statistics", *words])


def some_store(make_store, name="store"):
    """Ten dogs that are also cars, four dogs, ten fish beside cars."""
    box, away = (0, 0, 20, 20), (30, 30, 38, 38)
    objects = [*[[(box, [DOG, CAR], 0)]] * 10, *[[(box, [DOG], 0)]] * 4]
    objects += [[(box, [FISH], 0), (away, [CAR], 0)]] * 10
    return make_store([Picture(f"{n:02d}", objects=one) for n, one in enumerate(objects)], name=name)


def test_files_and_summary(make_store, tmp_path, capsys):
    store = some_store(make_store)
    out = tmp_path / "out" / "statistics"
    assert main(["--store", str(store.path), "--output", str(out), "--thresholds", "14", "20"]) == 0
    printed = capsys.readouterr().out
    assert "24 images, 6 classes, 1 of them without images" in printed and "2.4 : 1" in printed
    # A dog is an animal and a pet, and a fish is a pet: that goes without saying.
    rates = [line.strip() for line in printed.splitlines() if line.startswith("  P(")]
    assert rates[0] == "P(car | animal) = 0.714  (10 of 14 objects)" and len(rates) == 6
    assert [line.split()[:2] for line in printed.splitlines()[1:4]] == [[one, "2"] for one in FREQUENCY_BINS]
    files = ["cooccurrence.png", "long_tail.png", "statistics.json"]
    assert sorted(file.name for file in out.iterdir()) == files
    statistics = read_statistics(out / "statistics.json", CLASS_IDS)
    assert statistics.image_counts.tolist() == [14, 14, 0, 24, 10, 20]
    np.testing.assert_array_equal(statistics.rates(), compute_statistics(store).rates())
    for name in ("cooccurrence.png", "long_tail.png"):
        pixels = np.asarray(Image.open(out / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 300 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_data_sets_are_counted_together(make_store, tmp_path, capsys, clean_catalogs):
    stores = [some_store(make_store, f"store{n}") for n in range(2)]
    names = [f"{tmp_path.name}_{n}" for n in range(2)]
    entries = ",".join(f"{name}={store.path}" for name, store in zip(names, stores, strict=True))
    datasets = [word for name in names for word in ("--dataset", name)]
    command = [*datasets, "--output", str(tmp_path / "out"), "--format", "svg", "--strongest", "1"]
    shutil.rmtree(tmp_path / "store0-images")  # images are not needed
    assert main([*command, "DATASETS.STORES", entries]) == 0
    printed = capsys.readouterr().out
    assert "48 images" in printed and printed.count("  P(") == 1
    header = json.loads((stores[1].path / "header.json").read_text())  # nor are their sizes
    (stores[1].path / "header.json").write_text(json.dumps({**header, "has_image_sizes": False}))
    together = [word for store in stores for word in ("--store", str(store.path))]
    assert main([*together, "--output", str(tmp_path / "again")]) == 0
    one, other = (tmp_path / name / "statistics.json" for name in ("out", "again"))
    assert one.read_bytes() == other.read_bytes()
    assert (tmp_path / "out/long_tail.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(("pictures", "ids"), [([], CLASS_IDS), ([Picture("a")], ["$only$"])])
def test_no_objects(make_store, tmp_path, capsys, pictures, ids):
    store = make_store(pictures, ids, None)
    assert main(["--store", str(store.path), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"{len(ids)} classes, {len(ids)} of them without images" in printed and "0 rates" in printed
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["long_tail.png", "statistics.json"]
