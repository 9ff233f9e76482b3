"""What becomes of a task's command on its way into a container."""

import pytest

from kubestill.errors import KubestillError
from kubestill.local import Containers


@pytest.mark.parametrize(
    "image",
    [
        "kubestill:0.1.0",
        "python",
        "localhost:5000/a/b_c:tag-1.2",
        "registry.example/team/kubestill@sha256:" + "a" * 64,
        "registry.example:443/kubestill:1@sha256:" + "0" * 64,
    ],
)
def test_the_image_stands_between_options_and_command(image):
    name, command = Containers(program="docker").wrap(["python3", "-c", "x"], image, "/runs", {})
    assert command[:2] == ["docker", "run"]
    assert command[-4:] == [image, "python3", "-c", "x"]
    assert name in command


@pytest.mark.parametrize(
    "image",
    [
        "--volume=/:/host",
        "-v",
        "",
        " ",
        "--privileged",
        "a b",
        "a\n",
        "a:b:c:d",
        "/x",
        "a;b",
        "$(x)",
    ],
)
def test_an_image_that_is_no_name_is_refused(image):
    with pytest.raises(KubestillError, match="is no name of an image"):
        Containers(program="docker").wrap(["true"], image, "/runs", {})
