"""What is said at the end of a test run: the table of edits and their reruns, as ``edit_matrix`` has it."""

import os

EDIT_ROW = "edit"
"""Name of the property under which a test reports a row: edit, expected, got."""


def pytest_terminal_summary(terminalreporter):
    from slurm_lab import VARIABLE, lacking

    # Said whatever ran: by skipped tests alone nobody would learn how to get them.
    missing = lacking() or lacking(accounting=True)
    if missing and not os.environ.get(VARIABLE):
        what = "tests of SLURM" if lacking() else "tests of SLURM's accounting"
        terminalreporter.write_line(f"skipped: {what}: {missing}")
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    rows = [value for report in reports for name, value in report.user_properties if name == EDIT_ROW]
    if rows:
        from edit_matrix import table

        terminalreporter.section("edits of a finished study, and what runs again")
        terminalreporter.write_line(table(rows))
