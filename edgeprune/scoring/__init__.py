"""What matters: criteria that give every unit a score."""
