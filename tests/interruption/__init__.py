"""What a turn leaves when an exception or a signal handler strikes it between any two opcodes."""
