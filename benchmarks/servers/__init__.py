"""The contenders: one real server a file, each written as its own documentation recommends."""
