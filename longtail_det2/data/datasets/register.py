"""Registration of the data sets that a config or a command line names."""

from __future__ import annotations

import os
from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog

from longtail_det2.data.datasets.builtin import register_all, register_store
from longtail_det2.data.datasets.coco_cache import CocoEntry
from longtail_det2.utils.errors import ConfigError


def register_datasets(root: str = "", stores: Sequence[str] = ()) -> None:
    """Register the built-in data sets and the user's own.

    Args:
        root: folder of the built-in ones; "" takes $DETECTRON2_DATASETS, else "datasets".
        stores: "name=folder of an annotation store" each; the name may be a built-in one.

    Raises:
        ConfigError: an entry is not of that form, or its name stands for data that are no store.
    """
    own = dict(_parse_store(str(entry)) for entry in stores)
    image_roots = {name: _forget_store(name) for name in own}
    register_all(root or None)
    for name, path in own.items():
        _forget_store(name)
        known = image_roots[name]
        register_store(name, path, known[1] if known and known[0] == path else None)


def _parse_store(entry: str) -> tuple[str, str]:
    name, equals, path = (part.strip() for part in entry.partition("="))
    if not (name and equals and path):
        raise ConfigError(
            f"DATASETS.STORES: {entry!r} is not of the form name=folder, for example my_train=stores/train; "
            "or name=FILE.json:IMAGES for COCO-form annotations"
        )
    return name, path if CocoEntry.parse(path) else os.path.abspath(path)


def _forget_store(name: str) -> tuple[str, str | None] | None:
    """Make room for a store under a name that means a store so far, such as a built-in one.

    Returns:
        The path and the image root that the name stood for, if it stood for a store.
    """
    if name not in DatasetCatalog.list():
        return None
    metadata = MetadataCatalog.get(name)
    path = metadata.get("store_path")
    if path is None:
        return None
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    return path, metadata.get("image_root")
