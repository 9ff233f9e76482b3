"""Build your own pipeline around two of our components, with only kfp installed.

Run this in a checkout to get `your_pipeline.yaml`, which Kubeflow accepts as it is. Elsewhere, load
the same files with `components.load_component_from_url`.
"""

from pathlib import Path

from kfp import compiler, components, dsl

FOLDER = Path(__file__).parents[2] / "components"
import_dataset = components.load_component_from_file(str(FOLDER / "import_dataset/component.yaml"))
train_teacher = components.load_component_from_file(str(FOLDER / "train_teacher/component.yaml"))


@dsl.component(base_image="python:3.11-slim")
def announce(model_uri: str):
    """Stand in for whatever you do with a model."""
    print(f"a new model is at {model_uri}")


@dsl.pipeline(name="house-prices")
def house_prices(table: str, checkpoint_uri: str):
    """Train on a table and announce the model."""
    data = import_dataset(source=table, target="price")
    training = train_teacher(
        dataset=data.outputs["dataset"],
        validation=data.outputs["validation"],
        network_args={"hidden": [256, 256]},
        checkpoint_uri=checkpoint_uri,
    )
    announce(model_uri=training.outputs["model_uri"])


if __name__ == "__main__":
    compiler.Compiler().compile(house_prices, "your_pipeline.yaml")
