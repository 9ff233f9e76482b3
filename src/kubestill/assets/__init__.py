"""The components and pipelines as files: found, compiled, documented."""

from .build import GeneratedFile, build, compile_yaml
from .catalog import Asset, find_assets

__all__ = ["Asset", "GeneratedFile", "build", "compile_yaml", "find_assets"]
