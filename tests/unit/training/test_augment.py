"""Random changes to images, drawn for each step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from scipy import ndimage
from torch import Tensor

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.builtin import digits
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.datasets.handover import write_dataset
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.train_teacher import train_teacher
from kubestill.runtime.training.augment import Augmentation, AugmentSettings, Scale
from kubestill.runtime.training.batches import Batches, Cut, Order, ResidentRows
from kubestill.runtime.training.losses import Distillation, build_loss, differentiable
from kubestill.runtime.training.prepare import resolve_loss
from kubestill.runtime.training.settings import TrainingSettings

ROWS, HEIGHT, WIDTH, CLASSES = 64, 7, 5, 4
GENERATOR = torch.Generator().manual_seed(3)
IMAGES = torch.rand(ROWS, 2, HEIGHT, WIDTH, generator=GENERATOR)
LABELS = torch.arange(ROWS) % CLASSES


def augment(outputs: int = CLASSES, seed: int = 5, **settings: Any) -> Augmentation:
    return Augmentation(AugmentSettings(**settings), (2, HEIGHT, WIDTH), outputs, seed)


def changed(*targets: Tensor, **settings: Any) -> list[Tensor]:
    features, *others = augment(**settings)((IMAGES.flatten(1), *targets), 9)
    return [features.view_as(IMAGES), *others]


@pytest.mark.parametrize(("side", "axis"), [("horizontal", 3), ("vertical", 2)])
def test_images_are_mirrored(side: str, axis: int) -> None:
    assert torch.equal(changed(**{f"flip_{side}": 1.0})[0], IMAGES.flip(axis))
    (some,) = changed(**{f"flip_{side}": 0.5})
    flipped = (some == IMAGES.flip(axis)).flatten(1).all(1)
    assert (flipped | (some == IMAGES).flatten(1).all(1)).all()
    assert 15 < flipped.sum() < 50


def test_a_shift_is_a_crop_of_the_padded_image() -> None:
    (shifted,) = changed(shift=2)
    padded = np.pad(IMAGES.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    seen: set[tuple[int, int]] = set()
    for row in range(ROWS):
        places = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(padded[row, :, y : y + HEIGHT, x : x + WIDTH], shifted[row].numpy())
        ]
        assert places
        seen.update(places)
    assert len(seen) > 20


def test_a_rotation_is_that_of_scipy() -> None:
    from kubestill.runtime.training.augment import _rotated  # pyright: ignore[reportPrivateUsage]

    image = torch.rand(1, 1, 9, 9, generator=GENERATOR)
    for degrees in (20.0, -33.0, 90.0):
        ours = _rotated(image, np.deg2rad(np.array([-degrees])))[0, 0].numpy()
        theirs = ndimage.rotate(
            image[0, 0].numpy(), degrees, reshape=False, order=1, mode="nearest"
        )
        assert np.abs(ours - theirs)[1:-1, 1:-1].max() < 1e-5


def test_rotations_stay_within_their_angle() -> None:
    plane = torch.zeros(ROWS, 2, HEIGHT, WIDTH)
    plane[:, :, :, 3:] = 1
    turned = augment(rotation=10)((plane.flatten(1),), 0)[0].view_as(plane)
    assert (turned - plane).abs().amax((1, 2, 3)).max() < 0.8
    assert turned.flatten(1).unique(dim=0).shape[0] > 50


@pytest.mark.parametrize(
    ("kind", "channels"),
    [("brightness", 1), ("brightness", 3), ("contrast", 1), ("contrast", 3), ("saturation", 3)],
)
def test_colours_change_as_pillow_changes_them(kind: str, channels: int) -> None:
    shape = (channels, HEIGHT, WIDTH)
    # So far from black and white that nothing is cut off.
    pixels = torch.randint(80, 150, (ROWS, *shape), generator=GENERATOR).float()
    scale = Scale(mean=[90.0, 110.0, 120.0][:channels], std=[20.0, 30.0, 40.0][:channels])
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (scale.mean, scale.std))
    change = Augmentation(
        AugmentSettings.model_validate({kind: 0.4}), shape, CLASSES, 5, scales=[scale, Scale()]
    )
    features, plain = change((((pixels - mean) / std).flatten(1), pixels.flatten(1)), 3)
    ours = plain.view_as(pixels)
    assert torch.allclose(features.view_as(pixels) * std + mean, ours, atol=1e-3)
    enhance = {"brightness": "Brightness", "contrast": "Contrast", "saturation": "Color"}[kind]
    factors: list[float] = []
    for image, changed_one in zip(pixels.numpy(), ours.numpy(), strict=True):
        array = image.astype(np.uint8).transpose(1, 2, 0)
        given = getattr(ImageEnhance, enhance)(Image.fromarray(array.squeeze()))
        # The factor that it drew is the one at which both agree.
        tried = np.linspace(0.6, 1.4, 161)
        theirs = np.stack([np.asarray(given.enhance(factor), np.float32) for factor in tried])
        theirs = theirs.reshape(len(tried), HEIGHT, WIDTH, channels).transpose(0, 3, 1, 2)
        apart = np.abs(theirs - changed_one).max((1, 2, 3))
        assert apart.min() < 2
        factors.append(float(tried[apart.argmin()]))
    assert 0.6 <= min(factors) < 0.7 < 1.3 < max(factors) <= 1.4


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_mixture_costs_what_its_parts_do_by_their_shares(kind: str, weighted: bool) -> None:
    soft = torch.rand(ROWS, CLASSES, generator=GENERATOR).softmax(1)
    weights = torch.rand(ROWS, generator=GENERATOR)
    mixed, shares, mixed_soft, mixed_weights = changed(LABELS, soft, weights, **{kind: 1.0})
    assert torch.allclose(shares.sum(1), torch.ones(ROWS))
    # The partner and the share of each row, from its soft target, which is a point on a line.
    hits = 0
    for row in range(ROWS):
        own, others = soft[row], soft
        line = (mixed_soft[row] - others) @ torch.ones(CLASSES)
        assert line.abs().max() < 1e-5
        step = own - others
        kept = ((mixed_soft[row] - others) * step).sum(1) / step.square().sum(1).clamp(min=1e-9)
        left = (others + kept[:, None] * step - mixed_soft[row]).abs().amax(1)
        partner = int(left.argmin())
        share = float(kept[partner])
        if partner == row:
            continue
        hits += 1
        expected = share * F.one_hot(LABELS[row], CLASSES) + (1 - share) * F.one_hot(
            LABELS[partner], CLASSES
        )
        assert torch.allclose(shares[row], expected.float(), atol=1e-3)
        weight = share * weights[row] + (1 - share) * weights[partner]
        assert mixed_weights[row].item() == pytest.approx(weight.item(), abs=1e-3)
        if kind == "mixup":
            whole = share * IMAGES[row] + (1 - share) * IMAGES[partner]
            assert torch.allclose(mixed[row], whole, atol=1e-3)
        else:
            mine = mixed[row] == IMAGES[row]
            assert (mine | (mixed[row] == IMAGES[partner])).all()
            assert mine[0].float().mean().item() == pytest.approx(share, abs=1e-3)
    assert hits > ROWS // 2
    outputs = torch.randn(ROWS, CLASSES, generator=GENERATOR)
    value, gradient = build_loss("cross_entropy")(outputs, (shares,))
    textbook = outputs.clone().requires_grad_()
    reference = F.cross_entropy(textbook, shares)
    reference.backward()
    assert torch.allclose(value, reference)
    assert torch.allclose(gradient, textbook.grad, atol=1e-7)  # pyright: ignore


@pytest.mark.parametrize("outputs", [1, CLASSES])
def test_a_mixture_with_a_row_without_a_label_has_none(outputs: int) -> None:
    labels = torch.where(torch.arange(ROWS) < 20, -1, LABELS % max(2, outputs))
    soft = torch.rand(ROWS, outputs, generator=GENERATOR)
    soft = soft if outputs == 1 else soft.softmax(1)
    _, mixed, shares = changed(soft, labels, outputs=outputs, mixup=1.0)
    without = shares.isnan().any(1)
    assert without[:20].all()
    assert 20 < without.sum() < ROWS
    logits = torch.randn(ROWS, outputs, generator=GENERATOR)
    both, alone = Distillation(temperature=2.0, hard_weight=0.3), Distillation(temperature=2.0)
    found = both.each(logits, (mixed, shares))
    assert torch.equal(found[without], alone.each(logits, (mixed,))[without])
    assert not torch.isclose(found, alone.each(logits, (mixed,)))[~without].any()
    # The written gradient is that of the value.
    textbook = logits.clone().requires_grad_()
    both.each(textbook, (mixed, shares)).mean().backward()
    assert torch.allclose(both(logits, (mixed, shares))[1], textbook.grad, atol=1e-6)  # pyright: ignore


ALL: dict[str, Any] = {
    "flip_vertical": 0.3,
    "shift": 2,
    "rotation": 20,
    "brightness": 0.2,
    "contrast": 0.3,
    "mixup": 1.0,
    "cutmix": 0.5,
}


def batches(start: int = 0, steps: int = 25, change: Any = None, **order: Any) -> list[Any]:
    """Return the batches of some steps, 64 rows in batches of 20."""
    settings = {"rows": ROWS, "batch_size": 20, "seed": 1, "shuffle": "full", "window_rows": 40}
    rows = ResidentRows([IMAGES.flatten(1), LABELS])
    found = Batches(rows, Order(**{**settings, **order}), change).starting_at(start)
    taken = [next(found) for _ in range(steps - start)]
    assert torch.equal(rows.tensors[0], IMAGES.flatten(1)), "the rows themselves stay"
    return [(part, *(tensor.clone() for tensor in batch)) for part, batch in taken]


def same(these: list[Any], those: list[Any]) -> bool:
    pairs = zip(these, those, strict=True)
    return all(torch.equal(a[1], b[1]) and torch.equal(a[2], b[2]) for a, b in pairs)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("start", [1, 7, 24])
def test_a_position_in_the_data_draws_the_same_whenever_it_is_reached(
    start: int, workers: int
) -> None:
    whole = batches(change=augment(**ALL), virtual_workers=workers)
    again = batches(start, change=augment(**ALL), virtual_workers=workers)
    assert same(again, whole[start:])
    assert not same(batches(change=augment(seed=6, **ALL), virtual_workers=workers), whole)
    steps = [first[1] for first in whole]
    assert not any(torch.equal(a, b) for a, b in zip(steps, steps[4:], strict=False))


@pytest.mark.parametrize("world", [2, 4])
def test_micro_batches_are_changed_alike_by_whichever_process_has_them(world: int) -> None:
    whole = batches(change=augment(**ALL), virtual_workers=4)
    shared = [
        batches(change=augment(**ALL), virtual_workers=4, world_size=world, rank=rank)
        for rank in range(world)
    ]
    for step, (part, features, labels) in enumerate(whole):
        assert isinstance(part, Cut)
        if not part.shared:
            assert all(torch.equal(ranks[step][1], features) for ranks in shared)
            continue
        assert torch.equal(torch.cat([ranks[step][1] for ranks in shared]), features)
        assert torch.equal(torch.cat([ranks[step][2] for ranks in shared]), labels)


def test_processes_that_share_a_batch_draw_their_own() -> None:
    order = {"batch_size": 32, "shuffle": "none", "world_size": 2}
    twice = torch.cat([IMAGES[:16]] * 4).flatten(1)
    rows = ResidentRows([twice, LABELS])
    settings = {"rows": ROWS, "seed": 1, "window_rows": 64, **order}
    firsts = [
        next(Batches(rows, Order(**settings, rank=rank), augment(shift=2)).starting_at(0))[1][0]
        for rank in (0, 1)
    ]
    assert not torch.equal(*firsts)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("digits")
    return write_dataset(digits()[:300], str(root / "dataset"), target="digit")


def refused(dataset: Dataset, augment: dict[str, Any], **settings: Any) -> str:
    parsed = TrainingSettings(augment=augment, **settings)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput) as caught:
        resolve_loss(parsed, dataset, distil=False)
    return str(caught.value)


def test_what_cannot_be_augmented_is_refused(images: Dataset, line: Any) -> None:
    assert "needs a single feature, an image [H, W] or [C, H, W]; these are x numeric" in refused(
        Dataset.open(line("rows").path), {"shift": 1}
    )
    assert "leaves nothing of an image [8, 8]; use at most 7" in refused(images, {"shift": 8})
    assert "needs red, green and blue, an image [3, H, W]; this is [8, 8]" in refused(
        images, {"saturation": 0.2}
    )
    assert "the finish needs the rows as they are" in refused(images, {"shift": 1}, finish_steps=1)
    with pytest.raises(InvalidInput, match="learning the whole domain needs the rows as they are"):
        resolve_loss(
            TrainingSettings(augment=AugmentSettings(mixup=1)),
            images,
            distil=False,
            whole_domain=True,
        )
    target = replace(images.schema.columns[0], name="after", role="target")
    columns = (images.schema.columns[0], target)
    field = replace(images, schema=replace(images.schema, columns=columns, task="regression"))
    assert "the target 'after' is a field that does not move along" in refused(field, {"shift": 1})


def test_training_names_it_and_validation_does_not_see_it(
    images: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("model", "ledger", "metrics", "report", "summary")
    outputs: Any = {name: LocalArtifact(str(tmp_path / name)) for name in names}
    rows: Any = LocalArtifact(images.root, metadata={"kind": "dataset"})
    train_teacher(
        dataset=rows,
        validation=rows,
        network="conv",
        network_args={"channels": [8]},
        steps=30,
        checkpoint_uri=str(tmp_path / "store"),
        settings={"augment": {"shift": 1, "mixup": 0.2}, "choose": "last"},
        **outputs,
    )
    assert "each row augmented (shift 1, mixup 0.2)" in capsys.readouterr().out
    assert "augment.mixup" in (tmp_path / "report").read_text()
    model = load_model(str(tmp_path / "model"))
    frame = images.to_pandas()
    right = (model(frame)["prediction"].astype(str) == frame["digit"].astype(str)).mean()
    metrics = (
        json.loads(Path(outputs["ledger"].path).read_text())
        if Path(outputs["ledger"].path).is_file()
        else json.loads((Path(outputs["ledger"].path) / "ledger.json").read_text())
    )
    assert metrics["entries"][-1]["metrics"]["accuracy"] == pytest.approx(right, abs=1e-6)


def test_the_gradient_of_shares_is_that_of_the_loss() -> None:
    outputs = torch.randn(6, 3, dtype=torch.float64, generator=GENERATOR, requires_grad=True)
    shares = torch.rand(6, 3, dtype=torch.float64, generator=GENERATOR).softmax(1)
    loss = build_loss("cross_entropy")
    assert torch.autograd.gradcheck(lambda x: differentiable(loss, x, (shares,)), outputs)
