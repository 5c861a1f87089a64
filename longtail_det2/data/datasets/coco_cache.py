"""COCO-form JSON files named where a store is expected: the store is made beside them on first use."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from iopath.common.file_io import file_lock

from longtail_det2.data.datasets.coco import CocoOptions, CocoReport, prepare_coco
from longtail_det2.data.store import AnnotationStore, open_if_current
from longtail_det2.utils.errors import DataError

CACHE_FOLDER = ".longtail_det2"
"""Name of the folder beside a JSON file that holds its stores."""
_ENTRY = re.compile(r"(.+?\.json)(?::(.*?))?(?::([^:]+\.json))?", re.IGNORECASE)

logger = logging.getLogger(__name__)


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
        return json_file.parent / CACHE_FOLDER / f"{json_file.stem}-{key}"

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
        command = f"python scripts/prepare_coco.py --json {self.json_file} --images {self.image_root}"
        command += f" --hierarchy {self.hierarchy}" if self.hierarchy else ""
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
                f"make it elsewhere and name its folder instead: {command} --output STORE"
            ) from None
        except DataError as error:
            raise DataError(f"{error}. All of it: {command} --check") from None

    def _up_to_date(self) -> AnnotationStore | None:
        files = [("coco", self.json_file)] + ([("hierarchy", self.hierarchy)] if self.hierarchy else [])
        return open_if_current(self.store_path, files, CocoOptions().for_header(), self.image_root)


def _log_report(report: CocoReport) -> None:
    # The train scripts read the data before they set logging up: only warnings are seen then.
    level = logging.WARNING if report.issues.found else logging.INFO
    if not report.issues.errors:
        logger.log(level, "%s", report.text())
