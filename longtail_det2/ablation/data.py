"""Data of an ablation: generated, made into annotation stores, and prepared further by scripts, once."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import subprocess
import sys
from pathlib import Path

from longtail_det2.data.datasets.coco import prepare_coco
from longtail_det2.data.datasets.openimages import prepare_openimages
from longtail_det2.shapes import GENERATION_FILE, ShapesOptions, generate_shapes
from longtail_det2.utils.errors import ConfigError, DataError

from .jobs import fill, hash_of
from .layout import Layout, read_json, write_json
from .specification import SHAPES, SHAPES_LVIS, DataSpec

logger = logging.getLogger(__name__)

_SPLITS = ("train", "validation")


def make_data(data: DataSpec, run_seed: int, layout: Layout, scripts: Path, workers: int) -> None:
    """Makes a data set, or what is missing of it.

    Generated data have annotation stores in the formats "openimages" (for the data sets shapes_train and
    shapes_validation) and "lvis" (for shapes_lvis_train and shapes_lvis_validation). The folder "{data}" is
    the one whose `stores` the former find, or the latter where "lvis" is the only format.

    Args:
        data: what to make.
        run_seed: seed of the training.
        layout: of the output.
        scripts: folder of the scripts that `prepare` names.
        workers: processes.

    Raises:
        DataError: it cannot be made.
        ConfigError: likewise.
    """
    folder = layout.data(data, run_seed)
    source: object = str(folder)
    if data.options is not None:
        seed = data.seed(run_seed)
        assert seed is not None
        _remove_outdated(data, folder)
        source = _generate(folder, dataclasses.replace(data.options, seed=seed), workers)
    commands = [[fill(word, {"data": folder, "seed": run_seed}) for word in words] for words in data.prepare]
    state = layout.prepared(data, run_seed)
    wanted = hash_of([source, commands])
    if not commands or read_json(state).get("hash") == wanted:
        return
    for words in commands:
        _run(words, scripts)
    state.parent.mkdir(parents=True, exist_ok=True)
    write_json(state, {"hash": wanted, "commands": commands})


def is_made(data: DataSpec, run_seed: int, layout: Layout) -> bool:
    """Whether a generated data set is there with the options that it should have."""
    generation = read_json(layout.data(data, run_seed) / GENERATION_FILE)
    if data.options is None:
        return True
    return generation.get("options") == dataclasses.replace(data.options, seed=data.seed(run_seed)).to_json()


def _remove_outdated(data: DataSpec, folder: Path) -> None:
    """Removes what was made with other formats, lest a config that names it is trained on old data."""
    assert data.options is not None
    if data.generated_name == SHAPES_LVIS:
        shutil.rmtree(folder.with_name(SHAPES), ignore_errors=True)
        if not (folder / GENERATION_FILE).is_file():  # only stores, of data that were generated beside it
            shutil.rmtree(folder, ignore_errors=True)
    elif "lvis" not in data.options.formats:
        shutil.rmtree(folder.with_name(SHAPES_LVIS), ignore_errors=True)


def _generate(folder: Path, options: ShapesOptions, workers: int) -> object:
    """Images, annotation files and annotation stores; returns what they are made of."""
    try:
        generation = generate_shapes(folder, options, workers=workers, progress=False)
    except ConfigError:  # the folder is this command's own, and holds data of other options
        generation = generate_shapes(folder, options, workers=workers, progress=False, force=True)
    if "openimages" in options.formats:
        annotations = folder / "annotations"
        for split in _SPLITS:
            prepare_openimages(
                [annotations / f"{split}-annotations-bbox.csv"],
                [annotations / f"{split}-human-imagelabels.csv"],
                annotations / "class-descriptions.csv",
                annotations / "hierarchy.json",
                folder / "images" / split,
                folder / "stores" / split,
                workers=1,
                progress=False,
            )
    if "lvis" in options.formats:
        stores = folder.with_name(SHAPES_LVIS) / "stores"
        for split in _SPLITS:
            prepare_coco(folder / "lvis" / f"{split}.json", folder / "images" / split, stores / split)
    return [generation["version"], generation["options"]]


def _run(words: list[str], scripts: Path) -> None:
    """Runs a script.

    Raises:
        DataError: it failed; with the last line that it wrote.
    """
    logger.info("  %s", " ".join(words))
    command = [sys.executable, str(scripts / words[0]), *words[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        last = (done.stdout.strip() or "no output").splitlines()[-1]
        raise DataError(f"{' '.join(words)}: exit status {done.returncode}: {last}")
