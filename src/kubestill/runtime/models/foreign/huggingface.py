"""Transformers that classify text: a folder of Hugging Face's, with its weights in safetensors.

Its model is one of `...ForSequenceClassification`, or a sentence model as sentence-transformers
saves it whose last module is a `Dense` with an output for each class: embeddings with a head.
"""

# transformers is imported where it is needed, and so has no types here.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kubestill.errors import CorruptData, InvalidInput, KubestillError, Problem, nearest
from kubestill.runtime.base.values import JsonObject, Value, parse_json, read_as
from kubestill.runtime.models.foreign.packing import pack, unpack
from kubestill.runtime.models.foreign.runtime import MOST, Block, Declared, need
from kubestill.runtime.models.sizes import build_bounded
from kubestill.runtime.stores import Store

T = TypeVar("T")

CONFIG = "config.json"
_MODULES = "modules.json"
"""What a sentence model is made of, and in which folder each part lies."""
_SENTENCE = "sentence_bert_config.json"
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
)
PREPROCESSOR = "preprocessor_config.json"
"""How images become what a model reads."""
_WEIGHTS = ".safetensors"
_POOLING = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"} | {
    "max": "pooling_mode_max_tokens"
}
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    one.__name__: one for one in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid)
}
_BATCH = 32
"""Texts that are computed together, of similar length."""
_LONGEST = 512
"""Tokens of a text, where neither tokenizer nor model says."""
_MOST_TOKENS = 1 << 20
_MOST_CLASSES = 1 << 20


def read_folder(store: Store, names: list[str], uri: str) -> bytes:
    """Return the files of a folder that count, as one zip without compression.

    Raises:
        InvalidInput: Its weights are not in safetensors, or are more than a model may have.
    """
    chosen = [name for name in sorted(names) if _counts(name, _MODULES in names)]
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


def _counts(name: str, sentence: bool) -> bool:
    """Return whether a file is part of the model; of a sentence model, parts have folders."""
    folder, _, file = name.rpartition("/")
    if folder:
        return sentence and "/" not in folder and file in (CONFIG, f"model{_WEIGHTS}")
    known = (CONFIG, PREPROCESSOR, *_TOKENIZER, *((_MODULES, _SENTENCE) if sentence else ()))
    return name in known or name.endswith(_WEIGHTS)


class Batches:
    """Where the batches of a block are computed: side by side if it has one thread of the CPU's.

    Labelling gives each block one thread. A few thousand texts or images are a block or two, and
    take minutes.
    """

    def __init__(self, device: str):
        self.device = torch.device(device)
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="kubestill-transformer")

    def map(
        self, work: Callable[[T], NDArray[np.float32]], batches: Sequence[T]
    ) -> list[NDArray[np.float32]]:
        """Return what `work` makes of each batch."""
        if self.device.type == "cpu" and torch.get_num_threads() < self._threads:
            return list(self._pool.map(work, batches))
        return [work(one) for one in batches]


class HuggingFace:
    """A model that classifies one text or a pair."""

    def __init__(self, content: bytes, device: str = "cpu"):
        # One thread: batches are computed side by side.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        transformers = need("transformers", "huggingface", extra="huggingface")
        files = unpack(content, "model of Hugging Face")
        form = read_config(files)
        sentence = _Sentence.read(files)
        if sentence is None:
            _check_kind(form)
        elif "auto_map" in form:
            remedy = "has code of its own; write a kubestill.teachers.Teacher that loads it"
            raise InvalidInput([Problem("config.json", "auto_map", remedy)])
        kind = "AutoModel" if sentence else "AutoModelForSequenceClassification"
        self._tokenizer, body = load_parts(transformers, "AutoTokenizer", kind, files)
        if self._tokenizer.pad_token is None:
            remedy = "texts of a batch have to be filled up; set tokenizer.pad_token and save it"
            raise InvalidInput([Problem("tokenizer", "no padding token", remedy)])
        self._batches = Batches(device)
        self._model = _Classifier(body, sentence).to(self._batches.device)
        self._longest = min(
            _longest(self._tokenizer, body), sentence.longest if sentence else _MOST_TOKENS
        )
        # A tokenizer of Hugging Face's is not to be used by two threads at a time.
        self._lock = threading.Lock()
        self.declared = sentence.declare() if sentence else declare(body.config, form, "text")
        self.declared = replace(
            self.declared, parameters=sum(one.numel() for one in self._model.parameters())
        )

    def predict(self, rows: Block) -> NDArray[np.float32]:
        """Return the logits of each text, or pair of texts; the same texts are computed once."""
        columns = [rows.labels(name, missing="").tolist() for name in rows.names]
        texts = list(zip(*columns, strict=True))
        # Texts of similar length need little padding.
        different = sorted(set(texts), key=lambda text: (sum(map(len, text)), text))
        batches = [different[at : at + _BATCH] for at in range(0, len(different), _BATCH)]
        found = self._batches.map(self._answer, batches)
        place = {text: at for at, text in enumerate(different)}
        return np.concatenate(found)[[place[text] for text in texts]]

    def _answer(self, texts: Sequence[tuple[str, ...]]) -> NDArray[np.float32]:
        """Return the logits of one batch."""
        with self._lock:
            tokens = self._tokenizer(
                *map(list, zip(*texts, strict=True)),
                padding=True,
                truncation=True,
                max_length=self._longest,
                return_tensors="pt",
            )
        with torch.inference_mode():
            return self._model(dict(tokens.to(self._batches.device))).float().cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class _Part:
    idx: int
    name: str
    path: str
    type: str


@dataclass(frozen=True, kw_only=True)
class _Modules:
    modules: tuple[_Part, ...]


@dataclass(frozen=True, kw_only=True)
class _Sentence:
    """What makes classes of the tokens of a sentence model."""

    pooling: str
    """One of `_POOLING`."""
    layers: nn.Sequential
    """Behind it, a head at the end."""
    outputs: int
    longest: int
    """Tokens of a text."""

    @classmethod
    def read(cls, files: Mapping[str, bytes]) -> _Sentence | None:
        """Read its description; None where the folder is that of transformers alone.

        Raises:
            InvalidInput: It has parts that are not known here, or no head.
            CorruptData: It is damaged.
        """
        if _MODULES not in files:
            return None
        pooling, layers, outputs = "", [], 0
        wrapped = b'{"modules": ' + files[_MODULES] + b"}"
        form = parse_json(wrapped, source=_MODULES, what="list of modules")
        for part in read_as(_Modules, form, source=_MODULES, what="list of modules").modules:
            kind, where = part.type.rpartition(".")[2], f"{part.path}/{CONFIG}"
            outputs = 0
            if kind == "Pooling":
                told = parse_json(files.get(where, b""), source=where, what="pooling")
                named = [name for name, key in _POOLING.items() if told.get(key)]
                pooling = str(told.get("pooling_mode") or ", ".join(named))
                if pooling not in _POOLING:
                    remedy = f"of tokens is not known here; use one of {', '.join(_POOLING)}"
                    raise InvalidInput([Problem("pooling", pooling, remedy)])
            elif kind == "Normalize":
                layers.append(_Normalize())
            elif kind == "Dense":
                told = parse_json(files.get(where, b""), source=where, what="layer")
                layers += _dense(told, files.get(f"{part.path}/model{_WEIGHTS}", b""), where)
                outputs = layers[-2].out_features if type(layers[-1]) is nn.Identity else 0
            elif kind not in ("Transformer", "Dropout"):
                known = ("Transformer", "Pooling", "Normalize", "Dense", "Dropout")
                raise InvalidInput([Problem("modules", kind, nearest(kind, known))])
        if not outputs or not pooling:
            remedy = (
                "gives embeddings; a teacher ends in a head: sentence_transformers' Dense, with "
                "one output for each class and activation_function=torch.nn.Identity()"
            )
            raise InvalidInput([Problem("modules", _MODULES, remedy)])
        told = parse_json(files.get(_SENTENCE, b"{}"), source=_SENTENCE, what="configuration")
        longest = told.get("max_seq_length")
        return cls(
            pooling=pooling,
            layers=nn.Sequential(*layers),
            outputs=outputs,
            longest=longest if type(longest) is int and longest > 0 else _MOST_TOKENS,
        )

    def declare(self) -> Declared:
        """Return what is known of its outputs: how many logits, not of which classes."""
        return Declared(
            inputs=None,
            width=None,
            reads="text",
            classes=None,
            outputs=self.outputs,
            # A single one is the logit of the second of two classes, or a value.
            answers="logit" if self.outputs > 1 else None,
        )


class _Normalize(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=1)


def _dense(told: JsonObject, weights: bytes, where: str) -> list[nn.Module]:
    """Return a linear layer and its activation, no larger than the weights that are there."""
    name = str(told.get("activation_function", "")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise InvalidInput([Problem("activation_function", name, nearest(name, _ACTIVATIONS))])
    try:
        found = safetensors.torch.load(weights)
        rows, columns = found["linear.weight"].shape
        layer = nn.Linear(columns, rows, bias="linear.bias" in found)
        layer.load_state_dict({key.removeprefix("linear."): one for key, one in found.items()})
    except Exception as error:  # whatever a damaged file makes of it
        said = f"{type(error).__name__}: {error}"
        raise CorruptData(f"{where}: no whole layer of a sentence model: {said:.600}") from error
    return [layer, _ACTIVATIONS[name]()]


class _Classifier(nn.Module):
    """Tokens in, logits [B, K] out."""

    def __init__(self, body: nn.Module, sentence: _Sentence | None):
        super().__init__()
        self.body = body
        self.layers = sentence.layers if sentence else None
        self.pooling = sentence.pooling if sentence else ""
        self.eval()

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        found = self.body(**tokens)
        if self.layers is None:
            return found.logits
        hidden, mask = found.last_hidden_state, tokens["attention_mask"][:, :, None]
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "mean":
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        else:
            pooled = hidden.masked_fill(mask == 0, -torch.inf).amax(1)
        return self.layers(pooled)


def read_config(files: Mapping[str, bytes]) -> JsonObject:
    """Return what a model is by its configuration.

    Raises:
        CorruptData: It is none, or has the library load what lies elsewhere, or fill the memory
            before there is anything that could be bounded.
    """
    form = parse_json(files.get(CONFIG, b""), source=CONFIG, what="configuration")
    read_as(_Config, form, source=CONFIG, what="configuration")
    for name, value in settings_of(form):
        if name.endswith("attn_implementation") and value not in (None, "eager", "sdpa"):
            # "owner/name" is code on the Hub.
            rule = "may be code from elsewhere; remove it, and torch computes attention"
        elif name.endswith("_backbone") and name.startswith("use_") and value:
            rule = "takes weights from elsewhere; save the model with its own"
        elif name == "model_type" and str(value).startswith("timm"):
            rule = "is built by timm; write a kubestill.teachers.Teacher that loads it"
        elif name == "quantization_config" and value:
            rule = "is of weights in few bits; save the model dequantised"
        elif name == "num_labels" and value is not None and not _is_count(value, _MOST_CLASSES):
            rule = f"is no number of classes up to {_MOST_CLASSES:,}"  # it makes each a name
        else:
            continue
        raise CorruptData(f"{CONFIG}: {name} {value!r:.100} {rule}")
    return form


class _Config(Value):
    architectures: tuple[str, ...] | None = None
    model_type: str


def settings_of(form: JsonObject) -> Iterator[tuple[str, Any]]:
    """Yield every setting of a configuration and of those in it."""
    for name, value in form.items():
        yield name, value
        if isinstance(value, dict):
            yield from settings_of(cast(JsonObject, value))


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _check_layers(form: JsonObject, tensors: int) -> None:
    """Refuse more layers than there are weights, for which the library makes lists beforehand.

    Raises:
        CorruptData: There are more.
    """
    for name, value in settings_of(form):
        if "layers" in name or name.endswith(("n_layer", "depth", "depths")):
            given = cast(list[Any], value if isinstance(value, list) else [value])
            most = sum(one for one in given if type(one) is int)
            if most > tensors:
                raise CorruptData(f"it claims {most:,} layers and holds {tensors:,} tensors")


def _check_kind(form: JsonObject) -> None:
    """Refuse a model that does not classify.

    Raises:
        InvalidInput: It does not.
    """
    kind = ", ".join(map(str, form.get("architectures") or ["none"]))
    if not kind.endswith("ForSequenceClassification") or "auto_map" in form:
        own = "code of its own" if "auto_map" in form else kind
        remedy = (
            "only ...ForSequenceClassification of transformers itself can be brought in, and "
            "sentence models that end in a head; for anything else write a "
            "kubestill.teachers.Teacher that loads it"
        )
        raise InvalidInput([Problem("architectures", own, remedy)])
    check_single(form)


def check_single(form: JsonObject) -> None:
    """Refuse a model that gives several labels to a row.

    Raises:
        InvalidInput: It does.
    """
    if form.get("problem_type") == "multi_label_classification":
        remedy = "a row may have several of its labels, and a student learns one of them"
        raise InvalidInput([Problem("problem_type", form["problem_type"], remedy)])


def declare(config: Any, form: JsonObject, reads: Literal["text", "numbers"]) -> Declared:
    """Return what the configuration of a classifier says."""
    outputs = int(config.num_labels)
    labels = [str(config.id2label[place]) for place in range(outputs)]
    generic = labels == [f"LABEL_{place}" for place in range(outputs)]
    classes = outputs > 1 and form.get("problem_type") != "regression"
    return Declared(
        inputs=None,
        width=None,
        reads=reads,
        classes=tuple(labels) if classes and not generic else None,
        outputs=outputs,
        answers="logit" if classes else "value",
    )


def load_parts(
    transformers: Any, first: str, kind: str, files: Mapping[str, bytes]
) -> tuple[Any, Any]:
    """Return the part that prepares what a model reads, and the model.

    The model takes no more memory than the weights that are there.

    Args:
        transformers: The library.
        first: Its class for that part: of a tokenizer, or an image processor.
        kind: Its class for the model.
        files: Of the folder.

    Raises:
        CorruptData: A file is damaged.
    """
    form = read_config(files)
    weights: dict[str, Tensor] = {}
    try:
        for name, one in files.items():
            if name.endswith(_WEIGHTS) and "/" not in name:
                part = safetensors.torch.load(one)
                if double := sorted(part.keys() & weights.keys()):
                    raise CorruptData(f"{name}: {double[0]:.100} is in another file, too")
                weights |= part
        # Earlier versions of transformers saved the places of tokens, which are 0, 1, 2, ...
        weights = {name: w for name, w in weights.items() if not name.endswith("position_ids")}
        _check_layers(form, len(weights))
        given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        with tempfile.TemporaryDirectory(prefix="kubestill-transformer-") as folder:
            for name in (CONFIG, PREPROCESSOR, *_TOKENIZER):
                if name in files:
                    with open(os.path.join(folder, name), "wb") as file:
                        file.write(files[name])
            more = {"backend": "pil"} if first == "AutoImageProcessor" else {}
            before = getattr(transformers, first).from_pretrained(folder, **given, **more)
            config = transformers.AutoConfig.from_pretrained(folder, **given)

        def build(prove: bool = False) -> Any:
            return getattr(transformers, kind).from_config(config)

        model = build_bounded(build, weights, named=False)
        if model.state_dict().keys() == weights.keys():
            model.load_state_dict(weights)
        else:  # under the names of an earlier version, or none that the library knows
            transformers.logging.disable_progress_bar()
            model, found = type(model).from_pretrained(
                None, config=config, state_dict=dict(weights), output_loading_info=True
            )
            told = [
                f"{what} {sorted(map(str, names))[:3]}" for what, names in found.items() if names
            ]
            if told:
                raise CorruptData(f"its weights are those of another model; {'; '.join(told)}")
        return before, model.float().eval()
    except KubestillError:
        raise
    except Exception as error:  # whatever a damaged file makes of it
        told = f"{type(error).__name__}: {error}"
        raise CorruptData(f"transformers cannot load it: {told:.600}") from error


def _longest(tokenizer: Any, model: nn.Module) -> int:
    """Return how many tokens a text may have; the rest is cut off."""
    config: Any = model.config
    places = getattr(config, "max_position_embeddings", None)
    # RoBERTa, MPNet and their relatives count their places from the padding token on.
    paddings: list[Any] = [
        getattr(one, "padding_idx", None)
        for name, one in model.named_modules()
        if name.endswith("position_embeddings")
    ]
    first = max((place + 1 for place in paddings if place is not None), default=0)
    told = [tokenizer.model_max_length, places - first if places else _LONGEST]
    return int(min(one for one in told if one > 0))
