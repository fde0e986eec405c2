"""Tools around the project: set-up, checks, the demonstration. No production logic."""
