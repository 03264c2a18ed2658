"""Metrics: functions that score one patient's stack. No metric averages over patients."""
