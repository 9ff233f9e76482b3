"""The settings of what a student imitates of its teacher besides its answers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from kubestill.runtime.base.settings import Settings

_Weight = Annotated[float, Field(ge=0)]


class _Settings(Settings):
    model_config = ConfigDict(allow_inf_nan=False)


class FeatureSettings(_Settings):
    """Layers through a learned map (Romero et al. 2015)."""

    weight: _Weight = 0.0
    """Weight of the mean squared difference between layers of the teacher and a learned linear map
    of the student's (FitNets, Romero et al. 2015); 0 turns it off."""
    layers: dict[str, str] = {}
    """Which layers: the student's name of each, and the teacher's, as in `{"body.5": "body.12"}`.
    Names are those of `named_modules()` in the network."""


class AttentionSettings(_Settings):
    """Where layers look (Zagoruyko & Komodakis 2017)."""

    weight: _Weight = 0.0
    """Weight of the difference between the attention maps of layers (Zagoruyko & Komodakis 2017);
    about 1000, because the maps have a length of 1; 0 turns it off."""
    layers: dict[str, str] = {}
    """Which layers, as above."""


class RelationSettings(_Settings):
    """How rows lie to each other (Park et al. 2019)."""

    weight: _Weight = 0.0
    """Weight of how the rows of a batch lie to each other (RKD, Park et al. 2019); 0 turns it
    off."""
    layers: dict[str, str] = {}
    """Which layers, as above; empty compares the outputs."""
    distance: _Weight = 1.0
    """Share of the distances between two rows."""
    angle: _Weight = 2.0
    """Share of the angles between three, of which a batch has its rows cubed."""


class DecoupledSettings(_Settings):
    """The target class and the others apart (Zhao et al. 2022)."""

    weight: _Weight = 0.0
    """Weight of decoupled distillation (DKD, Zhao et al. 2022), at the `temperature` of the
    training run, for three classes and more; 0 turns it off. The paper sets it against labels
    alone, which is `hard_weight` 1."""
    alpha: _Weight = 1.0
    """Share of the target class against all others."""
    beta: _Weight = 8.0
    """Share of the other classes among themselves."""


class OwnSettings(_Settings):
    """A part of the user's."""

    weight: _Weight = 1.0
    """Its weight."""
    layers: dict[str, str] = {}
    """Layers that it is shown."""
    args: dict[str, Any] = {}
    """Arguments of its class or factory."""


class ImitateSettings(_Settings):
    """Parts that are added to the loss of a student; at its defaults there is none."""

    features: FeatureSettings = FeatureSettings()
    attention: AttentionSettings = AttentionSettings()
    relations: RelationSettings = RelationSettings()
    dkd: DecoupledSettings = DecoupledSettings()
    own: dict[str, OwnSettings] = {}
    """Parts of your own, by import path: `{"my_pkg.losses:Mine": {"weight": 0.1, "layers": {},
    "args": {}}}`."""

    def asked(self) -> dict[str, BaseModel]:
        """Return the settings of each part that counts, by its name."""
        named = {name: getattr(self, name) for name in type(self).model_fields if name != "own"}
        return {name: part for name, part in {**named, **self.own}.items() if part.weight}
