"""Reference statistics: made, imported, exported."""
