"""The stubs, as a user's type checker sees them."""
