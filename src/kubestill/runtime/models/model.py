"""The model: encoder, network and decoder in one module, and the spec that rebuilds it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kubestill.errors import CorruptData, InvalidInput, Problem
from kubestill.runtime.base import trust as trusted
from kubestill.runtime.base.values import Digest, Flag, JsonObject, WholeFloat, read_as
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.models.build import build
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.fake_quantise import quantise_layers
from kubestill.runtime.models.resolve import resolve_network, source_digest
from kubestill.runtime.models.sizes import build_bounded

FORMAT = "kubestill/model/1"

# What importing torch leaves behind, some half a million objects, lives as long as the process.
# Kept out of every later search for garbage, it no longer costs a step an eighth of its start.
gc.freeze()

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All of a model but its weights; the content of `model.json`."""

    schema: Schema
    """Features and target only."""
    network: JsonObject
    """`factory` (a name or an import path), `args`, `source` (the digest of its file's text),
    `reads` (`rows`, or the shape of a row as it gets it), and `quantised` where its layers compute
    in 8 bits."""
    encoder: JsonObject
    decoder: JsonObject
    parameters: WholeFloat
    """Learned numbers."""
    digest: Digest | None = None
    """SHA-256 of `model.safetensors`; None before the export."""

    @property
    def task(self) -> str:
        """regression, binary or multiclass."""
        assert self.schema.task is not None
        return self.schema.task

    @property
    def outputs(self) -> tuple[str, ...]:
        """Class labels in the order of their index, or the names of the predicted values."""
        return output_names(self.schema)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "format": FORMAT,
            "task": self.task,
            "schema": self.schema.to_json(),
            "layout": RawLayout(self.schema).to_json(),
            "encoder": self.encoder,
            "network": self.network,
            "decoder": self.decoder,
            "parameters": self.parameters,
            "outputs": list(self.outputs),
            "digest": self.digest,
        }

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> ModelSpec:
        """Read what `to_json` wrote.

        Raises:
            CorruptData: It is no model spec, one of a later format, or one whose parts contradict
                each other.
        """
        if not isinstance(form, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise CorruptData("the model spec is no JSON object")
        source, what = "the model spec", "model"
        if (found := form.get("format")) != FORMAT:
            raise CorruptData(f"{source} has the format {found!r:.80}; this reads {FORMAT!r}")
        # The rest is for other programs: it follows from these.
        kept = {name: form[name] for name in _READ if name in form}
        spec = read_as(cls, kept, source=source, what=what)
        if spec.schema.task is None or not spec.schema.features:
            raise CorruptData("the model spec has no target, or no feature")
        read_as(_Network, spec.network, source=source, what="network")
        Encoder.from_spec(spec.encoder, spec.schema.features)
        Decoder.from_spec(spec.decoder, _targets(spec.schema))
        return spec


_READ = ("schema", "network", "encoder", "decoder", "parameters", "digest")


@dataclass(frozen=True, kw_only=True)
class _Network:
    factory: str
    args: JsonObject
    source: Digest | None
    reads: Literal["rows", "ids"] | tuple[WholeFloat, ...] | None = None
    """None in files of earlier versions."""
    quantised: Flag = False
    """See `models.fake_quantise`."""


def _targets(schema: Schema) -> int:
    """Return how many numbers a regression predicts; 0 for classes, which are not scaled."""
    return schema.target.width if schema.target and schema.task == "regression" else 0


class Model(nn.Module):
    """Raw rows in, logits or predictions out.

    `encoder` and `decoder` hold no learned parameters, and nothing of them is in the state dict:
    every key starts with "network.". A training run encodes its data once and trains `network` on
    the features.
    """

    def __init__(self, spec: ModelSpec, encoder: Encoder, network: nn.Module, decoder: Decoder):
        super().__init__()
        self.spec = spec
        self.encoder = encoder
        self.network = network
        self.decoder = decoder

    @classmethod
    def create(
        cls,
        schema: Schema,
        *,
        encoder: Encoder,
        decoder: Decoder,
        network: str = "mlp",
        network_args: Mapping[str, Any] | None = None,
        network_reads: str | Sequence[int] | None = "",
        seed: int = 0,
        prove: bool = True,
        quantised: bool = False,
    ) -> Model:
        """Build a new model with seeded initial weights, on the CPU.

        Args:
            schema: The dataset's; what is neither feature nor target is dropped.
            encoder: Fitted on the training data.
            decoder: Fitted on the training target, or `Decoder()` for classification.
            network: A name ("mlp") or an import path ("package.module:attribute").
            network_args: Keyword arguments for it.
            network_reads: What it receives; see `build`.
            seed: Seeds the initial weights.
            prove: Send one batch through the network; see `build`.
            quantised: Have its layers compute in 8 bits; see `fake_quantise`.

        Raises:
            InvalidInput: There is no target or no feature, or the network does not fit; see
                `build`.
        """
        if schema.task is None:
            problem = Problem("dataset", "no target", "give one column the role 'target'")
            raise InvalidInput([problem])
        kept = tuple(c for c in schema.columns if c.role in ("feature", "target"))
        schema = replace(schema, columns=kept)
        layout = RawLayout(schema)
        built = build(
            network,
            network_args or {},
            layout=layout,
            encoder=encoder,
            seed=seed,
            reads=network_reads,
            prove=prove,
        )
        if quantised:
            quantise_layers(built.network)
        reads = built.reads if isinstance(built.reads, str) else list(built.reads)
        spec = ModelSpec(
            schema=schema,
            network={
                "factory": network,
                "args": built.arguments,
                "source": source_digest(built.factory),
                "reads": reads,
                **({"quantised": True} if quantised else {}),
            },
            encoder=encoder.to_spec(),
            decoder=decoder.to_spec(),
            parameters=sum(p.numel() for p in built.network.parameters() if not is_lazy(p)),
        )
        return cls(spec, encoder, built.network, decoder)

    @classmethod
    def from_spec(
        cls,
        spec: ModelSpec,
        *,
        trust: Iterable[str] = (),
        weights: Mapping[str, Tensor] | None = None,
    ) -> Model:
        """Rebuild the architecture; the weights are to be loaded.

        Args:
            spec: From a file, which may name no code but what is vouched for; see
                `kubestill.runtime.base.trust`.
            trust: Packages that the caller vouches for.
            weights: What is to be loaded, by name: nothing larger is built.

        Raises:
            CorruptData: The spec is damaged, or not that of these weights.
            InvalidInput: Nobody vouches for the network, it cannot be imported here, or it is not
                what it was.
        """
        encoder = Encoder.from_spec(spec.encoder, spec.schema.features)
        decoder = Decoder.from_spec(spec.decoder, _targets(spec.schema))
        network = read_as(_Network, spec.network, source="the model spec", what="network")
        factory = network.factory
        group = trusted.NETWORKS
        trusted.check_trusted(factory, field="network", group=group, trust=trust)
        found = resolve_network(factory)
        trusted.check_defined(found, factory, field="network", group=group, trust=trust)
        build = partial(
            cls.create,
            spec.schema,
            encoder=encoder,
            decoder=decoder,
            network=factory,
            network_args=network.args,
            network_reads=network.reads,
            quantised=network.quantised,
        )
        model = build() if weights is None else build_bounded(build, weights)
        if model.spec.parameters != spec.parameters:
            raise CorruptData(
                f"the model spec claims {spec.parameters:,} parameters, its network has "
                f"{model.spec.parameters:,}"
            )
        if model.spec.network["source"] != network.source:
            log.warning("%s changed since this model was made", factory)
        model.spec = spec
        return model

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.encoder.mean.device

    @property
    def bytes(self) -> int:
        """Size of the weights."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw [B, R] to logits [B, K], [B, 1] for binary, or to predictions [B, T]."""
        return self.decoder(self.network(self.encoder(raw)))


def output_names(schema: Schema) -> tuple[str, ...]:
    """Return the class labels, or for regression a name for each predicted value."""
    target = schema.target
    assert target is not None
    if schema.task != "regression":
        return schema.classes
    if not target.shape:
        return (target.name,)
    return tuple(f"{target.name}_{i}" for i in range(target.width))
