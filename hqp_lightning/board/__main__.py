"""``python -m hqp_lightning.board``, and what ``hqp-engine.pyz`` runs."""

import sys

try:
    from hqp_lightning.board.cli import main
except (ImportError, SyntaxError) as error:
    sys.exit(
        "hqp-engine needs Python 3.8 or later with numpy (on a Jetson: sudo apt install python3-numpy); "
        f"this is {sys.executable} {sys.version.split()[0]}: {error}"
    )

sys.exit(main())
