"""What an endpoint is asked, and what its answer says: two protocols, one shape.

The Open Inference Protocol (v2) is what KServe, Triton, MLServer and `kubestill serve` speak. The
log-probabilities of the first generated token are what OpenAI's API gives, and with it vLLM, TGI,
llama.cpp and many others.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, KubestillError, Problem, nearest
from kubestill.runtime.base.values import JsonObject
from kubestill.runtime.datasets.schema import Column
from kubestill.runtime.models.foreign.runtime import Block, Declared

log = logging.getLogger(__name__)

_SHARED = 0.05
"""Share of tokens that begin words of several classes, from which on an import is refused."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request."""

    body: bytes
    rows: int


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What an answer says."""

    outputs: NDArray[np.float64]
    """[B, K]"""
    version: str
    """Of the model that answered, as the server calls it."""
    tokens: int | None
    """That the server counted; None where it says nothing."""


class Dialect(Protocol):
    """Rows into requests, answers into outputs."""

    declared: Declared
    address: str
    """That requests are posted to."""

    def requests(self, rows: Block) -> list[Asked]:
        """Return requests for all rows, in their order."""
        ...

    def read(self, form: JsonObject, asked: Asked, source: str) -> Reply:
        """Return what an answer says.

        Raises:
            KubestillError: It is not what was asked for.
        """
        ...


class OpenInference:
    """The Open Inference Protocol (v2): one tensor a column, or one of all columns."""

    def __init__(self, url: str, described: JsonObject, *, output: str, rows: int):
        """Read what the server says of its model.

        Args:
            url: Of the model: `http://host/v2/models/name`.
            described: What a GET of it answers.
            output: Which output to learn from; empty takes the only one of numbers.
            rows: In a request.

        Raises:
            InvalidInput: It does not say what it takes and gives, or none of it can be used.
        """
        self.address = f"{url}/infer"
        self._rows = rows
        inputs, outputs = _tensors(described, "inputs", url), _tensors(described, "outputs", url)
        self._inputs = inputs
        first = inputs[0]
        self._whole = len(inputs) == 1 and len(first.shape) == 2 and first.datatype != "BYTES"
        width = math.prod(first.shape[1:]) if self._whole and first.shape[1] > 0 else None
        self._whole = self._whole and width != 1
        self._output = _choose(outputs, output)
        last = self._output.shape[-1] if len(self._output.shape) > 1 else 1
        logit = "logit" in self._output.name.lower()
        chances = "prob" in self._output.name.lower() or self._output.labels is not None
        values = self._output.name.startswith("prediction")
        self.declared = Declared(
            inputs=None if self._whole else tuple(one.name for one in inputs),
            width=width if self._whole else None,
            reads="numbers" if self._whole else "labels",
            numeric=frozenset(one.name for one in inputs if one.datatype != "BYTES"),
            worded=frozenset(one.name for one in inputs if one.datatype == "BYTES"),
            categories={
                one.name: one.labels for one in inputs if one.labels and one.datatype == "BYTES"
            },
            classes=None if values else self._output.labels,
            outputs=last if last > 0 else None,
            answers="value" if values else "logit" if logit else "probability" if chances else None,
            output=self._output.name,
        )

    def requests(self, rows: Block) -> list[Asked]:
        """Return requests of the same number of rows each, but for the last."""
        found: list[Asked] = []
        columns = [] if self._whole else [_column(one, rows) for one in self._inputs]
        matrix = _as_json(self._inputs[0], rows.matrix) if self._whole else None
        asked = [{"name": self._output.name}]
        for start in range(0, len(rows), self._rows):
            part = slice(start, min(start + self._rows, len(rows)))
            count = part.stop - part.start
            tensors: list[dict[str, Any]] = []
            for one, (shape, values) in zip(self._inputs, columns, strict=False):
                tensors.append(one.form([count, *shape], values[part]))
            if matrix is not None:
                tensors.append(self._inputs[0].form([count, matrix.shape[1]], matrix[part]))
            form = {"inputs": tensors, "outputs": asked}
            body = json.dumps(form, allow_nan=False, ensure_ascii=False).encode()
            found.append(Asked(body=body, rows=count))
        return found

    def read(self, form: JsonObject, asked: Asked, source: str) -> Reply:
        """Return what the chosen output holds."""
        name, outputs = self._output.name, cast(list[Any], form.get("outputs") or [])
        found = [one for one in outputs if isinstance(one, dict) and one.get("name") == name]
        if len(found) != 1:
            many = "without the output" if not found else "more than once with the output"
            raise KubestillError(f"{source} answered {many} {name!r}")
        version = str(form.get("model_version") or "")
        try:
            values = self._values(found[0], asked.rows)
        except (KeyError, TypeError, ValueError) as error:
            said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            told = f"{source}: {name} is not numbers for {asked.rows} rows"
            raise KubestillError(f"{told}: {said}") from error
        return Reply(outputs=values, version=version, tokens=None)

    def _values(self, told: Mapping[str, Any], rows: int) -> NDArray[np.float64]:
        """Return what a tensor holds, [rows, K].

        Raises:
            ValueError: It is no such tensor; KeyError and TypeError likewise.
        """
        # Arrays of any nesting hold the same numbers, but "1" is text, and null is no number.
        data = np.asarray(told["data"])
        if told.get("datatype") == "BYTES" or data.dtype.kind not in "biuf":
            odd = next((one for one in data.reshape(-1).tolist() if not _is_number(one)), "text")
            raise ValueError(f"it holds {odd!r}")
        width = self.declared.outputs
        shape = told.get("shape", [rows, width] if width else [rows])
        shape = tuple(int(size) for size in shape)
        if shape[:1] != (rows,) or math.prod(shape) != data.size:
            raise ValueError(f"it holds {data.size} numbers in the shape {list(shape)}")
        return data.astype(np.float64).reshape(rows, -1)


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """An input or output as the server describes it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 stands for any number."""
    labels: tuple[str, ...] | None
    """Of an input its categories, of an output the names of its columns; None where not told."""
    missing: str

    def form(self, shape: list[int], data: NDArray[Any]) -> dict[str, Any]:
        flat = data.reshape(-1).tolist()
        return {"name": self.name, "datatype": self.datatype, "shape": shape, "data": flat}


def _tensors(described: JsonObject, which: str, url: str) -> list[_Tensor]:
    found: list[_Tensor] = []
    try:
        for one in described[which]:
            told = one.get("parameters") or {}
            labels = told.get("labels" if which == "inputs" else "names")
            found.append(
                _Tensor(
                    name=str(one["name"]),
                    datatype=str(one["datatype"]),
                    shape=tuple(int(size) for size in one["shape"]),
                    labels=None if labels is None else tuple(map(str, labels)),
                    missing=str(told.get("missing", "")),
                )
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        remedy = f"does not describe its {which} as the Open Inference Protocol (v2) does: {said}"
        raise InvalidInput([Problem("endpoint", url, remedy)]) from error
    if not found:
        remedy = f"names no {which}, so nobody can ask it"
        raise InvalidInput([Problem("endpoint", url, remedy)])
    return found


def _choose(outputs: Sequence[_Tensor], wanted: str) -> _Tensor:
    names = [one.name for one in outputs]
    if wanted:
        if wanted not in names:
            raise InvalidInput([Problem("output_name", wanted, nearest(wanted, names))])
        return outputs[names.index(wanted)]
    found = [one for one in outputs if one.datatype.startswith(("FP", "BF"))]
    likely = [one for one in found if "prob" in one.name.lower()]
    if len(found) == 1 or len(likely) == 1:
        return (likely or found)[0]
    remedy = f"name the one to learn from; the endpoint has {', '.join(map(repr, names))}"
    if not found:
        shown = ", ".join(f"{one.name!r} ({one.datatype})" for one in outputs)
        remedy = f"none of {shown} holds FP numbers; serve the model with its probabilities"
    raise InvalidInput([Problem("output_name", "", remedy)])


def _column(one: _Tensor, rows: Block) -> tuple[tuple[int, ...], NDArray[Any]]:
    """Return the shape of a row, and a column [B, ...] of what JSON has for it.

    A missing number is null, a missing label the server's word for that.

    Raises:
        InvalidInput: It has another shape, or holds what its datatype does not.
    """
    text = one.datatype == "BYTES"
    found = rows.labels(one.name, missing=one.missing) if text else rows.numbers(one.name)
    own, wanted = found.shape[1:], one.shape[1:]
    # What the server leaves open is the column's own, and 1 of a plain value.
    same = own or (1,) * len(wanted)
    if len(same) == len(wanted):
        wanted = tuple(mine if size < 0 else size for mine, size in zip(same, wanted, strict=True))
    if math.prod(wanted) != math.prod(own):
        remedy = f"is the shape of a row, and the server takes {list(one.shape[1:])}"
        raise InvalidInput([Problem(f"column {one.name!r}", list(own), remedy)])
    return wanted, found if text else _as_json(one, found)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _as_json(one: _Tensor, values: NDArray[Any]) -> NDArray[Any]:
    """Return numbers as a tensor of this datatype has them in JSON: whole, truth values, or null.

    Raises:
        InvalidInput: It cannot hold them.
    """
    kind, gaps = one.datatype, np.isnan(values)
    if kind.startswith(("FP", "BF")):
        off = np.isinf(values) if kind != "FP16" else np.abs(values) > 65504
    else:
        bits = int("".join(filter(str.isdigit, kind)) or 1)
        low = 0.0 if kind == "BOOL" or kind.startswith("U") else -(2.0 ** (bits - 1))
        off = gaps | (values < low) | (values >= low + 2.0**bits) | (values != np.trunc(values))
    if off.any():
        first = values[off][0]
        shown = "missing" if first != first else f"{first:.6g}"
        remedy = f"{int(off.sum())} of {values.size} values are nothing that {kind} holds"
        raise InvalidInput([Problem(f"input {one.name!r}", shown, remedy)])
    if kind.startswith(("FP", "BF")):
        if gaps.any():
            values = values.astype(object)
            values[gaps] = None
        return values
    return values.astype(bool if kind == "BOOL" else np.int64)


class LogProbabilities:
    """How likely each class is the first token that a language model generates."""

    def __init__(
        self,
        url: str,
        *,
        model: str,
        prompt: str,
        words: Mapping[str, Sequence[str]],
        extra: Mapping[str, Any],
        rows: int,
        strict: bool,
    ):
        """Prepare.

        Args:
            url: `…/chat/completions`, or `…/completions`, which takes several prompts at once.
            model: Its name, as the server has it.
            prompt: With `{column}` where a value goes.
            words: What the model says for each class.
            extra: Further fields of every request.
            rows: In a request of `…/completions`.
            strict: Refuse an answer that begins with no word of any class, in place of giving all
                classes the same share.

        Raises:
            InvalidInput: The prompt cannot be filled in, or two classes share a word; all of it.
        """
        self.address = url
        self._chat = url.partition("?")[0].endswith("/chat/completions")
        self._rows, self._strict = (1 if self._chat else rows), strict
        self._model, self._prompt, self._extra = model, prompt, dict(extra)
        self._words = [list(dict.fromkeys(map(_plain, words[name]))) for name in words]
        self._pieces = _pieces(prompt)
        self._wordless = 0
        all_ = [word for some in self._words for word in some]
        if not all(self._words) or not all(all_):
            remedy = "give each class one word or more, which are not empty"
            raise InvalidInput([Problem("endpoint.words", dict(words), remedy)])
        if len(set(all_)) < len(all_):
            remedy = "give each class words of its own; case and blanks around them do not count"
            raise InvalidInput([Problem("endpoint.words", dict(words), remedy)])
        self.declared = Declared(
            inputs=tuple(dict.fromkeys(name for _, name, _ in self._pieces if name is not None)),
            width=None,
            reads="labels",
            classes=tuple(words),
            outputs=len(words),
            answers="probability",
            tried=16,
        )

    def requests(self, rows: Block) -> list[Asked]:
        """Return one request a row, or one for several where the server takes that."""
        prompts = self._fill(rows)
        found: list[Asked] = []
        for start in range(0, len(prompts), self._rows):
            some = prompts[start : start + self._rows]
            form: dict[str, Any] = {"model": self._model, "temperature": 0, "max_tokens": 1}
            if self._chat:
                form |= {"messages": [{"role": "user", "content": some[0]}]}
                form |= {"logprobs": True, "top_logprobs": 20}
            else:
                form |= {"prompt": some, "logprobs": 20}
            body = json.dumps(form | self._extra, allow_nan=False, ensure_ascii=False).encode()
            found.append(Asked(body=body, rows=len(some)))
        return found

    def read(self, form: JsonObject, asked: Asked, source: str) -> Reply:
        """Return the share that each class has of what the classes have together."""
        try:
            choices = sorted(form["choices"], key=lambda one: int(one.get("index", 0)))
            if len(choices) != asked.rows:
                raise ValueError(f"it holds {len(choices)} choices")
            places = {int(one["index"]) for one in choices if "index" in one}
            if places and places != set(range(asked.rows)):
                raise ValueError(f"its choices are numbered {sorted(places)}")
            likely = [self._likely(one["logprobs"]) for one in choices]
            outputs = np.array([self._shares(one) for one in likely])
            tokens = _count_tokens(form.get("usage"))
        except InvalidInput:
            raise  # which is a ValueError, too
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            told = f"{source} answered without log-probabilities of {asked.rows} first tokens"
            raise KubestillError(f"{told}: {said}; choose a model that gives them") from error
        version = f"{form.get('model') or ''} {form.get('system_fingerprint') or ''}".strip()
        return Reply(outputs=outputs, version=version, tokens=tokens)

    def _likely(self, told: Mapping[str, Any]) -> list[tuple[str, float]]:
        """Return the likeliest first tokens and their log-probabilities."""
        if self._chat:
            top = told["content"][0]["top_logprobs"]
            found = [(str(one["token"]), float(one["logprob"])) for one in top]
        else:
            found = [(str(name), float(one)) for name, one in told["top_logprobs"][0].items()]
        if max(value for _, value in found) > 1e-3:  # what rounding adds to 0 at most
            raise ValueError(f"these are no logarithms of probabilities: {found[:3]}")
        return found

    def _shares(self, likely: list[tuple[str, float]]) -> NDArray[np.float64]:
        """Return the share of each class; one that is not among the likeliest is below them all."""
        # No token that is not listed is likelier than the last one that is.
        floor = min(value for _, value in likely)
        found = np.full(len(self._words), -np.inf)
        shared, by = -np.inf, ""
        for token, value in likely:
            classes = self._classes_of(_plain(token))
            for place in classes:  # of which it begins any, nobody knows with which chance
                found[place] = np.logaddexp(found[place], value - math.log(len(classes)))
            if len(classes) > 1:
                shared, by = np.logaddexp(shared, value), by or token
        if self._strict and shared > np.logaddexp.reduce(found) + math.log(_SHARED):
            remedy = (
                f"words of several classes begin with {by!r}, which does not tell them apart; ask "
                "in the prompt for words whose beginnings differ, and say them for the classes"
            )
            raise InvalidInput([Problem("endpoint.words", [w[0] for w in self._words], remedy)])
        if np.isneginf(found).all() and not self._strict:
            self._wordless += 1
            if self._wordless & (self._wordless - 1) == 0:  # 1, 2, 4, ...: not every one
                log.warning("%d answers began with no word of any class", self._wordless)
            return np.full(len(found), 1 / len(found))
        if np.isneginf(found).all():
            seen = ", ".join(repr(token) for token, _ in likely[:5])
            raise InvalidInput(
                [
                    Problem(
                        "endpoint.words",
                        [some[0] for some in self._words],
                        f"the model begins its answer with {seen}, and with none of these; ask in "
                        "the prompt for one of them and nothing else, or say its words for them",
                    )
                ]
            )
        found = np.where(np.isneginf(found), min(floor, found[np.isfinite(found)].max()), found)
        chances = np.exp(found - found.max())
        return chances / chances.sum()

    def _classes_of(self, token: str) -> list[int]:
        """Return the classes whose word a token is, or begins."""
        exact = [place for place, some in enumerate(self._words) if token in some]
        return exact or [
            place
            for place, some in enumerate(self._words)
            if token and any(word.startswith(token) for word in some)
        ]

    def _fill(self, rows: Block) -> list[str]:
        columns: list[list[str]] = []
        for before, name, shape in self._pieces:
            if name is None:
                columns.append([before] * len(rows))
                continue
            columns.append([before + text for text in _texts(rows, name, shape)])
        return ["".join(parts) for parts in zip(*columns, strict=True)]


def _texts(rows: Block, name: str, shape: str) -> list[str]:
    column: Column = rows.column(name)
    if column.kind in ("categorical", "text"):
        return [str(label) for label in rows.labels(name, missing="unknown")]
    values = rows.numbers(name)
    if column.kind == "boolean":
        words = {0.0: "false", 1.0: "true"}
        return [words.get(value, "unknown") for value in values.tolist()]
    if column.kind == "tensor":
        flat = values.reshape(len(values), -1)
        return [json.dumps([None if x != x else x for x in row]) for row in flat.tolist()]
    return ["unknown" if value != value else format(value, shape or ".6g") for value in values]


def _pieces(prompt: str) -> list[tuple[str, str | None, str]]:
    """Return the prompt as (text, column after it or None, format of its numbers)."""
    try:
        found = [(text, name, shape or "") for text, name, shape, _ in Formatter().parse(prompt)]
        for _, name, shape in found:
            format(1.5, shape)
            if name == "":
                raise ValueError("{} names no column")
    except ValueError as error:
        remedy = f"{error}; write columns as {{amount}} or {{amount:.2f}}, and a brace twice"
        raise InvalidInput([Problem("endpoint.prompt", prompt, remedy)]) from error
    if not any(name for _, name, _ in found):
        remedy = (
            "say what the model is asked, with columns in braces, such as 'Amount {amount:.2f} at "
            "{shop}. Is this fraud? Answer yes or no.'"
        )
        raise InvalidInput([Problem("endpoint.prompt", prompt, remedy)])
    return found


def _count_tokens(usage: object) -> int | None:
    """Return what a server counted; None where that is nothing that anybody could be charged."""
    told = cast(dict[str, Any], usage) if isinstance(usage, dict) else {}
    names = ("total_tokens", "prompt_tokens", "completion_tokens")
    total, *parts = (one if isinstance(one := told.get(name), int) else 0 for name in names)
    found = total or sum(parts)
    return found if found > 0 else None


def _plain(word: str) -> str:
    return word.strip().strip("\u2581\u0120").casefold()
