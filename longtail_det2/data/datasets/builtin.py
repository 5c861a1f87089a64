"""Registration of annotation stores under names that `DATASETS.TRAIN` and `DATASETS.TEST` can use.

Nothing is registered by importing this module: call `register_store` for own data, `register_all` for the
built-in names, or `register_datasets` for what a config names.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from iopath.common.file_io import file_lock

from longtail_det2.data.datasets.coco import CocoOptions, CocoReport, prepare_coco
from longtail_det2.data.datasets.dataset import MultiLabelDataset, check_same_classes
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.store import AnnotationStore, open_if_current
from longtail_det2.utils.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_BUILTIN = {
    "openimages_v6": ("openimages", ("train", "validation", "test")),
    "openimages_challenge_2019": ("openimages", ("train", "validation")),
    "shapes": ("openimages", ("train", "validation")),
    "shapes_coco": ("coco", ("train", "validation")),
    "shapes_lvis": ("coco", ("train", "validation")),
    "lvis_v1": ("coco", ("train", "val")),
    "coco_mlt": ("mlt", ("train", "test")),
    "voc_mlt": ("mlt", ("train", "test")),
}
"""Data set -> (form that `longtail-det2 prepare` makes a split's store of, splits)."""
_FORMS = {f"{dataset}_{split}": form for dataset, (form, splits) in _BUILTIN.items() for split in splits}
_CACHE_FOLDER = ".longtail_det2"
"""Name of the folder beside a JSON file that holds its stores."""
_ENTRY = re.compile(r"(.+?\.json)(?::(.*?))?(?::([^:]+\.json))?", re.IGNORECASE)


def register_datasets(root: str = "", stores: Sequence[str] = ()) -> None:
    """Register the built-in data sets and the user's own.

    Args:
        root: folder of the built-in ones; "" takes $DETECTRON2_DATASETS, else "datasets".
        stores: "name=folder of an annotation store" each; the name may be a built-in one.

    Raises:
        ConfigError: an entry is not of that form, or its name stands for data that are no store.
        DataError: a store in `stores` exists but cannot be used.
    """
    own = dict(_parse_store(str(entry)) for entry in stores)
    register_all(root or None, own)
    for name, path in own.items():
        if _store_path(name) != path:
            _forget_store(name)
            register_store(name, path)


def _parse_store(entry: str) -> tuple[str, str]:
    name, equals, path = (part.strip() for part in entry.partition("="))
    if not (name and equals and path):
        raise ConfigError(
            f"DATASETS.STORES: {entry!r} is not of the form name=folder, for example my_train=stores/train; "
            "or name=FILE.json:IMAGES for COCO-form annotations"
        )
    return name, path if CocoEntry.parse(path) else os.path.abspath(os.path.expanduser(path))


def _store_path(name: str) -> str | None:
    """The store that a name means so far."""
    return MetadataCatalog.get(name).get("store_path") if name in DatasetCatalog.list() else None


def _forget_store(name: str) -> None:
    if _store_path(name) is not None:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def register_all(root: str | os.PathLike[str] | None = None, but: Collection[str] = ()) -> None:
    """Register the built-in names, whether their stores exist or not.

    The names are openimages_v6_{train,validation,test}, openimages_challenge_2019_{train,validation},
    shapes_{train,validation}; with masks, lvis_v1_{train,val}, shapes_coco_{train,validation} and
    shapes_lvis_{train,validation}; of image labels, {coco,voc}_mlt_{train,test}. The store of
    `<data set>_<split>` is at `<root>/<data set>/stores/<split>`. Called again with another root, it moves
    them there. A store that cannot be used is a warning, and an error when its data are asked for.

    Detectron2 has data sets of its own called lvis_v1_train and lvis_v1_val, with one label per object. These
    names mean the stores where those are there and sound, else Detectron2's data.

    Args:
        root: None means $DETECTRON2_DATASETS, or "datasets" where that is not set.
        but: names to leave out.

    Raises:
        ConfigError: a built-in name stands for other data.
    """
    folder = Path(root or os.environ.get("DETECTRON2_DATASETS") or "datasets")
    for dataset, (_, splits) in _BUILTIN.items():
        for split in splits:
            name = f"{dataset}_{split}"
            if name in but:
                continue
            try:
                _register_built_in(name, os.path.abspath(folder / dataset / "stores" / split))
            except DataError as error:
                logger.warning("built-in data set %r cannot be used: %s", name, error)


def _register_built_in(name: str, path: str) -> None:
    metadata = MetadataCatalog.get(name)
    if name in DatasetCatalog.list():
        # Detectron2's own:
        if metadata.get("store_path") is None and metadata.get("evaluator_type") == "lvis":
            if not os.path.isdir(path):
                return
            AnnotationStore(path)
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        elif metadata.get("is_built_in") and metadata.store_path != path:
            _forget_store(name)
    try:
        register_store(name, path)
    finally:
        if name in DatasetCatalog.list() and MetadataCatalog.get(name).get("store_path") == path:
            MetadataCatalog.get(name).set(is_built_in=True)


def register_store(
    name: str, path: str | os.PathLike[str], image_root: str | os.PathLike[str] | None = None
) -> None:
    """Register an annotation store as a Detectron2 data set.

    `DatasetCatalog.get(name)` then gives a `MultiLabelDataset`; `MetadataCatalog.get(name)` has
    `thing_classes` (names), `class_ids`, `hierarchy`, `store_path`, `image_root` and `evaluator_type`, the
    store's form: "open_images", "coco" or "lvis". A store that does not exist yet may be registered: it is
    described when it is first loaded. Registering the same again does nothing.

    Args:
        name: data set name.
        path: directory of the store; or a COCO-form file, as "FILE.json", "FILE.json:IMAGES" or
            "FILE.json:IMAGES:HIERARCHY.json", whose store is made beside it on first use.
        image_root: folder that holds the images, instead of the one that the store names.

    Raises:
        ConfigError: the name already stands for something else.
        DataError: the store exists but cannot be used.
    """
    entry = CocoEntry.parse(os.fspath(path))
    if entry is not None:
        register_coco(name, entry.json_file, image_root or entry.image_root, entry.hierarchy)
        return
    path = os.path.abspath(path)
    root = None if image_root is None else os.path.abspath(image_root)
    _register(name, path, root, partial(_load, name, path, root))
    if os.path.isdir(path):
        _describe(name, AnnotationStore(path))


def register_coco(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    hierarchy: str | os.PathLike[str] | None = None,
) -> None:
    """Register a COCO-form JSON file as a Detectron2 data set, without a step before.

    Its annotation store is made when the data set is first loaded, in a folder `.longtail_det2` beside the
    file, and made again when the file or the hierarchy has changed. For other rules than the strict ones, and
    where the folder cannot be written, make the store with `prepare_coco` and use `register_store`.

    Args:
        name: data set name.
        json_file: annotations; several labels per box are allowed, see `prepare_coco`.
        image_root: folder that the file names are relative to.
        hierarchy: `{"child": ["parent", ...]}` or an Open Images tree.

    Raises:
        ConfigError: the name already stands for something else.
    """
    entry = CocoEntry(
        os.path.abspath(json_file),
        os.path.abspath(image_root),
        None if hierarchy is None else os.path.abspath(hierarchy),
    )

    def load() -> MultiLabelDataset:
        dataset = MultiLabelDataset(entry.open_store(), entry.image_root)
        _describe(name, dataset.store)
        return dataset

    _register(name, str(entry.store_path), entry.image_root, load)


def _register(name: str, path: str, root: str | None, load: Callable[[], MultiLabelDataset]) -> None:
    metadata = MetadataCatalog.get(name)
    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, load)
        metadata.set(store_path=path, image_root=root)
        return
    taken = metadata.get("store_path")
    if (taken, metadata.get("image_root")) != (path, root):
        raise ConfigError(
            f"data set name {name!r} is taken by {taken or 'another data set'}; choose another for {path}"
        )


def get_metadata(name: str) -> Any:
    """Detectron2's metadata of a data set, with its classes.

    Many data sets describe their classes only when they are loaded; this loads one if need be.

    Raises:
        DataError: the name is not registered, or the data set cannot be loaded.
    """
    check_registered(name)
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        load_dataset(name)
    if metadata.get("thing_classes") is None:
        raise DataError(f"data set {name!r} has no thing_classes in its metadata")
    return metadata


def class_ids_of(name: str) -> tuple[str, ...]:
    """Class identifiers of a registered data set, in the order of their indices.

    Raises:
        DataError: the name is not registered, or the data set cannot be loaded.
    """
    metadata = get_metadata(name)
    return tuple(metadata.get("class_ids") or metadata.thing_classes)


def hierarchy_of(names: str | Sequence[str]) -> LabelHierarchy:
    """The hierarchy of the common classes of data sets; flat where they have none.

    Args:
        names: one or several registered data sets.

    Raises:
        ConfigError: no name is given.
        DataError: a name is unknown, or the class lists differ.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ConfigError("DATASETS.TRAIN is empty: name at least one data set")
    ids = [class_ids_of(name) for name in names]
    for other, name in zip(ids[1:], names[1:], strict=True):
        check_same_classes(ids[0], other, names[0], name)
    return get_metadata(names[0]).get("hierarchy") or LabelHierarchy.flat(ids[0])


def load_dataset(name: str) -> Any:
    """What `DatasetCatalog.get` gives: a `MultiLabelDataset`, or a list of Detectron2 dicts.

    Raises:
        DataError: the name is not registered, or the data set cannot be loaded.
    """
    check_registered(name)
    try:
        return DatasetCatalog.get(name)
    except (OSError, ImportError) as error:  # of Detectron2's own data sets
        how = f"; or make its annotation store{_how(name)}" if name in _FORMS else ""
        raise DataError(f"data set {name!r} cannot be loaded ({error}){how}") from error


def _how(name: str) -> str:
    return f" with longtail-det2 prepare {_FORMS.get(name, '')}; docs/datasets.md has the commands"


def check_registered(name: str) -> None:
    """Raise DataError, naming those that are, if a data set is not registered."""
    known = DatasetCatalog.list()
    if name not in known:
        stores = sorted(one for one in known if MetadataCatalog.get(one).get("store_path"))
        close = difflib.get_close_matches(name, known, n=1)
        guess = f" (do you mean {close[0]!r}?)" if close else ""
        raise DataError(
            f"unknown data set {name!r}{guess}; registered annotation stores: {', '.join(stores) or 'none'}. "
            "Own data: DATASETS.STORES name=STORE or name=FILE.json:IMAGES, or register_store(name, STORE)"
        )


def _load(name: str, path: str, image_root: str | None) -> MultiLabelDataset:
    if not os.path.isdir(path):
        how = _how(name if MetadataCatalog.get(name).get("is_built_in") else "")
        raise DataError(f"data set {name!r}: there is no annotation store at {path}; make it{how}")
    dataset = MultiLabelDataset(path, image_root)
    changed = [str(one) for one in dataset.store.changed_sources()]
    if changed:
        logger.warning(
            "data set %r: %s changed after the annotation store %s was made of it; what is used is the "
            "store: prepare it again, or ignore this if the change does not matter",
            name,
            " and ".join(changed),
            path,
        )
    _describe(name, dataset.store)
    return dataset


def _describe(name: str, store: AnnotationStore) -> None:
    metadata = MetadataCatalog.get(name)
    known, names = metadata.get("class_ids"), list(store.class_names)
    content = {"thing_classes": names, "hierarchy": store.hierarchy, "evaluator_type": store.form}
    if known is not None:
        check_same_classes(known, store.class_ids, f"{name!r} as it was loaded before", str(store.path))
        if any(metadata.get(key) != value for key, value in content.items()):
            raise DataError(
                f"data set {name!r}: the names or the hierarchy of its classes, or its form, changed since "
                "this process loaded them; start again"
            )
    metadata.set(class_ids=list(store.class_ids), **content)


@dataclass(frozen=True)
class CocoEntry:
    """A JSON file with its image folder, as it may stand in DATASETS.STORES.

    Attributes:
        json_file: annotations, an absolute path.
        image_root: folder of the images; that of the JSON file unless it is given.
        hierarchy: hierarchy file, or None.
    """

    json_file: str
    image_root: str
    hierarchy: str | None = None

    @classmethod
    def parse(cls, text: str) -> CocoEntry | None:
        """Read "FILE.json", "FILE.json:IMAGES" or "FILE.json:IMAGES:HIERARCHY.json".

        `~` is the home folder. The first two paths may have colons.

        Returns:
            None for anything that does not begin with a JSON file: the folder of a store.
        """
        match = _ENTRY.fullmatch(text)
        if match is None:
            return None
        paths = [os.path.abspath(os.path.expanduser(one)) if one else None for one in match.groups()]
        json_file = str(paths[0])
        return cls(json_file, paths[1] or os.path.dirname(json_file), paths[2])

    @property
    def store_path(self) -> Path:
        """Where its store is kept: one for each image folder and hierarchy."""
        key = hashlib.sha256(f"{self.image_root}\n{self.hierarchy}".encode()).hexdigest()[:8]
        json_file = Path(self.json_file)
        return json_file.parent / _CACHE_FOLDER / f"{json_file.stem}-{key}"

    def open_store(self) -> AnnotationStore:
        """Open the store; make it, or make it again, where it is absent or the files have changed.

        Several processes may come here at once: one of them works, the others wait.

        Raises:
            DataError: anything wrong with the files, see `prepare_coco`, or the folder cannot be written.
        """
        if (store := self._up_to_date()) is not None:
            return store
        if not os.path.isfile(self.json_file):  # before the lock, which would stay behind
            raise DataError(f"{self.json_file}: no such file")
        path = self.store_path
        files = f"coco --json {self.json_file} --images {self.image_root}"
        files += f" --hierarchy {self.hierarchy}" if self.hierarchy else ""
        try:
            path.parent.mkdir(exist_ok=True)
            with file_lock(str(path)):
                if (store := self._up_to_date()) is not None:
                    return store
                logger.info("Making the annotation store of %s, once", self.json_file)
                return prepare_coco(self.json_file, self.image_root, path, self.hierarchy, report=_log_report)
        except OSError as error:
            raise DataError(
                f"{self.json_file}: its store cannot be made in {path.parent} ({error.strerror or error}); "
                f"make it elsewhere and name its folder instead: longtail-det2 prepare {files} --output STORE"
            ) from None
        except DataError as error:
            raise DataError(f"{error}. All of it: longtail-det2 check {files}") from None

    def _up_to_date(self) -> AnnotationStore | None:
        files = [("coco", self.json_file)] + ([("hierarchy", self.hierarchy)] if self.hierarchy else [])
        return open_if_current(self.store_path, files, CocoOptions().for_header(), self.image_root)


def _log_report(report: CocoReport) -> None:
    # The train scripts read the data before they set logging up: only warnings are seen then.
    level = logging.WARNING if report.issues.found else logging.INFO
    if not report.issues.errors:
        logger.log(level, "%s", report.text())
