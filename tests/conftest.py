"""Settings of every test: hypothesis never judges by the clock, and finds the same examples on every machine."""

from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")
