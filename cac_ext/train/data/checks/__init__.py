"""Faults in the data, found before a run: `check.quick_check` always, `check.check` on demand."""
