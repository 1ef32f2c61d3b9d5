"""All malformed inputs, as one table; ``python tests/bad_inputs.py`` prints it.

Each is one entry: how the input is made, how it is used, and what the one line about it has to name.
``test_bad_inputs.py`` holds them against: one line that begins with ``error: ``, a status other than 0, no traceback,
nothing half-written.
"""

from __future__ import annotations

import bad_commands
import bad_config
import bad_data
import bad_results
from bad_case import Case

CASES: list[Case] = [
    *bad_config.case.cases,
    *bad_data.case.cases,
    *bad_results.case.cases,
    *bad_commands.case.cases,
]


def main() -> None:
    """Print the table."""
    areas = list(dict.fromkeys(case.area for case in CASES))
    for area in areas:
        rows = [case for case in CASES if case.area == area]
        print(f"\n{area} ({len(rows)})")
        for case in rows:
            print(f"  {case.name:45}  {' | '.join(case.says)}{'  (command line)' if case.process else ''}")
    print(f"\n{len(CASES)} malformed inputs, {sum(case.process for case in CASES)} by the real command line")


if __name__ == "__main__":
    main()
