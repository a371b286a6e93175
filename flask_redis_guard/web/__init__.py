"""The Flask features, independent of one another."""
