"""The story of a module's pipeline, told once."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Test modules are imported by path; the helpers beside them by name.
sys.path.insert(0, str(Path(__file__).parent))

pytest.register_assert_rewrite("comparing")

from story import Story, tell  # noqa: E402

from emulators import S3Server  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def minio(seaweedfs: S3Server) -> Iterator[S3Server]:
    """The server that `minio://` is on, as a step finds it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", seaweedfs.host)
        for name, value in seaweedfs.keys.items():
            patch.setenv(name, value)
        yield seaweedfs


@pytest.fixture(scope="module")
def story(request: pytest.FixtureRequest, minio: S3Server, tmp_path_factory) -> Story:
    """The runs of the module's `PIPELINE`, told by ordinary inputs on this machine."""
    return tell(request.module.PIPELINE, tmp_path_factory.mktemp("story"), minio.client)
