"""What to keep: cost, allocation and the plan."""
