"""Which format a file has, by its content; and why some files are never loaded."""

from __future__ import annotations

import io
import re
import zipfile
from typing import get_args

from kubestill.errors import InvalidInput, Problem, nearest
from kubestill.runtime.models.foreign.spec import Format

FORMATS: tuple[str, ...] = ("auto", *get_args(Format))
_RUNS_CODE = "loading it runs whatever code is in it; "
_SKOPS = "save scikit-learn's models with skops.io.dump(model, 'model.skops')"
_PICKLE = (
    f"is a pickle or joblib file, and {_RUNS_CODE}{_SKOPS}, LightGBM's and XGBoost's with "
    "save_model, anything else as ONNX"
)
_TORCH_SAVE = (
    f"is a file of torch.save, which is a pickle: {_RUNS_CODE}export the network with "
    "torch.onnx.export(..., dynamo=True), or write a kubestill.teachers.Teacher that reads its "
    "weights from safetensors"
)
_TORCHSCRIPT = (
    f"is TorchScript, which holds pickles and code, and torch no longer develops it: {_RUNS_CODE}"
    "export the network with torch.onnx.export(..., dynamo=True)"
)
_OLD_EXPORT = (
    f"is a program as an older torch saves it, with its weights as a pickle: {_RUNS_CODE}"
    "load it there and save it again with torch 2.13 (torch.export.save), or export the same "
    "program with torch.onnx.export(..., dynamo=True)"
)
_OTHER = (
    "is none of the formats that can be brought in: LightGBM's text, XGBoost's JSON or UBJSON, "
    "CatBoost's .cbm, ONNX, torch.export's .pt2, skops, or a folder of Hugging Face's with "
    "safetensors"
)
_PACKED = re.compile(rb"\x1f\x8b|BZh|\xfd7zXZ|\x04\x22M\x18|\x28\xb5\x2f\xfd|x[\x01\x5e\x9c\xda]")
_PICKLE_ENDINGS = (".pkl", ".pickle", ".joblib", ".sav", ".p", ".dill", ".cloudpickle")


def recognise(content: bytes, uri: str, asked: str = "auto") -> Format:
    """Return the format of a model's file.

    Args:
        content: All of it.
        uri: Where it comes from.
        asked: A format, or `auto`.

    Raises:
        InvalidInput: It is a format that is never loaded, none that is known, or not the one asked
            for.
    """
    if asked not in FORMATS:
        raise InvalidInput([Problem("format", asked, nearest(asked, FORMATS))])
    found = _find(content, uri)
    if asked not in ("auto", found):
        raise InvalidInput([Problem("format", asked, f"the content is {found}; leave it at auto")])
    return found


def _find(content: bytes, uri: str) -> Format:
    if content.startswith(b"PK"):
        return _find_in_zip(content, uri)
    text = content[:4096].lstrip()
    if text.startswith(b"tree") and b"\nversion=" in text:
        return "lightgbm"
    if text.startswith(b"{"):
        # XGBoost's UBJSON begins like its JSON, with the learner.
        if b"learner" in content[:64] or b'"learner"' in content:
            return "xgboost"
        raise _refuse(uri, _OTHER)
    if _is_pickle(content, uri):
        raise _refuse(uri, _PICKLE)
    if content.startswith(b"CBM1"):
        return "catboost"
    if content.startswith(b"\x89HDF"):
        raise _refuse(uri, "is an HDF5 file of Keras; export it with model.export(format='onnx')")
    # A protobuf says nothing of its kind: field 1, the version, comes first.
    if content.startswith(b"\x08") and len(content) > 16:
        return "onnx"
    raise _refuse(uri, _OTHER)


def _is_pickle(content: bytes, uri: str) -> bool:
    named = uri.lower().rstrip("/").endswith(_PICKLE_ENDINGS)
    # Protocol 2 and later begin so; joblib packs the same with zlib and others.
    return named or bool(re.match(rb"\x80[\x02-\x05]", content) or _PACKED.match(content))


def _find_in_zip(content: bytes, uri: str) -> Format:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            names = packed.namelist()
    except zipfile.BadZipFile as error:
        raise _refuse(uri, f"is a damaged zip ({error}); copy it again") from error
    ends = {name.partition("/")[2] for name in names} | set(names)
    if "constants.pkl" in ends or any(name.startswith("code/") for name in ends):
        raise _refuse(uri, _TORCHSCRIPT)
    if "serialized_exported_program.json" in ends:
        raise _refuse(uri, _OLD_EXPORT)
    if "archive_format" in ends:
        return "pt2"
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return "huggingface"
    if any(name.endswith(".pkl") for name in ends):
        raise _refuse(uri, _TORCH_SAVE)
    if "schema.json" in names:
        return "skops"
    raise _refuse(uri, _OTHER)


def _refuse(uri: str, remedy: str) -> InvalidInput:
    return InvalidInput([Problem("model", uri, remedy)])
