"""What a run leaves behind: bundle, manifest, report, JUnit, GitHub summary. No torch."""
