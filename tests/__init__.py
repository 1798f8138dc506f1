"""The tests of gaio. `python3 -m tests` runs all of them; see tests/__main__.py."""
