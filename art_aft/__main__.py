"""`python -m art_aft` is `art-aft`."""

import sys

from art_aft.cli.main import main

sys.exit(main())
