"""Write settings.md: the keys of every dict that a component takes, read off what validates it.

python docs/settings.py
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import yaml
from docstring_parser import parse
from pydantic import BaseModel

from kubestill.runtime.certification.settings import CertificateSettings
from kubestill.runtime.datasets.options import Reading
from kubestill.runtime.evaluation.settings import EvaluationSettings
from kubestill.runtime.generation.request import AUGMENTATIONS, COVERINGS, GIVEN
from kubestill.runtime.generation.systems.load import BUILTIN, import_system
from kubestill.runtime.models.foreign.match import Options
from kubestill.runtime.models.networks import ACTIVATIONS, NETWORKS, NORMS
from kubestill.runtime.retraining.collecting import CollectSettings
from kubestill.runtime.sanity.settings import GateSettings
from kubestill.runtime.steps.select_checkpoint import SelectionSettings
from kubestill.runtime.training.settings import TrainingSettings

HERE = Path(__file__).parent
PAGE = HERE / "settings.md"
COMPONENTS = HERE.parent / "components"
SINGLE: dict[str, type[BaseModel]] = {
    "select_checkpoint": SelectionSettings,
    "continuous_eval": EvaluationSettings,
    "certify_surrogate": CertificateSettings,
    "collect_fresh": CollectSettings,
    "import_dataset": Reading,
    "import_model": Options,
}
HEAD = """# Settings

What people change often is a parameter of the component; everything else goes into its parameter
`settings`, such as `settings={"patience": 5, "checkpoints": {"keep_last": 4}}`. A name that is not
on this page is refused, with the nearest valid name. Pipelines pass dicts on: `teacher_settings`,
`student_settings`, `training_settings` and `finetune_settings` to the training components, the
others to the component that they are named after.

On this page: [training runs](#training-runs), [`gate`](#overfit-batch-gate),
[generating rows](#generating-rows), [select-checkpoint](#select-checkpoint),
[continuous-eval](#continuous-eval), [certify-surrogate](#certify-surrogate),
[collect-fresh](#collect-fresh), [import-dataset](#import-dataset), [import-model](#import-model),
and the arguments of the built-in [networks](#network_args) and [systems](#system_args).

`make compile` writes this page from the models that validate the dicts.
"""
TRAINING = """## Training runs

The `settings` of `train-teacher`, `train-student` and `finetune-fresh`; `overfit-batch` takes those
of the training run that it guards. A setting that the component also has as a parameter is refused;
use the parameter.
"""
GENERATING = """The `settings` of `generate-synthetic` and `plan-shards`, and the
`synthetic_settings` of `label-with-teacher` and `check-distillation`. Each method has its own.
"""
SYSTEMS = """## `system_args`

Your own system, `package.module:Name`, takes the arguments of its class.
"""


_FILLED = ("in_features", "out_features", "input_shape", "output_shape", "vocabulary", "texts")
"""Arguments of the built-in networks that follow from the data."""


def page() -> str:
    """Return the whole page."""
    parts = [TRAINING, settings(TrainingSettings, without=parameters("train_teacher"))]
    parts += ["## overfit-batch: `gate`\n", settings(GateSettings)]
    parts += ["## Generating rows\n", GENERATING]
    for method, model in (AUGMENTATIONS | GIVEN | COVERINGS).items():
        if model.model_fields:
            parts += [f"### `{method}`\n", settings(model)]
    for name, model in SINGLE.items():
        parts += [f"## {name.replace('_', '-')}\n", settings(model, without=parameters(name))]
    parts += [
        "## `network_args`\n",
        f"Activations: {listed(ACTIVATIONS)}. Norms: {listed(NORMS)}. Your own "
        "network, `package.module:attribute`, takes its own arguments, and those of "
        "[networks](networks.md) that it names are filled in.\n",
    ]
    for name, factory in NETWORKS.items():
        parts += [f"### `{name}`\n", arguments(factory, without=_FILLED)]
    parts += [SYSTEMS]
    for name in BUILTIN:
        parts += [f"### `{name}`\n", arguments(import_system(name))]
    return "\n".join([HEAD, *parts])


def listed(names: Collection[str]) -> str:
    """Return names as code, separated by commas."""
    return ", ".join(f"`{name}`" for name in names)


def parameters(component: str) -> set[str]:
    """Return the parameters of a component."""
    text = (COMPONENTS / component / "component.yaml").read_text()
    return set(next(yaml.safe_load_all(text))["root"]["inputDefinitions"]["parameters"])


def settings(model: type[BaseModel], without: Collection[str] = ()) -> str:
    """Return the fields of a model as a table; those of a nested one by dotted names."""
    schema = model.model_json_schema()
    rows = [
        (f"`{name}`", values(field), default(field.get("default")), field["description"])
        for name, field in fields(schema, schema.get("$defs", {}))
        if name not in without
    ]
    return table("setting | value | default | description", rows)


def arguments(factory: Callable[..., Any], without: Collection[str] = ()) -> str:
    """Return the summary of a network or system, and its arguments as a table."""
    doc = parse(inspect.getdoc(factory) or "")
    described = {entry.arg_name: entry.description or "" for entry in doc.params}
    known = inspect.signature(factory).parameters
    rows = [
        (f"`{name}`", default(known[name].default), described[name])
        for name in known
        if name not in without
    ]
    about = f"{doc.short_description}\n"
    return about + ("\n" + table("argument | default | description", rows) if rows else "")


def table(head: str, rows: Collection[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    for row in rows:
        cells = (" ".join(cell.split()).replace("|", "\\|") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def fields(
    schema: dict[str, Any], nested: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every field with its JSON schema."""
    for name, field in schema["properties"].items():
        if "$ref" in field:
            inner = nested[field["$ref"].rpartition("/")[2]]
            yield from fields(inner, nested, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def values(field: dict[str, Any]) -> str:
    """Return the values that a field accepts."""
    if "anyOf" in field:
        options = [option for option in field["anyOf"] if option.get("type") != "null"]
        return " or ".join(values(option) for option in options)
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    kinds = {"object": "dict", "array": "list", "boolean": "true, false", "string": "text"}
    kind = kinds.get(field.get("type", ""), field.get("type", "anything"))
    return f"{kind} {bounds(field)}".strip()


def bounds(field: dict[str, Any]) -> str:
    """Return the limits of a number."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return " and ".join(f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field)


def default(value: object) -> str:
    """Return a default as JSON; empty for none."""
    if value in ("", None):
        return ""
    return "required" if value is inspect.Parameter.empty else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(page())
