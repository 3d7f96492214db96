"""One module a family of operators; importing `edgeprune.graph.rules.every` registers them all."""
