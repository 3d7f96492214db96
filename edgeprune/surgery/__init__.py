"""Carry a plan out: silence, shrink, prove."""
