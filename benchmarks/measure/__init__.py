"""Times, memory, the machine and its limits, and the files that keep them."""
