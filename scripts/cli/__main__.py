"""`python -m scripts.cli`: the `ballast` command without its entry point."""

from scripts.cli import ballast

ballast()
