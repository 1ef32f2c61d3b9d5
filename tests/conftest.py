"""What is said at the end of a test run: the table of edits and their reruns, as ``edit_matrix`` has it."""

EDIT_ROW = "edit"
"""Name of the property under which a test reports a row: edit, expected, got."""


def pytest_terminal_summary(terminalreporter):
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    rows = [value for report in reports for name, value in report.user_properties if name == EDIT_ROW]
    if rows:
        from edit_matrix import table

        terminalreporter.section("edits of a finished study, and what runs again")
        terminalreporter.write_line(table(rows))
