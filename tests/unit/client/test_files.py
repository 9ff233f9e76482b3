import os

from kubestill.client import Api, Connection
from kubestill.client.files import LARGEST, RunFiles


def test_a_file_that_is_too_large_to_read_counts_as_none(tmp_path):
    outputs = tmp_path / "pipeline" / "run-1" / "train" / "uuid"
    outputs.mkdir(parents=True)
    (outputs / "report").write_text("small")
    (outputs / "summary").touch()
    os.truncate(outputs / "summary", LARGEST + 1)
    run = {"run_id": "run-1", "runtime_config": {"pipeline_root": str(tmp_path)}}
    files = RunFiles(Api(Connection(host="http://127.0.0.1:9")), run, "pipeline")
    assert files.read("train", "report") == b"small"
    assert files.read("train", "summary") is None
