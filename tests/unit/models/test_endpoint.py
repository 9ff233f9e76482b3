"""Teachers behind HTTP, asked over real sockets."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import urllib3
from endpoint_server import Fake, language_model
from foreign_samples import dataset, features, table

from kubestill.errors import CorruptData, InvalidInput, KubestillError, Refused
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.evaluation.cost import running_costs
from kubestill.runtime.generation.labelling import TeacherCopy, label
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.foreign.asking import Client
from kubestill.runtime.models.foreign.bring import bring
from kubestill.runtime.models.foreign.endpoint import Endpoint
from kubestill.runtime.models.foreign.match import Options
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.steps.check_distillation import check_distillation
from kubestill.runtime.steps.import_model import import_model
from served import serving

PROMPT = "Amount {amount:.4f} at {shop}. Is it bad? Answer yes or no."
ASKED: dict[str, Any] = {
    "model": "small",
    "prompt": PROMPT,
    "words": {"bad": ["yes"], "ok": ["no"]},
    "retries": 2,
    "timeout_seconds": 5,
}


@pytest.fixture
def server() -> Generator[Fake]:
    with language_model() as fake:
        yield fake


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return 60 rows without gaps."""
    frame = table().dropna(subset="amount").head(60).reset_index(drop=True)
    return dataset(tmp_path_factory.mktemp("rows"), rows=frame)


def found(server: Fake, rows: Dataset, folder: Path, **endpoint: Any) -> Predictor:
    """Bring the server in, and load it as a later step does."""
    options = Options.model_validate({"endpoint": ASKED | endpoint})
    brought = bring(server.url, rows, options)
    assert brought is not None
    brought.write(str(folder))
    server.prompts.clear()
    return reloaded(server, folder)


def reloaded(server: Fake, folder: Path) -> Predictor:
    return load_model(str(folder), trust=[server.url.partition("/v1")[0]])


def raw_of(rows: Dataset, model: Predictor) -> np.ndarray:
    return decode_features(next(rows.iter_blocks()), model.layout)


def logits_of(rows: Dataset) -> np.ndarray:
    """Return what the server thinks of the second class, which is `ok`."""
    return -next(rows.iter_blocks())["amount"].to_numpy().astype(np.float64)[:, None]


@pytest.mark.parametrize("api", ["chat/completions", "completions"])
def test_log_probabilities_of_words_are_the_chances_of_classes(
    api: str, server: Fake, rows: Dataset, tmp_path: Path
) -> None:
    server.url = server.url.replace("chat/completions", api)
    model = found(server, rows, tmp_path / "model", rows_per_request=25)
    np.testing.assert_allclose(model.logits(raw_of(rows, model)), logits_of(rows), atol=1e-4)
    assert len(server.prompts) == rows.rows + 4  # those asked again
    first = next(rows.iter_blocks()).slice(0, 1).to_pylist()[0]
    asked = f"Amount {first['amount']:.4f} at {first['shop']}. Is it bad? Answer yes or no."
    assert asked in server.prompts


@pytest.mark.parametrize("target", ["label", "grade", "price"])
def test_a_served_model_answers_as_it_does_here(target: str, tmp_path: Path) -> None:
    rows = dataset(tmp_path / "rows", target)
    frame = features().assign(shop=pd.Categorical(features()["shop"]))
    kinds = {"label": "binary", "grade": "multiclass", "price": "regression"}
    given: dict[str, Any] = {"objective": kinds[target], "verbose": -1, "num_threads": 1}
    classes = sorted(set(table()[target])) if target != "price" else []
    given |= {"num_class": 3} if target == "grade" else {}
    known = table()[target] if target == "price" else pd.Categorical(table()[target]).codes
    booster = lightgbm.train(given, lightgbm.Dataset(frame, known), 6)
    booster.save_model(tmp_path / "model.txt")
    local = bring(str(tmp_path / "model.txt"), rows, Options(classes=classes))
    assert local is not None
    local.write(str(tmp_path / "local"))
    with serving(str(tmp_path / "local")) as address:
        asked = {"rows_per_request": 70, "answers": str(tmp_path / "answers")}
        options = Options.model_validate({"endpoint": asked})
        brought = bring(address, rows, options)
        assert brought is not None
        brought.write(str(tmp_path / "remote"))
        remote = load_model(str(tmp_path / "remote"), trust=[address.partition("/v2")[0]])
        raw = raw_of(rows, local.predictor)
        expected = local.predictor.logits(raw)
        if target == "grade":  # what softmax leaves open
            expected = expected - np.logaddexp.reduce(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(
            remote.logits(decode_features(next(rows.iter_blocks()), remote.layout)),
            expected,
            rtol=1e-4,
            atol=1e-5,
        )
        costs = running_costs({"remote": remote}, batches=(1, 1024))["remote"]
        assert 0 < costs.latency[1] < costs.latency[1024] < 10
        assert not costs.flops
    # Nobody serves any longer, and nothing has to be asked.
    again = load_model(str(tmp_path / "remote"), trust=[address.partition("/v2")[0]])
    found = again.logits(decode_features(next(rows.iter_blocks()), again.layout))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_throttles_is_waited_for(
    status: int, server: Fake, rows: Dataset, tmp_path: Path
) -> None:
    model = found(server, rows, tmp_path / "model")
    server.statuses, server.headers = [status] * 2, {"Retry-After": "0"}
    np.testing.assert_allclose(model.logits(raw_of(rows, model)), logits_of(rows), atol=1e-4)


def test_no_server_makes_a_step_wait_for_a_day() -> None:
    client = Client(parallel=1, timeout=1, retries=1, per_second=0, token="KUBESTILL_TOKEN")
    response = urllib3.HTTPResponse(headers={"Retry-After": "86400"})
    assert client._retries.get_retry_after(response) == 30


def test_a_server_that_is_slow_or_down_ends_the_step_in_words(
    server: Fake, rows: Dataset, tmp_path: Path
) -> None:
    model = found(server, rows, tmp_path / "model", timeout_seconds=0.05, retries=1)
    server.delay = 0.5
    begun = time.monotonic()
    with pytest.raises(KubestillError, match="did not answer, tried 2 times; the last time: "):
        model.logits(raw_of(rows, model))
    assert time.monotonic() - begun < 5
    server.delay, server.statuses = 0.0, [500] * 1000
    with pytest.raises(KubestillError, match=r"tried 2 times; the last time: 500: .*not now"):
        reloaded(server, tmp_path / "model").logits(raw_of(rows, model))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"<html>", "cannot be read as JSON"),
        (b'{"choices": []}', "without log-probabilities of 1 first tokens"),
        (b'{"choices": [{"logprobs": null}]}', "without log-probabilities"),
        (b'{"choices": [{"logprobs": {"content": [{"top_logprobs": []}]}}]}', "without log-prob"),
    ],
)
def test_an_answer_that_is_none_is_named(
    raw: bytes, said: str, server: Fake, rows: Dataset
) -> None:
    server.raw = raw
    with pytest.raises(KubestillError, match=said):
        bring(server.url, rows, Options.model_validate({"endpoint": ASKED}))


def test_a_model_that_changes_is_not_taken_for_the_one_that_was_brought_in(
    server: Fake, rows: Dataset, tmp_path: Path
) -> None:
    model = found(server, rows, tmp_path / "model")
    server.shift = 0.5
    with pytest.raises(InvalidInput, match="answers otherwise than when it was brought in"):
        model.logits(raw_of(rows, model))
    server.shift, server.model = 0.0, "small-2"
    with pytest.raises(InvalidInput, match="'small-2' answers now, and 'small-1' was brought in"):
        reloaded(server, tmp_path / "model").logits(raw_of(rows, model))


def test_a_model_that_answers_by_chance_is_refused(
    server: Fake, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = server.answer

    def moody(body: dict[str, Any]) -> dict[str, Any]:
        server.shift = 0.3 - server.shift
        return answer(body)

    monkeypatch.setattr(server, "answer", moody)
    with pytest.raises(InvalidInput, match="answers the same rows differently"):
        bring(server.url, rows, Options.model_validate({"endpoint": ASKED}))


def test_a_step_that_failed_asks_only_for_what_is_missing(
    server: Fake, rows: Dataset, tmp_path: Path
) -> None:
    kept = {"answers": str(tmp_path / "answers"), "parallel": 1}
    model = found(server, rows, tmp_path / "model", **kept)
    server.fails_after = 30
    with pytest.raises(InvalidInput, match="400"):
        label([TeacherCopy(model)], rows, str(tmp_path / "first"))
    answered = set(server.prompts)
    server.fails_after = None
    server.prompts.clear()
    made = label(
        [TeacherCopy(reloaded(server, tmp_path / "model"))], rows, str(tmp_path / "second")
    )
    asked_again = [prompt for prompt in server.prompts if prompt in answered]
    # The four by which it is known again, and nothing that was answered by the step that failed.
    assert len(server.prompts) == rows.rows - len(answered) + 4
    assert len(asked_again) == 4
    outputs = np.vstack([block["teacher_logits"].to_pylist() for block in made.iter_blocks()])
    np.testing.assert_allclose(outputs, logits_of(rows), atol=1e-4)
    server.prompts.clear()
    label([TeacherCopy(reloaded(server, tmp_path / "model"))], rows, str(tmp_path / "third"))
    assert server.prompts == []


def test_the_budget_is_never_exceeded(
    server: Fake, rows: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = {"price_per_row": 0.01, "budget": 0.5}
    model = found(server, rows, tmp_path / "model", **prices)
    with pytest.raises(Refused, match=r"60 rows cost about 0\.6, more than 0\.5; raise it"):
        label([TeacherCopy(model)], rows, str(tmp_path / "labelled"))
    assert server.prompts == []
    # By then the import has cost 0.24, and 0.04 goes for rows that it is known again by.
    kept = {"answers": str(tmp_path / "answers"), "budget": 0.7}
    model = found(server, rows, tmp_path / "kept", **prices | kept)
    with pytest.raises(Refused, match=r"0\.28 is spent, and the next requests cost 0\.6; raise"):
        label([TeacherCopy(model)], rows, str(tmp_path / "labelled"))
    assert "60 rows costs 0.6 at most; 0.24 is spent of a budget of 0.7" in capsys.readouterr().out
    assert len(server.prompts) == 4


def test_tokens_are_paid_as_the_server_counts_them(
    server: Fake, rows: Dataset, tmp_path: Path
) -> None:
    asked = {"price_per_million_tokens": 1e6, "answers": str(tmp_path / "answers")}
    model = found(server, rows, tmp_path / "model", **asked)
    before = model.foreign.runtime._answers.spent()  # pyright: ignore
    model.logits(raw_of(rows, model))
    paid = model.foreign.runtime._answers.spent() - before  # pyright: ignore
    assert paid == pytest.approx(10 * rows.rows, rel=0.2)


def test_a_token_is_sent_and_a_refused_one_is_named(
    server: Fake, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBESTILL_TOKEN_LLM", "let-me-in")
    options = Options.model_validate({"endpoint": ASKED | {"token": "KUBESTILL_TOKEN_LLM"}})
    brought = bring(server.url, rows, options)
    assert set(server.tokens) == {"Bearer let-me-in"}
    assert brought is not None
    assert b"let-me-in" not in brought.content
    monkeypatch.delenv("KUBESTILL_TOKEN_LLM")
    server.statuses = [401]
    with pytest.raises(InvalidInput, match="'KUBESTILL_TOKEN_LLM': this variable is not set"):
        bring(server.url, rows, options)
    server.statuses = [307]
    server.headers = {"Location": "http://127.0.0.1:9/elsewhere"}
    with pytest.raises(InvalidInput, match="redirects are not followed"):
        bring(server.url, rows, options)


def test_a_file_may_neither_name_any_host_nor_any_secret(
    server: Fake, rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = found(server, rows, tmp_path / "model")
    with pytest.raises(InvalidInput, match="nobody here vouches for it, so it is not asked"):
        load_model(str(tmp_path / "model"))
    monkeypatch.setenv("KUBESTILL_TRUST", f"other,{server.url.partition('/v1')[0]}")
    assert load_model(str(tmp_path / "model")).digest == model.digest
    content = (tmp_path / "model" / "endpoint.json").read_bytes()
    with pytest.raises(CorruptData, match="token"):
        Endpoint(content.replace(b'"KUBESTILL_TOKEN"', b'"AWS_SECRET_ACCESS_KEY"'))


@pytest.mark.parametrize(
    ("url", "change", "said"),
    [
        ("http://host/predict", {}, "neither a model of the Open Inference Protocol"),
        ("http://me:pw@host/v1/completions", {}, "holds credentials"),
        ("", {"prompt": ""}, "needs it"),
        ("", {"model": ""}, "needs it"),
        ("", {"prompt": "Is it bad?"}, "say what the model is asked, with columns in braces"),
        ("", {"prompt": "{amount:zz}"}, "write columns as"),
        ("", {"prompt": "{amuont}"}, "did you mean 'amount'"),
        ("", {"words": {"yes": ["yes"]}}, "are no classes; those are 'bad', 'ok'"),
        ("", {"words": {"bad": ["No"], "ok": ["no "]}}, "words of its own"),
        ("", {"words": {"bad": ["wrong"], "ok": ["fine"]}}, "begins its answer with 'Yes'"),
        ("", {"budget": 3.0}, "needs a price"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    url: str, change: dict[str, Any], said: str, server: Fake, rows: Dataset
) -> None:
    with pytest.raises(InvalidInput, match=said):
        bring(url or server.url, rows, Options.model_validate({"endpoint": ASKED | change}))


def test_options_of_an_endpoint_are_for_one(rows: Dataset) -> None:
    options = Options.model_validate({"endpoint": {"model": "x"}, "weights": ""})
    with pytest.raises(InvalidInput, match="is for an address that is asked, and this is python"):
        bring("foreign_teachers:Mean", rows, options)


def test_requests_keep_their_pace(server: Fake, rows: Dataset, tmp_path: Path) -> None:
    model = found(server, rows, tmp_path / "model", requests_per_second=200)
    begun = time.monotonic()
    model.logits(raw_of(rows, model))
    assert time.monotonic() - begun > 0.95 * (rows.rows + 3) / 200


def ports(folder: Path, *names: str) -> dict[str, Any]:
    return {name: LocalArtifact(str(folder / name)) for name in names}


def test_the_check_of_a_distillation_says_what_the_labels_cost(
    server: Fake, rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBESTILL_TYPED", server.url.partition("/v1")[0])
    given = LocalArtifact(rows.root, metadata={"kind": "dataset"})
    asked = ASKED | {"price_per_row": 0.01, "budget": 5.0}
    with pytest.raises(Refused, match=r"1,060 rows cost about 10\.6, more than 5"):
        check_distillation(
            dataset=given,
            validation=given,
            teacher_uri=server.url,
            teacher_options={"endpoint": asked},
            rows=1000,
            student_args={"hidden": [4]},
            **ports(tmp_path, "metrics", "report", "summary", "findings"),
        )


def test_import_model_reports_an_endpoint(server: Fake, rows: Dataset, tmp_path: Path) -> None:
    made = ports(tmp_path, "model", "metrics", "report", "summary")
    given = LocalArtifact(rows.root, metadata={"kind": "dataset"})
    import_model(
        dataset=given, holdout=given, source=server.url, settings={"endpoint": ASKED}, **made
    )
    assert server.url in Path(made["report"].path).read_text()
    assert made["metrics"].metadata["accuracy"] > 0.5
