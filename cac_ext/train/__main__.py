"""``python -m cac_ext.train`` is ``cac-ext``, also if that is not on the path."""

import sys

from cac_ext.train.cli.main import main

sys.exit(main())
