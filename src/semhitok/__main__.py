"""`python -m semhitok`, for launchers such as torchrun."""

from semhitok.cli import main

main()
