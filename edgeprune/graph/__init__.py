"""What hangs together: capture a model, label its graph, find units, groups and pins."""
