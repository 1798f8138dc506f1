"""The kernel's structures and constants, as literals: no kernel is asked, so every system is checked on any."""
