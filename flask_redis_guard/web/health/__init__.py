"""The health blueprint and the status page."""
