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


class ContrastSettings(_Settings):
    """Which row is which (Tian et al. 2020)."""

    weight: _Weight = 0.0
    """Weight of telling a row from others by what the teacher makes of it (CRD, Tian et al. 2020),
    0.8 in the paper; 0 turns it off."""
    layers: dict[str, str] = {}
    """Which layers, as above; the paper takes the last before the answer."""
    dim: int = Field(default=128, ge=1)
    """Numbers that both layers are mapped to."""
    negatives: int = Field(default=16384, ge=1)
    """Other rows that each row is told from, drawn from all rows."""
    temperature: float = Field(default=0.07, gt=0)
    """Of the scores."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """What the memory of a row keeps of what it held."""


class ConsistencySettings(_Settings):
    """Equal answers to rows that hardly differ (Xie et al. 2020)."""

    weight: _Weight = 0.0
    """Weight of the student's answer to a row changed at random against that to the row itself
    (UDA, Xie et al. 2020), which needs no label and no teacher; 0 turns it off."""
    noise: float = Field(default=0.1, ge=0)
    """Standard deviation of what is added to numbers, in units of theirs."""
    drop: float = Field(default=0.1, ge=0, lt=1)
    """Share of n-grams of text, and of labels of more than 16 kinds, that are left out."""


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
    contrast: ContrastSettings = ContrastSettings()
    consistency: ConsistencySettings = ConsistencySettings()
    own: dict[str, OwnSettings] = {}
    """Parts of your own, by import path: `{"my_pkg.losses:Mine": {"weight": 0.1, "layers": {},
    "args": {}}}`."""

    def asked(self) -> dict[str, BaseModel]:
        """Return the settings of each part that counts, by its name."""
        named = {name: getattr(self, name) for name in type(self).model_fields if name != "own"}
        return {name: part for name, part in {**named, **self.own}.items() if part.weight}
