"""Write a model with weights of 8 bits."""

from typing import NamedTuple

from kfp import dsl

from kubestill.components._call import call_step
from kubestill.components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def quantise_model(
    model: dsl.Input[dsl.Model],
    calibration: dsl.Input[dsl.Dataset],
    dataset: dsl.Input[dsl.Dataset],
    quantised: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    record: dsl.Output[dsl.Artifact],
    scheme: str = "auto",
    metric: str = "",
    tolerance: float = 0.005,
    confidence: float = 0.95,
    calibration_rows: int = 2048,
) -> NamedTuple("Outputs", [("verdict", str), ("reason", str)]):
    """Write a model as int8 ONNX, and report what that costs in score and gains in size and time.

    Weights of matrix products and convolutions become int8, with a scale for each output channel.
    `dynamic` scales activations batch by batch; `static` fixes their ranges beforehand, from rows
    that the model has learned from. A model that learned in 8 bits (`settings.quantise_aware` of
    the training components) has a third form, `trained`, with the scales that it learned with. Each
    is compared with the float32 file, row by row. The result is an ONNX model that goes wherever a
    model goes: continuous-eval judges it on hold-out rows.

    Args:
        model: A model of this package, or an ONNX file that import-model brought in.
        calibration: Rows that the model has learned from; never those that judge it.
        dataset: Labelled rows that it has not learned from, for the comparison and the choice.
        scheme: `dynamic`, `static`, `trained`, or `auto` for the smallest that is within tolerance.
            `auto` leaves `dynamic` out where there are convolutions, which it makes slower.
        metric: Metric that is compared; empty uses accuracy, AUC for two classes, or RMSE.
        tolerance: Share of the float32 score that may be lost.
        confidence: Confidence of all statements together.
        calibration_rows: Rows that set the ranges of activations.

    Returns:
        quantised: The int8 model, the one file `model.onnx` with its description.
        metrics: Its score, its difference to float32, its size and its latency.
        report: Scores against size and latency of each and of float32, as an HTML page.
        summary: The same in short, as Markdown.
        record: The same as JSON.
        verdict: `within`, `unproven` (too few rows to show it) or `outside`.
        reason: Why this scheme, in sentences.
    """
    return call_step("quantise_model", locals())
