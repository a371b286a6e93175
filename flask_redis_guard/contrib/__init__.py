"""Support for further libraries, each imported only by those who use it."""
