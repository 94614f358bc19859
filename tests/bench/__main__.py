"""`python -m tests.bench`, which ./scripts/bench runs."""

from tests.bench import bench

bench(prog_name="./scripts/bench")
