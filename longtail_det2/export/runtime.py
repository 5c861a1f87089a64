"""Running an exported model: an image in, Detectron2's `Instances` out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from longtail_det2.utils.errors import ConfigError

from .graph import OUTPUT_FIELDS
from .metadata import read_metadata
from .source import as_instances, to_input


class ExportedDetector:
    """A model that ``longtail-det2 export`` wrote, behind the interface of Detectron2's predictor.

    It needs neither the config nor the weights. Without Detectron2, the file itself can be run with what
    ``metadata.json`` says.
    """

    def __init__(self, folder: str | Path) -> None:
        """Load the model; it runs on as many threads as PyTorch does.

        Args:
            folder: with the model and its metadata.

        Raises:
            ConfigError: the folder is not such a folder, or onnxruntime is not installed.
        """
        self.metadata = read_metadata(folder)
        path = Path(folder) / self.metadata["model"]["file"]
        if not path.is_file():
            raise ConfigError(f"{folder} has metadata, but no {path.name}")
        try:
            import onnxruntime
        except ImportError:
            raise ConfigError("running ONNX needs a package: pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        providers = ["CPUExecutionProvider"]
        self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)

    def detect(self, image: Tensor) -> dict[str, np.ndarray]:
        """Return the raw outputs by name.

        Args:
            image: (3, H, W) float32 as ``metadata.json`` says; any size.
        """
        names = [str(output["name"]) for output in self.metadata["outputs"]]
        return dict(zip(names, self._session.run(names, {"image": image.numpy()}), strict=True))

    def __call__(self, picture: np.ndarray) -> Instances:
        """Return the detections of an image.

        Args:
            picture: (H, W, 3) uint8, channels in the order of ``metadata["input"]["channels"]``.

        Returns:
            ``pred_boxes`` in pixels of the image, ``scores``, ``pred_classes``, perhaps ``pred_masks``. Of a
            classifier of images ``scores`` and ``pred_classes`` of all classes, best first.
        """
        resize = self.metadata["input"]["resize"]
        sides = resize.get("shorter_side", 0), resize.get("longer_side_at_most", 0)
        fixed = (resize["height"], resize["width"]) if "height" in resize else ()
        image = to_input(picture, *sides, fixed)
        raw = {name: torch.from_numpy(value) for name, value in self.detect(image).items()}
        if "boxes" not in raw:
            return as_instances(raw["scores"], picture.shape[:2])
        found = Instances((image.shape[1], image.shape[2]))
        for field, name in OUTPUT_FIELDS.items():
            if name in raw:
                found.set(field, Boxes(raw[name]) if field == "pred_boxes" else raw[name])
        return detector_postprocess(found, *picture.shape[:2])
