"""`python -m hf_essl COMMAND …`."""

import sys

from hf_essl.cli import main

sys.exit(main())
