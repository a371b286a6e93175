"""Pure decisions: standard library only, no I/O, no sleeping; clocks are injected."""
