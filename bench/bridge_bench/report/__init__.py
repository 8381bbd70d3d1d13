"""A selection record for people: one HTML page, and the words it shares with the terminal."""
