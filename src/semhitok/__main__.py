"""`python -m semhitok`, for launchers such as torchrun."""

import sys

from semhitok.cli import main

sys.exit(main())
