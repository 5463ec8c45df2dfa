"""HTTP around the endpoints: errors, keys, limits, operations, how answers are sent."""
