"""`roboalign bench`: what the runtime costs, against other ways to run the same weights, in one run and interleaved.

`models` writes policies of random weights through the exporter's own graphs, `timing` measures contenders in turn,
`rows` says what was found against what was asked for, and each bench is a module of its own.
"""

from roboalign.bench.decode import run_decode
from roboalign.bench.draft import run_draft
from roboalign.bench.head import run_head
from roboalign.bench.models import PRECISIONS, SIZES
from roboalign.bench.prefix import run_prefix
from roboalign.bench.rivals import run_rivals
from roboalign.bench.rows import BenchConfig, BenchResult, Row, table_lines, write_result

__all__ = [
    "PRECISIONS",
    "SIZES",
    "BenchConfig",
    "BenchResult",
    "Row",
    "run_decode",
    "run_draft",
    "run_head",
    "run_prefix",
    "run_rivals",
    "table_lines",
    "write_result",
]
