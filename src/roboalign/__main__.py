"""Lets `python -m roboalign` do what the `roboalign` command does."""

from roboalign.cli.main import main

raise SystemExit(main())
