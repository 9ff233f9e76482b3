"""Several teachers as one: their average, or for each row one of them."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from kubestill.errors import CorruptData, InvalidInput, Problem, Problems, nearest
from kubestill.runtime.base.settings import Settings
from kubestill.runtime.base.values import parse_json, read_as
from kubestill.runtime.models.foreign.packing import unpack
from kubestill.runtime.models.foreign.runtime import Block, Declared

if TYPE_CHECKING:
    from kubestill.runtime.models.predict import Predictor

SEVERAL = "several"
"""The source that stands for the teachers in the options."""
RULES = "several.json"
_CERTAIN = 1e-7
_TRIED = 16
"""Rows that are tried where somebody charges for each."""


class SeveralOptions(Settings):
    """How several teachers answer as one."""

    teachers: list[dict[str, Any]] = []
    """Where the source is `several`: the `source` of each teacher, and whichever of these settings
    it needs."""
    combine: Literal["average", "confidence", "route"] = "average"
    """`average` of probabilities or values, by `shares`; for each row the teacher that is surest of
    its class (`confidence`); or the one that a column names (`route`)."""
    shares: list[float] = []
    """Weight of each teacher in the average; empty weighs all alike."""
    column: str = ""
    """Column of labels that names the teacher of a row."""
    routes: dict[str, int] = {}
    """Teacher of each label, counted from 0; other labels and missing ones go to the first."""
    weigh: Literal["none", "agreement"] = "none"
    """`agreement` has rows count less for a student the further the teachers are apart, from 1
    where they say the same: times what the row weighs anyway."""


class _Rules(Settings):
    format: Literal["kubestill/several/1"] = "kubestill/several/1"
    members: int
    combine: Literal["average", "confidence", "route"]
    shares: tuple[float, ...]
    column: str
    routes: dict[str, int]
    weigh: Literal["none", "agreement"] = "none"
    spread: tuple[float, ...] = ()


class Several:
    """Models behind the protocol of one."""

    def __init__(self, members: Sequence[Predictor], options: SeveralOptions):
        """Combine models that were matched with the same dataset.

        Raises:
            InvalidInput: The rules do not suit them; all of it.
        """
        schema = members[0].spec.schema
        columns = {c.name: c for one in members for c in one.spec.schema.features}
        problems = Problems()
        count = len(members)
        if options.shares and (
            len(options.shares) != count
            or not all(0 <= share < math.inf for share in options.shares)
            or sum(options.shares) <= 0
        ):
            remedy = f"give {count} weights from 0, one a teacher, that are not all 0"
            problems.add("several.shares", options.shares, remedy)
        if options.shares and options.combine != "average":
            problems.add("several.shares", options.shares, "only an average has weights")
        if options.combine == "confidence" and schema.task == "regression":
            remedy = "values have no confidence; use 'average' or 'route'"
            problems.add("several.combine", options.combine, remedy)
        if (options.combine == "route") != bool(options.column):
            remedy = "a column goes with combine='route', and only with that"
            problems.add("several.column", options.column, remedy)
        elif options.column:
            known = columns.get(options.column)
            if known is None:
                remedy = f"no teacher reads it; {nearest(options.column, columns)}"
                problems.add("several.column", options.column, remedy)
            elif known.kind != "categorical":
                problems.add("several.column", options.column, f"holds no labels: {known.kind}")
        for label, place in options.routes.items():
            if not 0 <= place < count:
                remedy = f"must be below {count}: teachers are counted from 0"
                problems.add(f"several.routes.{label}", place, remedy)
        if options.weigh == "agreement" and options.combine == "route":
            remedy = (
                "a row has one teacher there, who agrees; use combine='average', or leave it out"
            )
            problems.add("several.weigh", options.weigh, remedy)
        elif options.weigh == "agreement" and sum(share > 0 for share in options.shares) == 1:
            remedy = (
                "one teacher has all shares, and agrees; give another one some, or leave it out"
            )
            problems.add("several.weigh", options.weigh, remedy)
        problems.raise_if_any()
        self.members, self.options = members, options
        self._spread = np.zeros(0)
        shares = np.asarray(options.shares or [1.0] * count, np.float64)
        self._shares = shares / shares.sum()
        self._classes = schema.task != "regression"
        wide = len(schema.classes) if len(schema.classes) > 2 else 1
        self.declared = Declared(
            inputs=tuple(columns),
            width=None,
            reads="labels",
            classes=schema.classes if self._classes else None,
            outputs=wide if self._classes else schema.target.width if schema.target else 0,
            answers="logit" if self._classes else "value",
            parameters=sum(one.spec.parameters for one in members),
            tried=_TRIED if any(one.remote for one in members) else 256,
        )

    @classmethod
    def load(cls, content: bytes, trust: Iterable[str], device: str) -> Several:
        """Load what `bring` packed.

        Raises:
            CorruptData: It is damaged.
            InvalidInput: A member cannot be loaded here; see `load_model`.
        """
        from kubestill.runtime.models.export import load_model

        files = unpack(content, "model of several")
        form = parse_json(files.pop(RULES, b""), source=RULES, what="rule")
        rules = read_as(_Rules, form, source=RULES, what="rule")
        members: list[Predictor] = []
        with tempfile.TemporaryDirectory(prefix="kubestill-several-") as folder:
            for name, one in files.items():
                number, _, file = name.partition("/")
                if not number.isdecimal() or not file or "/" in file or file.startswith("."):
                    raise CorruptData(f"a model of several holds {name!r:.80}")
                os.makedirs(os.path.join(folder, number), exist_ok=True)
                with open(os.path.join(folder, number, file), "wb") as written:
                    written.write(one)
            for number in range(min(rules.members, len(files))):
                place = os.path.join(folder, str(number))
                members.append(load_model(place, trust=trust, device=device))
        if len(members) < 2 or len(members) != rules.members:
            raise CorruptData(f"a model of several holds {len(members)} of {rules.members}")
        tasks = {(one.spec.task, one.spec.schema.classes) for one in members}
        if len(tasks) > 1:
            raise CorruptData("a model of several holds models of different targets")
        kept = rules.model_dump(exclude={"format", "members", "spread"})
        found = cls(members, SeveralOptions.model_validate(kept))
        found._spread = np.array(rules.spread, np.float64)
        wanted = found.declared.outputs if found.weighs and not found._classes else 0
        if len(rules.spread) != wanted or not (0 <= found._spread).all():
            raise CorruptData(f"a model of several has spreads {rules.spread} of {wanted} outputs")
        if wanted and not 0 < found._spread.sum() < math.inf:
            raise CorruptData(f"a model of several has spreads {rules.spread}")
        return found

    def rules(self) -> bytes:
        """Return the file that `load` reads beside the members."""
        options = self.options.model_dump(exclude={"teachers"})
        spread = tuple(self._spread.tolist())
        rules = _Rules(members=len(self.members), spread=spread, **options)
        # Models that weigh nothing keep the bytes, and so the digest, that they always had.
        unused = set[str]() if self.weighs else {"weigh", "spread"}
        return rules.model_dump_json(exclude=unused).encode()

    @property
    def weighs(self) -> bool:
        """Whether rows count less on which the teachers disagree."""
        return self.options.weigh == "agreement"

    def predict(self, rows: Block) -> NDArray[np.float64]:
        """Return logits [B, K], [B, 1] of two classes, or values [B, T]."""
        if self.options.combine == "route":
            return self._route(rows)
        return self._combine(self._ask(rows))

    def predict_weighed(self, rows: Block) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what `predict` does and the agreement of the teachers [B], each asked once."""
        answers = self._ask(rows)
        return self._combine(answers), self._agreement(answers)

    def _combine(self, answers: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        if self.options.combine == "average":
            return self._average(answers)
        chosen = np.stack([_chances(one).max(axis=1) for one in answers]).argmax(axis=0)
        return np.stack(answers)[chosen, np.arange(len(chosen))]

    def _agreement(self, answers: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return how far the teachers agree on each row [B], from 0 to 1, each by its share.

        Of classes it is 1 less the generalised Jensen-Shannon divergence of their probabilities,
        in parts of the most that it can be (Lin 1991): the entropy of the shares, or of equal
        probabilities. Of values it is V / (V + v), with v the variance among the teachers and V
        that of their average from row to row, over the rows tried: the form of the intraclass
        correlation (Shrout & Fleiss 1979), for one row. Of several values, v / V is averaged.
        """
        said = np.stack([_chances(one) for one in answers] if self._classes else answers)
        mean = np.average(said, axis=0, weights=self._shares)
        if self._classes:
            most = min(_entropy(self._shares), math.log(said.shape[2]))
            divergence = _entropy(mean) - np.average(_entropy(said), axis=0, weights=self._shares)
            return np.clip(1 - divergence / most, 0, 1)
        apart = np.average(np.square(said - mean), axis=0, weights=self._shares)
        moving = self._spread > 0
        return 1 / (1 + (apart[:, moving] / self._spread[moving]).mean(axis=1))

    def _route(self, rows: Block) -> NDArray[np.float64]:
        """Return what the teacher of each row says, who is asked about no other."""
        labels = rows.labels(self.options.column, missing=None).tolist()
        chosen = np.array([self.options.routes.get(label, 0) for label in labels])
        found = np.zeros((len(rows), self.declared.outputs or 1))
        for place, one in enumerate(self.members):
            mine = np.flatnonzero(chosen == place)
            if len(mine):
                found[mine] = one.logits(one.read(rows.frame.iloc[mine]))
        return found

    @property
    def remote(self) -> bool:
        """Whether one of them is behind an address."""
        return any(one.remote for one in self.members)

    def announce(self, rows: int, *, most: bool = False) -> None:
        """Say what those cost that are behind an address.

        Args:
            rows: How many.
            most: They may be asked about fewer.

        Raises:
            Refused: It is more than a budget, and all rows reach that teacher.
        """
        for one in self.members:
            one.announce(rows, most=most or self.options.combine == "route")

    def latency(self, rows: int) -> float | None:
        """Return the seconds that so many rows take those behind an address; None without one."""
        found = [one.latency(rows) for one in self.members if one.remote]
        return sum(seconds for seconds in found if seconds is not None) if found else None

    def study(self, rows: Block) -> str:
        """Say how far apart the teachers are on some rows, and which routes no label takes.

        Values are as far apart as their scale makes them, which is taken from these rows for all
        later ones: agreement does not depend on which rows it is asked of together.

        Raises:
            InvalidInput: They are to weigh rows, and these have no scale.
        """
        column, lost = self.options.column, ""
        known = rows.column(column).categories or () if column else ()
        strange = [label for label in self.options.routes if label not in known]
        if strange:
            near = nearest(strange[0], known)
            lost = f"; {', '.join(map(repr, strange))} in routes is no label of {column!r}: {near}"
        answers = self._ask(rows)
        if self.weighs and not self._classes:
            mean = self._average(answers)
            # Of equal numbers the variance is what rounding makes it.
            self._spread = np.where(np.ptp(mean, axis=0) > 0, mean.var(axis=0), 0)
            if not self._spread.any():
                said = f"their average is the same for all {len(rows)} rows tried"
                remedy = f"{said}, which says nothing of how far apart is far; leave it out"
                raise InvalidInput([Problem("several.weigh", "agreement", remedy)])
        if self.weighs:
            weights = self._agreement(answers)
            lost += f"; by agreement rows weigh {weights.mean():.3f}, at least {weights.min():.3f}"
        if not self._classes:
            spread = np.stack(answers).std(axis=0).mean()
            return f"values of the teachers have a standard deviation of {spread:.3g}{lost}"
        chances = np.stack([_chances(one) for one in answers])
        split = (chances.argmax(axis=2) != chances[0].argmax(axis=1)).any(axis=0).mean()
        # Half the sum of differences: the mass that one would have to move to agree.
        far = np.abs(chances - chances.mean(axis=0)).sum(axis=2).mean() / 2
        return (
            f"the {len(answers)} teachers name different classes on {split:.1%} of the rows tried, "
            f"and their probabilities lie {far:.3f} from their mean (total variation){lost}"
        )

    def _ask(self, rows: Block) -> list[NDArray[np.float64]]:
        frame = rows.frame
        return [np.asarray(one.logits(one.read(frame)), np.float64) for one in self.members]

    def _average(self, answers: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        if not self._classes:
            return np.average(answers, axis=0, weights=self._shares)
        mean = np.average([_chances(one) for one in answers], axis=0, weights=self._shares)
        logs = np.log(np.clip(mean, _CERTAIN, 1 - _CERTAIN))
        return logs if logs.shape[1] > 2 else logs[:, 1:] - logs[:, :1]


def _chances(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities of all classes [B, K]."""
    if logits.shape[1] == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _entropy(chances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy [...] of probabilities [..., K], in nats."""
    return -(chances * np.log(np.where(chances > 0, chances, 1))).sum(axis=-1)
