"""One process, no engine: seconds. Run these after every change (`make check`)."""
