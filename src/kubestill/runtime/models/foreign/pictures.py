"""Transformers that classify images: a folder of Hugging Face's, weights in safetensors."""

# transformers is imported where it is needed, and so has no types here.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kubestill.errors import CorruptData, InvalidInput, Problem
from kubestill.runtime.base.values import JsonObject, parse_json
from kubestill.runtime.models.foreign.huggingface import (
    CONFIG,
    PREPROCESSOR,
    Batches,
    check_single,
    declare,
    load_parts,
    read_config,
    settings_of,
)
from kubestill.runtime.models.foreign.packing import unpack
from kubestill.runtime.models.foreign.runtime import Block, need

_BATCH = 32
"""Images that are computed together."""
_MOST_SIDE = 2048
"""Pixels along an image that a model reads."""
_RANGES = {"crop_pct": (0.1, 1.0), "patch_size": (1, 128)} | {
    name: (1, _MOST_SIDE) for name in ("size", "crop_size", "pad_size", "height", "width")
}
_VALUES = ("rescale_factor",)
"""What no image grows by."""


def reads_pictures(content: bytes) -> bool:
    """Return whether a packed folder holds a model of images."""
    try:
        files = unpack(content, "model of Hugging Face")
        form = parse_json(files.get(CONFIG, b""), source=CONFIG, what="configuration")
    except CorruptData:
        return False  # said by whoever loads it
    kinds = form.get("architectures")
    return isinstance(kinds, list) and str([*kinds, ""][0]).endswith("ForImageClassification")


class PictureClassifier:
    """A model of the kind `...ForImageClassification`, behind the image processor saved with it."""

    def __init__(self, content: bytes, device: str = "cpu"):
        transformers = need("transformers", "huggingface", extra="huggingface")
        files = unpack(content, "model of Hugging Face")
        form = read_config(files)
        if PREPROCESSOR not in files:
            remedy = (
                "says how images are resized and scaled, and is missing; save it beside the "
                "model: AutoImageProcessor.from_pretrained(...).save_pretrained(path)"
            )
            raise InvalidInput([Problem("source", PREPROCESSOR, remedy)])
        if "auto_map" in form:
            remedy = "has code of its own; write a kubestill.teachers.Teacher that loads it"
            raise InvalidInput([Problem("architectures", form["architectures"], remedy)])
        check_single(form)
        _check_sides(parse_json(files[PREPROCESSOR], source=PREPROCESSOR, what="configuration"))
        kind = "AutoModelForImageClassification"
        self._processor, model = load_parts(transformers, "AutoImageProcessor", kind, files)
        self._channels = int(getattr(model.config, "num_channels", 3))
        self._batches = Batches(device)
        self._model = model.to(self._batches.device)
        self.declared = replace(
            declare(model.config, form, "numbers"),
            parameters=sum(one.numel() for one in model.parameters()),
            tried=32,
        )

    def predict(self, rows: Block) -> NDArray[np.float32]:
        """Return the logits of each image.

        Raises:
            ValueError: The column holds no images of bytes, or of other channels.
        """
        (name,) = rows.names
        images = rows.numbers(name)
        if not rows.column(name).pixels or images.ndim != 4:
            raise ValueError(f"it reads images of bytes [C, H, W], and {name!r} holds none")
        if images.shape[1] == 1 and self._channels == 3:
            images = np.repeat(images, 3, axis=1)  # as a grey image is made RGB
        if images.shape[1] != self._channels:
            raise ValueError(f"it reads {self._channels} channels; {name!r} has {images.shape[1]}")
        batches = [images[at : at + _BATCH] for at in range(0, len(images), _BATCH)]
        return np.concatenate(self._batches.map(self._answer, batches))

    def _answer(self, images: NDArray[Any]) -> NDArray[np.float32]:
        given = self._processor(
            list(images.astype(np.uint8)),
            input_data_format="channels_first",
            return_tensors="pt",
        )
        with torch.inference_mode():
            pixels = given["pixel_values"].to(self._batches.device)
            return self._model(pixels).logits.float().cpu().numpy()


def _check_sides(form: JsonObject) -> None:
    """Refuse images that would fill the memory.

    Raises:
        CorruptData: They are that large.
    """
    for name, value in settings_of(form):
        if type(value) not in (int, float) or name in _VALUES:
            continue
        least, most = _RANGES.get(name, (-1, _MOST_SIDE))
        if not least <= value <= most:
            rule = f"is not in [{least:g}, {most:g}]: images would fill the memory"
            raise CorruptData(f"{PREPROCESSOR}: {name} {value!r:.100} {rule}")
