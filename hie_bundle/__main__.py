"""``python -m hie_bundle``: the command ``hie-bundle``."""

from hie_bundle import main

main()
