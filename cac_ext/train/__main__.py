"""``python -m cac_ext.train``: the command ``cac-ext`` where it is not on the path."""

import sys

from cac_ext.train.cli.main import main

sys.exit(main())
