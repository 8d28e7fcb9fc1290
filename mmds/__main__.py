"""`python -m mmds` is the `mmds` command."""

from mmds.cli import main

main(prog_name="mmds")
