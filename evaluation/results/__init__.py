"""Results: one JSON each, and the tables and curves made of them."""
