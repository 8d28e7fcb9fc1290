"""What many processes that read the same samples cost in memory."""
