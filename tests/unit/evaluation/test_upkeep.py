"""A champion in a registry: judged by its record, defended against bad rows, replaced, told of."""

import hashlib
import html
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact, read_record
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.decode import RawLayout, decode
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.export import export_model
from kubestill.runtime.models.model import Model
from kubestill.runtime.retraining import Champion, Claim, Window, open_registry, transitions
from kubestill.runtime.retraining.decision import read_decision
from kubestill.runtime.steps.continuous_eval import continuous_eval

BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
LABELS = ("no", "yes")
PLACES = ("north", "south")
SCHEMA = Schema(
    columns=(
        Column(name="size", kind="numeric"),
        Column(name="age", kind="numeric"),
        Column(name="place", kind="categorical", categories=PLACES),
        Column(name="sold", kind="categorical", role="target", categories=LABELS),
    ),
    task="binary",
)


def frame_of(rows: int, seed: int, *, shift: float = 0.0, south: float = 0.5) -> pd.DataFrame:
    """Houses; `shift` moves the rule of who buys, `south` is the share sold in the south."""
    random = np.random.default_rng(seed)
    size, age = random.lognormal(4, 0.5, rows), random.gamma(4, 5, rows)
    place = np.where(random.random(rows) < south, "south", "north")
    score = 1.5 * (np.log(size) - 4) - 0.1 * (age - 20) + np.where(place == "south", 1, -1) * shift
    sold = random.random(rows) < 1 / (1 + np.exp(-2 * score))
    frame = pd.DataFrame({"size": size, "age": age, "place": place})
    return frame.assign(sold=np.where(sold, "yes", "no"))


class House:
    """A folder with datasets, models and a registry."""

    def __init__(self, root: Path):
        self.root = root
        self.registry = open_registry(str(root / "registry"))
        self.made = 0

    def rows(self, frame: pd.DataFrame) -> LocalArtifact:
        self.made += 1
        path = str(self.root / f"rows-{self.made}")
        with DatasetWriter(path, SCHEMA) as writer:
            writer.write(frame)
        return LocalArtifact(path, metadata={"kind": "dataset"})

    def model(self, frame: pd.DataFrame, steps: int = 150, broken: bool = False) -> LocalArtifact:
        layout = RawLayout(SCHEMA)
        decoded = decode(Dataset.open(self.rows(frame).path), layout, ("raw", "target"))
        encoder = Encoder.fit(iter([decoded.raw]), layout)
        model = Model.create(
            SCHEMA, encoder=encoder, decoder=Decoder(), network_args={"hidden": [16]}, seed=0
        )
        raw, target = torch.from_numpy(decoded.raw), torch.from_numpy(np.array(decoded.target))
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(steps):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                model(raw)[:, 0], target.float()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if broken:
            torch.nn.init.constant_(next(model.network.parameters()), float("nan"))
        path = str(self.root / f"model-{self.made}")
        export_model(model, path)
        return LocalArtifact(path, metadata={"kind": "model"})

    def eval(self, dataset, **inputs):
        names = ("metrics", "report", "summary", "record")
        out: dict[str, Any] = {
            n: LocalArtifact(str(self.root / "out" / f"{self.made}-{n}")) for n in names
        }
        settings = {"resamples": 400, **inputs.pop("settings", {})}
        told = continuous_eval(
            dataset=dataset, registry=self.registry.uri, settings=settings, **inputs, **out
        )
        return *told, out

    def promote(
        self, model: LocalArtifact, decision: dict, judged: LocalArtifact | None = None
    ) -> None:
        """Make a model the champion, as promote-model does: itself, or as the refit of another."""
        folder = f"models/{self.made}"
        digests: list[str] = []
        for made, place in ((model, ""), *([(judged, "judged/")] if judged else [])):
            shutil.copytree(made.path, self.root / "registry" / folder / f"{place}model")
            with open(f"{made.path}/model.json", "rb") as file:
                digests.append(hashlib.sha256(file.read()).hexdigest())
        digest, *others = digests
        champion = Champion(
            version=1,
            run_id="run",
            window="w",
            promoted_at="2026-01-01T00:00:00Z",
            folder=folder,
            model_digest=digest,
            judged=others[0] if others else "",
            decision=read_decision(decision, source="record"),
        )
        self.registry.change(lambda state: state.model_copy(update={"champion": champion}))


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBESTILL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    return House(tmp_path)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The first model and the decision to promote it."""
    torch.set_num_threads(1)
    house = House(tmp_path_factory.mktemp("first"))
    model = house.model(frame_of(3000, seed=1))
    verdict, reason, out = house.eval(
        house.rows(frame_of(2000, seed=2)), model=model, run_id="r0", slices=["place", "size"]
    )
    assert verdict == "promote", reason
    return model, read_record(out["record"])["decision"]


@pytest.fixture
def line(house, first):
    """A house with a champion."""
    house.promote(*first)
    return house


def waiting(house: House, frame: pd.DataFrame) -> LocalArtifact:
    """Rows whose labels have not come yet."""
    path = house.rows(frame).path + "-late"
    columns = tuple(column for column in SCHEMA.columns if column.role != "target")
    with DatasetWriter(path, Schema(columns=columns)) as writer:
        writer.write(frame.drop(columns="sold"))
    return LocalArtifact(path, metadata={"kind": "dataset"})


def test_what_is_expected_of_rows_without_labels_is_told_and_kept(line) -> None:
    rows = frame_of(1000, seed=31)
    verdict, _, out = line.eval(
        line.rows(frame_of(500, seed=30)), unlabelled=waiting(line, rows), run_id="r1"
    )
    assert verdict == "healthy"
    kept = line.registry.run("r1").judgement.expected
    truth, _, labelled = line.eval(line.rows(rows), run_id="r2")
    assert truth == "healthy"
    scores = read_record(labelled["record"])["scores"]["models"]["model"]["metrics"]
    assert kept.keys() == {"log_loss", "accuracy"}
    for name, band in kept.items():
        assert band.low <= scores[name]["value"] <= band.high
        assert band.high - band.low < 0.15
    with open(out["report"].path, encoding="utf-8") as file:
        assert "While labels are late" in file.read()


def test_rows_of_which_none_has_a_label_say_what_to_expect_and_decide_only_if_asked(line) -> None:
    # Where nobody lives any more but those whom the model cannot tell apart.
    every = frame_of(4000, seed=32)
    close = np.abs(np.log(every["size"]) - 4 - every["age"] / 15 + 4 / 3) < 0.3
    late = waiting(line, every.loc[close].reset_index(drop=True))
    verdict, reason, out = line.eval(late, run_id="r1", step="expect")
    assert verdict == "insufficient"
    assert reason.startswith("No row has a label yet. Expected of ")
    assert line.registry.run("r1").judgement is None, "nothing was judged"
    (entry,) = line.registry.run("r1").judgements
    assert entry.expected["log_loss"].value > 0.5
    told = {"settings": {"gate_expected": True}, "run_id": "r2", "step": "expect"}
    verdict, reason, _ = line.eval(late, **told)
    assert verdict == "degraded"
    assert reason.startswith("Its log loss is expected to be higher: log loss 0.")
    with open(out["report"].path, encoding="utf-8") as file:
        html = file.read()
    assert "While labels are late" in html
    assert "expected while labels are late" in html, "the plot of both runs"


def test_rows_to_judge_by_need_labels_where_others_are_connected_as_the_late_ones(line) -> None:
    late, other = (waiting(line, frame_of(300, seed=seed)) for seed in (35, 36))
    with pytest.raises(InvalidInput, match="sold"):
        line.eval(late, unlabelled=other, run_id="r1")


def test_a_champion_of_an_older_version_is_believed_by_the_labels_that_there_are(
    house, first
) -> None:
    model, decision = first
    kept = {name: one for name, one in decision["record"].items() if name != "calibration"}
    house.promote(model, {**decision, "record": kept})
    late = waiting(house, frame_of(300, seed=33))
    _, reason, _ = house.eval(late, run_id="r1", step="expect")
    assert "Nothing is expected of 300 rows whose labels are late: its promotion did not" in reason
    house.eval(house.rows(frame_of(500, seed=34)), unlabelled=late, run_id="r2")
    assert house.registry.run("r2").judgement.expected.keys() == {"log_loss", "accuracy"}


def test_without_a_champion_there_is_nothing_to_judge(house):
    verdict, reason, out = house.eval(house.rows(frame_of(300, seed=1)), run_id="r0")
    assert verdict == "bootstrap"
    assert "no champion" in reason
    with open(out["report"].path, encoding="utf-8") as file:
        assert "300" in file.read()
    assert house.registry.run("r0").judgement.decision == "bootstrap"


def test_a_first_model_that_only_guesses_is_no_champion(house):
    first = house.model(frame_of(300, seed=1), steps=0)
    frame = frame_of(2000, seed=2)
    frame["sold"] = frame.sold.sample(frac=1, random_state=0).to_numpy()
    verdict, reason, _ = house.eval(house.rows(frame), model=first, run_id="r0")
    assert verdict == "reject"
    assert "same answer" in reason


def test_a_healthy_window_leaves_the_champion_alone(line):
    verdict, reason, out = line.eval(line.rows(frame_of(2000, seed=3)), run_id="r1")
    assert verdict == "healthy", reason
    assert "at promotion" in reason
    assert read_record(out["record"])["decision"]["record"] == {}
    entry = line.registry.run("r1").judged("judge")
    assert entry.decision == "healthy"
    assert entry.scores["log_loss"].rows == 2000
    assert not entry.unfit


def test_a_champion_that_a_constant_answer_beats_is_not_healthy(house):
    """It is as bad as it was at its promotion."""
    frame = frame_of(1000, seed=1)
    wrong = frame.assign(sold=frame.sold.map({"yes": "no", "no": "yes"}))
    model = house.model(wrong, steps=40)
    verdict, _, out = house.eval(house.rows(frame_of(2000, seed=2)), model=model, run_id="r0")
    assert verdict == "reject"
    house.promote(model, read_record(out["record"])["decision"])
    verdict, reason, _ = house.eval(house.rows(frame_of(2000, seed=3)), run_id="r1")
    assert verdict == "degraded"
    assert "A constant answer does better" in reason


def test_a_window_with_too_few_events_is_not_called_healthy(line):
    frame = frame_of(2000, seed=3)
    few = pd.concat([frame[frame.sold == "no"].head(200), frame[frame.sold == "yes"].head(7)])
    rows = line.rows(few)
    verdict, reason, _ = line.eval(rows, run_id="r1", settings={"ignore": ["sold"]})
    assert verdict == "insufficient", reason
    assert "3 more" in reason


def test_other_rows_are_decay_only_where_that_was_asked_for(line):
    """Older houses sell as their age says: the scores hold, and yet nothing was learned there."""
    rows = line.rows(frame_of(4000, seed=7).query("age > 14"))
    verdict, reason, _ = line.eval(rows, run_id="r1")
    assert verdict == "healthy", reason
    verdict, reason, _ = line.eval(rows, run_id="r2", settings={"max_shift": 0.25})
    assert verdict == "degraded"
    assert "unlike those it was promoted on" in reason
    assert "age: " in reason
    assert line.eval(rows, run_id="r3", settings={"max_shift": 50})[0] == "healthy"
    same = line.rows(frame_of(2000, seed=3))
    assert line.eval(same, run_id="r4", settings={"max_shift": 0.25})[0] == "healthy"
    with pytest.raises(InvalidInput, match="shifts below 0.25 are not looked for"):
        line.eval(same, run_id="r5", settings={"max_shift": 0.1})


def test_decay_is_noticed_and_the_better_challenger_promoted(line):
    changed = frame_of(2000, seed=4, shift=1.5)
    verdict, reason, _ = line.eval(line.rows(changed), run_id="r1")
    assert verdict == "degraded"
    assert "beyond noise" in reason
    challenger = line.model(frame_of(3000, seed=5, shift=1.5))
    verdict, reason, out = line.eval(line.rows(changed), model=challenger, run_id="r1")
    assert verdict == "promote", reason
    decision = read_record(out["record"])["decision"]
    champion = line.registry.read().champion
    assert decision["baseline"] == champion.model_digest
    assert decision["model"] != champion.model_digest
    assert decision["dataset"] == Dataset.open(line.rows(changed).path).fingerprint
    assert decision["record"]["profile"]["rows"] == 2000


def test_an_easier_month_hides_no_wrong_probabilities(line):
    """Fewer are sold than the champion says, which makes its log loss no worse."""
    frame = frame_of(6000, seed=18)
    kept = (frame.sold == "no") | (frame.index % 5 < 3)
    verdict, reason, _ = line.eval(line.rows(frame[kept]), run_id="r1")
    assert verdict == "degraded"
    assert "calibration bias" in reason


def test_decay_on_one_slice_alone_decides_where_slices_gate(line):
    """South is a tenth of the rows, so that the whole hardly moves."""
    frame = frame_of(3000, seed=6, south=0.1)
    turned = (frame.place == "south") & (frame.index % 2 == 0)
    frame["sold"] = frame.sold.where(~turned, frame.sold.map({"yes": "no", "no": "yes"}))
    rows = line.rows(frame)
    told = line.eval(
        rows, run_id="r1", slices=["place"], settings={"gate_slices": True, "min_decay": 0.15}
    )
    assert told[0] == "degraded", told[1]
    assert "place = south" in told[1]
    assert line.eval(rows, run_id="r2", settings={"min_decay": 0.15})[0] == "healthy"


def test_a_numeric_column_is_cut_as_it_was_at_promotion(line):
    """Larger houses: a quarter of these rows would be another slice than a quarter of those."""
    champion = line.registry.read().champion
    frame = frame_of(2000, seed=19)
    rows = line.rows(frame.assign(size=frame["size"] * 1.3))
    out = line.eval(rows, run_id="r1", slices=["size"], settings={"gate_slices": True})[2]
    scores = read_record(out["record"])["scores"]
    found = {f"size = {part['value']}": part["rows"] for part in scores["slices"]}
    kept = [name for name in champion.decision.record["slices"] if name.startswith("size = ")]
    assert sorted(found) == sorted(kept)
    assert sum(found.values()) == 2000
    assert min(found.values()) < 400
    assert set(kept) <= {decay["part"] for decay in scores["decay"]}


def other_unit(frame):
    return frame.assign(size=frame["size"] * 10.7639)


def missing(frame):
    return frame.assign(age=frame.age.mask(frame.index % 5 < 3))


def class_gone(frame):
    return frame[frame.sold == "no"]


def shuffled(frame):
    return frame.assign(sold=frame.sold.sample(frac=1, random_state=0).to_numpy())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (other_unit, "as from square metres to square feet"),
        (missing, "age: 60% of the values are missing"),
        (class_gone, "sold: the class 'yes' is gone"),
        (shuffled, "sold: labels have nothing to do with the rows"),
    ],
    ids=["unit", "missing", "class gone", "shuffled"],
)
def test_a_bad_month_neither_retrains_nor_promotes_and_is_named(line, spoil, words):
    rows = line.rows(spoil(frame_of(4000, seed=7)))
    verdict, reason, out = line.eval(rows, run_id="r1")
    assert verdict == "unfit"
    assert words in reason
    for port in ("report", "summary"):
        with open(out[port].path, encoding="utf-8") as file:
            assert html.unescape(file.read()).count(words) == 1
    assert any(words in one for one in line.registry.run("r1").judged("judge").unfit)
    # However well it does on such rows, nothing is promoted on them.
    challenger = line.model(spoil(frame_of(2000, seed=8)))
    verdict, reason, _ = line.eval(rows, model=challenger, run_id="r1")
    assert verdict == "unfit"
    assert words in reason


def test_a_challenger_that_gives_nan_is_broken(line):
    challenger = line.model(frame_of(200, seed=8), steps=0, broken=True)
    verdict, reason, out = line.eval(
        line.rows(frame_of(2000, seed=3)), model=challenger, run_id="r1", slices=["place"]
    )
    assert verdict == "broken", reason
    assert "NaN or infinity on 2,000 of 2,000 rows" in reason
    assert line.registry.run("r1").judged("challenge").decision == "broken"
    with open(out["report"].path, encoding="utf-8") as file:
        assert "The challenger gives NaN or infinity: broken." in file.read()


def test_a_champion_that_gives_nan_is_degraded_and_the_challenger_takes_its_place(house, first):
    _, decision = first
    house.promote(house.model(frame_of(200, seed=8), steps=0, broken=True), decision)
    rows = house.rows(frame_of(2000, seed=3))
    assert house.eval(rows, run_id="r1")[0] == "degraded"
    challenger = house.model(frame_of(3000, seed=1))
    verdict, reason, out = house.eval(rows, model=challenger, run_id="r1")
    assert verdict == "promote", reason
    assert "The champion gives NaN or infinity" in reason
    assert read_record(out["record"])["decision"]["record"]["metrics"]


def test_a_challenger_that_is_worse_on_a_slice_is_rejected(line):
    """It learned that the south buys everything, which costs little where the south is rare."""
    odd = frame_of(3000, seed=9)
    odd["sold"] = odd.sold.where(odd.place == "north", "yes")
    challenger = line.model(odd)
    rows = line.rows(frame_of(2000, seed=10))
    verdict, reason, _ = line.eval(
        rows,
        model=challenger,
        run_id="r1",
        slices=["place"],
        settings={"gate_slices": True},
    )
    assert verdict == "reject"
    assert "Worse on place = south" in reason


def test_the_best_on_the_golden_set_counts_the_champion_that_is_replaced(line):
    golden = line.rows(frame_of(2000, seed=11))
    challenger = line.model(frame_of(6000, seed=13, shift=0.2))
    rows = line.rows(frame_of(2000, seed=12, shift=0.6))
    out = line.eval(rows, model=challenger, golden=golden, run_id="r1")[2]
    mark = read_record(out["record"])["decision"]["record"]["golden"]
    assert mark["best"] < mark["value"]
    with open(out["report"].path, encoding="utf-8") as file:
        page = html.unescape(file.read())
    table = page[page.index("On the golden rows") :]
    assert f"{mark['value']:.4f}" in table
    assert f"{mark['best']:.4f}" in table


def test_what_a_refit_learned_from_golden_rows_is_not_held_against_a_challenger(house, first):
    """The champion knows these rows by heart; a challenger must not know them at all."""
    judged, decision = first
    fixed = frame_of(300, seed=11)
    by_heart = house.model(fixed, steps=1500)
    golden, rows = house.rows(fixed), house.rows(frame_of(2000, seed=12))
    challenger = house.model(frame_of(6000, seed=13))
    told = {}
    for name, given in (("itself", None), ("refit", judged)):
        house.made += 1
        house.promote(by_heart, decision, given)
        told[name] = house.eval(rows, model=challenger, golden=golden, run_id=name)[:2]
    assert told["itself"][0] == "reject"
    assert "Forgets: on the golden set" in told["itself"][1]
    assert told["refit"][0] == "promote", told["refit"][1]
    assert "Forgets" not in told["refit"][1]


def test_forgetting_in_small_steps_is_held_against_the_best_ever(line):
    """Each step is within the tolerance of the one before; the sum is not."""
    golden = line.rows(frame_of(2000, seed=11))
    changed = frame_of(2000, seed=12, shift=0.6)
    verdicts: list[str] = []
    for number, shift in enumerate((0.2, 0.4, 0.6)):
        challenger = line.model(frame_of(6000, seed=13, shift=shift))
        verdict, reason, out = line.eval(
            line.rows(changed),
            model=challenger,
            golden=golden,
            run_id=f"r{number}",
            settings={"max_forgetting": 0.07},
        )
        verdicts.append(verdict)
        if verdict == "promote":
            line.promote(challenger, read_record(out["record"])["decision"])
    assert verdicts[0] == "promote"
    assert verdicts[-1] == "reject", reason
    assert "the best it has been" in reason


def test_the_decision_of_the_first_attempt_stands(line):
    rows = line.rows(frame_of(2000, seed=14))
    first = line.eval(rows, run_id="r1")
    again = line.eval(rows, run_id="r1", settings={"min_rows": 5000})
    assert again[:2] == first[:2]
    assert len(line.registry.run("r1").entries) == 1


def test_a_decision_on_another_model_is_not_reused(line):
    """A run that trains again elsewhere may come with other weights: they are judged anew."""
    changed = frame_of(2000, seed=15, shift=1.5)
    good = line.model(frame_of(3000, seed=16, shift=1.5))
    wrong = frame_of(1000, seed=17)
    poor = line.model(wrong.assign(sold=wrong.sold.map({"yes": "no", "no": "yes"})))
    rows = line.rows(changed)
    assert line.eval(rows, model=good, run_id="r1")[0] == "promote"
    verdict, _, out = line.eval(rows, model=poor, run_id="r1")
    assert verdict == "reject"
    assert read_record(out["record"])["decision"]["decision"] == "reject"
    assert len(line.registry.run("r1").entries) == 2


def test_the_report_shows_the_history(line):
    for month in range(3):
        rows = line.rows(frame_of(1500, seed=20 + month))
        out = line.eval(rows, run_id=f"month-{month}")[2]
    with open(out["report"].path, encoding="utf-8") as file:
        html = file.read()
    assert "What happened so far" in html
    assert "Against its own record" in html


def test_a_champion_deleted_or_changed_by_hand_is_reported(line):
    champion = line.registry.read().champion
    rows = line.rows(frame_of(300, seed=3))
    spec = line.root / "registry" / champion.folder / "model" / "model.json"
    spec.write_text(spec.read_text() + "\n")
    with pytest.raises(InvalidInput, match="not the model that was promoted"):
        line.eval(rows, run_id="r1")
    shutil.rmtree(spec.parent)
    with pytest.raises(InvalidInput, match="rollback"):
        line.eval(rows, run_id="r1")


def test_a_damaged_champion_is_reported_with_the_rest(line):
    champion = line.registry.read().champion
    folder = line.root / "registry" / champion.folder / "model"
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidInput) as caught:
        line.eval(
            line.rows(frame_of(0, seed=3)),
            run_id="r1",
            thresholds={"acuracy": {"min": 0.9}},
            settings={"confidence": 2},
        )
    assert [problem.field for problem in caught.value.problems] == [
        "settings.confidence",
        "registry",
        "thresholds.acuracy",
        "dataset",
    ]
    assert "rollback" in str(caught.value)


def test_a_damaged_registry_is_reported_with_the_rest(line):
    cell = line.registry.store.cell("state.json")
    cell.swap(b"{", expect=cell.read()[1])
    with pytest.raises(InvalidInput) as caught:
        line.eval(
            line.rows(frame_of(300, seed=3)),
            run_id="r1",
            thresholds={"acuracy": {"min": 0.9}},
            slices=["plaice"],
        )
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["registry", "thresholds.acuracy", "slices[0]"]


def test_a_registry_of_a_newer_version_is_not_guessed_at(line):
    state = line.registry.read()
    content = state.model_dump_json().replace("kubestill/registry/1", "kubestill/registry/9")
    cell = line.registry.store.cell("state.json")
    cell.swap(content.encode(), expect=cell.read()[1])
    with pytest.raises(InvalidInput, match="newer"):
        line.eval(line.rows(frame_of(300, seed=3)), run_id="r1")


def hold(house: House, number: int, *, calm: bool = False) -> tuple[LocalArtifact, str]:
    """Let a run hold rows as its window, a week after the one before; return those that judge.

    Where these are calm nothing is known of their labels, which are those of other rows.
    """
    id, run = f"w{number}", f"run{number}"
    for half, seed in (("train", 170), ("judge", 80)):
        frame = frame_of(100, seed=seed + number, shift=0.5)
        if calm and half == "judge":
            frame["sold"] = np.roll(frame["sold"], 1)
        place = str(house.root / "registry" / "windows" / id / half)
        with DatasetWriter(place, SCHEMA) as writer:
            writer.write(frame)
    promoted, end = ((BEGUN + timedelta(weeks=week)).isoformat() for week in (0, number + 1))
    window = Window(
        id=id,
        run_id=run,
        end=end,
        first=end,
        last=end,
        rows=200,
        judge_rows=100,
        manifest="",
        holdout=writer.dataset.fingerprint,
    )
    claim = Claim(run_id=run, at=0, lease_seconds=1, champion=1, after=number + 1, window=window)
    judged = {"verdict": "promoted", "train": "quarantined", "judge": "quarantined"}
    first = window.model_copy(update={"id": "w", "run_id": "run", "end": promoted, **judged})
    house.registry.change(
        lambda state: state.model_copy(
            update={"claim": claim, "windows": state.windows or (first,)}
        )
    )
    return LocalArtifact(place, metadata={"kind": "dataset"}), run


def test_windows_of_a_schedule_are_evidence_together_until_one_promotes(line) -> None:
    """As runs do it: each holds its window, judges once more after a kill, and closes it."""
    better = line.model(frame_of(3000, seed=60, shift=0.6))
    told: list[tuple[str, str]] = []
    while len(told) < 8 and (not told or told[-1][0] == "insufficient"):
        rows, run = hold(line, len(told))
        given = {"model": better, "run_id": run, "step": "challenge"}
        told.append(line.eval(rows, **given)[:2])
        kept = line.registry.run(run).judged("challenge")
        assert kept.gain.rows == 100
        if len(told) > 1:
            assert line.eval(rows, **given)[:2] == told[-1]
            assert line.registry.run(run).judged("challenge") == kept
        if told[-1][0] == "insufficient":
            line.registry.change(lambda now, run=run: transitions.close(now, run, "inconclusive"))
    assert told[-1][0] == "promote"
    assert len(told) > 1
    assert f"Challengers of {len(told)} windows ({100 * len(told):,} rows) together" in told[-1][1]
    alone = line.eval(rows, model=better, run_id=run, step="other", settings={"pool_days": 0})
    assert alone[0] == "insufficient"
    assert "together" not in alone[1]
    # A challenger that is tried only because its champion did badly says nothing about others.
    line.eval(rows, **given | {"step": "challenge-other"}, settings={"max_unlearned": 0})
    assert line.registry.run(run).judgements[-1].gain is None


@pytest.mark.parametrize("judged", [True, False], ids=["judged as a whole", "not judged"])
def test_a_part_of_a_sound_window_may_be_hard_to_tell(line, judged) -> None:
    """The first rows of a month had storms, by which lateness is told, the last ones had none."""
    rows, run = hold(line, 0, calm=True)
    if judged:
        windows = line.root / "registry" / "windows" / "w0"
        halves = [Dataset.open(str(windows / half)).to_pandas() for half in ("train", "judge")]
        every = line.rows(pd.concat(halves, ignore_index=True))
        assert line.eval(every, run_id=run, step="judge")[0] != "unfit"
    challenger = line.model(frame_of(500, seed=61))
    verdict, reason, _ = line.eval(rows, model=challenger, run_id=run, step="challenge")
    assert (verdict == "unfit") == (not judged)
    assert ("labels have nothing to do with the rows" in reason) == (not judged)
