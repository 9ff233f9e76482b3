"""Bring a model that another library trained into a pipeline."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def import_model(
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    holdout: dsl.Input[dsl.Dataset] = None,
    file: dsl.Input[dsl.Artifact] = None,
    source: str = "",
    format: str = "auto",
    inputs: list = [],
    classes: list = [],
    output: str = "auto",
    settings: dict = {},
) -> NamedTuple("Outputs", [("model_uri", str)]):
    """Bring in a model of another library, one behind an address, or a teacher class of your own.

    The result goes wherever a model goes: it labels rows for a student, and continuous-eval scores
    it. Its inputs are the dataset's columns of the same names, and its outputs are put into the
    order of the dataset's classes, by their labels. It answers a few rows of the dataset before it
    is taken. Files that run code when they are loaded (pickle, joblib, TorchScript) are refused;
    docs/teachers.md says what to write in their place.

    Args:
        dataset: Rows whose columns the model reads, with the target that it predicts.
        holdout: Labelled rows that the model has not seen; its scores on them are in the metrics.
        file: Model that an earlier step wrote, in place of a source: a file, or a folder with one.
        source: The model's file or folder, local, gs:// or s3://; the import path of a teacher,
            `package.module:Name`; or an address, `http://host/v2/models/name` or
            `https://host/v1/chat/completions`; or `several`, for those that the settings list. A
            folder that this package exported is copied.
        format: `auto` recognises the content: `lightgbm`, `xgboost`, `catboost`, `onnx`, `pt2`,
            `skops`, `huggingface`, `python`, `endpoint` or `several`.
        inputs: Columns that the model reads, in the order it was fitted on; only for files that do
            not name their inputs.
        classes: Class labels in the order of the model's outputs; only for files that do not name
            them.
        output: `logit`, `probability` or `value`; `auto` reads it from the file.
        settings: `categories`, `missing`, `output_name`, `args`, `weights`, `endpoint` and
            `several`; see docs/settings.md.

    Returns:
        model: The model: its own file, and a description that binds it to columns and classes.
        metrics: Its scores on the hold-out.
        report: What it reads, what it puts out and how it scores, as an HTML page.
        summary: The same in short, as Markdown.
        model_uri: Location of the model.
    """
    return call_step("import_model", locals())
