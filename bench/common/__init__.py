"""What every measurement shares: the machine, timing, allocations, text and progress."""
