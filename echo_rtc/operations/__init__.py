"""What operators read: the performance log, and the use of processor and memory."""
