"""What only io_uring can get wrong: full queues, exhausted buffers, cancellation, memory that the kernel holds."""
