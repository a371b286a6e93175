"""What the guard costs beside its peers, through the public API. `make bench` runs it all."""
