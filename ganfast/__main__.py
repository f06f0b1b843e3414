"""python -m ganfast"""

import sys

from ganfast.cli import main

sys.exit(main())
