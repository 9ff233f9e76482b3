"""Uploading: by content, idempotent, and never over another content."""

import pytest

from kubeflow import make_package
from kubestill.assets.packages import Package
from kubestill.client import ensure_version
from kubestill.errors import ClusterError, InvalidInput


def test_the_same_content_is_uploaded_once(server, api, package):
    first = ensure_version(api, package)
    again = ensure_version(api, Package(package.text.replace("# PIPELINE", "# ANOTHER COMMENT")))
    assert (first.created, again.created) == (True, False)
    assert first.version_id == again.version_id
    assert [one["name"] for one in server.versions.values()] == [f"greet-{package.digest[:12]}"]
    assert [one["name"] for one in server.pipelines.values()] == ["greet"]


def test_another_content_is_another_version_of_the_same_pipeline(server, api, package):
    contents = ["hello", "good evening", "good night"]
    made = [ensure_version(api, make_package(content)) for content in contents]
    assert len({one.version_id for one in made}) == 3
    assert len({one.pipeline_id for one in made}) == 1
    # The last of several pages is found too.
    assert not ensure_version(api, make_package("good night")).created


def test_a_version_with_other_content_is_left_alone(server, api, package):
    ensure_version(api, package, version="v1")
    assert not ensure_version(api, package, version="v1").created
    with pytest.raises(InvalidInput, match="exists with other content"):
        ensure_version(api, make_package("good evening"), version="v1")


def test_a_change_of_the_platforms_part_alone_is_another_content(api, package):
    ensure_version(api, package, version="v1")
    changed = Package(package.text.replace("executors: {}", "executors: {exec-x: {}}"))
    assert changed.digest != package.digest
    with pytest.raises(InvalidInput, match="exists with other content"):
        ensure_version(api, changed, version="v1")


@pytest.mark.parametrize("request_", ["POST pipelines", "POST pipelines/upload_version"])
def test_somebody_else_may_be_faster(server, api, package, request_):
    def race(request: str):
        if request == request_:
            server.answers.clear()
            ensure_version(api, package)
        return None

    server.answers.append(race)
    assert not ensure_version(api, package).created
    assert len(server.pipelines) == len(server.versions) == 1


def test_a_conflict_that_is_none_is_an_error(server, api, package):
    body = b'{"error": "no"}'
    server.answers.append(
        lambda request: (409, "application/json", body) if "POST" in request else None
    )
    with pytest.raises(ClusterError, match="exists already"):
        ensure_version(api, package)
