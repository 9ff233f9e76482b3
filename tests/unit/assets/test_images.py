"""What `--image` takes: the name of an image, written in full."""

import pytest

from kubestill.assets.packages import load_package
from kubestill.errors import InvalidInput


@pytest.mark.parametrize("field", ["image", "gpu_image"])
@pytest.mark.parametrize(
    "given",
    [
        "NAME@sha256:…",
        "NAME@sha256:...",
        "a b",
        "-x",
        "registry.example/k@md5:00",
        "${IMAGE}",
        "k@",
    ],
)
def test_what_names_no_image_is_refused_before_anything_is_compiled(field: str, given: str) -> None:
    with pytest.raises(InvalidInput, match="names no image; give HOST/NAME:TAG"):
        load_package("distillation", **{field: given})


@pytest.mark.parametrize(
    "given", ["kubestill:0.1.0", "127.0.0.1:5000/a/b_c:x-1", "gcr.io/p/k@sha256:" + "0a" * 32]
)
def test_names_of_images_are_taken(given: str) -> None:
    assert given in load_package("surrogate", image=given).text
