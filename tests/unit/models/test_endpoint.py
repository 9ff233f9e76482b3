"""Teachers behind HTTP, asked over real sockets."""

from __future__ import annotations

import gzip
import json
import os
import signal
import time
import traceback
from collections.abc import Generator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from endpoint_server import Fake, language_model, scripted
from foreign_samples import dataset, features, table

from kubestill.errors import CorruptData, InvalidInput, KubestillError, Refused
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.evaluation.cost import running_costs
from kubestill.runtime.generation.labelling import TeacherCopy, label
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.foreign.asking import Client
from kubestill.runtime.models.foreign.bring import bring
from kubestill.runtime.models.foreign.dialects import Asked, LogProbabilities, OpenInference
from kubestill.runtime.models.foreign.endpoint import Endpoint
from kubestill.runtime.models.foreign.match import Options, match
from kubestill.runtime.models.foreign.runtime import Block
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


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body + b"\n" * body.endswith(b"}")


def chunks(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


GOOD = http(b'{"a": 1}')
LATER = formatdate(time.time() + 86400, usegmt=True)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        http(b'{"a": 1}')[:-4],
        chunks(b'{"a": 1}')[:-6],
        b" " + http(b" " * 200),
        b"no HTTP\r\n\r\n",
        http(b"not gzip", "Content-Encoding: gzip"),
        *(http(b"{}", status=f"{status} no") for status in (408, 500, 502, 504, 520, 529)),
        *(
            http(b"{}", f"Retry-After: {asked}", status="429 no")
            for asked in ("0", "0.1", "-5", "nan", "soon", "", formatdate(0, usegmt=True))
        ),
    ],
    ids=lambda sent: repr(sent)[:70],
)
def test_what_goes_wrong_once_is_asked_again_in_bounded_time(bad: bytes | None) -> None:
    client = Client(parallel=1, timeout=1, retries=1, per_second=0, token="KUBESTILL_TOKEN")
    with scripted(bad, GOOD) as (url, came):
        begun = time.monotonic()
        assert client.ask(url, b"{}") == {"a": 1}
        assert client.ask(url, b"{}") == {"a": 1}  # the connection is of use still
        assert len(came) == 3
        assert time.monotonic() - begun < 4


@pytest.mark.parametrize(
    ("answer", "said", "asked"),
    [
        (http(b"[" + b" " * (16 << 20)), "larger than 16 MiB; ask for fewer rows", 1),
        (http(gzip.compress(b" " * (17 << 20)), "Content-Encoding: gzip"), "larger than 16", 1),
        (http(b"<html>", "Content-Type: text/html"), "it begins with '<html>'", 1),
        (http(b'{"a": NaN}'), "NaN, which is not finite", 1),
        (http(b"no", status="404 no"), "the server answers 404: no", 1),
        (
            http(b"Bearer let-me-in-please/now", status="401 no"),
            r"refuses; .* 401: Bearer \*\*\*$",
            1,
        ),
        (
            http(b'{"token": "let-me-in-please\\/now"}', status="500 no"),
            r"500: {\"token\": \"\*\*\*",
            2,
        ),
        (http(b'{"let-me-in-please/now": 1, "let-me-in-please\\/now": 2}'), r"'\*\*\*' .*twice", 1),
    ],
    ids=["large", "large when unpacked", "HTML", "NaN", "404", "401", "500", "twice"],
)
def test_an_answer_of_no_use_is_told_without_the_token(
    answer: bytes, said: str, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBESTILL_TOKEN", "let-me-in-please/now")
    client = Client(parallel=1, timeout=5, retries=1, per_second=0, token="KUBESTILL_TOKEN")
    with scripted(answer) as (url, came), pytest.raises(KubestillError, match=said) as caught:
        client.ask(url, b"{}")
    assert len(came) == asked
    assert "let-me-in" not in "".join(traceback.format_exception(caught.value))


def test_no_server_makes_a_step_wait_for_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("kubestill.runtime.models.foreign.asking.time.sleep", slept.append)
    client = Client(parallel=1, timeout=5, retries=2, per_second=0, token="KUBESTILL_TOKEN")
    days = [http(b"{}", f"Retry-After: {one}", status="503 no") for one in ("86400", LATER)]
    with scripted(*days, GOOD) as (url, _):
        client.ask(url, b"{}")
    assert [one for one in slept if one > 1] == [30, 30]


@pytest.mark.parametrize("token", ["two words", "two\nlines-of-a-file", "schlüssel"])
def test_a_token_that_no_header_takes_is_refused_unseen(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBESTILL_TOKEN", token)
    client = Client(parallel=1, timeout=5, retries=1, per_second=0, token="KUBESTILL_TOKEN")
    with pytest.raises(InvalidInput, match="set it to the token alone") as caught:
        client.ask("http://127.0.0.1:9/v1/completions", b"{}")
    assert token not in str(caught.value)


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
    with pytest.raises(Refused, match=r"60 rows cost about 0\.64, more than 0\.5; raise it"):
        label([TeacherCopy(model)], rows, str(tmp_path / "labelled"))
    assert server.prompts == []
    # By then the import has cost 0.24, and 0.04 goes for rows that it is known again by.
    kept = {"answers": str(tmp_path / "answers"), "budget": 0.7}
    model = found(server, rows, tmp_path / "kept", **prices | kept)
    with pytest.raises(Refused, match=r"0\.28 is spent, and the next requests cost 0\.6; raise"):
        label([TeacherCopy(model)], rows, str(tmp_path / "labelled"))
    assert "60 rows costs 0.64 at most; 0.24 is spent of a budget of 0.7" in capsys.readouterr().out
    assert len(server.prompts) == 4


def spent(model: Predictor) -> float:
    return model.foreign.runtime._answers.spent()  # pyright: ignore


@pytest.mark.parametrize("price", [0.1, 0.01, 1 / 3])
def test_a_budget_that_is_met_exactly_is_enough(
    price: float, server: Fake, rows: Dataset, tmp_path: Path
) -> None:
    asked = {"price_per_row": price, "budget": 64 * price}  # 60 rows, and the four that are known
    model = found(server, rows, tmp_path / "model", **asked)
    label([TeacherCopy(model)], rows, str(tmp_path / "labelled"))
    assert len(server.prompts) == 64
    model = found(server, rows, tmp_path / "less", **asked | {"budget": 63.9 * price})
    with pytest.raises(Refused):
        label([TeacherCopy(model)], rows, str(tmp_path / "labelled"))
    assert server.prompts == []


def test_tokens_are_paid_as_the_server_counts_them(
    server: Fake, rows: Dataset, tmp_path: Path
) -> None:
    asked = {"price_per_million_tokens": 1e6, "answers": str(tmp_path / "answers")}
    model = found(server, rows, tmp_path / "model", **asked)
    assert spent(model) == pytest.approx(10 * (16 + 8))  # tried, and asked twice
    model.logits(raw_of(rows, model))
    assert spent(model) == pytest.approx(10 * (24 + rows.rows + 4))
    # Nobody counts: then half the letters are tokens, and the budget holds all the same.
    server.usage = False
    asked |= {"budget": 2500, "answers": str(tmp_path / "others")}
    model = found(server, rows, tmp_path / "uncounted", **asked)
    assert spent(model) > 10 * 24
    with pytest.raises(Refused, match="60 rows cost about"):
        label([TeacherCopy(model)], rows, str(tmp_path / "labelled"))
    assert server.prompts == []


def test_answers_that_were_lost_are_paid_and_refused_ones_are_not(
    server: Fake, rows: Dataset, tmp_path: Path
) -> None:
    asked = {"price_per_row": 1.0, "parallel": 1, "answers": str(tmp_path / "answers")}
    model = found(server, rows, tmp_path / "model", **asked)
    before = spent(model)
    server.statuses = [200, 504, 200, 504]
    model.logits(raw_of(rows, model))
    assert spent(model) - before == 64 + 2
    server.statuses, server.headers = [429] * 3, {"Retry-After": "0"}
    with pytest.raises(KubestillError, match="tried 3 times"):
        reloaded(server, tmp_path / "model").logits(raw_of(rows, model)[:30])
    server.statuses = [400]
    with pytest.raises(InvalidInput, match="400"):
        reloaded(server, tmp_path / "model").logits(raw_of(rows, model)[:30])
    assert spent(model) - before == 64 + 2


def test_a_budget_that_others_spend_meanwhile_ends_the_step_with_what_is_paid_kept(
    server: Fake, rows: Dataset, tmp_path: Path
) -> None:
    asked = {"price_per_row": 1.0, "parallel": 1, "budget": 94, "answers": str(tmp_path / "kept")}
    model = found(server, rows, tmp_path / "model", **asked)
    assert spent(model) == 24
    answer = server.answer

    def shared(body: dict[str, Any]) -> dict[str, Any]:
        if len(server.prompts) == 10:
            model.foreign.runtime._answers.spend(30.0)  # pyright: ignore
        return answer(body)

    server.answer = shared  # pyright: ignore
    with pytest.raises(Refused, match="94 is what the teacher may cost"):
        model.logits(raw_of(rows, model))
    told = len(server.prompts)
    assert spent(model) == 24 + 30 + told <= 94
    server.answer = answer
    model = found(server, rows, tmp_path / "more", **asked | {"budget": 1000})
    model.logits(raw_of(rows, model))
    assert len(server.prompts) == rows.rows - (told - 4) + 4


def test_another_model_at_the_address_does_not_get_the_kept_answers(
    server: Fake, rows: Dataset, tmp_path: Path
) -> None:
    server.model = ""  # no version tells them apart
    kept = {"answers": str(tmp_path / "answers")}
    model = found(server, rows, tmp_path / "model", **kept)
    np.testing.assert_allclose(model.logits(raw_of(rows, model)), logits_of(rows), atol=1e-4)
    server.shift = 0.001  # within the tolerance: the same, asked about other rows
    fewer = dataset(tmp_path / "fewer", rows=table().dropna(subset="amount").iloc[100:130])
    found(server, fewer, tmp_path / "again", **kept)
    again = reloaded(server, tmp_path / "again")
    np.testing.assert_allclose(again.logits(raw_of(rows, again)), logits_of(rows), atol=1e-4)
    assert server.prompts == []
    server.shift = 0.7
    other = found(server, rows, tmp_path / "other", **kept)
    np.testing.assert_allclose(other.logits(raw_of(rows, other)), logits_of(rows) - 0.7, atol=1e-4)
    assert len(server.prompts) == rows.rows + 4


@pytest.mark.parametrize("damage", ["cut", "empty", "other rows", "wider", "NaN"])
def test_kept_answers_that_are_damaged_are_asked_again(
    damage: str, server: Fake, rows: Dataset, tmp_path: Path
) -> None:
    model = found(server, rows, tmp_path / "model", answers=str(tmp_path / "answers"))
    raw = raw_of(rows, model)[:9]
    expected = model.logits(raw)
    (page,) = (one for one in tmp_path.glob("answers/*/*.json") if len(one.name) > 60)
    content, form = page.read_text(), json.loads(page.read_text())
    if damage == "other rows":
        form["answers"] = {str(int(at) + 9): said for at, said in form["answers"].items()}
    elif damage in ("wider", "NaN"):
        more = [0.5, 0.2, 0.3] if damage == "wider" else [float("nan")] * 2
        form["answers"] = {at: [more] for at in form["answers"]}
    text = {"cut": content[: len(content) // 2], "empty": ""}.get(damage, json.dumps(form))
    page.write_text(text)
    server.prompts.clear()
    np.testing.assert_array_equal(reloaded(server, tmp_path / "model").logits(raw), expected)
    assert len(server.prompts) == 9 + 4


def test_a_killed_step_loses_what_was_under_way(
    server: Fake, rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubestill.runtime.models.foreign.answers._EVERY", 0.0)
    asked = {"price_per_row": 1.0, "parallel": 2, "answers": str(tmp_path / "answers")}
    model = found(server, rows, tmp_path / "model", **asked)
    before, raw = spent(model), raw_of(rows, model)
    server.delay = 0.01

    def kept() -> int:
        pages = (one for one in tmp_path.glob("answers/*/*.json") if len(one.name) > 60)
        return sum(len(json.loads(page.read_text())["answers"]) for page in pages)

    already = kept()
    child = os.fork()
    if not child:
        try:
            reloaded(server, tmp_path / "model").logits(raw)
        finally:
            os._exit(0)
    while kept() < already + 10:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    known, asked_before = kept(), len(server.prompts)
    assert known < rows.rows, "it ended before it was killed"
    np.testing.assert_allclose(
        reloaded(server, tmp_path / "model").logits(raw), logits_of(rows), atol=1e-4
    )
    # And four rows that show whether the model is the same.
    assert len(server.prompts) - asked_before == rows.rows - known + 4
    assert spent(model) - before < 2 * len(server.prompts)


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
        ("http://host/v1/completions?api_key=abc", {}, "holds a secret, which files and logs"),
        ("", {"extra": {"api_key": "abc"}}, "a model remembers these fields"),
        ("", {"extra": {"n": 2}}, "the package sets these itself"),
        ("", {"words": {"bad": [], "ok": ["no"]}}, "one word or more"),
        ("", {"words": {"bad": [" "], "ok": ["no"]}}, "which are not empty"),
        ("", {"words": {"bad": ["yes, bad"], "ok": ["yes, ok"]}}, "does not tell them apart"),
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
    model = found(server, rows, tmp_path / "model", requests_per_second=200, retries=20)
    server.statuses, server.headers = [503, 503, 200] * 60, {"Retry-After": "0"}
    before = len(server.tokens)
    begun = time.monotonic()
    model.logits(raw_of(rows, model))
    asked = len(server.tokens) - before  # further tries count
    assert asked > 2 * rows.rows
    assert time.monotonic() - begun > (asked - 1) / 200


FLAT = {"inputs": [{"name": "a", "datatype": "FP32", "shape": [-1]}]}


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ({"shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}, None),
        ({"shape": [2, 3], "data": [[1, 2, 3], [4, 5, 6]]}, None),
        ({"data": [1, 2, 3, 4, 5, 6]}, None),
        ({"shape": [3, 2], "data": [1, 2, 3, 4, 5, 6]}, r"6 numbers in the shape \[3, 2\]"),
        ({"shape": [3, 3], "data": [1] * 9}, "9 numbers"),
        ({"shape": [1, 3], "data": [1] * 3}, "3 numbers"),
        ({"shape": [2, 3], "data": [1] * 5}, "5 numbers"),
        ({"shape": [2, 3], "data": [1, 2, None, 4, 5, 6]}, "it holds None"),
        ({"shape": [2, 3], "data": ["1"] * 6}, "it holds '1'"),
        ({"shape": [2, 3], "data": [1] * 6, "datatype": "BYTES"}, "it holds"),
        ({"shape": [2, 3], "parameters": {"binary_data_size": 24}}, "it lacks 'data'"),
        ({"name": "q", "shape": [2, 3], "data": [1] * 6}, "without the output 'p'"),
    ],
    ids=str,
)
def test_a_tensor_is_read_by_its_shape(tensor: dict[str, Any], said: str | None) -> None:
    outputs = [{"name": "p", "datatype": "FP32", "shape": [-1, 3]}]
    dialect = OpenInference("http://h/v2/models/m", FLAT | {"outputs": outputs}, output="", rows=9)
    other = {"name": "other", "datatype": "FP32", "shape": [1], "data": [9.0]}
    form = {"outputs": [other, {"name": "p", "datatype": "FP32"} | tensor]}
    asked = Asked(body=b"{}", rows=2)
    if said is None:
        assert dialect.read(form, asked, "h").outputs.tolist() == [[1, 2, 3], [4, 5, 6]]
    else:
        with pytest.raises(KubestillError, match=said):
            dialect.read(form, asked, "h")


@pytest.mark.parametrize(
    ("amount", "datatype", "shape", "sent"),
    [
        (1.0, "INT64", [-1], ([1], 1)),
        (1.0, "BOOL", [-1, 1], ([1, 1], True)),
        (None, "FP32", [-1, -1], ([1, 1], None)),
        (1.5, "INT32", [-1], "values are nothing that INT32 holds"),
        (300.0, "UINT8", [-1], "nothing that UINT8 holds"),
        (-1.0, "UINT32", [-1], "nothing that UINT32 holds"),
        (2.0, "BOOL", [-1], "nothing that BOOL holds"),
        (7e4, "FP16", [-1], "nothing that FP16 holds"),
        (None, "INT64", [-1], "missing"),
        (1.0, "FP32", [-1, 3], r"the server takes \[3\]"),
        (1.0, "BYTES", [-1], "takes it as a category"),
    ],
    ids=str,
)
def test_a_column_is_sent_as_its_datatype_holds_it(
    amount: float | None, datatype: str, shape: list[int], sent: Any, tmp_path: Path
) -> None:
    frame = table().head(1).assign(amount=amount)
    rows = dataset(tmp_path, "price", frame)
    flag = {"name": "flag", "datatype": "BOOL", "shape": [-1]}
    given = {"inputs": [{"name": "amount", "datatype": datatype, "shape": shape}, flag]}
    outputs = [{"name": "price", "datatype": "FP32", "shape": [-1]}]
    dialect = OpenInference("http://h/v2/models/m", given | {"outputs": outputs}, output="", rows=9)

    def requests() -> Any:
        matched = match(dialect.declared, rows.schema, Options(), certain=False)
        layout = RawLayout(matched.schema)
        raw = decode_features(next(rows.iter_blocks()), layout)
        (asked,) = dialect.requests(Block(raw, layout, matched.inputs))
        return json.loads(asked.body)["inputs"][0]

    if isinstance(sent, str):
        with pytest.raises(InvalidInput, match=sent):
            requests()
    else:
        assert (requests()["shape"], requests()["data"]) == (sent[0], [sent[1]])


@pytest.mark.parametrize(
    ("told", "shares"),
    [
        ({"bad": 0.6, "ok": 0.3}, [2 / 3, 1 / 3]),
        ({" bad": 0.4, "Bad": 0.2, "\u0120ok": 0.3}, [2 / 3, 1 / 3]),
        ({"bad": 0.9, "x": 0.06}, [15 / 16, 1 / 16]),  # the other is likelier than no other is
        ({"bad": 0.5, "ba": 0.1, "ok": 0.2}, [0.75, 0.25]),
        ({"b": 0.9, "ok": 0.1}, [0.9, 0.1]),
        ({"x": 1.0}, [0.5, 0.5]),
    ],
    ids=str,
)
def test_shares_are_those_of_the_words(told: dict[str, float], shares: list[float]) -> None:
    np.testing.assert_allclose(ask_once(told, bad=["bad", " BAD"], ok=["ok"]), shares)


def test_a_beginning_that_classes_share_counts_for_each() -> None:
    words = {"bad": ["very bad"], "good": ["very good"], "fair": ["fair"]}
    found = ask_once({"very": 0.9, "fair": 0.05}, **words)
    np.testing.assert_allclose(found, np.array([0.45, 0.45, 0.05]) / 0.95)


@pytest.mark.parametrize("places", [(0, 0), (1, 2), (0,), (0, 1, 2)])
def test_answers_that_cannot_be_told_apart_are_refused(places: tuple[int, ...]) -> None:
    said = {"top_logprobs": [{"bad": -0.1}]}
    form = {"choices": [{"index": place, "logprobs": said} for place in places]}
    dialect = asker({"bad": ["bad"], "ok": ["ok"]}, "completions")
    with pytest.raises(KubestillError, match="choices"):
        dialect.read(form, Asked(body=b"{}", rows=2), "h")


def asker(words: dict[str, list[str]], api: str) -> LogProbabilities:
    asked: dict[str, Any] = {"model": "m", "prompt": "{a}", "extra": {}, "rows": 2}
    return LogProbabilities(f"http://h/v1/{api}", words=words, strict=False, **asked)


def ask_once(told: dict[str, float], **words: list[str]) -> np.ndarray:
    top = [{"token": token, "logprob": float(np.log(value))} for token, value in told.items()]
    form = {"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}
    return asker(words, "chat/completions").read(form, Asked(body=b"{}", rows=1), "h").outputs[0]


def ports(folder: Path, *names: str) -> dict[str, Any]:
    return {name: LocalArtifact(str(folder / name)) for name in names}


def test_the_check_of_a_distillation_says_what_the_labels_cost(
    server: Fake, rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBESTILL_TYPED", server.url.partition("/v1")[0])
    given = LocalArtifact(rows.root, metadata={"kind": "dataset"})
    asked = ASKED | {"price_per_row": 0.01, "budget": 5.0}
    with pytest.raises(Refused, match=r"1,060 rows cost about 10\.64, more than 5"):
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
