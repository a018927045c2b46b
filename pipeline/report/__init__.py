"""The report of a run: one self-contained HTML page, a pure function of arrays and rows."""
