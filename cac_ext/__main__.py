"""``python -m cac_ext`` diagnoses the installation; exit code 1 if something is wrong."""

import sys

from cac_ext.diagnosis import main

sys.exit(main())
