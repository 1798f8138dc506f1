"""What a user can observe, over every backend, with real sockets."""
