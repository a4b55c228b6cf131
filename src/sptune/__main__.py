"""`python -m sptune`, and so `accelerate launch -m sptune`."""

from sptune.cli.commands import main

main()
