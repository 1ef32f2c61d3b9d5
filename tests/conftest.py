"""What is said at the end of a test run: the table of edits and their reruns, as ``edit_matrix`` has it."""

import os


def pytest_terminal_summary(terminalreporter):
    from slurm_lab import VARIABLE, lacking

    # Said whatever ran: by skipped tests alone nobody would learn how to get them.
    missing = lacking() or lacking(accounting=True)
    if missing and not os.environ.get(VARIABLE):
        what = "tests of SLURM" if lacking() else "tests of SLURM's accounting"
        terminalreporter.write_line(f"skipped: {what}: {missing}")
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    properties = [pair for report in reports for pair in report.user_properties]
    if properties:
        from edit_matrix import EDIT_ROW, table

        rows = [value for name, value in properties if name == EDIT_ROW]
        terminalreporter.section("edits of a finished study, and what runs again")
        terminalreporter.write_line(table(rows))
