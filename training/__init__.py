"""The recipes of the bundled models, each reproducible from one command."""
