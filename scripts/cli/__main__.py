"""`python -m scripts.cli`: runs the `ballast` command where it is not installed."""

from scripts.cli import ballast

ballast()
