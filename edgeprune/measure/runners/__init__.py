"""Where a measurement can run; one file a transport, named after it."""
