"""From a dataset on disk to what the engine trains on: model, rows, loss and validation rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kubestill.errors import InvalidInput, Problem, Problems, nearest, nearest_of
from kubestill.runtime.checkpoints.ranks import Ranks
from kubestill.runtime.datasets.cache import load_decoded
from kubestill.runtime.datasets.columns import centred
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.datasets.decode import Decoded, RawLayout
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.metrics.catalog import TASKS, TRAIN_LOSS
from kubestill.runtime.models.build import build_network
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.fake_quantise import fit_ranges, is_quantised, quantise_layers
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.predict import probabilities
from kubestill.runtime.models.prune import prune
from kubestill.runtime.models.tabular import TabM, fit_bins
from kubestill.runtime.models.weights import load_weights
from kubestill.runtime.training.augment import Augmentation, Scale, check_augment
from kubestill.runtime.training.batches import ResidentRows, Rows, StoredArray, StreamedRows
from kubestill.runtime.training.demands import check_demands, freeze
from kubestill.runtime.training.device import Machine
from kubestill.runtime.training.imitation import Answer, Imitation, build_imitation, needs_teacher
from kubestill.runtime.training.losses import Ensemble, Loss, Weighted, build_loss, loss_names
from kubestill.runtime.training.memory import available_bytes
from kubestill.runtime.training.settings import TrainingSettings
from kubestill.runtime.training.validation import Validation

_CHUNK = 65536
_RANGE_ROWS = 4096
"""Rows that the first ranges of activations are from."""
_LANES, _ONE_THREAD = 64, 1 << 14
"""Numbers that fill the vectors of any CPU, and that torch leaves to a single thread."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A training run, ready to start."""

    model: Model
    rows: Rows
    loss: Loss
    loss_name: str
    validation: Validation | None
    """What is followed: the validation rows, or every row where those are the whole domain."""
    metric: str
    """What early stopping and the choice of a milestone look at."""
    shuffle: str
    """`full`, `blocks` or `none`, resolved."""
    change: Augmentation | None = None
    """What is done to the rows of each step, at random."""
    imitation: Imitation | None = None
    """What the student imitates of a teacher that stands beside it in each step."""
    least_rows: int = 1
    """Rows that the network needs together: 2 where it normalises over the rows of a batch."""

    @property
    def costs(self) -> tuple[str, ...]:
        """Names of what the loss consists of; none where that is the loss alone."""
        return (self.loss_name, *self.imitation.names) if self.imitation else ()


def main_metric(task: str, followed: bool, whole_domain: bool) -> str:
    """Return what early stopping and the choice of a milestone look at by default."""
    if whole_domain:
        return TASKS[task].enumerated[0]
    return TASKS[task].primary if followed else TRAIN_LOSS


def followed_metrics(task: str, whole_domain: bool) -> tuple[str, ...]:
    """Return what a training run of this task measures at each milestone."""
    used = TASKS[task]
    return (*(used.enumerated if whole_domain else used.validated), TRAIN_LOSS)


def resolve_loss(
    settings: TrainingSettings, dataset: Dataset, *, distil: bool, whole_domain: bool = False
) -> str:
    """Return the loss to use, and refuse what contradicts the data, before anything expensive.

    Raises:
        InvalidInput: The loss does not fit the task; distillation without a teacher's outputs; rows
            without a target where every row needs one.
    """
    problems = Problems()
    task = dataset.schema.task
    if task is None:
        problems.add("dataset", dataset.root, "has no target column; import it with one")
        problems.raise_if_any()
    fitting = loss_names(str(task))
    name = fitting[-1 if distil else 0] if settings.loss == "auto" else settings.loss
    if name not in fitting:
        problems.add("loss", name, f"does not fit {task}; use {' or '.join(fitting)}")
    elif distil and not name.startswith("distillation"):
        problems.add(
            "loss", name, f"learns nothing from a teacher; use {fitting[-1]}, or mode hard"
        )
    if name.startswith("distillation"):
        soft, outputs = dataset.schema.soft, RawLayout(dataset.schema).outputs
        if soft is None:
            remedy = "has no teacher outputs; run label-with-teacher on it first"
            problems.add("dataset", dataset.root, remedy)
        elif soft.width != outputs:
            remedy = (
                f"its teacher has {soft.width} outputs and this student {outputs}; use a teacher"
            )
            problems.add("dataset", dataset.root, f"{remedy} of the same target")
    elif dataset.unlabelled:
        unlabelled = f"{dataset.unlabelled} of {dataset.rows} rows"
        remedy = "have no target; train on them with a teacher's outputs, or drop them"
        problems.add("dataset", unlabelled, remedy)
    _check_class_weights(settings.class_weights, dataset, problems)
    exact = "learning the whole domain" if whole_domain else ""
    exact = exact or ("the finish" if settings.finish_steps else "")
    check_augment(settings.augment, dataset.schema, problems, exact=exact)
    known = followed_metrics(str(task), whole_domain)
    if settings.metric and settings.metric not in known:
        problems.add(
            "metric",
            settings.metric,
            f"not followed while training; {nearest(settings.metric, known)}",
        )
    problems.raise_if_any()
    return name


def _check_class_weights(
    asked: Mapping[str, float] | str, dataset: Dataset, problems: Problems
) -> None:
    """Note weights of classes that are not there, or of a task without classes."""
    classes = dataset.schema.classes
    if asked and not classes:
        remedy = "a regression has no classes; weigh rows by a column with the role 'weight'"
        problems.add("class_weights", asked, remedy)
    elif not isinstance(asked, str):
        near = nearest_of(classes)
        for name in asked:
            if name not in classes:
                problems.add("class_weights", name, f"there is no such class; {near(name)}")


def probe_network(dataset: Dataset, settings: TrainingSettings) -> nn.Module | None:
    """Build the network as a training run would, but without looking at a row.

    Returns:
        The network; None where only the rows can tell whether it fits: a column with gaps becomes
        two features, which a network of a fixed width may count on.

    Raises:
        InvalidInput: It cannot be built, does not fit the data (see `models.build`), or cannot be
            trained as the settings say.
    """
    layout, encoder = RawLayout(dataset.schema), unread_encoder(dataset)
    try:
        network = build_network(
            settings.network,
            settings.network_args,
            layout=layout,
            encoder=encoder,
            seed=settings.seed,
            reads=settings.network_reads,
        )
    except InvalidInput as error:
        gaps = any(column.kind != "tensor" for column in layout.features)
        if gaps and {problem.field for problem in error.problems} == {"network"}:
            return None
        raise
    freeze(network, settings.freeze)
    check_demands(network, torch.zeros(2, encoder.width), settings, rows=dataset.rows)
    return network


def unread_encoder(dataset: Dataset) -> Encoder:
    """Return an encoder of the dataset's columns that has seen no row: none of them has gaps."""
    layout = RawLayout(dataset.schema)
    return Encoder.fit([np.zeros((2, layout.width), np.float32)], layout)


def prepare(
    dataset: Dataset,
    validation: Dataset | None,
    settings: TrainingSettings,
    machine: Machine,
    *,
    loss_name: str,
    start: Model | None = None,
    teacher: Model | None = None,
    whole_domain: bool = False,
    weighted: bool = True,
) -> Prepared:
    """Decode, fit the preprocessing, build the network and put the rows where they are trained on.

    Args:
        dataset: Training rows.
        validation: Rows to follow, or None.
        settings: Of the training run.
        machine: Where it runs.
        loss_name: From `resolve_loss`.
        start: A model to go on from; its preprocessing is kept.
        teacher: Stands beside the student in each step, see `imitation.needs_teacher`, or is what
            the student begins as.
        whole_domain: The training rows are all there is: follow the error over all of them.
        weighted: Heed the weights of rows and classes.

    Raises:
        InvalidInput: All weights are zero, a column cannot be encoded, the network does not fit or
            needs more rows together than a batch has, `freeze` names no parameter, or `imitate` no
            layer.
    """
    if settings.prune.most and teacher is not None:
        start = _prune(teacher, dataset, settings.prune.most)
        # Its answers are stored with the rows.
        teacher = teacher if needs_teacher(settings) else None
    layout = RawLayout(dataset.schema if start is None else _with_soft(start, dataset))
    decoded = load_decoded(dataset, layout)
    counts = dataset.weights() if weighted else None
    model = start or _build(dataset, decoded, layout, settings, counts)
    if settings.initial_weights and start is None:
        load_weights(model.network, settings.initial_weights, "settings.initial_weights")
    if settings.quantise_aware and not is_quantised(model.network):
        _quantise(model, decoded.raw)
    freeze(model.network, settings.freeze)
    model.to(machine.device)
    task = str(dataset.schema.task)
    targets = _targets(decoded, model, loss_name, settings, task)
    loss = build_loss(loss_name, temperature=settings.temperature, hard_weight=settings.hard_weight)
    weights = _loss_weights(counts, decoded, layout, settings) if weighted else None
    if weights is not None:
        targets.append(StoredArray(stored=weights))
        loss = Weighted(loss=loss)
    if any(isinstance(module, TabM) for module in model.network.modules()):
        loss = Ensemble(loss=loss)
    if settings.imitate.contrast.weight and teacher is not None:
        targets.append(StoredArray(stored=np.arange(decoded.rows)))
    if teacher is not None:
        # As it reads them itself: other columns perhaps, and scaled by the rows that it learned.
        targets.append(_features(dataset, teacher.to(machine.device).eval(), machine))
    rows = _rows(decoded, targets, model, settings, machine)
    followed = None
    if whole_domain:
        followed = Validation(
            rows,
            task=task,
            decoder=model.decoder,
            whole_domain=True,
            weighted=weights is not None,
        )
    elif validation is not None:
        held = load_decoded(validation, RawLayout(model.spec.schema))
        assert held.target is not None
        held_counts = validation.weights() if weighted else None
        arrays = [_relative(held.target, model)]
        if held_counts is not None:
            arrays.append(StoredArray(stored=held_counts))
        followed = Validation(
            _rows(held, arrays, model, settings, machine),
            task=task,
            decoder=model.decoder,
            weighted=held_counts is not None,
        )
    features, *told = rows.between(0, min(rows.count, 2))
    imitation = None
    if loss_name.startswith("distillation"):
        imitation = build_imitation(
            model.network,
            teacher.network if teacher else None,
            settings,
            task=task,
            features=features,
            teacher_features=told[-1],
            answer=_answer(teacher, model, settings) if teacher else None,
            weighted=weights is not None,
            rows=rows.count,
            scaled=model.encoder.scaled,
            plain=model.encoder.plain,
        )
    return Prepared(
        model=model,
        rows=rows,
        loss=loss,
        loss_name=loss_name,
        validation=followed,
        metric=settings.metric or main_metric(task, followed is not None, whole_domain),
        shuffle=_shuffle(rows, settings),
        change=_augmentation(settings, layout, [model, teacher] if teacher else [model]),
        imitation=imitation,
        least_rows=check_demands(model.network, features, settings, rows=rows.count),
    )


def _prune(teacher: Model, dataset: Dataset, parameters: int) -> Model:
    """Return the teacher with fewer units, by what they do on some rows."""
    raw = load_decoded(dataset, RawLayout(_with_soft(teacher, dataset))).raw
    sample = torch.from_numpy(np.asarray(raw[:: max(1, len(raw) // _RANGE_ROWS)]))
    found = prune(teacher, parameters, teacher.encoder(sample))
    if Ranks.current().rank == 0:
        before, after = teacher.spec.parameters, found.spec.parameters
        print(f"pruned the teacher from {before:,} parameters to {after:,}", flush=True)
    return found


def _quantise(model: Model, raw: np.ndarray) -> None:
    """Have the layers of a model compute in 8 bits, in ranges that some of its rows have."""
    plain = quantise_layers(model.network)
    if not is_quantised(model.network):
        remedy = "the network has no linear layer, convolution or embedding; leave it out"
        raise InvalidInput(
            [Problem("settings.quantise_aware", model.spec.network["factory"], remedy)]
        )
    if plain and Ranks.current().rank == 0:
        print(f"WARNING: these stay in float32: {', '.join(plain)}", flush=True)
    model.spec = replace(model.spec, network={**model.spec.network, "quantised": True})
    sample = torch.from_numpy(np.asarray(raw[:: max(1, len(raw) // _RANGE_ROWS)]))
    fit_ranges(model.network, model.encoder(sample.to(model.device)))


def _augmentation(
    settings: TrainingSettings, layout: RawLayout, readers: Sequence[Model]
) -> Augmentation | None:
    if not settings.augment.describe():
        return None
    shape = layout.features[0].shape
    images = [reader.encoder.columns[0] for reader in readers]
    scales = [Scale(image.mean, image.std) for image in images]
    return Augmentation(settings.augment, shape, layout.outputs, settings.seed, scales=scales)


def _answer(teacher: Model, student: Model, settings: TrainingSettings) -> Answer | None:
    """Return what turns the teacher's answers to changed images into targets of the loss.

    None where nothing changes them: their answers are stored.
    """
    if not settings.augment.describe():
        return None
    target, temperature = student.spec.schema.target, settings.temperature
    if student.spec.task != "regression":
        binary = student.spec.task == "binary"
        normalise = torch.sigmoid if binary else partial(torch.softmax, dim=1)
        return lambda outputs: normalise(outputs / temperature)
    theirs = teacher.spec.schema.target
    assert target
    assert theirs
    apart = theirs.offset - target.offset
    return lambda outputs: student.decoder.standardise(teacher.decoder(outputs) + apart)


def _loss_weights(
    counts: NDArray[np.float32] | None,
    decoded: Decoded,
    layout: RawLayout,
    settings: TrainingSettings,
) -> NDArray[np.float32] | None:
    """Return what each row counts for in the loss, [N], 1 on average; None if all count the same.

    Raises:
        InvalidInput: No row counts for anything.
    """
    weights = np.ones(decoded.rows) if counts is None else counts.astype(np.float64)
    if settings.class_weights:
        weights *= _by_class(weights, decoded, layout, settings.class_weights)
    if not weights.any():
        remedy = "every row belongs to a class of weight 0; raise one"
        raise InvalidInput([Problem("class_weights", settings.class_weights, remedy)])
    if (weights == weights[0]).all():
        return None
    return (weights / weights.mean()).astype(np.float32)


def _by_class(
    weights: NDArray[np.float64],
    decoded: Decoded,
    layout: RawLayout,
    asked: Mapping[str, float] | str,
) -> NDArray[np.float64]:
    """Return the weight of each row's class [N]; without a label, what its teacher expects it is.

    Args:
        weights: What the rows count for otherwise, [N].
        decoded: Their classes, and a teacher's logits.
        layout: Names the classes.
        asked: Weights by class, 1 for those left out; or `balanced`, which gives all classes the
            same sum (King & Zeng 2001).
    """
    classes = layout.schema.classes
    known = decoded.target if decoded.target is not None else np.full(decoded.rows, -1)
    labelled = np.asarray(known) >= 0
    if isinstance(asked, str):
        held = np.bincount(known[labelled], weights[labelled], minlength=len(classes))
        there = held > 0
        each = np.ones(len(classes))
        each[there] = held.sum() / (there.sum() * held[there])
    else:
        each = np.array([asked.get(name, 1.0) for name in classes])
    found = each[np.maximum(known, 0)]
    if decoded.soft is not None and not labelled.all():
        for start in range(0, decoded.rows, _CHUNK):
            part = slice(start, start + _CHUNK)
            found[part] = np.where(
                labelled[part], found[part], probabilities(np.asarray(decoded.soft[part])) @ each
            )
    return found


def _build(
    dataset: Dataset,
    decoded: Decoded,
    layout: RawLayout,
    settings: TrainingSettings,
    counts: NDArray[np.float32] | None,
) -> Model:
    regression = dataset.schema.task == "regression"
    soft, values = decoded.soft, decoded.target if decoded.target is not None else decoded.soft
    if regression and values is not None and soft is not None:
        # Only generated rows: their scale is the teacher's.
        values = values if any(np.isfinite(chunk).any() for chunk in _chunks(values)) else soft
    decoder = Decoder()
    if regression and values is not None:
        assert dataset.schema.target
        offset = dataset.schema.target.offset
        decoder = _fit_decoder(values, offset, settings, counts)
    encoder = Encoder.fit(_chunks(decoded.raw), layout, _pieces(counts))
    model = Model.create(
        dataset.schema,
        encoder=encoder,
        decoder=decoder,
        network=settings.network,
        network_args=settings.network_args,
        network_reads=settings.network_reads,
        seed=settings.seed,
    )
    fit_bins(model.network, encoder, decoded.raw, counts)
    return model


def _fit_decoder(
    values: np.ndarray,
    offset: float,
    settings: TrainingSettings,
    counts: NDArray[np.float32] | None,
) -> Decoder:
    chunks = (centred(chunk, offset) for chunk in _chunks(values))
    if settings.target_scale == "each":
        return Decoder.fit(chunks, _pieces(counts))
    width = values.shape[1]
    each = None if counts is None else np.repeat(counts, width)
    flat = (chunk.reshape(-1, 1) for chunk in chunks)
    together = Decoder.fit(flat, _pieces(each, width)).to_spec()
    return Decoder(together["mean"] * width, together["std"] * width)


def _targets(
    decoded: Decoded, model: Model, loss_name: str, settings: TrainingSettings, task: str
) -> list[StoredArray]:
    """Return the targets of the loss, [N, ...] each."""
    target, soft = decoded.target, decoded.soft
    if loss_name.startswith("distillation"):
        assert soft is not None
        heeded = settings.hard_weight or settings.imitate.dkd.weight
        hard = [target] if heeded and target is not None else []
        if loss_name == "distillation_mse":
            return [_standardised(values, model) for values in (soft, *hard)]
        return [_softened(soft, settings.temperature), *(StoredArray(stored=each) for each in hard)]
    assert target is not None
    if task == "binary":
        return [StoredArray(stored=target, convert=lambda rows: rows.float()[:, None])]
    return [StoredArray(stored=target)] if task == "multiclass" else [_standardised(target, model)]


def _features(dataset: Dataset, model: Model, machine: Machine) -> StoredArray:
    """Return the rows as another model reads them, [N, F]."""
    read = Schema(columns=model.spec.schema.features, task=None)
    raw = load_decoded(dataset, RawLayout(read)).raw
    return StoredArray(stored=raw, convert=lambda rows: model.encoder(rows.to(machine.device)))


def _softened(logits: np.ndarray, temperature: float) -> StoredArray:
    """Return the teacher's probabilities at a temperature (Hinton et al. 2015, eq. 1), [N, K]."""
    normalise = _sigmoid if logits.shape[1] == 1 else partial(torch.softmax, dim=1)
    return StoredArray(stored=logits, convert=lambda rows: normalise(rows / temperature))


def _sigmoid(logits: Tensor) -> Tensor:
    """Return sigmoid [n, 1], the same bits for a row whichever others it comes with.

    torch rounds the last few of a call, or of a thread, which fill no vector, in another way.
    """
    padded = nn.functional.pad(logits.flatten(), (0, -len(logits) % _LANES))
    parts = [torch.sigmoid(part) for part in padded.split(_ONE_THREAD)]
    return torch.cat(parts)[: len(logits), None]


def _standardised(values: np.ndarray, model: Model) -> StoredArray:
    device = next(model.parameters()).device
    plain = _relative(values, model)
    return StoredArray(
        stored=values,
        convert=lambda rows: model.decoder.standardise(plain.convert(rows).to(device)),
    )


def _relative(values: np.ndarray, model: Model) -> StoredArray:
    """Return the values of a target in float32, less what they have in common; classes as ever."""
    target = model.spec.schema.target
    offset = target.offset if target else 0.0
    if values.dtype != np.float64 and not offset:
        return StoredArray(stored=values)
    return StoredArray(
        stored=values,
        convert=lambda rows: torch.from_numpy(centred(rows.double().numpy(), offset)),
    )


def _rows(
    decoded: Decoded,
    targets: list[StoredArray],
    model: Model,
    settings: TrainingSettings,
    machine: Machine,
) -> Rows:
    """Keep the rows in memory where they fit beside everything else, else stream them."""
    device = machine.device
    features = StoredArray(stored=decoded.raw, convert=lambda rows: model.encoder(rows.to(device)))
    needed = decoded.rows * sum(source.row_bytes for source in (features, *targets))
    # Rows, a shuffled copy of a window of them, and room for the network's own buffers.
    ranks = Ranks.current()
    copies = ranks.world if device.type == "cpu" else 1
    large = needed * copies >= 0.4 * available_bytes(device)
    # Where rows stay decides their order, which is one for all processes.
    if settings.shuffle == "blocks" or ranks.share("large" if large else ""):
        return StreamedRows(features, targets, device=device)
    return ResidentRows([source.read_all(device) for source in (features, *targets)])


def _shuffle(rows: Rows, settings: TrainingSettings) -> str:
    """Return the order of the data: rows that are streamed are shuffled where they lie close."""
    if settings.shuffle != "auto":
        return settings.shuffle
    return "blocks" if isinstance(rows, StreamedRows) else "full"


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(array), _CHUNK):
        yield array[start : start + _CHUNK]


def _pieces(counts: np.ndarray | None, width: int = 1) -> Iterable[np.ndarray | None]:
    """Cut what rows of `width` numbers count for as `_chunks` cuts the rows."""
    if counts is None:
        return itertools.repeat(None)
    step = _CHUNK * width
    return (counts[start : start + step] for start in range(0, len(counts), step))


def _with_soft(start: Model, dataset: Dataset):
    """Return the schema of a model that goes on, with the new data's teacher outputs if any."""
    schema, soft = start.spec.schema, dataset.schema.soft
    return schema if soft is None else schema.with_soft(soft.name, soft.width)
