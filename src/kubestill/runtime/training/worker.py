"""Be one of the processes that share a training run: `processes` starts it."""

import sys

from kubestill.runtime.training.processes import serve

if __name__ == "__main__":
    raise SystemExit(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.stdin.buffer))
