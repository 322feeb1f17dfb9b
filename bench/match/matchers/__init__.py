"""The built-in matchers, one file each."""
