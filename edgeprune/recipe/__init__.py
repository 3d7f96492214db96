"""TOML to a frozen Recipe; the user's model and data, loaded and checked."""
