"""Transformers that classify text: a folder of Hugging Face's, with its weights in safetensors."""

# transformers is imported where it is needed, and so has no types here.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from kubestill.errors import CorruptData, InvalidInput, KubestillError, Problem
from kubestill.runtime.base.values import JsonObject, parse_json
from kubestill.runtime.models.foreign.packing import pack, unpack
from kubestill.runtime.models.foreign.runtime import MOST, Block, Declared, need
from kubestill.runtime.models.sizes import build_bounded
from kubestill.runtime.stores import Store

CONFIG = "config.json"
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
)
_WEIGHTS = ".safetensors"
_BATCH = 32
"""Texts that are computed together, of similar length."""
_LONGEST = 512
"""Tokens of a text, where neither tokenizer nor model says."""


def read_folder(store: Store, names: list[str], uri: str) -> bytes:
    """Return the files of a folder that count, as one zip without compression.

    Raises:
        InvalidInput: Its weights are not in safetensors, or are more than a model may have.
    """
    chosen = [n for n in sorted(names) if n in (CONFIG, *_TOKENIZER) or n.endswith(_WEIGHTS)]
    if not any(name.endswith(_WEIGHTS) for name in chosen):
        remedy = (
            "holds no weights in safetensors, and those of torch.save are a pickle, which runs "
            "whatever code is in it; load it where you trust it and call "
            "model.save_pretrained(path), tokenizer.save_pretrained(path)"
        )
        raise InvalidInput([Problem("source", uri, remedy)])
    files: dict[str, bytes] = {}
    for name in chosen:
        files[name] = store.get(name, most=MOST)
        if sum(map(len, files.values())) > MOST:
            remedy = f"has more than {MOST:,} bytes; serve it, and give its address"
            raise InvalidInput([Problem("source", uri, remedy)])
    return pack(files)


class HuggingFace:
    """A model of the kind `...ForSequenceClassification`, of one text or a pair."""

    def __init__(self, content: bytes, device: str = "cpu"):
        # One thread: blocks are computed side by side.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        transformers = need("transformers", "huggingface", extra="huggingface")
        files = unpack(content, "model of Hugging Face")
        form = parse_json(files.get(CONFIG, b""), source=CONFIG, what="configuration")
        kind = ", ".join(map(str, form.get("architectures") or ["none"]))
        if not kind.endswith("ForSequenceClassification") or "auto_map" in form:
            own = "code of its own" if "auto_map" in form else kind
            remedy = (
                "only ...ForSequenceClassification of transformers itself can be brought in; for "
                "anything else write a kubestill.teachers.Teacher that loads it"
            )
            raise InvalidInput([Problem("architectures", own, remedy)])
        if form.get("problem_type") == "multi_label_classification":
            remedy = "a row may have several of its labels, and a student learns one of them"
            raise InvalidInput([Problem("problem_type", form["problem_type"], remedy)])
        weights: dict[str, Tensor] = {}
        try:
            for name, one in files.items():
                if name.endswith(_WEIGHTS):
                    weights |= safetensors.torch.load(one)
            self._tokenizer, self._model = _build(transformers, files, form, weights)
        except KubestillError:
            raise
        except Exception as error:  # whatever a damaged file makes of it
            told = f"{type(error).__name__}: {error}"
            raise CorruptData(f"transformers cannot load it: {told:.600}") from error
        self._device = torch.device(device)
        self._model.to(self._device)
        config = self._model.config
        self._longest = _longest(self._tokenizer, config)
        outputs = int(config.num_labels)
        labels = [str(config.id2label[place]) for place in range(outputs)]
        generic = labels == [f"LABEL_{place}" for place in range(outputs)]
        classes = outputs > 1 and form.get("problem_type") != "regression"
        self.declared = Declared(
            inputs=None,
            width=None,
            reads="text",
            classes=tuple(labels) if classes and not generic else None,
            outputs=outputs,
            answers="logit" if classes else "value",
            parameters=sum(one.numel() for one in self._model.parameters()),
        )

    def predict(self, rows: Block) -> NDArray[np.float32]:
        """Return the logits of each text, or pair of texts; the same texts are computed once."""
        columns = [rows.labels(name, missing="").tolist() for name in rows.names]
        texts = list(zip(*columns, strict=True))
        # Texts of similar length need little padding.
        different = sorted(set(texts), key=lambda text: (sum(map(len, text)), text))
        found: list[NDArray[np.float32]] = []
        with torch.inference_mode():
            for start in range(0, len(different), _BATCH):
                part = zip(*different[start : start + _BATCH], strict=True)
                tokens = self._tokenizer(
                    *map(list, part),
                    padding=True,
                    truncation=True,
                    max_length=self._longest,
                    return_tensors="pt",
                )
                found.append(self._model(**tokens.to(self._device)).logits.float().cpu().numpy())
        place = {text: at for at, text in enumerate(different)}
        return np.concatenate(found)[[place[text] for text in texts]]


def _build(
    transformers: Any, files: Mapping[str, bytes], form: JsonObject, weights: Mapping[str, Tensor]
) -> tuple[Any, Any]:
    """Return tokenizer and model, which takes no more memory than the weights that are there."""
    with tempfile.TemporaryDirectory(prefix="kubestill-tokenizer-") as folder:
        for name in (CONFIG, *_TOKENIZER):
            if name in files:
                with open(os.path.join(folder, name), "wb") as file:
                    file.write(files[name])
        given = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **given)
        config = transformers.AutoConfig.from_pretrained(folder, **given)
    if tokenizer.pad_token is None:
        remedy = "texts of a batch have to be filled up; set tokenizer.pad_token and save it again"
        raise InvalidInput([Problem("tokenizer", "no padding token", remedy)])

    def build(prove: bool = False) -> Any:
        return transformers.AutoModelForSequenceClassification.from_config(config)

    layers = [value for name, value in form.items() if "layers" in name and type(value) is int]
    if max(layers, default=0) > len(weights):
        raise CorruptData(f"it claims {max(layers):,} layers and holds {len(weights):,} tensors")
    model = build_bounded(build, weights)
    model.load_state_dict(weights)
    return tokenizer, model.float().eval()


def _longest(tokenizer: Any, config: Any) -> int:
    """Return how many tokens a text may have; the rest is cut off."""
    places = getattr(config, "max_position_embeddings", None)
    # RoBERTa and its relatives count their places from the padding token on.
    offset = (config.pad_token_id or 0) + 1 if "roberta" in config.model_type else 0
    told = [tokenizer.model_max_length, places - offset if places else _LONGEST]
    return int(min(one for one in told if one > 0))
