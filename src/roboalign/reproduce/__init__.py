"""`roboalign reproduce`: a declared plan of arms and seeds, run by public commands, cached by content, and reported.

`plan` reads what is declared, `graph` makes steps of it, `states` and `cache` know what is done, `runner` runs the
rest, `ledger` holds the results, `analysis` says what they show, `table` and `page` write it down, `study` joins them.
"""

from roboalign.reproduce.study import Forecast, StudyConfig, forecast, report_ledger, run_study

__all__ = ["Forecast", "StudyConfig", "forecast", "report_ledger", "run_study"]
