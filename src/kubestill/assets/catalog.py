"""Find all components and pipelines."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from kfp.dsl import base_component, component_factory, python_component

import kubestill.components
import kubestill.pipelines
from kubestill.components._command import name_instead_of_source
from kubestill.components._image import IMAGE

Kind = Literal["component", "pipeline"]


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One component or pipeline, and the folder its files live in."""

    kind: Kind
    name: str
    """Name in Python, in snake_case."""
    folder: str
    """Absolute path."""
    definition: base_component.BaseComponent
    """The definition that kfp compiles and runs, and that pipelines use."""

    @property
    def documented(self) -> base_component.BaseComponent:
        """The definition with the descriptions of its ports, which pipelines leave out."""
        if not isinstance(self.definition, python_component.PythonComponent):
            return self.definition
        made = component_factory.create_component_from_func(
            self.definition.python_func, base_image=IMAGE, install_kfp_package=False
        )
        name_instead_of_source(made)
        return made

    @property
    def yaml_path(self) -> str:
        """Path of its compiled form: `component.yaml` or `pipeline.yaml`."""
        return os.path.join(self.folder, f"{self.kind}.yaml")

    @property
    def readme_path(self) -> str:
        """Path of its generated documentation."""
        return os.path.join(self.folder, "README.md")


def find_assets() -> list[Asset]:
    """List every component and pipeline that `kubestill.components` and `.pipelines` export."""
    return [
        *_exported("component", kubestill.components),
        *_exported("pipeline", kubestill.pipelines),
    ]


def _exported(kind: Kind, package: ModuleType) -> list[Asset]:
    # The real path: in a checkout the package is a link to the top-level folder.
    root = os.path.realpath(package.__path__[0])
    return [
        Asset(
            kind=kind,
            name=name,
            folder=os.path.join(root, name),
            definition=getattr(package, name),
        )
        for name in package.__all__
    ]
