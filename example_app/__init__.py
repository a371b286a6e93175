"""A small application that is guarded, and that lets its visitor take Redis away from it."""
