"""``python -m offsite`` is the command ``offsite``."""

from offsite.cli import main

main()
