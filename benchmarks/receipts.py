"""Prints the table of boards in docs/jetson.md from the receipts of `roboalign verify`; refuses a file that is none.

python benchmarks/receipts.py docs/receipts
"""

import argparse
from pathlib import Path

from roboalign.export import receipt_table

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/receipts"))
print(receipt_table(parser.parse_args().folder))
